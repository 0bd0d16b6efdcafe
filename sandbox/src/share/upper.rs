//! The upper layer of a guest's overlay: a share of one guest alone, whose files carry what the host's cannot.
//!
//! ```text
//! <directory>/      locked (flock) as long as the share is open: an overlay is never used by two guests
//!   upper/, work/   overlayfs's own (the guest's kernel; mount option `userxattr`)
//!     a whiteout    character device 0:0, which any user may make
//!     any file      user.novum.override = "UID:GID:MODE", where it is not 0:0 and the host's mode
//! ```
//! The guest's root gives files owners, set-user-ID bits, FIFOs and sockets; on the host all of them are plain files of
//! the VMM's user, readable by it, and these three numbers are kept in an attribute that the guest neither sees nor sets.
//! What has none (a symbolic link can have none) belongs to the guest's root. Extended attributes of a guest are those
//! of the name space `user.`, whose names and values mean nothing to the host; all others are refused here.
//! Sources: Linux Documentation/filesystems/overlayfs.rst, xattr(7), vfs_mknod() for WHITEOUT_DEV.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::{Access, Attr, Links, Share, stat_fd};

/// Where owner and mode are kept.
const OVERRIDE: &[u8] = b"user.novum.override";
/// The name space of the guest's attributes, and in it the names that are not the guest's.
const OPEN: &[u8] = b"user.";
const OURS: &[u8] = b"user.novum.";
/// Longest name and value, as Linux has them (include/uapi/linux/limits.h).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 << 10;
/// Where it is tried out what the file system can.
const TRIAL: &str = ".novum-trial";
/// What the VMM's own user must be allowed, to serve the file.
const FILE_FLOOR: u32 = 0o600;
const DIR_FLOOR: u32 = 0o700;

/// A directory cannot be an upper layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpperError {
    /// It cannot be opened.
    #[error("it cannot be opened")]
    Open(#[source] Errno),
    /// Another guest has it.
    #[error("another guest uses it; two guests never share what they write to their root")]
    InUse,
    /// It cannot be written.
    #[error("it cannot be written")]
    NotWritable(#[source] Errno),
    /// Its file system has no attributes of users.
    #[error(
        "its file system keeps no extended attributes (user.*), which an overlay needs; ext4, xfs and btrfs do"
    )]
    NoAttributes(#[source] Errno),
    /// Its file system has no whiteouts.
    #[error(
        "its file system has no whiteouts (RENAME_WHITEOUT), which an overlay needs; ext4, xfs and btrfs have them"
    )]
    NoWhiteouts(#[source] Errno),
}

/// That a share is an upper layer, and its lock.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: OwnedFd,
}

impl Share {
    /// Opens the host's directory `path` as the upper layer of one guest's overlay, alone. What is written below it means
    /// nothing without the layers that it was written over.
    ///
    /// # Errors
    /// Where it is in use, or cannot keep what an overlay needs.
    pub fn open_upper(path: &Path) -> Result<Self, UpperError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty()).map_err(UpperError::Open)?;
        fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => UpperError::InUse,
            other => UpperError::Open(other),
        })?;
        try_out(&dir)?;
        let mut share = Self::open_dir(path, Access::ReadWrite).map_err(UpperError::Open)?;
        share.upper = Some(Arc::new(Lock { _dir: dir }));
        Ok(share)
    }

    /// Whether it is an upper layer: attributes, whiteouts and owners are had.
    #[must_use]
    pub fn is_upper(&self) -> bool {
        self.upper.is_some()
    }

    /// Makes a whiteout: the name hides what a lower layer has.
    ///
    /// # Errors
    /// `EPERM` where this is no upper layer, else what `mknod(2)` says.
    pub fn make_whiteout(&self, path: &[u8], links: Links) -> Result<(), Errno> {
        self.writable()?;
        if !self.is_upper() {
            return Err(Errno::PERM);
        }
        let (dir, name) = self.parent(path, links)?;
        fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
    }

    /// Makes a FIFO or socket, which is one for the guest only.
    ///
    /// # Errors
    /// `EPERM` where this is no upper layer or `kind` is another one, else what `open(2)` says.
    pub fn make_special(&self, path: &[u8], links: Links, kind: FileType, mode: u32) -> Result<(), Errno> {
        if !self.is_upper() || !matches!(kind, FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        let file = self.open(path, links, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
        let mode = kind.as_raw_mode() | mode & 0o7777;
        write(file.fd(), &Attr { mode, uid: 0, gid: 0, ..file.attr_at_open().clone() })
    }
}

impl Share {
    /// What was just made at `path` by the user `uid` and group `gid` of the guest belongs to them; in a directory with
    /// the set-group-ID bit to its group, as on Linux. Nothing to do where this is no upper layer.
    ///
    /// # Errors
    /// What `setxattr(2)` says.
    pub fn give_to(&self, path: &[u8], links: Links, (uid, gid): (u32, u32)) -> Result<(), Errno> {
        if !self.is_upper() {
            return Ok(());
        }
        let (dir, _) = self.parent(path, links)?;
        let (dir, node) = (self.seen(dir)?, self.node(path, links, false)?);
        let attr = self.seen(&node)?;
        let inherits = dir.mode & 0o2000 != 0;
        let gid = if inherits { dir.gid } else { gid };
        let bit = if inherits && attr.kind() == FileType::Directory { 0o2000 } else { 0 };
        write(node, &Attr { uid, gid, mode: attr.mode | bit, ..attr })
    }
}

/// Whether the file system can do what an overlay needs, in a directory that is gone afterwards.
fn try_out(dir: &OwnedFd) -> Result<(), UpperError> {
    let clear = || {
        if let Ok(trial) = fs::openat(dir, TRIAL, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            for name in ["a", "b"] {
                let _ = fs::unlinkat(&trial, name, AtFlags::empty());
            }
        }
        let _ = fs::unlinkat(dir, TRIAL, AtFlags::REMOVEDIR);
    };
    clear();
    let result = tried(dir);
    clear();
    result
}

fn tried(dir: &OwnedFd) -> Result<(), UpperError> {
    let own = Mode::from_raw_mode(0o700);
    fs::mkdirat(dir, TRIAL, own).map_err(UpperError::NotWritable)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let trial = fs::openat(dir, TRIAL, flags, Mode::empty()).map_err(UpperError::NotWritable)?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::openat(&trial, "a", create, own).map_err(UpperError::NotWritable)?;
    fs::fsetxattr(&file, OVERRIDE, b"0:0:0", XattrFlags::empty()).map_err(UpperError::NoAttributes)?;
    fs::fsetxattr(&trial, OVERRIDE, b"0:0:0", XattrFlags::empty()).map_err(UpperError::NoAttributes)?;
    fs::renameat_with(&trial, "a", &trial, "b", RenameFlags::WHITEOUT).map_err(UpperError::NoWhiteouts)?;
    let whiteout = fs::statat(&trial, "a", AtFlags::SYMLINK_NOFOLLOW).map_err(UpperError::NoWhiteouts)?;
    let is_one =
        FileType::from_raw_mode(whiteout.st_mode) == FileType::CharacterDevice && whiteout.st_rdev == 0;
    if is_one { Ok(()) } else { Err(UpperError::NoWhiteouts(Errno::INVAL)) }
}

/// What names `fd` itself, whatever became of its name: attributes cannot be had of an `O_PATH` descriptor directly. The
/// link in /proc leads to the very inode.
fn by_number(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether files of this kind can have attributes of users.
fn can_have(kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Directory)
}

/// `attr` of `fd` as the guest sees it: with the owner and mode that it gave the file.
pub(super) fn seen(fd: impl AsFd, mut attr: Attr) -> Result<Attr, Errno> {
    let kind = attr.kind();
    (attr.uid, attr.gid) = (0, 0);
    if !can_have(kind) {
        return Ok(attr);
    }
    let mut value = [0; 40];
    let length = match fs::getxattr(by_number(&fd), OVERRIDE, &mut value[..]) {
        Ok(length) => length,
        // None, or one that is not ours.
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => return Ok(attr),
        Err(other) => return Err(other),
    };
    if let Some((uid, gid, mode)) = parse(&value[..length]) {
        let as_kind = FileType::from_raw_mode(mode);
        let special = kind == FileType::RegularFile && matches!(as_kind, FileType::Fifo | FileType::Socket);
        let kind = if special { as_kind } else { kind };
        (attr.uid, attr.gid, attr.mode) = (uid, gid, kind.as_raw_mode() | mode & 0o7777);
    }
    Ok(attr)
}

fn parse(value: &[u8]) -> Option<(u32, u32, u32)> {
    let mut parts = std::str::from_utf8(value).ok()?.split(':');
    let numbers = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let mode = u32::from_str_radix(parts.next()?, 8).ok()?;
    parts.next().is_none().then_some((numbers.0, numbers.1, mode))
}

/// Makes the guest see owner and mode of `wanted` from now on. Those of a symbolic link or whiteout are nobody's concern.
pub(super) fn write(fd: impl AsFd, wanted: &Attr) -> Result<(), Errno> {
    let host = stat_fd(&fd)?;
    let floor = match host.kind() {
        FileType::Directory => DIR_FLOOR,
        FileType::RegularFile => FILE_FLOOR,
        _ => return Ok(()),
    };
    let mode = wanted.mode & 0o777 | floor;
    if host.mode & 0o7777 != mode {
        super::sys::chmod(&fd, mode)?;
    }
    let place = by_number(&fd);
    let plain = (wanted.uid, wanted.gid, wanted.mode) == (0, 0, host.kind().as_raw_mode() | mode);
    if plain {
        return match fs::removexattr(place, OVERRIDE) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        };
    }
    let value = format!("{}:{}:{:o}", wanted.uid, wanted.gid, wanted.mode);
    fs::setxattr(place, OVERRIDE, value.as_bytes(), XattrFlags::empty())
}

/// Whether a guest may have to do with an attribute of this name.
fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" => Err(Errno::INVAL),
        _ if name.len() > NAME_MAX || name.contains(&0) => Err(Errno::RANGE),
        _ if name == OPEN => Err(Errno::INVAL),
        _ if name.starts_with(OPEN) => Ok(()),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The extended attributes of one file of an upper layer: those of users, without ours.
#[derive(Debug)]
pub struct Attributes {
    place: String,
    can_have: bool,
    _fd: OwnedFd,
}

impl Attributes {
    fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let can_have = can_have(seen(&fd, stat_fd(&fd)?)?.kind());
        Ok(Self { place: by_number(&fd), can_have, _fd: fd })
    }

    /// The value of `name`.
    ///
    /// # Errors
    /// What `getxattr(2)` says; `EOPNOTSUPP` for other name spaces.
    pub fn get(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        check_name(name)?;
        if !self.can_have || name.starts_with(OURS) {
            return Err(Errno::NODATA);
        }
        let mut value = vec![0; VALUE_MAX];
        let length = fs::getxattr(&self.place, name, &mut value[..])?;
        value.truncate(length);
        Ok(value)
    }

    /// The names, each with a NUL behind it.
    ///
    /// # Errors
    /// What `listxattr(2)` says.
    pub fn names(&self) -> Result<Vec<u8>, Errno> {
        if !self.can_have {
            return Ok(Vec::new());
        }
        let mut names = vec![0u8; VALUE_MAX];
        let length = fs::listxattr(&self.place, &mut names[..])?;
        let is_guests = |name: &&[u8]| name.starts_with(OPEN) && !name.starts_with(OURS);
        let names = names[..length].split_inclusive(|byte| *byte == 0);
        Ok(names.filter(is_guests).flatten().copied().collect())
    }
}

impl Share {
    /// The attributes of what `path` names.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this is no upper layer, else as [`Share::stat`].
    pub fn attributes(&self, path: &[u8], links: Links) -> Result<Attributes, Errno> {
        self.must_be_upper()?;
        Attributes::of(self.node(path, links, false)?)
    }

    /// The attributes of an open file.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this is no upper layer.
    pub fn attributes_of(&self, fd: impl AsFd) -> Result<Attributes, Errno> {
        self.must_be_upper()?;
        Attributes::of(rustix::io::fcntl_dupfd_cloexec(fd, 0)?)
    }

    /// Sets an attribute; `flags` as `setxattr(2)` has them.
    ///
    /// # Errors
    /// What `setxattr(2)` says; `EOPNOTSUPP` for other name spaces, `EPERM` for ours.
    pub fn set_attribute(&self, of: &Attributes, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
        self.may_change_attribute(of, name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if value.len() > VALUE_MAX {
            return Err(Errno::TOOBIG);
        }
        fs::setxattr(&of.place, name, value, flags)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// What `removexattr(2)` says; `EOPNOTSUPP` for other name spaces, `EPERM` for ours.
    pub fn remove_attribute(&self, of: &Attributes, name: &[u8]) -> Result<(), Errno> {
        self.may_change_attribute(of, name)?;
        fs::removexattr(&of.place, name)
    }

    fn must_be_upper(&self) -> Result<(), Errno> {
        if self.is_upper() { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    }

    fn may_change_attribute(&self, of: &Attributes, name: &[u8]) -> Result<(), Errno> {
        self.must_be_upper()?;
        self.writable()?;
        check_name(name)?;
        if of.can_have && !name.starts_with(OURS) { Ok(()) } else { Err(Errno::PERM) }
    }
}

#[cfg(test)]
#[path = "upper_tests.rs"]
mod tests;
