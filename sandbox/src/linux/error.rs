//! What can go wrong when a Linux guest is made.

use std::path::PathBuf;

/// Why a machine could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/kvm cannot be used; what to do about it.
    #[error("{0}")]
    Unavailable(String),
    /// KVM refused something.
    #[error("{doing} failed in KVM")]
    Kvm {
        /// What was asked of it.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A file of the guest (kernel, initramfs) could not be read.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The kernel is not one that can be entered.
    #[error("{} cannot be booted: {reason}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The guest's memory cannot hold what must be in it.
    #[error("{what} does not fit into {memory_bytes} bytes of guest memory")]
    DoesNotFit {
        /// What.
        what: &'static str,
        /// The guest's memory.
        memory_bytes: u64,
    },
    /// A part of the configuration is out of range.
    #[error("{0}")]
    Config(String),
    /// The machine was not saved or restored.
    #[error(transparent)]
    Snapshot(#[from] super::SnapshotError),
    /// The host has no memory or threads for the guest.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: an [`Error::Kvm`].
    pub(crate) fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { doing, source }
    }

    /// For `map_err`: an [`Error::Host`].
    pub(crate) fn host(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}
