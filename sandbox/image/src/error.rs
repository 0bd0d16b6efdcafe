//! What can go wrong when an image is imported.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image was not imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the host.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Neither an OCI image layout nor a docker-save archive.
    #[error(
        "{} is no image: an OCI image layout (a directory or tar with `oci-layout`) or what `docker save` writes is taken{hint}",
        path.display()
    )]
    NoImage {
        /// What was given.
        path: PathBuf,
        /// More about it, beginning with a semicolon, or nothing.
        hint: String,
    },
    /// Several images, or not the one that was asked for.
    #[error("{0}")]
    Choice(String),
    /// The image contradicts itself or the specification.
    #[error("the image is not valid: {0}")]
    Image(String),
    /// Content that does not have its digest.
    #[error("{what} does not have the digest {expected}; it has {found}: the image is damaged")]
    Digest {
        /// Which part.
        what: String,
        /// What it should have.
        expected: String,
        /// What it has.
        found: String,
    },
    /// A part of the image uses something that this build does not read.
    #[error("{0}")]
    Unsupported(String),
    /// An entry of a layer that is not accepted.
    #[error("layer {layer}: the entry {path:?} {reason}")]
    Entry {
        /// Number of the layer, from 1.
        layer: usize,
        /// The entry's path as written there.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer that is not a tar, or is cut off.
    #[error("layer {layer} is not a readable tar archive")]
    Layer {
        /// Number of the layer, from 1.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Over a limit.
    #[error(
        "the image holds more than {0}; raise it with --max-size or --max-entries if you trust the image"
    )]
    TooLarge(String),
    /// A name that cannot be given to an image.
    #[error(
        "{0:?} cannot name an image: letters, digits and `._-/:@` are taken, at most 200, beginning with a letter or digit"
    )]
    Name(String),
}

impl Error {
    /// For `map_err`: an [`Error::File`].
    pub(crate) fn file<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source: source.into() }
    }
}
