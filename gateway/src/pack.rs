//! An artifact on this machine as the bytes of a Deploy stream: a file as it is, a directory as a POSIX tar.
//!
//! The same directory always gives the same bytes, so that deploying it again is no change: entries are sorted by
//! path, owners are 0, permissions and modification times are kept (Python compares them with its compiled files).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use novum_sandbox::ArtifactFormat;
use novum_snapshot::digest::{Digest, Hasher};
use tokio::sync::mpsc;

use crate::manifest::ArtifactSource;

/// Bytes in one part of a Deploy stream.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Why an artifact cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket, FIFO or device stands in the directory.
    #[error("{} is a {kind}; a root directory may hold only files, directories and symbolic links", path.display())]
    Special {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The receiver of the bytes failed or went away.
    #[error("cannot pass on the artifact: {0}")]
    Write(#[source] io::Error),
}

impl ArtifactSource {
    /// The form in which it is deployed.
    #[must_use]
    pub const fn format(&self) -> ArtifactFormat {
        match self {
            Self::File(_) => ArtifactFormat::File,
            Self::Root(_) => ArtifactFormat::Tar,
        }
    }

    /// Its size, where that is known without packing it.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::File(path) => fs::metadata(path).ok().map(|found| found.len()),
            Self::Root(_) => None,
        }
    }
}

/// Writes the artifact's bytes.
///
/// # Errors
/// See [`PackError`].
pub fn write(artifact: &ArtifactSource, out: &mut dyn Write) -> Result<(), PackError> {
    match artifact {
        ArtifactSource::File(path) => {
            let mut file = File::open(path).map_err(read(path))?;
            copy(&mut file, path, out)
        }
        ArtifactSource::Root(root) => write_tar(root, out),
    }
}

/// The digest of the artifact's bytes.
///
/// # Errors
/// See [`PackError`].
pub fn digest(artifact: &ArtifactSource) -> Result<Digest, PackError> {
    let mut hashing = Hashing(Hasher::default());
    write(artifact, &mut hashing)?;
    Ok(hashing.0.finish())
}

struct Hashing(Hasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the artifact's bytes in chunks of [`CHUNK_BYTES`]. Blocks: call it from a thread that may.
///
/// # Errors
/// See [`PackError`]; a receiver that is gone is [`PackError::Write`].
pub fn send(artifact: &ArtifactSource, to: mpsc::Sender<Bytes>) -> Result<(), PackError> {
    let mut chunks = io::BufWriter::with_capacity(CHUNK_BYTES, ChunkSender(to));
    write(artifact, &mut chunks)?;
    chunks.flush().map_err(PackError::Write)
}

struct ChunkSender(mpsc::Sender<Bytes>);

impl Write for ChunkSender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK_BYTES)];
        self.0.blocking_send(Bytes::copy_from_slice(part)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(path: &Path) -> impl FnOnce(io::Error) -> PackError + '_ {
    |source| PackError::Read { path: path.to_owned(), source }
}

fn copy(file: &mut File, path: &Path, out: &mut dyn Write) -> Result<(), PackError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match io::Read::read(file, &mut buffer).map_err(read(path))? {
            0 => return Ok(()),
            n => out.write_all(&buffer[..n]).map_err(PackError::Write)?,
        }
    }
}

fn write_tar(root: &Path, out: &mut dyn Write) -> Result<(), PackError> {
    let mut tar = tar::Builder::new(out);
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry
            .map_err(|e| PackError::Read { path: e.path().unwrap_or(root).to_owned(), source: e.into() })?;
        let name = entry.path().strip_prefix(root).unwrap_or(entry.path());
        append(&mut tar, entry.path(), name)?;
    }
    tar.finish().map_err(PackError::Write)
}

fn append(tar: &mut tar::Builder<&mut dyn Write>, path: &Path, name: &Path) -> Result<(), PackError> {
    let found = fs::symlink_metadata(path).map_err(read(path))?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(found.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if found.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, name, io::empty()).map_err(PackError::Write)
    } else if found.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        let target = fs::read_link(path).map_err(read(path))?;
        tar.append_link(&mut header, name, target).map_err(PackError::Write)
    } else if found.is_file() {
        let file = File::open(path).map_err(read(path))?;
        header.set_size(found.len());
        // A file that grows or shrinks meanwhile must not shift the entries behind it.
        let exact = Exact { file, left: found.len() };
        tar.append_data(&mut header, name, exact).map_err(read(path))
    } else {
        Err(PackError::Special { path: path.to_owned(), kind: special_kind(&found) })
    }
}

fn special_kind(found: &fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    match () {
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "FIFO",
        () => "device",
    }
}

/// Exactly the announced number of bytes of a file, or an error.
struct Exact {
    file: File,
    left: u64,
}

impl io::Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was packed",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/tool"), b"#!/bin/sh\n").unwrap();
        fs::set_permissions(dir.path().join("usr/bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("n".repeat(150)), vec![7; 3 * CHUNK_BYTES]).unwrap();
        symlink("usr/bin", dir.path().join("bin")).unwrap();
        dir
    }

    #[test]
    fn a_directory_packs_to_the_same_bytes_and_unpacks_to_the_same_tree() {
        let dir = tree();
        let source = ArtifactSource::Root(dir.path().to_owned());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        write(&source, &mut first).unwrap();
        write(&source, &mut second).unwrap();
        assert_eq!(first, second);
        let copy = tempfile::tempdir().unwrap();
        tar::Archive::new(&first[..]).unpack(copy.path()).unwrap();
        assert_eq!(fs::read(copy.path().join("bin/tool")).unwrap(), b"#!/bin/sh\n");
        let mode = fs::metadata(copy.path().join("usr/bin/tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read(copy.path().join("n".repeat(150))).unwrap().len(), 3 * CHUNK_BYTES);
    }

    #[test]
    fn chunks_joined_are_the_artifact() {
        let dir = tree();
        for source in [
            ArtifactSource::Root(dir.path().to_owned()),
            ArtifactSource::File(dir.path().join("n".repeat(150))),
        ] {
            let mut whole = Vec::new();
            write(&source, &mut whole).unwrap();
            let (to, mut from) = mpsc::channel(1);
            let sender = std::thread::spawn(move || send(&source, to));
            let mut joined = Vec::new();
            while let Some(chunk) = from.blocking_recv() {
                assert!(chunk.len() <= CHUNK_BYTES);
                joined.extend_from_slice(&chunk);
            }
            sender.join().unwrap().unwrap();
            assert_eq!(joined, whole);
        }
    }

    #[test]
    fn a_socket_in_a_root_is_refused_by_name() {
        let dir = tree();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let error = write(&ArtifactSource::Root(dir.path().to_owned()), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("/s is a socket"), "{error}");
    }
}
