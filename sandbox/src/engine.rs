//! The contract between the gateway and an engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::function::{EngineKind, Function};
use crate::session::Sessions;

/// One kind of isolation.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Which one.
    fn kind(&self) -> EngineKind;

    /// Slow path, once per deployed version: check, compile, or boot and snapshot. Results are cached on disk by
    /// digest, so preparing the same function again after a restart of the gateway is quick.
    ///
    /// # Errors
    /// [`Error::Artifact`] where the artifact cannot be run by this engine, [`Error::Unavailable`] where this
    /// machine cannot run it, [`Error::Host`] for the rest.
    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn Image>, Error>;

    /// Its sandboxes that live between calls, where it has such.
    fn sessions(&self) -> Option<&dyn Sessions> {
        None
    }
}

/// A function that is ready to be started any number of times.
#[async_trait]
pub trait Image: Send + Sync + 'static {
    /// Fast path, per cold start.
    ///
    /// # Errors
    /// [`Error::Capacity`] where the engine has no room now, [`Error::Host`] where the host failed.
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error>;

    /// The same for a sandbox that nobody waits for: it takes nothing that is kept ready for those who do, and rather costs
    /// less memory than time.
    ///
    /// # Errors
    /// As [`Self::start`].
    async fn start_ahead(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        self.start().await
    }

    /// What brings a sandbox of this image to a clean state after an invocation.
    fn renewal(&self) -> Renewal;

    /// Memory that all living sandboxes of this image hold now and that their end would give back: pages that only
    /// they have (a page of the image that nobody wrote to is shared and does not count), and the kernel's part.
    ///
    /// Called several times a second from a thread that serves no request; it must not make runs wait.
    fn private_bytes(&self) -> u64;
}

/// How a sandbox gets its clean state for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Destroy it and start another: starting is as cheap as cleaning.
    Restart,
    /// Call [`Sandbox::reset`] and use it again.
    Reset,
}

/// One isolated tenant, for one invocation at a time.
#[async_trait]
pub trait Sandbox: Send {
    /// Runs the function once. Dropping the future cancels the run; the sandbox must then be destroyed.
    ///
    /// # Errors
    /// Only what the program did not do by itself: limits, deadline, host failures. A crash or an exit code other
    /// than 0 is an `Ok` reply. [`Error::disposition`] says what becomes of the sandbox.
    async fn invoke(&mut self, call: Invocation) -> Result<Reply, Error>;

    /// Back to the image's state, completely: nothing that the last invocation left can be observed.
    ///
    /// # Errors
    /// The sandbox must then be destroyed.
    async fn reset(&mut self) -> Result<(), Error>;
}

/// One request to a function.
pub struct Invocation {
    /// Added to the manifest's environment, later entries win. The caller has checked the names against
    /// [`Manifest::allow_env`](crate::function::Manifest::allow_env).
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub input: Input,
    /// Standard output.
    pub output: Output,
    /// Standard error.
    pub log: Arc<dyn LogSink>,
    /// The run is stopped with [`Error::Deadline`] when this passes.
    pub deadline: Instant,
}

/// Where standard input comes from.
pub enum Input {
    /// All of it is here.
    Bytes(Bytes),
    /// It comes in pieces; the sender's drop is the end of file. The engine takes a piece only when the program
    /// reads, so a small channel gives back-pressure to the client.
    Stream(mpsc::Receiver<Bytes>),
}

/// Where standard output goes.
pub enum Output {
    /// Into [`Reply::output`], at most this many bytes; more ends the run with [`Error::OutputLimit`].
    Collect {
        /// The limit.
        limit_bytes: usize,
    },
    /// Piece by piece as the program writes it. A full channel makes the program wait; a closed one is a
    /// cancellation ([`Error::Cancelled`]).
    Stream(mpsc::Sender<Bytes>),
}

/// Takes standard error. Called from any thread, must not block; it bounds what it keeps by itself.
pub trait LogSink: Send + Sync {
    /// The next bytes; pieces need not end at line ends.
    fn write(&self, bytes: &[u8]);
}

/// How an invocation ended by the program's own doing.
#[derive(Debug)]
pub struct Reply {
    /// The outcome.
    pub exit: ExitStatus,
    /// Standard output, where it was collected.
    pub output: Bytes,
    /// The engine's part of the timings.
    pub timings: Timings,
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// The program's exit code; 0 is success.
    Code(i32),
    /// It crashed.
    Fault(Fault),
}

impl ExitStatus {
    /// Exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// A crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `trap` for Wasm, the signal's name (`SIGSEGV`) for programs.
    pub kind: String,
    /// What happened and where.
    pub message: String,
}

/// The engine's part of an invocation's timings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From handing over the input until the guest ran: what the engine did before the program's next instruction.
    pub resumed: Duration,
    /// From handing over the input to the program's end.
    pub run: Duration,
    /// From handing over the input to the first byte of output; `None` when there was none.
    pub first_byte: Option<Duration>,
}
