//! The directory that an image becomes. Every operation takes a path of the image and cannot leave the directory.
//!
//! The directory part of a path is resolved by the kernel as if the root were `/` (`RESOLVE_IN_ROOT`): images have
//! links to directories (`/bin` -> `usr/bin`) and later layers may write through them, but to no place outside. The last
//! name is then used with calls that follow no link. Owners, set-id bits and extended attributes are not kept.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::Error;

const IN_ROOT: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
/// Longest path and deepest nesting of one entry.
const MAX_PATH: usize = 4095;
const MAX_DEPTH: usize = 256;

/// Why an entry was not taken.
pub(crate) enum Refused {
    /// The image's fault.
    Because(String),
    /// The layer could not be read.
    Read(io::Error),
    /// The host's file system.
    Host(io::Error),
}

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Self::Because(reason.to_owned())
    }
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::Because(reason)
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::LOOP | Errno::XDEV => "leads through links that lead nowhere".into(),
            Errno::NOTDIR | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::NOENT => {
                "is at odds with what earlier entries made".into()
            }
            Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
                "has a name that the host's file system does not take".into()
            }
            other => Self::Host(other.into()),
        }
    }
}

/// What is kept of an entry's attributes.
#[derive(Clone, Copy)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Last change of the content, seconds since 1970. Interpreters compare those of sources and compiled files.
    pub(crate) seconds: u64,
}

impl Attributes {
    fn times(self) -> Timestamps {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let seconds = i64::try_from(self.seconds).unwrap_or(0);
        Timestamps { last_access: omit, last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 } }
    }
}

/// `path` without `.` and leading slashes.
pub(crate) fn plain(path: &Path) -> Result<PathBuf, Refused> {
    if path.as_os_str().len() > MAX_PATH || path.components().count() > MAX_DEPTH {
        return Err("has a path that is too long".into());
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err("has a NUL in its name".into());
    }
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => return Err("holds `..`".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(plain)
}

/// The directory, and what the present layer has made in it.
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
    /// (device, inode): what a whiteout of this layer does not hide.
    made: HashSet<(u64, u64)>,
}

impl Tree {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let root = rustix::fs::open(path, DIRECTORY | OFlags::RDONLY, Mode::empty());
        let root = root.map_err(Error::file("opening", path))?;
        Ok(Self { root, path: path.to_owned(), made: HashSet::new() })
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.root).map_err(Error::file("writing", &self.path))
    }

    /// What is there from now on is of a lower layer.
    pub(crate) fn begin_layer(&mut self) {
        self.made.clear();
    }

    fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(&self.root, path, DIRECTORY | OFlags::RDONLY, Mode::empty(), IN_ROOT)
    }

    /// Opens the directory `path`, making what is missing.
    fn make_directories(&mut self, path: &Path) -> Result<OwnedFd, Refused> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let mut directory = self.resolve(Path::new(""))?;
        let mut at = PathBuf::new();
        for name in path.iter() {
            at.push(name);
            let made = match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(errno.into()),
            };
            directory = self.resolve(&at)?;
            if made {
                self.note(&directory)?;
            }
        }
        Ok(directory)
    }

    /// The directory of `path`, made where it is missing, and the last name.
    fn place<'p>(&mut self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Refused> {
        let name = path.file_name().ok_or("has no name")?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok((self.make_directories(folder)?, name))
    }

    fn note(&mut self, fd: impl AsFd) -> Result<(), Refused> {
        let stat = rustix::fs::fstat(fd)?;
        self.made.insert((stat.st_dev, stat.st_ino));
        Ok(())
    }

    fn note_at(&mut self, folder: &OwnedFd, name: &OsStr) -> Result<(), Refused> {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.made.insert((stat.st_dev, stat.st_ino));
        Ok(())
    }

    /// A directory; one that is there is kept with what is in it.
    pub(crate) fn directory(&mut self, path: &Path, attributes: Attributes) -> Result<(), Refused> {
        let (folder, name) = self.place(path)?;
        match kind_of(&folder, name)? {
            Some(FileType::Directory) => {}
            Some(_) => {
                rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
                rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o700))?;
            }
            None => rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o700))?,
        }
        let made = open_directory(folder.as_fd(), name)?;
        // Its owner on the host must be able to use it.
        rustix::fs::fchmod(&made, Mode::from_raw_mode(attributes.mode & 0o1777 | 0o700))?;
        self.note(&made)
    }

    /// A regular file of `length` bytes; what had its name is replaced.
    pub(crate) fn file(
        &mut self,
        path: &Path,
        attributes: Attributes,
        content: &mut impl Read,
        length: u64,
    ) -> Result<(), Refused> {
        let (folder, name) = self.place(path)?;
        remove(folder.as_fd(), name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        copy(content, &mut file, length)?;
        rustix::fs::futimens(&file, &attributes.times())?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode & 0o777 | 0o400))?;
        self.note(&file)
    }

    /// A symbolic link with the text `target`, wherever that leads: who serves the tree resolves it inside.
    pub(crate) fn symlink(
        &mut self,
        path: &Path,
        target: &Path,
        attributes: Attributes,
    ) -> Result<(), Refused> {
        let (folder, name) = self.place(path)?;
        remove(folder.as_fd(), name)?;
        rustix::fs::symlinkat(target, &folder, name)?;
        rustix::fs::utimensat(&folder, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?;
        self.note_at(&folder, name)
    }

    /// A further name of the file `target`, which an earlier entry made.
    pub(crate) fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), Refused> {
        let missing =
            || Refused::Because(format!("is a hard link to {target:?}, which no earlier entry made"));
        let source_name = target.file_name().ok_or_else(missing)?;
        let source = self.resolve(target.parent().unwrap_or(Path::new(""))).map_err(|_| missing())?;
        match kind_of(&source, source_name)? {
            Some(FileType::RegularFile | FileType::Symlink) => {}
            _ => return Err(missing()),
        }
        let (folder, name) = self.place(path)?;
        if same(&source, source_name, &folder, name)? {
            return self.note_at(&folder, name);
        }
        remove(folder.as_fd(), name)?;
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link links the link itself.
        rustix::fs::linkat(&source, source_name, &folder, name, AtFlags::empty())?;
        self.note_at(&folder, name)
    }

    /// Removes `name` of lower layers from the directory `folder`.
    pub(crate) fn hide(&mut self, folder: &Path, name: &[u8]) -> Result<(), Refused> {
        let folder = match self.resolve(folder) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        clear_name(folder.as_fd(), OsStr::from_bytes(name), &self.made)?;
        Ok(())
    }

    /// Removes everything of lower layers from the directory `folder`.
    pub(crate) fn clear(&mut self, folder: &Path) -> Result<(), Refused> {
        match self.resolve(folder) {
            Err(Errno::NOENT) => Ok(()),
            other => clear_children(&other?, &self.made).map(drop),
        }
    }
}

fn open_directory(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty())
}

fn kind_of(folder: &OwnedFd, name: &OsStr) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn same(a: &OwnedFd, a_name: &OsStr, b: &OwnedFd, b_name: &OsStr) -> Result<bool, Errno> {
    let id =
        |folder: &OwnedFd, name: &OsStr| match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        };
    Ok(id(a, a_name)? == id(b, b_name)?)
}

/// Removes `name` and all that is in it.
fn remove(folder: BorrowedFd<'_>, name: &OsStr) -> Result<(), Refused> {
    clear_name(folder, name, &HashSet::new()).map(drop)
}

/// Removes `name` but for what is in `keep`; true where nothing of it is left.
fn clear_name(folder: BorrowedFd<'_>, name: &OsStr, keep: &HashSet<(u64, u64)>) -> Result<bool, Refused> {
    let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        other => other?,
    };
    let kept = keep.contains(&(stat.st_dev, stat.st_ino));
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        if !kept {
            rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
        }
        return Ok(!kept);
    }
    let empty = clear_children(&open_directory(folder, name)?, keep)?;
    if empty && !kept {
        rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
    }
    Ok(empty && !kept)
}

/// True where nothing is left. A descriptor is held for each level: links let a hostile image nest deeper than its
/// longest path, and then the host's limit of descriptors ends it.
fn clear_children(directory: &OwnedFd, keep: &HashSet<(u64, u64)>) -> Result<bool, Refused> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    let mut empty = true;
    for name in names {
        empty &= clear_name(directory.as_fd(), OsStr::from_bytes(&name), keep)?;
    }
    Ok(empty)
}

fn copy(from: &mut impl Read, to: &mut std::fs::File, length: u64) -> Result<(), Refused> {
    let mut buffer = vec![0; 64 << 10];
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = from.read(&mut buffer[..most]).map_err(Refused::Read)?;
        if got == 0 {
            return Err(Refused::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        io::Write::write_all(to, &buffer[..got]).map_err(Refused::Host)?;
        left -= got as u64;
    }
    Ok(())
}
