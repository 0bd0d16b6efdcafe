//! Unpacking a tar that nobody has to trust (POSIX.1-2017 `pax`, ustar and GNU forms by the `tar` crate).
//!
//! Every path is walked component by component beneath the target with openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS),
//! so that a symbolic link made by an earlier entry cannot lead a later one outside. Symbolic links themselves are
//! stored as they are: who serves the directory to a tenant resolves them inside of it. Devices, FIFOs and sockets are
//! refused; set-id bits, owners and extended attributes are dropped.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tar::EntryType;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// Most of what one archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

/// The archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a tar, or cut off.
    #[error("the artifact is not a readable tar archive: {0}; send an uncompressed POSIX tar")]
    Archive(#[source] io::Error),
    /// An entry that is not accepted.
    #[error("the tar entry {path:?} {reason}")]
    Entry {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Over a limit.
    #[error("the tar archive holds more than {limit}; start the gateway with a larger {flag}")]
    TooLarge {
        /// The limit with its unit.
        limit: String,
        /// What raises it.
        flag: &'static str,
    },
    /// The host's disk.
    #[error("unpacking {path:?} failed: {source}")]
    Host {
        /// What was written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks `archive` into the empty directory `target` and makes it durable.
///
/// # Errors
/// See [`UnpackError`]; `target` is then half full.
pub fn unpack(archive: &mut std::fs::File, target: &Path, limits: Limits) -> Result<(), UnpackError> {
    io::Seek::rewind(archive).map_err(UnpackError::Archive)?;
    let root = rustix::fs::open(target, DIRECTORY | OFlags::RDONLY, Mode::empty())
        .map_err(|e| UnpackError::Host { path: target.to_owned(), source: e.into() })?;
    let mut left = limits;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        left.entries = left.entries.checked_sub(1).ok_or_else(|| UnpackError::TooLarge {
            limit: format!("{} entries", limits.entries),
            flag: "--max-artifact-entries",
        })?;
        let path = entry.path().map_err(UnpackError::Archive)?.into_owned();
        unpack_entry(&root, &path, &mut entry, &mut left.bytes).map_err(|failure| match failure {
            Failure::Refused(reason) => UnpackError::Entry { path, reason },
            Failure::Read(error) => UnpackError::Archive(error),
            Failure::Host(error) => UnpackError::Host { path, source: error.into() },
            Failure::TooLarge => {
                UnpackError::TooLarge { limit: format!("{} bytes", limits.bytes), flag: "--max-artifact" }
            }
        })?;
    }
    rustix::fs::syncfs(&root).map_err(|e| UnpackError::Host { path: target.to_owned(), source: e.into() })
}

enum Failure {
    Refused(String),
    Read(io::Error),
    Host(Errno),
    TooLarge,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            // The path leads through a link or out of the root.
            Errno::LOOP | Errno::XDEV => Self::Refused("leads through a symbolic link".to_owned()),
            Errno::NOTDIR | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY => {
                Self::Refused("is at odds with an earlier entry".to_owned())
            }
            Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
                Self::Refused("has a name that the host's file system does not take".to_owned())
            }
            other => Self::Host(other),
        }
    }
}

fn unpack_entry<R: Read>(
    root: &OwnedFd,
    path: &Path,
    entry: &mut tar::Entry<'_, R>,
    bytes_left: &mut u64,
) -> Result<(), Failure> {
    let relative = plain(path)?;
    let kind = entry.header().entry_type();
    let Some(name) = relative.file_name() else {
        // "./", the root itself.
        let fine = kind == EntryType::Directory;
        return if fine { Ok(()) } else { Err(Failure::Refused("has no name".to_owned())) };
    };
    if kind == EntryType::Directory {
        make_directories(root, &relative)?;
        return Ok(());
    }
    let parent = make_directories(root, relative.parent().unwrap_or(Path::new("")))?;
    let name = Path::new(name);
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            replace(&parent, name)?;
            write_file(&parent, name, entry, bytes_left)
        }
        EntryType::Symlink => {
            let target = link_name(entry)?;
            replace(&parent, name)?;
            Ok(rustix::fs::symlinkat(&target, &parent, name)?)
        }
        EntryType::Link => {
            let target = plain(&link_name(entry)?)?;
            hard_link(root, &target, &parent, name)
        }
        EntryType::XGlobalHeader => Ok(()),
        other => Err(Failure::Refused(format!(
            "is of the kind {other:?}; only files, directories and links are taken"
        ))),
    }
}

/// The path without `.`; refused when it is absolute or holds `..`.
fn plain(path: &Path) -> Result<PathBuf, Failure> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(Failure::Refused("holds `..`".to_owned())),
            Component::RootDir | Component::Prefix(_) => {
                return Err(Failure::Refused("is absolute".to_owned()));
            }
        }
    }
    Ok(plain)
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<PathBuf, Failure> {
    let target = entry.link_name().map_err(Failure::Read)?;
    target
        .map(|t| t.into_owned())
        .filter(|t| !t.as_os_str().is_empty())
        .ok_or_else(|| Failure::Refused("is a link without a target".to_owned()))
}

/// Opens `path` beneath `root`, making what is missing.
fn make_directories(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Failure> {
    let mut directory = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for name in path.iter() {
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        directory = rustix::fs::openat2(&directory, name, DIRECTORY, Mode::empty(), BENEATH)?;
    }
    Ok(directory)
}

/// As in tar(1), the last entry of a name wins.
fn replace(parent: &OwnedFd, name: &Path) -> Result<(), Failure> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn write_file<R: Read>(
    parent: &OwnedFd,
    name: &Path,
    entry: &mut tar::Entry<'_, R>,
    bytes_left: &mut u64,
) -> Result<(), Failure> {
    let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o777 | 0o400);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(parent, name, flags, Mode::from_raw_mode(0o600), BENEATH)?;
    let mut file = std::fs::File::from(file);
    // One byte over the limit shows that there is more.
    let copied =
        io::copy(&mut entry.by_ref().take(bytes_left.saturating_add(1)), &mut file).map_err(Failure::Read)?;
    *bytes_left = bytes_left.checked_sub(copied).ok_or(Failure::TooLarge)?;
    // Interpreters compare the times of sources and of what they compiled from them.
    let seconds = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let modified = Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::fs::futimens(file.as_fd(), &Timestamps { last_access: omit, last_modification: modified })?;
    Ok(rustix::fs::fchmod(file.as_fd(), mode)?)
}

fn hard_link(root: &OwnedFd, target: &Path, parent: &OwnedFd, name: &Path) -> Result<(), Failure> {
    let missing = || Failure::Refused(format!("is a hard link to {target:?}, which no earlier entry made"));
    let source_parent = target.parent().filter(|p| !p.as_os_str().is_empty());
    let source = match source_parent {
        Some(path) => rustix::fs::openat2(root, path, DIRECTORY, Mode::empty(), BENEATH).map_err(
            |errno| match errno {
                Errno::NOENT => missing(),
                other => other.into(),
            },
        )?,
        None => rustix::io::fcntl_dupfd_cloexec(root, 0)?,
    };
    let source_name = target.file_name().ok_or_else(missing)?;
    replace(parent, name)?;
    // Without AT_SYMLINK_FOLLOW a link to a symbolic link links the link itself.
    match rustix::fs::linkat(&source, source_name, parent, name, AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Err(missing()),
        Err(Errno::PERM) => Err(Failure::Refused("is a hard link to something other than a file".to_owned())),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 20 };

    /// Writes the header's name field itself, which the builder would refuse for hostile names.
    fn header(name: &str, kind: EntryType, size: u64, link: &str) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_mtime(1_000_000);
        header.set_cksum();
        header
    }

    fn run(
        entries: &[(&str, EntryType, &str)],
        limits: Limits,
    ) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let link = matches!(kind, EntryType::Link | EntryType::Symlink);
            let (body, link) = if link { ("", *text) } else { (*text, "") };
            builder.append(&header(name, *kind, body.len() as u64, link), body.as_bytes()).unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let result = unpack(&mut file, &root, limits);
        (dir, result)
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn files_directories_and_links_are_unpacked() {
        let (dir, result) = run(
            &[
                ("./", EntryType::Directory, ""),
                ("./bin/tool", FILE, "program"),
                ("empty/", EntryType::Directory, ""),
                ("bin/hard", EntryType::Link, "bin/tool"),
                ("bin/soft", EntryType::Symlink, "/etc/passwd"),
                ("bin/tool2", FILE, "first"),
                ("bin/tool2", FILE, "last"),
            ],
            LIMITS,
        );
        result.unwrap();
        let root = dir.path().join("root");
        assert_eq!(fs::read(root.join("bin/hard")).unwrap(), b"program");
        assert_eq!(fs::read(root.join("bin/tool2")).unwrap(), b"last");
        assert_eq!(fs::read_link(root.join("bin/soft")).unwrap(), Path::new("/etc/passwd"));
        assert!(root.join("empty").is_dir());
        let meta = fs::metadata(root.join("bin/tool")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o755, 1_000_000));
    }

    #[test]
    fn nothing_is_written_outside() {
        let outside: &[&[(&str, EntryType, &str)]] = &[
            &[("../evil", FILE, "x")],
            &[("a/../../evil", FILE, "x")],
            &[("/tmp/novum-evil", FILE, "x")],
            &[("up", EntryType::Symlink, ".."), ("up/evil", FILE, "x")],
            &[("up", EntryType::Symlink, "/tmp"), ("up/novum-evil", FILE, "x")],
            &[("up", EntryType::Symlink, ".."), ("up/evil", EntryType::Directory, "")],
            &[("up", EntryType::Symlink, ".."), ("up/evil", EntryType::Symlink, "x")],
            &[("evil", EntryType::Link, "/etc/passwd")],
            &[("evil", EntryType::Link, "../secret")],
            &[("up", EntryType::Symlink, ".."), ("evil", EntryType::Link, "up/secret")],
            &[("evil", EntryType::Char, "")],
            &[("evil", EntryType::Block, "")],
            &[("evil", EntryType::Fifo, "")],
        ];
        for entries in outside {
            let (dir, result) = run(entries, LIMITS);
            assert!(matches!(result, Err(UnpackError::Entry { .. })), "{entries:?}: {result:?}");
            let others: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(others, ["root"], "{entries:?}");
        }
        assert!(!Path::new("/tmp/novum-evil").exists());
    }

    #[test]
    fn a_file_does_not_write_through_a_symlink_of_its_name() {
        let (dir, result) = run(&[("a", EntryType::Symlink, "../evil"), ("a", FILE, "x")], LIMITS);
        result.unwrap();
        assert!(!dir.path().join("evil").exists());
        assert_eq!(fs::read(dir.path().join("root/a")).unwrap(), b"x");
    }

    #[test]
    fn limits_hold() {
        let (_dir, result) =
            run(&[("a", FILE, "12345"), ("b", FILE, "67890")], Limits { bytes: 9, entries: 9 });
        assert!(matches!(result, Err(UnpackError::TooLarge { flag: "--max-artifact", .. })), "{result:?}");
        let (_dir, result) = run(&[("a", FILE, ""), ("b", FILE, "")], Limits { bytes: 9, entries: 1 });
        assert!(matches!(result, Err(UnpackError::TooLarge { .. })), "{result:?}");
        let (_dir, result) =
            run(&[("a", FILE, "12345"), ("b", FILE, "6789")], Limits { bytes: 9, entries: 2 });
        result.unwrap();
    }
}
