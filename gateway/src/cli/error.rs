//! Why a command failed: one line that says what, a second that says what to do, and an exit code that scripts can use.

use std::io;
use std::path::PathBuf;

use novum_snapshot::{OpenError, StoreError};
use tonic::Code;
use tonic_types::{PreconditionFailure, StatusExt};

use crate::manifest::ManifestError;
use crate::pack::PackError;
use crate::status::code_name;

/// The exit codes of this program. A function's own exit code is passed through as it is, so it can be any number;
/// with `--json` the `outcome` tells them apart. The table for users is in docs/cli.md.
pub mod exit {
    /// Anything that has no code of its own.
    pub const OTHER: u8 = 1;
    /// The command line is wrong (also clap's code).
    pub const USAGE: u8 = 2;
    /// A manifest, artifact or argument is invalid.
    pub const INVALID: u8 = 65;
    /// A local file cannot be read or written.
    pub const FILE: u8 = 66;
    /// No such function or version.
    pub const NOT_FOUND: u8 = 67;
    /// No gateway answers, or it is shutting down.
    pub const UNAVAILABLE: u8 = 69;
    /// The gateway or the engine failed.
    pub const INTERNAL: u8 = 70;
    /// This machine or gateway cannot run the function.
    pub const CANNOT_RUN: u8 = 71;
    /// A limit: queue full, payload, output or memory.
    pub const LIMIT: u8 = 75;
    /// The deadline passed (as timeout(1)).
    pub const DEADLINE: u8 = 124;
    /// The function crashed with a trap (128 + SIGABRT).
    pub const TRAP: u8 = 134;
    /// Standard output was closed (128 + SIGPIPE).
    pub const PIPE: u8 = 141;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers at the address.
    #[error("no gateway answers at {server}: {reason}")]
    Connect {
        /// The address as given.
        server: String,
        /// What the operating system said.
        reason: String,
    },
    /// The address cannot be used.
    #[error("{server:?} is not a gateway's address: {reason}")]
    Address {
        /// The address as given.
        server: String,
        /// Why.
        reason: String,
    },
    /// The gateway refused or failed.
    #[error("cannot {doing}: {}", status.message())]
    Status {
        /// What was asked of it.
        doing: String,
        /// Its answer.
        status: Box<tonic::Status>,
    },
    /// The gateway's answer lacks something that the protocol promises.
    #[error("the gateway's answer has no {0}; is it another version of novum?")]
    Protocol(&'static str),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An artifact.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A local file.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// "read", "write".
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was asked for is impossible.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A gateway that did not start, or stopped by itself.
    #[error(transparent)]
    Serve(#[from] crate::server::ServeError),
    /// An engine that could not do it.
    #[error(transparent)]
    Engine(#[from] novum_sandbox::Error),
    /// The dev server.
    #[error(transparent)]
    Dev(#[from] crate::dev::DevError),
    /// The snapshot store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot that cannot be opened.
    #[error(transparent)]
    Snapshot(#[from] OpenError),
    /// A guest kernel.
    #[error(transparent)]
    Kernel(#[from] novum_kernel::Error),
    /// A container image.
    #[error(transparent)]
    Image(#[from] novum_image::Error),
    /// A benchmark that could not be run or written.
    #[error("{0}")]
    Bench(String),
    /// No engine can run here.
    #[error("no engine can run on this machine")]
    NoEngine,
    /// The reader of standard output went away: no message, as for any other tool in a pipe.
    #[error("standard output is closed")]
    ClosedPipe,
    /// Standard input or output failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// An answer of the gateway that ended `doing`.
    pub fn status(doing: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Status { doing: doing.into(), status: Box::new(status) }
    }

    /// Writing to standard output failed.
    #[must_use]
    pub fn output(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Io { doing: "write to standard output", source },
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Address { .. } => exit::USAGE,
            Self::Connect { .. } => exit::UNAVAILABLE,
            Self::Status { status, .. } => status_exit_code(status.code()),
            Self::Protocol(_) => exit::INTERNAL,
            Self::Manifest(ManifestError::Read { .. }) | Self::File { .. } => exit::FILE,
            Self::Manifest(ManifestError::Invalid(_)) => exit::INVALID,
            Self::Pack(PackError::Special { .. }) => exit::INVALID,
            Self::Pack(_) => exit::FILE,
            Self::Engine(error) => engine_exit_code(error),
            Self::Store(error) | Self::Snapshot(OpenError::Store(error)) => store_exit_code(error),
            Self::Snapshot(OpenError::Missing(_)) => exit::NOT_FOUND,
            Self::Snapshot(OpenError::Host(_)) => exit::CANNOT_RUN,
            Self::Snapshot(_) => exit::INVALID,
            Self::NoEngine => exit::CANNOT_RUN,
            Self::Image(novum_image::Error::File { .. }) => exit::FILE,
            Self::Image(novum_image::Error::TooLarge(_)) => exit::LIMIT,
            Self::Image(_) => exit::INVALID,
            Self::ClosedPipe => exit::PIPE,
            Self::Serve(_) | Self::Dev(_) | Self::Kernel(_) | Self::Bench(_) | Self::Io { .. } => exit::OTHER,
        }
    }

    /// The kind of error, for `--json`: a gRPC status code's name, or the program's own word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Usage { .. } | Self::Address { .. } => "USAGE",
            Self::Connect { .. } => "UNREACHABLE",
            Self::Status { status, .. } => code_name(status.code()),
            Self::Protocol(_) => "PROTOCOL",
            Self::Manifest(ManifestError::Invalid(_)) => "INVALID_MANIFEST",
            Self::Pack(PackError::Special { .. }) => "INVALID_ARTIFACT",
            Self::Manifest(_) | Self::Pack(_) | Self::File { .. } => "FILE",
            Self::Engine(error) => code_name(engine_code(error)),
            Self::Store(_) | Self::Snapshot(_) => "SNAPSHOT",
            Self::NoEngine => "NO_ENGINE",
            Self::Serve(_) => "SERVE",
            Self::Kernel(_) => "KERNEL",
            Self::Image(_) => "IMAGE",
            Self::Dev(_) => "DEV",
            Self::Bench(_) => "BENCH",
            Self::ClosedPipe | Self::Io { .. } => "IO",
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Connect { .. } => Some(
                "start one with `novum serve` or `novum dev DIR`, or name another with --server URL or NOVUM_SERVER"
                    .into(),
            ),
            Self::Address { .. } => Some("write http://HOST:PORT or unix:/absolute/path".into()),
            Self::Usage { advice, .. } => Some(advice.clone()),
            Self::Status { status, .. } => status_advice(status),
            Self::Store(StoreError::Unknown(_) | StoreError::Ambiguous(_)) => {
                Some("`novum snapshot ls` lists what is there".into())
            }
            Self::Snapshot(OpenError::Layer { .. } | OpenError::MissingParent { .. }) => {
                Some("remove it with `novum snapshot rm`; the function's next start makes a new one".into())
            }
            Self::NoEngine | Self::Engine(novum_sandbox::Error::Unavailable { .. }) => {
                Some("`novum doctor` says what each engine needs".into())
            }
            _ => None,
        }
    }
}

fn status_exit_code(code: Code) -> u8 {
    match code {
        Code::InvalidArgument | Code::OutOfRange => exit::INVALID,
        Code::NotFound => exit::NOT_FOUND,
        Code::Unavailable => exit::UNAVAILABLE,
        Code::FailedPrecondition | Code::Unimplemented => exit::CANNOT_RUN,
        Code::ResourceExhausted => exit::LIMIT,
        Code::DeadlineExceeded => exit::DEADLINE,
        Code::Internal | Code::Unknown | Code::DataLoss => exit::INTERNAL,
        _ => exit::OTHER,
    }
}

fn engine_code(error: &novum_sandbox::Error) -> Code {
    use novum_sandbox::Error as E;
    match error {
        E::Artifact { .. } | E::Manifest { .. } => Code::InvalidArgument,
        E::Unavailable { .. } => Code::FailedPrecondition,
        E::Capacity { .. } | E::MemoryLimit { .. } | E::OutputLimit { .. } => Code::ResourceExhausted,
        E::Deadline { .. } => Code::DeadlineExceeded,
        E::Cancelled => Code::Cancelled,
        E::Host { .. } => Code::Internal,
    }
}

fn engine_exit_code(error: &novum_sandbox::Error) -> u8 {
    status_exit_code(engine_code(error))
}

/// Whether it is no engine's need that is not met: the message says what is.
fn about_no_engine(failure: &PreconditionFailure) -> bool {
    failure.violations.iter().any(|violation| ["SANDBOX", "SHARE"].contains(&violation.r#type.as_str()))
}

fn store_exit_code(error: &StoreError) -> u8 {
    match error {
        StoreError::Io { .. } => exit::FILE,
        StoreError::Missing(_)
        | StoreError::MissingRef(_)
        | StoreError::Unknown(_)
        | StoreError::Ambiguous(_) => exit::NOT_FOUND,
        StoreError::Full { .. } => exit::LIMIT,
        _ => exit::OTHER,
    }
}

/// Advice from the status's details, else from its code.
fn status_advice(status: &tonic::Status) -> Option<String> {
    let details = status.get_error_details();
    if let Some(request) = details.bad_request() {
        let unsaid = request.field_violations.iter().filter(|v| !status.message().contains(&v.description));
        let fields: Vec<_> = unsaid.map(|v| format!("{}: {}", v.field, v.description)).collect();
        if !fields.is_empty() {
            return Some(fields.join("; "));
        }
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        return Some(format!("try again in {}", crate::units::format_duration(delay)));
    }
    match status.code() {
        // A message that says where to look itself.
        Code::NotFound if status.message().contains("novum sandbox") => None,
        // A file in a sandbox.
        Code::NotFound if status.message().starts_with('/') => None,
        Code::FailedPrecondition if details.precondition_failure().is_some_and(about_no_engine) => None,
        Code::NotFound => Some("`novum functions` lists what is deployed".into()),
        Code::FailedPrecondition => Some("`novum doctor` says what each engine needs".into()),
        Code::DeadlineExceeded => {
            Some("raise `timeout` in the manifest, or --timeout; `novum logs NAME` shows what it did".into())
        }
        Code::Unavailable => Some("the gateway is shutting down; try another one".into()),
        _ => None,
    }
}
