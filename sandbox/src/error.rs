//! What can go wrong in an engine, and what becomes of the sandbox then.

use std::time::Duration;

use crate::function::EngineKind;

/// Why an engine could not do what was asked. Every variant decides the sandbox's fate in [`Error::disposition`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The artifact is not something the engine can run.
    #[error("the artifact cannot run on the {engine} engine: {reason}")]
    Artifact {
        /// The engine that refused it.
        engine: EngineKind,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The manifest asks for something the engine does not have.
    #[error("manifest field `{field}`: {reason}")]
    Manifest {
        /// The field as it is spelled in `novum.toml`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// This machine or build cannot run the engine.
    #[error("the {engine} engine is not available here: {reason}")]
    Unavailable {
        /// The engine.
        engine: EngineKind,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The engine has no room for another sandbox now.
    #[error("no room for another sandbox: {reason}")]
    Capacity {
        /// Which limit was met.
        reason: String,
    },
    /// The deadline passed during the run.
    #[error("the deadline passed after {after:?} of running")]
    Deadline {
        /// How long it ran.
        after: Duration,
    },
    /// The program asked for more memory than its limit and could not go on.
    #[error(
        "the program needs more than its memory limit of {limit_bytes} bytes; raise `memory` in the manifest"
    )]
    MemoryLimit {
        /// The limit.
        limit_bytes: u64,
    },
    /// The program wrote more than the invocation collects.
    #[error(
        "the program wrote more than {limit_bytes} bytes; raise `output` in the manifest or use InvokeStream"
    )]
    OutputLimit {
        /// The limit.
        limit_bytes: usize,
    },
    /// The caller went away.
    #[error("the invocation was cancelled by its caller")]
    Cancelled,
    /// The host failed: not the program's fault.
    #[error("{doing}")]
    Host {
        /// What the engine was doing.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What becomes of a sandbox after an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It was not touched and can serve the next request as it is.
    Keep,
    /// It can serve the next request after a reset.
    Reset,
    /// It must not be used again.
    Destroy,
}

impl Error {
    /// What becomes of the sandbox on which this error happened.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Artifact { .. }
            | Self::Manifest { .. }
            | Self::Unavailable { .. }
            | Self::Capacity { .. } => Disposition::Keep,
            // The program was stopped in mid-flight at a known point: its image state can be laid over it.
            Self::Deadline { .. } | Self::MemoryLimit { .. } | Self::OutputLimit { .. } => Disposition::Reset,
            Self::Cancelled | Self::Host { .. } => Disposition::Destroy,
        }
    }

    /// An [`Error::Host`] with its cause.
    pub fn host(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Host { doing: doing.into(), source: source.into() }
    }
}
