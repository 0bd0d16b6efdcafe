//! Images and sandboxes of the wasm engine, for every kind of program.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use wasmtime::Store;

use super::call::Call;
use super::drive::{GivenUp, LongRuns, drive};
use super::outcome;
use super::stdout::{Stderr, Stdout};
use super::tenant::{self, Held, Tenant};
use crate::engine::{ExitStatus, Image, Input, Invocation, Renewal, Reply, Sandbox, Timings};
use crate::error::Error;
use crate::function::Function;

/// Longest that making an instance may compute outside an invocation.
const START_LIMIT: Duration = Duration::from_secs(1);
/// Time slices that making an instance may take; one or two may end by chance.
const START_SLICES: u32 = 2;

/// A kind of program: what its instance is and how one is called.
pub(super) trait Kind: Send + Sync + 'static {
    /// The WASI state of its stores. The default one belongs to nobody and shows nothing.
    type Wasi: Default + Send + 'static;
    /// What an instance gives to call.
    type Instance: Send + 'static;
    /// What [`Kind::enter`] leaves for [`Kind::run`].
    type Task: Send + 'static;

    /// The engine that it was compiled for.
    fn engine(&self) -> &wasmtime::Engine;

    /// Makes an instance.
    fn instantiate(
        &self,
        store: &mut Store<Tenant<Self::Wasi>>,
    ) -> impl Future<Output = wasmtime::Result<Self::Instance>> + Send;

    /// Whether making the instance called the host.
    fn touched(wasi: &Self::Wasi) -> bool;

    /// Gives the invocation to the store.
    fn enter(store: &mut Store<Tenant<Self::Wasi>>, call: Call, input: Input) -> Result<Self::Task, Error>;

    /// Runs the instance to its end.
    fn run(
        store: &mut Store<Tenant<Self::Wasi>>,
        instance: Self::Instance,
        task: Self::Task,
    ) -> impl Future<Output = wasmtime::Result<ExitStatus>> + Send;
}

/// A program, compiled and linked.
pub(super) struct WasmImage<K: Kind> {
    function: Arc<Function>,
    kind: K,
    long: Arc<LongRuns>,
    held: Held,
    /// Making an instance runs code that calls the host or computes for long, so it belongs to the invocation.
    late: bool,
}

impl<K: Kind> WasmImage<K> {
    /// Makes one instance for trial: it shows whether an instance can be made at all, and what that does.
    pub(super) async fn prepare(
        kind: K,
        function: Arc<Function>,
        long: Arc<LongRuns>,
    ) -> Result<Self, Error> {
        let mut image = Self { function, kind, long, held: Held::default(), late: false };
        let mut store = image.store();
        let made = image.kind.instantiate(&mut store).await;
        let tenant = store.data();
        image.late = K::touched(&tenant.wasi) || tenant.slices.used() > START_SLICES;
        match made {
            Err(error) if !image.late => Err(outcome::trial_failed(tenant, &error)),
            _ => Ok(image),
        }
    }

    fn store(&self) -> Store<Tenant<K::Wasi>> {
        let deadline = Instant::now() + START_LIMIT;
        tenant::store(self.kind.engine(), self.function.manifest.memory_bytes, &self.held, deadline)
    }
}

#[async_trait]
impl<K: Kind> Image for WasmImage<K> {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        let mut store = self.store();
        let instance = if self.late {
            None
        } else {
            let made = self.kind.instantiate(&mut store).await;
            Some(made.map_err(|error| outcome::start_failed(store.data(), error))?)
        };
        Ok(Box::new(WasmSandbox { image: self, fresh: true, store: Some(store), instance }))
    }

    fn renewal(&self) -> Renewal {
        Renewal::Restart
    }

    /// Linear memory as it was grown; what the program never touched is counted too.
    fn private_bytes(&self) -> u64 {
        self.held.bytes()
    }
}

/// One instance, for one invocation.
struct WasmSandbox<K: Kind> {
    image: Arc<WasmImage<K>>,
    /// No invocation yet.
    fresh: bool,
    /// Away during the invocation; back after it, so that the reply does not wait for the memory to be cleaned.
    store: Option<Store<Tenant<K::Wasi>>>,
    /// Taken by the invocation; `None` before it where the image is late.
    instance: Option<K::Instance>,
}

#[async_trait]
impl<K: Kind> Sandbox for WasmSandbox<K> {
    async fn invoke(&mut self, call: Invocation) -> Result<Reply, Error> {
        let Invocation { env, input, output, log, deadline } = call;
        let fresh = std::mem::take(&mut self.fresh);
        let mut store = self.store.take().filter(|_| fresh).ok_or_else(outcome::used)?;
        let instance = self.instance.take();
        let started = Instant::now();
        let stdout = Stdout::new(output, started);
        let call = Call {
            function: Arc::clone(&self.image.function),
            env,
            stdout: stdout.clone(),
            stderr: Stderr(log),
            started,
        };
        let task = K::enter(&mut store, call, input)?;
        store.set_epoch_deadline(1);
        store.data_mut().deadline = deadline;
        let slices = store.data().slices.clone();
        let image = Arc::clone(&self.image);
        let run = Box::pin(async move {
            let (resumed, ended) = run(&image.kind, &mut store, instance, task, started).await;
            (store, ended, resumed, started.elapsed())
        });
        let (store, ended, resumed, run) = match drive(run, &slices, deadline, &self.image.long).await {
            Ok(done) => done,
            Err(GivenUp::Deadline) => return Err(Error::Deadline { after: started.elapsed() }),
            Err(GivenUp::Lost(error)) => return Err(Error::host("running the function", error)),
        };
        let exit = outcome::exit(ended, &stdout, store.data(), run);
        self.store = Some(store);
        let timings = Timings { resumed, run, first_byte: stdout.first_byte() };
        Ok(Reply { exit: exit?, output: stdout.collected(), timings })
    }

    async fn reset(&mut self) -> Result<(), Error> {
        Err(outcome::used())
    }
}

async fn run<K: Kind>(
    kind: &K,
    store: &mut Store<Tenant<K::Wasi>>,
    instance: Option<K::Instance>,
    task: K::Task,
    started: Instant,
) -> (Duration, wasmtime::Result<ExitStatus>) {
    let instance = match instance {
        Some(instance) => Ok(instance),
        None => kind.instantiate(store).await,
    };
    let resumed = started.elapsed();
    match instance {
        Ok(instance) => (resumed, K::run(store, instance, task).await),
        Err(error) => (resumed, Err(error)),
    }
}
