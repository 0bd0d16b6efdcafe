//! WASI preview 1 command modules: `_start`, imports from `wasi_snapshot_preview1` only.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use wasmtime::{Engine, InstancePre, Linker, Module, Store, TypedFunc};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::outcome;
use super::settings::host;
use super::stdio::{Stderr, Stdin, Stdout};
use super::tenant::{self, Tenant};
use crate::engine::{Image, Invocation, Renewal, Reply, Sandbox, Timings};
use crate::error::Error;
use crate::function::{EngineKind, Function};

type State = Tenant<WasiP1Ctx>;

/// A command module, compiled and linked.
pub(super) struct CommandImage {
    function: Arc<Function>,
    pre: InstancePre<State>,
}

impl CommandImage {
    pub(super) fn new(engine: &Engine, function: Arc<Function>, module: &Module) -> Result<Self, Error> {
        let mut linker = Linker::new(engine);
        p1::add_to_linker_async(&mut linker, |tenant: &mut State| {
            tenant.wasi.as_mut().expect("instantiation calls no import")
        })
        .map_err(|e| host("linking WASI preview 1", e))?;
        let pre = linker
            .instantiate_pre(module)
            .map_err(|e| Error::Artifact { engine: EngineKind::Wasm, reason: format!("{e:#}") })?;
        Ok(Self { function, pre })
    }
}

#[async_trait]
impl Image for CommandImage {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        let manifest = &self.function.manifest;
        let deadline = Instant::now() + manifest.timeout;
        let mut store = tenant::store(self.pre.module().engine(), manifest.memory_bytes, deadline);
        let instance =
            self.pre.instantiate_async(&mut store).await.map_err(|e| outcome::start_failed(&store, e))?;
        let start = instance
            .get_typed_func::<(), ()>(&mut store, "_start")
            .map_err(|e| host("looking up _start", e))?;
        Ok(Box::new(CommandSandbox { image: self, ready: Some((store, start)) }))
    }

    fn renewal(&self) -> Renewal {
        Renewal::Restart
    }
}

struct CommandSandbox {
    image: Arc<CommandImage>,
    /// Taken by the one invocation.
    ready: Option<(Store<State>, TypedFunc<(), ()>)>,
}

#[async_trait]
impl Sandbox for CommandSandbox {
    async fn invoke(&mut self, call: Invocation) -> Result<Reply, Error> {
        let (mut store, start) = self.ready.take().ok_or_else(outcome::used)?;
        let started = Instant::now();
        let stdout = Stdout::new(call.output, started);
        let wasi =
            context(&self.image.function, &call.env, Stdin::new(call.input), stdout.clone(), call.log)?;
        store.data_mut().wasi = Some(wasi);
        store.data_mut().deadline = call.deadline;
        let run = start.call_async(&mut store, ());
        let ended = match tokio::time::timeout_at(call.deadline.into(), run).await {
            Ok(ended) => ended,
            Err(_) => Err(wasmtime::Error::new(tenant::DeadlinePassed)),
        };
        let run = started.elapsed();
        let exit = outcome::exit(ended, &stdout, &store, run)?;
        let timings = Timings { run, first_byte: stdout.first_byte() };
        Ok(Reply { exit, output: stdout.collected(), timings })
    }

    async fn reset(&mut self) -> Result<(), Error> {
        Err(outcome::used())
    }
}

fn context(
    function: &Function,
    env: &[(String, String)],
    stdin: Stdin,
    stdout: Stdout,
    log: Arc<dyn crate::engine::LogSink>,
) -> Result<WasiP1Ctx, Error> {
    let manifest = &function.manifest;
    let mut wasi = WasiCtxBuilder::new();
    wasi.stdin(stdin).stdout(stdout).stderr(Stderr(log));
    let entry = manifest.entry.rsplit('/').next().filter(|name| !name.is_empty());
    wasi.arg(entry.unwrap_or(manifest.name.as_str())).args(&manifest.args);
    for (name, value) in &manifest.env {
        if !env.iter().any(|(other, _)| other == name) {
            wasi.env(name, value);
        }
    }
    for (i, (name, value)) in env.iter().enumerate() {
        if !env[i + 1..].iter().any(|(other, _)| other == name) {
            wasi.env(name, value);
        }
    }
    for share in &manifest.shares {
        let perms = if share.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        wasi.preopened_dir(&share.source, &share.target, perms)
            .map_err(|e| host(format!("opening the shared directory {}", share.source.display()), e))?;
    }
    Ok(wasi.build_p1())
}
