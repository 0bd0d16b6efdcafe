//! One host directory shared with one tenant.
//!
//! This module owns the rule that a tenant's path never leaves the directory it was given. It serves the 9p
//! server, the process engine's file calls and WASI, so it knows none of them.
//!
//! ```text
//! tenant's path ──openat2(root, …)──> O_PATH descriptor ──type looked at──> the operation
//!                 RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
//!                 | RESOLVE_BENEATH or RESOLVE_IN_ROOT (| RESOLVE_NO_SYMLINKS)
//! ```
//!
//! - Every path is resolved by the kernel (`openat2(2)`), beneath the root's descriptor, never by string. An
//!   operation that changes a name resolves the directory that holds it, then uses the `*at` call with one plain
//!   name, which none of these calls follows.
//! - Only regular files and directories are ever opened. FIFOs, sockets and device nodes are seen by `stat` and
//!   refused by [`Share::open`], so that no open can wait for a peer or wake a driver.
//! - The share ends at a mount point (`RESOLVE_NO_XDEV`): a `/proc` or `/dev` mounted inside is not part of it.
//! - A read-only share refuses every change with `EROFS`.
//! - Files never get the set-user-ID or set-group-ID bit and never change their owner: what a tenant writes must not
//!   give a host user the rights of the VMM's user.
//! - There are no extended attributes (`EOPNOTSUPP`) and no device nodes are made, except in the upper layer of a guest's
//!   overlay ([`Share::open_upper`]): there attributes of users, owners that only the guest sees, and whiteouts.
//!
//! Host programs that follow symbolic links in a writable share follow what the tenant wrote there; that is theirs
//! to avoid.

mod change;
mod dir;
mod file;
mod hold;
mod sys;
mod upper;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatFs, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use change::SetTime;
pub use dir::{Dir, DirEntry};
pub use file::{OpenFile, OpenState};
pub use sys::{Lock, LockKind};
pub use upper::{Attributes, UpperError};

/// Longest name of one directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// How often a resolution that raced with a rename on the host is tried again.
const RACE_RETRIES: usize = 32;

/// What a share's tenant may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Look and read.
    ReadOnly,
    /// Change everything inside.
    ReadWrite,
}

/// What becomes of symbolic links inside a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// A link anywhere but at the end is `ELOOP`, one at the end is the link itself: the caller walks by itself
    /// (9p clients, the process engine's own name space).
    Refuse,
    /// Links are followed, and one that leads out of the share, or is absolute, is refused (WASI).
    Beneath,
    /// Links are followed as if the share were `/`.
    InRoot,
}

/// Which file it is: the same pair is the same file as long as the file exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// The host's device number.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
}

/// A point in time as files keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Which file.
    pub id: Identity,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For device nodes.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Preferred size of one read, bytes.
    pub block_size: u32,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Creation, where the file system knows it.
    pub btime: Time,
}

impl Attr {
    /// The file's type.
    #[must_use]
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// `EPERM` unless these are the owner and group already.
    fn same_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let same = uid.is_none_or(|uid| uid == self.uid) && gid.is_none_or(|gid| gid == self.gid);
        if same { Ok(()) } else { Err(Errno::PERM) }
    }

    fn with_mode(self, mode: u32) -> Self {
        Self { mode: self.mode & !0o7777 | mode & 0o7777, ..self }
    }

    fn with_owner(self, uid: Option<u32>, gid: Option<u32>) -> Self {
        Self { uid: uid.unwrap_or(self.uid), gid: gid.unwrap_or(self.gid), ..self }
    }

    fn from_statx(s: &Statx) -> Self {
        let time = |t: &rustix::fs::StatxTimestamp| Time { seconds: t.tv_sec, nanos: t.tv_nsec };
        Self {
            id: Identity { dev: fs::makedev(s.stx_dev_major, s.stx_dev_minor), ino: s.stx_ino },
            mode: u32::from(s.stx_mode),
            nlink: s.stx_nlink,
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: fs::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            block_size: s.stx_blksize,
            blocks: s.stx_blocks,
            atime: time(&s.stx_atime),
            mtime: time(&s.stx_mtime),
            ctime: time(&s.stx_ctime),
            btime: time(&s.stx_btime),
        }
    }
}

/// Stats an open descriptor, of any kind (`O_PATH` too).
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Attr, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask).map(|s| Attr::from_statx(&s))
}

/// Holds on to one file, whatever happens to its name.
#[derive(Debug)]
pub struct Anchor {
    fd: OwnedFd,
    id: Identity,
}

impl Anchor {
    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> Identity {
        self.id
    }

    /// What `stat` says now.
    ///
    /// # Errors
    /// What `statx(2)` says.
    pub fn stat(&self) -> Result<Attr, Errno> {
        stat_fd(&self.fd)
    }
}

/// A host directory, opened, that one tenant sees.
#[derive(Debug)]
pub struct Share {
    root: OwnedFd,
    access: Access,
    hold: Arc<hold::Hold>,
    upper: Option<Arc<upper::Lock>>,
}

impl Share {
    /// Opens the host's directory `path`. Links in `path` itself are followed: it is the operator's, not the
    /// tenant's.
    ///
    /// # Errors
    /// What `open(2)` says: `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn open_dir(path: &Path, access: Access) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: fs::open(path, flags, Mode::empty())?, access, hold: Arc::default(), upper: None })
    }

    /// What the tenant may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.access == Access::ReadOnly || self.hold.refuses() { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Refuses every change from now on, and tells of each attempt; `None` ends that. A read-only share has nothing to
    /// tell.
    pub fn hold_changes(&self, tell: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.hold.set(tell);
    }

    /// `openat2` beneath the root: the one place where a tenant's path meets the host's file system.
    fn resolve(&self, path: &[u8], links: Links, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let scope = match links {
            Links::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            Links::Beneath => ResolveFlags::BENEATH,
            Links::InRoot => ResolveFlags::IN_ROOT,
        };
        let scope = scope | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = relative(path);
        for _ in 0..RACE_RETRIES {
            match fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, scope) {
                // A directory on the way was moved while `..` was being resolved.
                Err(Errno::AGAIN) => {}
                // Out of the share, or over a mount point.
                Err(Errno::XDEV) => return Err(Errno::ACCESS),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// An `O_PATH` descriptor of what `path` names; a link at the end is followed where `links` allows and `follow`
    /// asks for it.
    fn node(&self, path: &[u8], links: Links, follow: bool) -> Result<OwnedFd, Errno> {
        // RESOLVE_NO_SYMLINKS lets O_PATH | O_NOFOLLOW open a link at the end.
        let end = if follow && links != Links::Refuse { OFlags::empty() } else { OFlags::NOFOLLOW };
        self.resolve(path, links, OFlags::PATH | end, Mode::empty())
    }

    /// The directory that holds `path`'s last name, and that name.
    fn parent<'p>(&self, path: &'p [u8], links: Links) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let (dir, name) = split(path)?;
        let fd = self.resolve(dir, links, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((fd, name))
    }

    /// `stat` (`follow`) or `lstat`.
    ///
    /// # Errors
    /// What `openat2(2)` says; `EACCES` for what lies outside.
    pub fn stat(&self, path: &[u8], links: Links, follow: bool) -> Result<Attr, Errno> {
        self.seen(self.node(path, links, follow)?)
    }

    /// What the tenant sees of an open descriptor.
    fn seen(&self, fd: impl AsFd) -> Result<Attr, Errno> {
        let attr = stat_fd(&fd)?;
        if self.is_upper() { upper::seen(fd, attr) } else { Ok(attr) }
    }

    /// Holds on to what `path` names, a link at its end included.
    ///
    /// # Errors
    /// As [`Share::stat`].
    pub fn anchor(&self, path: &[u8], links: Links) -> Result<Anchor, Errno> {
        let fd = self.node(path, links, false)?;
        let id = stat_fd(&fd)?.id;
        Ok(Anchor { fd, id })
    }

    /// The text of the symbolic link `path`.
    ///
    /// # Errors
    /// `EINVAL` where it is not a link.
    pub fn read_link(&self, path: &[u8], links: Links) -> Result<Vec<u8>, Errno> {
        let node = self.node(path, links, false)?;
        match fs::readlinkat(node, c"", Vec::new()) {
            Ok(text) => Ok(text.into_bytes()),
            // readlink of an O_PATH descriptor that is no link.
            Err(Errno::NOENT) => Err(Errno::INVAL),
            Err(other) => Err(other),
        }
    }

    /// The file system that holds the share.
    ///
    /// # Errors
    /// What `fstatfs(2)` says.
    pub fn statfs(&self) -> Result<StatFs, Errno> {
        fs::fstatfs(&self.root)
    }

    /// The root's descriptor, for a caller that hands the whole directory on (a vhost-user server, a jail).
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// `path` as `openat2` wants it: without leading slashes, never empty.
fn relative(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|b| *b != b'/').unwrap_or(path.len());
    if path[start..].is_empty() { b"." } else { &path[start..] }
}

/// Splits off the last name, which must be a plain one. Trailing slashes belong to the name before them.
fn split(path: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |i| i + 1);
    let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
    let name = &path[start..end];
    match name {
        b"" => Err(Errno::BUSY),
        b"." => Err(Errno::INVAL),
        b".." => Err(Errno::NOTEMPTY),
        _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ => Ok((&path[..start], name)),
    }
}

#[cfg(test)]
mod tests;
