//! An invocation's way, the same for gRPC and HTTP: admitted ── function found ── fields checked ── sandbox leased ──
//! run ── counted and noted. Dropping the future at any point ends the invocation and frees its sandbox.
//!
//! Nothing here touches the disk or a lock that is held for long, and nothing is formatted unless somebody reads it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::function::{EngineKind, check_env};
use novum_sandbox::{Error as SandboxError, ExitStatus, Input, Invocation, Output, Reply};
use tokio::sync::mpsc;

use crate::core::Core;
use crate::error::{Error, FailedRun, StoppedBy};
use crate::functions::Deployment;
use crate::id::InvocationId;
use crate::image::ImageError;
use crate::logs::InvocationLog;
use crate::metrics::Count;
use crate::note::{Note, Outcome, Stop};
use crate::pool::{Lease, LeaseError};
use crate::timings::{Clocks, Timings};
use crate::units::format_size;

/// How much longer than its deadline an engine may take to end a run by itself.
const GRACE: Duration = Duration::from_millis(500);
/// Hints to clients on when to try again stay between these.
const RETRY_AT_LEAST: Duration = Duration::from_millis(10);
const RETRY_AT_MOST: Duration = Duration::from_secs(5);

/// A request to run a function.
pub struct Call<'a> {
    /// The function's name.
    pub function: &'a str,
    /// 0: the current version.
    pub version: u64,
    /// Added to the manifest's environment.
    pub env: Vec<(String, String)>,
    /// `env` comes from HTTP headers, which know no case: names are those of `allow_env` that match without it.
    pub env_without_case: bool,
    /// Time it may take from `arrived` on.
    pub timeout: Option<Duration>,
    /// When the request came.
    pub arrived: Instant,
    /// Standard input.
    pub input: Input,
    /// Takes standard output as it comes; without it the reply carries it.
    pub output: Option<mpsc::Sender<Bytes>>,
    /// Takes standard error as it comes.
    pub log: Option<mpsc::Sender<Bytes>>,
}

/// An invocation that ended by itself.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub exit: ExitStatus,
    /// Its standard output, where it was collected.
    pub output: Bytes,
    /// The end of its standard error.
    pub log_tail: Bytes,
    /// Where its time went.
    pub timings: Timings,
    /// Its engine.
    pub engine: EngineKind,
    /// Its name in the logs.
    pub invocation: InvocationId,
    /// The version that ran.
    pub version: u64,
}

impl Core {
    /// Runs a function once.
    ///
    /// # Errors
    /// Everything that is not the program's own end.
    pub async fn invoke(&self, call: Call<'_>) -> Result<Done, Error> {
        let _admitted = self.admit()?;
        let deployment = self.functions.find(call.function, call.version)?;
        let env = allowed_env(&deployment, call.env, call.env_without_case)?;
        let limit = deployment.record.manifest.timeout;
        let deadline = call.arrived + call.timeout.map_or(limit, |timeout| timeout.min(limit));
        let lease = lease(&deployment, call.arrived, deadline).await?;
        let (invocation, output_bytes) = (InvocationId::next(), deployment.record.manifest.output_bytes);
        let log = InvocationLog::new(
            Arc::clone(&deployment.shared.log),
            deployment.record.version,
            invocation,
            call.log,
        );
        let output = match call.output {
            Some(sender) => Output::Stream(sender),
            None => Output::Collect { limit_bytes: usize::try_from(output_bytes).unwrap_or(usize::MAX) },
        };
        let work = Invocation { env, input: call.input, output, log: Arc::clone(&log) as _, deadline };
        Run::new(&deployment, lease, invocation, log, call.arrived).finish(self, work).await
    }
}

fn allowed_env(
    deployment: &Deployment,
    mut env: Vec<(String, String)>,
    without_case: bool,
) -> Result<Vec<(String, String)>, Error> {
    let allowed = &deployment.record.manifest.allow_env;
    for (name, value) in &mut env {
        let known = match allowed.get(name.as_str()) {
            None if without_case => allowed.iter().find(|known| known.eq_ignore_ascii_case(name)),
            exact => exact,
        };
        let Some(known) = known else {
            let function = deployment.record.manifest.name.as_str();
            let reason =
                format!("{function} does not allow it; its manifest's `allow_env` lists what may be set");
            return Err(Error::field(format!("env.{name}"), reason));
        };
        name.clone_from(known);
        check_env(name, value).map_err(|reason| Error::field(format!("env.{name}"), reason))?;
    }
    Ok(env)
}

/// A sandbox for the call; counts the calls that get none.
async fn lease(deployment: &Deployment, arrived: Instant, deadline: Instant) -> Result<Lease, Error> {
    struct Waiting<'a>(Option<&'a Deployment>);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            if let Some(deployment) = self.0 {
                deployment.shared.stats.count(Count::Abandoned);
            }
        }
    }
    let mut waiting = Waiting(Some(deployment));
    let lease = deployment.pool.lease(arrived, deadline).await;
    if !matches!(lease, Err(LeaseError::Deadline)) {
        waiting.0 = None;
    }
    lease.map_err(|error| no_lease(deployment, arrived, error))
}

fn no_lease(deployment: &Deployment, arrived: Instant, error: LeaseError) -> Error {
    let (manifest, stats) = (&deployment.record.manifest, &deployment.shared.stats);
    let function = manifest.name.to_string();
    match error {
        LeaseError::Refused => {
            stats.count(Count::Refused);
            let (max, queue) = (manifest.pool.max, manifest.pool.queue);
            Error::QueueFull { function, max, queue, retry_after: retry_after(deployment) }
        }
        LeaseError::Deadline => Error::DeadlineBeforeStart { waited: arrived.elapsed() },
        LeaseError::NoMemory(full) => {
            stats.count(Count::Refused);
            let [held, limit] = [full.held_bytes, full.limit_bytes].map(format_size);
            Error::MemoryBudget { function, held, limit, retry_after: retry_after(deployment) }
        }
        LeaseError::Image(ImageError::Start(SandboxError::Capacity { reason })) => {
            stats.count(Count::Refused);
            Error::Capacity { reason, retry_after: retry_after(deployment) }
        }
        LeaseError::Image(ImageError::Start(error @ SandboxError::Host { .. })) => {
            stats.count(Count::Stopped(Stop::Host));
            tracing::error!(%function, error = %crate::engines::with_causes(&error), "a sandbox did not start");
            Error::Engine(error)
        }
        LeaseError::Image(error) => {
            stats.count(Count::Stopped(Stop::Host));
            let version = deployment.record.version;
            Error::NotPrepared { function, version, reason: error.to_string() }
        }
    }
}

/// About when the calls that wait now will have been served.
fn retry_after(deployment: &Deployment) -> Duration {
    let typical = deployment.shared.stats.recent_quantile(0.5).unwrap_or(RETRY_AT_LEAST);
    let now = deployment.pool.occupancy();
    let rounds = 1 + now.queued / deployment.record.manifest.pool.max.max(1);
    (typical * rounds).clamp(RETRY_AT_LEAST, RETRY_AT_MOST)
}

/// One invocation that has its sandbox. Counted and noted exactly once, also when it is dropped.
struct Run<'a> {
    deployment: &'a Deployment,
    lease: Lease,
    invocation: InvocationId,
    log: Arc<InvocationLog>,
    arrived: Instant,
    began: Instant,
    timings: Timings,
    ended: bool,
}

impl<'a> Run<'a> {
    fn new(
        deployment: &'a Deployment,
        lease: Lease,
        invocation: InvocationId,
        log: Arc<InvocationLog>,
        arrived: Instant,
    ) -> Self {
        let began = Instant::now();
        let clocks = Clocks { ready: began - arrived, ..Clocks::default() };
        let (queued, start, cold) = (lease.queued, lease.start, lease.cold);
        let timings = Timings { queued, start, cold, clocks, ..Timings::default() };
        Self { deployment, lease, invocation, log, arrived, began, timings, ended: false }
    }

    async fn finish(mut self, core: &Core, work: Invocation) -> Result<Done, Error> {
        let deadline = work.deadline;
        // The two last branches are only looked at when the run does not end at its first poll.
        let result = tokio::select! {
            biased;
            result = self.lease.sandbox().invoke(work) => result.map_err(StoppedBy::Engine),
            () = core.stop.cancelled() => Err(StoppedBy::Shutdown),
            () = tokio::time::sleep_until((deadline + GRACE).into()) => {
                Err(StoppedBy::Deadline { after: self.began.elapsed() })
            }
        };
        match result {
            Ok(reply) => Ok(self.succeed(reply)),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn succeed(&mut self, reply: Reply) -> Done {
        self.lease.decide(novum_sandbox::Disposition::Reset);
        let of_engine = reply.timings;
        self.timings.run = of_engine.run;
        self.timings.first_byte = of_engine.first_byte;
        // The engine counts from the input's handing over, which is when the sandbox was ready.
        let ready = self.timings.clocks.ready;
        self.timings.clocks.resumed = Some(ready + of_engine.resumed);
        self.timings.clocks.first_byte = of_engine.first_byte.map(|first| ready + first);
        let log_tail = self.log.finish();
        let outcome = match &reply.exit {
            ExitStatus::Code(0) => Outcome::Ok,
            ExitStatus::Code(code) => Outcome::Exit(*code),
            ExitStatus::Fault(fault) => Outcome::Fault(fault.kind.replace([' ', ':'], "-")),
        };
        let message = || match &reply.exit {
            ExitStatus::Fault(fault) => fault.message.clone(),
            ExitStatus::Code(_) => String::new(),
        };
        self.end(outcome, reply.output.len(), message);
        Done {
            exit: reply.exit,
            output: reply.output,
            log_tail,
            timings: self.timings,
            engine: self.deployment.record.engine,
            invocation: self.invocation,
            version: self.deployment.record.version,
        }
    }

    fn fail(&mut self, error: StoppedBy) -> Error {
        if let StoppedBy::Engine(error) = &error {
            self.lease.decide(error.disposition());
            if let SandboxError::Host { .. } = error {
                let function = &self.deployment.record.manifest.name;
                let causes = crate::engines::with_causes(error);
                tracing::error!(%function, invocation = %self.invocation, error = %causes, "a run failed");
            }
        }
        self.timings.run = self.began.elapsed();
        let log_tail = self.log.finish();
        self.end(Outcome::Stopped(stop(&error)), 0, || error.to_string());
        let run = FailedRun {
            invocation: self.invocation,
            log_tail,
            timings: self.timings,
            engine: self.deployment.record.engine,
        };
        Error::Stopped { error, run: Box::new(run) }
    }

    /// Counts, and writes the note if it has a reader.
    fn end(&mut self, outcome: Outcome, out_bytes: usize, message: impl FnOnce() -> String) {
        self.ended = true;
        self.timings.clocks.answered = self.arrived.elapsed();
        let shared = &self.deployment.shared;
        shared.stats.record(Count::from(&outcome), &self.timings);
        if outcome == Outcome::Ok && !shared.log.followed() {
            return;
        }
        let note = Note {
            outcome,
            engine: self.deployment.record.engine.as_str().to_owned(),
            cold: self.timings.cold,
            queued: self.timings.queued,
            start: self.timings.start,
            run: self.timings.run,
            out_bytes: out_bytes as u64,
            message: message(),
        };
        shared.log.note(self.deployment.record.version, self.invocation, &note);
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.timings.run = self.began.elapsed();
            // Ends the last line; nobody is there for the tail.
            let _ = self.log.finish();
            self.end(Outcome::Stopped(Stop::Cancelled), 0, || SandboxError::Cancelled.to_string());
        }
    }
}

fn stop(error: &StoppedBy) -> Stop {
    match error {
        StoppedBy::Engine(error) => match error {
            SandboxError::Deadline { .. } => Stop::Deadline,
            SandboxError::MemoryLimit { .. } => Stop::Memory,
            SandboxError::OutputLimit { .. } => Stop::Output,
            SandboxError::Cancelled => Stop::Cancelled,
            SandboxError::Artifact { .. }
            | SandboxError::Manifest { .. }
            | SandboxError::Unavailable { .. }
            | SandboxError::Capacity { .. }
            | SandboxError::Host { .. } => Stop::Host,
        },
        StoppedBy::Deadline { .. } => Stop::Deadline,
        StoppedBy::Shutdown => Stop::Draining,
    }
}
