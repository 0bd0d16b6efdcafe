//! The second contract of an engine: sandboxes that live between calls, in which commands run and files lie.
//!
//! ```text
//! Sessions::create(SessionSpec) ──> Session ──exec──> ExitStatus
//!                                     │ ├─ read_file, write_file     a piece at a time: the caller's pace
//!                                     │ ├─ pause, resume, resize
//!                                     │ └─ snapshot ──> SessionSnapshot ──create──> Session   (a fork is the two in a row)
//!                                     └─ ended     it went away by itself
//! ```
//! Not every engine can do everything; what it cannot is [`SessionError::Unsupported`] with the reason. Dropping a
//! [`Session`] ends it with everything in it.

use std::path::PathBuf;
use std::sync::Arc;
#[cfg(feature = "vm")]
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::engine::ExitStatus;
use crate::error::Error;
use crate::function::{EngineKind, Share};

/// Where a command is looked for, unless its environment says it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A command has no deadline of its own: whoever runs it gives it up.
#[cfg(feature = "vm")]
pub(crate) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Longest piece of a file in one call.
pub const MOST_FILE_PIECE_BYTES: usize = 64 << 10;

/// Why a session could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The engine cannot do this at all.
    #[error("a sandbox of the {engine} engine cannot {operation}: {reason}")]
    Unsupported {
        /// Which engine.
        engine: EngineKind,
        /// What was asked, as in "run a command in a terminal".
        operation: &'static str,
        /// Why not, and what to do instead.
        reason: String,
    },
    /// The command cannot be started: no such program, not one that runs here, no such directory.
    #[error("{program} does not start: {reason}")]
    Command {
        /// What was to run.
        program: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Its path in the sandbox.
        path: String,
        /// What happened, in words.
        reason: String,
        /// What kind of refusal it is.
        kind: FileFailure,
    },
    /// Not now: a command runs, or the sandbox is paused.
    #[error("{0}")]
    Busy(String),
    /// The sandbox has ended.
    #[error("the sandbox has ended: {0}")]
    Ended(String),
    /// The engine failed, or met a limit.
    #[error(transparent)]
    Engine(#[from] Error),
}

#[cfg(feature = "vm")]
impl SessionError {
    /// What Linux's error number `errno` says of the file `path`.
    pub(crate) fn file(path: &str, errno: i32) -> Self {
        let reason = match errno {
            libc_errno::EINVAL => "it is no regular file, or the position is impossible".into(),
            errno => std::io::Error::from_raw_os_error(errno).to_string(),
        };
        Self::File { path: path.into(), reason, kind: FileFailure::of_errno(errno) }
    }
}

/// An environment with additions, which win.
#[cfg(feature = "vm")]
pub(crate) fn merged(mut env: Vec<(String, String)>, added: &[(String, String)]) -> Vec<(String, String)> {
    for (name, value) in added {
        env.retain(|(other, _)| other != name);
        env.push((name.clone(), value.clone()));
    }
    env
}

/// Why a file operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFailure {
    /// There is no such file or directory.
    NotFound,
    /// The path cannot be one, or names something that has no bytes to read or write.
    Invalid,
    /// The sandbox may not do it: a read-only share, a path that leads out of a share.
    Denied,
    /// No room.
    Full,
    /// Anything else.
    Other,
}

impl FileFailure {
    /// Of an error number of Linux.
    #[must_use]
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc_errno::ENOENT => Self::NotFound,
            libc_errno::EACCES | libc_errno::EPERM | libc_errno::EROFS | libc_errno::EXDEV => Self::Denied,
            libc_errno::ENOSPC | libc_errno::EDQUOT | libc_errno::EFBIG | libc_errno::EMFILE => Self::Full,
            libc_errno::ENOTDIR
            | libc_errno::EISDIR
            | libc_errno::EINVAL
            | libc_errno::ELOOP
            | libc_errno::ENAMETOOLONG => Self::Invalid,
            _ => Self::Other,
        }
    }
}

/// Error numbers of Linux on x86-64 (asm-generic/errno-base.h, errno.h): a guest's are these whatever the host is.
mod libc_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EXDEV: i32 = 18;
    pub(super) const ENOTDIR: i32 = 20;
    pub(super) const EISDIR: i32 = 21;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EMFILE: i32 = 24;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
    pub(super) const ENAMETOOLONG: i32 = 36;
    pub(super) const ELOOP: i32 = 40;
    pub(super) const EDQUOT: i32 = 122;
}

/// What a session is made from. The caller has checked names, sizes and which directories may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSpec {
    /// The sandbox's name, for threads, logs and as a guest's host name.
    pub name: String,
    /// Host directories that are the root, read-only; an earlier one hides what a later one has. What the sandbox writes
    /// stays in it.
    pub layers: Vec<PathBuf>,
    /// A host directory that keeps what the sandbox writes to its root, for the next one; it is this sandbox's alone.
    pub upper: Option<PathBuf>,
    /// A host file that is put into the root: its absolute path there, and the file.
    pub program: Option<(String, PathBuf)>,
    /// Host directories in the sandbox.
    pub shares: Vec<Share>,
    /// Of every command, unless the command says otherwise.
    pub env: Vec<(String, String)>,
    /// Memory of the whole sandbox.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
}

/// Makes sessions: an engine's second face.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// A new session that takes commands.
    ///
    /// # Errors
    /// What the engine cannot do, refuses, or fails in.
    async fn create(&self, spec: SessionSpec) -> Result<Arc<dyn Session>, SessionError>;
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program and its arguments; a program without a slash is looked for in `PATH`.
    pub args: Vec<String>,
    /// Added to the session's environment, these win.
    pub env: Vec<(String, String)>,
    /// Absolute; `/` where empty.
    pub working_directory: String,
    /// User, group, further groups; root where `None`.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// A terminal of so many rows and columns instead of pipes.
    pub terminal: Option<(u16, u16)>,
}

/// What a command reads and writes. Full channels make it wait; one whose receiver is gone is a closed pipe.
pub struct ExecStreams {
    /// Standard input; the sender's drop is its end.
    pub input: mpsc::Receiver<Bytes>,
    /// Standard output, or the terminal's.
    pub output: mpsc::Sender<Bytes>,
    /// Standard error.
    pub error: mpsc::Sender<Bytes>,
    /// What is done to the command meanwhile.
    pub control: mpsc::Receiver<ExecControl>,
}

/// What can be done to a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecControl {
    /// A signal, as Linux numbers it, to the command's process group.
    Signal(u32),
    /// The terminal has so many rows and columns now.
    Resize(u16, u16),
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePiece {
    /// Its bytes, at most [`MOST_FILE_PIECE_BYTES`]; none at and behind the file's end.
    pub data: Bytes,
}

/// A piece to write.
#[derive(Clone, Debug)]
pub struct FileWrite {
    /// Absolute path in the sandbox.
    pub path: String,
    /// What to do with what is there.
    pub place: WritePlace,
    /// At most [`MOST_FILE_PIECE_BYTES`].
    pub data: Bytes,
}

/// Where a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePlace {
    /// Into a new file, or one that is emptied first.
    Anew {
        /// Permissions of a new file.
        mode: u32,
        /// Whether the directories that lead to it are made.
        make_directories: bool,
    },
    /// Behind what is there; the file is made where it is missing.
    Append {
        /// As with `Anew`.
        mode: u32,
        /// As with `Anew`.
        make_directories: bool,
    },
    /// At this position of a file that is there.
    At(u64),
}

/// One sandbox that lives between calls. Its methods may be called at the same time.
#[async_trait]
pub trait Session: Send + Sync + 'static {
    /// Runs a command to its end; `started` is told when it runs. Dropping the future kills it.
    ///
    /// # Errors
    /// Where it does not start, or does not come to its own end.
    async fn exec(
        &self,
        command: Exec,
        streams: ExecStreams,
        started: tokio::sync::oneshot::Sender<()>,
    ) -> Result<ExitStatus, SessionError>;

    /// At most `length` bytes of a regular file from `offset` on.
    ///
    /// # Errors
    /// [`SessionError::File`].
    async fn read_file(&self, path: &str, offset: u64, length: usize) -> Result<FilePiece, SessionError>;

    /// Writes a piece of a regular file; where it ends.
    ///
    /// # Errors
    /// [`SessionError::File`].
    async fn write_file(&self, write: FileWrite) -> Result<u64, SessionError>;

    /// Stops its processors; when it returns, nothing in it runs.
    ///
    /// # Errors
    /// Where the engine cannot.
    async fn pause(&self) -> Result<(), SessionError>;

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the engine cannot.
    async fn resume(&self) -> Result<(), SessionError>;

    /// Takes memory from it while it runs, or gives it back, up to what it was made with; how much it has then. Whoever
    /// needs more than is left to him takes it back by himself.
    ///
    /// # Errors
    /// Where the engine cannot, or the size is impossible.
    async fn resize(&self, memory_bytes: u64) -> Result<u64, SessionError>;

    /// Keeps its state; it goes on.
    ///
    /// # Errors
    /// Where the engine cannot, or not now.
    async fn snapshot(&self) -> Result<Arc<dyn SessionSnapshot>, SessionError>;

    /// Memory that only it holds: pages, private files, the kernel's part.
    fn private_bytes(&self) -> u64;

    /// Returns how it ended, when it ends by itself.
    async fn ended(&self) -> String;
}

/// A kept state of a session. Dropping it gives back what it holds; sessions made from it live on.
#[async_trait]
pub trait SessionSnapshot: Send + Sync + 'static {
    /// A new session in this state, under this name.
    ///
    /// # Errors
    /// As [`Sessions::create`].
    async fn create(&self, name: &str) -> Result<Arc<dyn Session>, SessionError>;

    /// What it holds, as in "files".
    fn holds(&self) -> &'static str;

    /// Memory or disk that it takes.
    fn bytes(&self) -> u64;

    /// The part of it that is memory.
    fn memory_bytes(&self) -> u64;
}
