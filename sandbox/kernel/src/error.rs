//! What can go wrong with a kernel at rest.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a kernel could not be fetched, built, read or imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb: `reading`, `writing`.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A command that is needed is not installed.
    #[error("`{command}` cannot be started; install the Debian package `{package}`")]
    Missing {
        /// The command.
        command: String,
        /// The Debian package that has it.
        package: &'static str,
        /// Why it could not be started.
        #[source]
        source: std::io::Error,
    },
    /// A command failed.
    #[error("`{command}` ended with {status}:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote.
        output: String,
    },
    /// No package source of this machine offers a package.
    #[error(
        "no package source of this machine offers `{package}`; it needs Debian's sources and `apt-get update`"
    )]
    NoPackage {
        /// The package.
        package: String,
    },
    /// Something in a package, an image or a module is not as expected.
    #[error("{what}: {reason}")]
    Format {
        /// Which thing.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The build's configuration lost symbols that the guest needs.
    #[error("this source cannot satisfy guest.config; it dropped: {}", symbols.join(", "))]
    Config {
        /// The lines of guest.config that did not survive.
        symbols: Vec<String>,
    },
}

impl Error {
    /// For `map_err`: an [`Error::File`].
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// An [`Error::Format`].
    pub(crate) fn format(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Format { what: what.into(), reason: reason.into() }
    }
}
