//! How a run ends, and why one could not go on.

use crate::kvm::vm::VmError;
use crate::process::fault::Report;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// `exit_group`, or the last thread's `exit`.
    Code(i32),
    /// A fault that nobody handled.
    Fault(Report),
    /// The deadline passed.
    Deadline,
    /// Somebody called `Control::cancel`.
    Cancelled,
    /// More memory than allowed.
    MemoryLimit,
    /// It waits for standard input, and `Machine::run_to_input` was asked for that.
    WantsInput,
    /// It has said that it is ready, and `Machine::run_to_marker` was asked for that.
    Marked,
}

/// Why a run could not go on through no fault of the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// KVM cannot go on.
    #[error("the vCPU stopped: {0}")]
    Broken(String),
    /// A call of the host failed.
    #[error("{doing}")]
    Host {
        /// What was asked.
        doing: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

impl RunError {
    /// Whether a file of the host that must be opened again is gone or another one.
    pub(in crate::process) fn is_stale(&self) -> bool {
        matches!(self, Self::Host { source, .. } if source.raw_os_error() == Some(libc::ESTALE))
    }

    pub(in crate::process) fn host(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}
