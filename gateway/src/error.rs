//! Why the gateway could not do what a client asked. [`crate::status`] turns these into gRPC and HTTP statuses.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use novum_sandbox::EngineKind;
use novum_sandbox::function::FieldError;

use crate::artifacts::ArtifactError;
use crate::id::InvocationId;
use crate::registry::RegistryError;
use crate::timings::Timings;

/// A refusal or failure, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such function.
    #[error("there is no function {name:?}{}", nearest_hint(.nearest.as_deref()))]
    NoFunction {
        /// What was asked for.
        name: String,
        /// A deployed name that looks like it.
        nearest: Option<String>,
    },
    /// No such version.
    #[error("function {name} has no version {version}; it has {kept:?}")]
    NoVersion {
        /// The function.
        name: String,
        /// What was asked for.
        version: u64,
        /// What is there.
        kept: Vec<u64>,
    },
    /// No such sandbox or snapshot.
    #[error("there is no {what} {name:?}; `novum sandbox {}` lists them", if *.what == "sandbox" { "ls" } else { "snapshots" })]
    NoSandbox {
        /// "sandbox" or "snapshot".
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// The name is taken.
    #[error("there is a {what} {name:?} already; choose another name, or delete it")]
    SandboxExists {
        /// "sandbox" or "snapshot".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// As many sandbox sessions, or snapshots of them, as this gateway takes.
    #[error(
        "this gateway holds its {limit} sandboxes or snapshots; delete one, or start it with a larger --max-sessions"
    )]
    TooManySandboxes {
        /// The limit.
        limit: usize,
    },
    /// A sandbox could not do what was asked of it.
    #[error(transparent)]
    Session(novum_sandbox::session::SessionError),
    /// A command wrote more than its caller wanted.
    #[error("the command was killed: it wrote more than `output_bytes`, {limit_bytes} bytes")]
    CommandOutput {
        /// The limit.
        limit_bytes: u64,
    },
    /// A watcher read too slowly.
    #[error(
        "this watch was read too slowly and was cut off; begin another one, which tells the present first"
    )]
    WatchTooSlow,
    /// Fields of the request have impossible values.
    #[error("{}", fields_text(.0))]
    Fields(Vec<FieldError>),
    /// The engine is not there on this machine or in this build.
    #[error("the {engine} engine is not available here: {reason}")]
    EngineUnavailable {
        /// Which.
        engine: EngineKind,
        /// Why, and what to do.
        reason: String,
    },
    /// No engine of this gateway knows the artifact.
    #[error(
        "no engine recognises the artifact: it is neither a Wasm module or component nor an x86-64 ELF \
         program; check the file, or name the engine in the manifest"
    )]
    Unrecognised,
    /// A directory may not be shared.
    #[error("{field}: {} {reason}", .source_path.display())]
    Share {
        /// The request's field.
        field: String,
        /// The directory.
        source_path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// As many functions as this gateway takes.
    #[error(
        "this gateway holds its {limit} functions; delete one, or start it with a larger --max-functions"
    )]
    TooManyFunctions {
        /// The limit.
        limit: usize,
    },
    /// A payload or message over the limit.
    #[error(
        "the payload is larger than {limit_bytes} bytes; send it in pieces with InvokeStream, or start the gateway \
         with a larger --max-payload"
    )]
    PayloadTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// An artifact over the limit.
    #[error("the artifact has more than {limit}; start the gateway with a larger {flag}")]
    ArtifactTooLarge {
        /// The limit with its unit.
        limit: String,
        /// What raises it.
        flag: &'static str,
    },
    /// One more caller than may wait.
    #[error(
        "function {function} runs {max} invocations and {queue} more wait; try again later, or raise `pool.max` or \
         `pool.queue` in its manifest"
    )]
    QueueFull {
        /// The function.
        function: String,
        /// `pool.max`.
        max: u32,
        /// `pool.queue`.
        queue: u32,
        /// When a place may be free.
        retry_after: Duration,
    },
    /// The engine had no room for a sandbox.
    #[error("no room for another sandbox: {reason}")]
    Capacity {
        /// Which limit was met.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The gateway's memory budget is used up.
    #[error(
        "there is no memory for another sandbox of {function}: all sandboxes hold {held} of the gateway's budget of {limit} and \
         none is idle; try again later, lower `pool.max` or `memory` of the functions that hold most (`novum stats`), or \
         start the gateway with a larger --memory-budget"
    )]
    MemoryBudget {
        /// The function.
        function: String,
        /// What all sandboxes hold, for people.
        held: String,
        /// What they may hold, for people.
        limit: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The gateway's process may not open as many files as a sandbox needs.
    #[error(
        "there are no file descriptors for another sandbox: it needs {needed}, and this gateway has {open} of {limit} open; \
         delete sandboxes, or start the gateway with a larger hard limit (`ulimit -Hn`, LimitNOFILE= of a service)"
    )]
    Descriptors {
        /// What the sandbox takes.
        needed: u64,
        /// What is open.
        open: u64,
        /// What may be open.
        limit: u64,
    },
    /// The deadline passed before the program ran.
    #[error("the deadline passed after {waited:?} of waiting for a sandbox; nothing was run")]
    DeadlineBeforeStart {
        /// From arrival.
        waited: Duration,
    },
    /// The gateway is shutting down.
    #[error("this gateway is shutting down and takes no new invocations; try another one")]
    Draining,
    /// The function cannot be prepared any more.
    #[error("function {function} version {version} cannot run on this gateway: {reason}")]
    NotPrepared {
        /// The function.
        function: String,
        /// Its version.
        version: u64,
        /// Why.
        reason: String,
    },
    /// A run was ended by the gateway or by the host.
    #[error("{error}")]
    Stopped {
        /// Why.
        error: StoppedBy,
        /// What is known of the run.
        run: Box<FailedRun>,
    },
    /// An engine refused a deploy.
    #[error(transparent)]
    Engine(novum_sandbox::Error),
    /// The artifact could not be stored.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A task of the gateway died.
    #[error("internal error: {0}; please report it with the gateway's log")]
    Internal(String),
}

/// What ended a run.
#[derive(Debug, thiserror::Error)]
pub enum StoppedBy {
    /// The engine: deadline, limits, host.
    #[error(transparent)]
    Engine(#[from] novum_sandbox::Error),
    /// The engine did not end it in time by itself.
    #[error("the deadline passed after {after:?} of running")]
    Deadline {
        /// Of running.
        after: Duration,
    },
    /// The drain timeout passed.
    #[error("the gateway was shut down before the invocation ended; try another gateway")]
    Shutdown,
}

/// A run that did not end by itself.
#[derive(Clone, Debug)]
pub struct FailedRun {
    /// Its name in the logs.
    pub invocation: InvocationId,
    /// The end of its standard error.
    pub log_tail: Bytes,
    /// Where its time went.
    pub timings: Timings,
    /// Its engine.
    pub engine: EngineKind,
}

impl Error {
    /// One field with an impossible value.
    pub fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Fields(vec![FieldError { field: field.into(), reason: reason.into() }])
    }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "; `novum functions` lists what is deployed".to_owned(),
        |name| format!("; did you mean {name:?}?"),
    )
}

fn fields_text(fields: &[FieldError]) -> String {
    fields.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
