//! Open files: what is opened, and what of it can be saved.
//!
//! An open file's state is (path, flags, position) and the identity of what it refers to. [`Share::reopen`] opens it
//! again in another life of the sandbox and refuses with `ESTALE` where the path now names another file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::change::MODE_MASK;
use super::hold::Hold;
use super::{Access, Attr, Identity, Links, Lock, SetTime, Share, stat_fd, sys, upper};

/// Flags of `open(2)` that reach the host. All others are the tenant's own bookkeeping (`O_NONBLOCK`, `O_CLOEXEC`)
/// or not had (`O_DIRECT`, `O_ASYNC`).
const HOST_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::TRUNC)
    .union(OFlags::DIRECTORY);
/// How often an open that raced with another's create or unlink is tried again.
const RACE_RETRIES: usize = 16;

/// A regular file or directory of a share, open.
#[derive(Debug)]
pub struct OpenFile {
    fd: OwnedFd,
    attr: Attr,
    access: Access,
    hold: Arc<Hold>,
    upper: bool,
}

/// What must be kept of an open file so that it can be opened again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenState {
    /// Path in the share, without symbolic links.
    pub path: Vec<u8>,
    /// `open(2)` flags: access mode and status flags.
    pub flags: u32,
    /// Offset in bytes; for a directory the cookie of the next entry.
    pub position: u64,
    /// Which file it was.
    pub id: Identity,
}

impl OpenFile {
    /// What `stat` said when it was opened.
    #[must_use]
    pub fn attr_at_open(&self) -> &Attr {
        &self.attr
    }

    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> Identity {
        self.attr.id
    }

    /// What `stat` says now.
    ///
    /// # Errors
    /// What `statx(2)` says.
    pub fn stat(&self) -> Result<Attr, Errno> {
        let attr = stat_fd(&self.fd)?;
        if self.upper { upper::seen(&self.fd, attr) } else { Ok(attr) }
    }

    /// The host's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the host's descriptor away.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn changeable(&self) -> Result<(), Errno> {
        if self.access == Access::ReadOnly || self.hold.refuses() { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// As [`Share::chmod`].
    ///
    /// # Errors
    /// What `fchmod(2)` says; `EROFS`.
    pub fn chmod(&self, mode: u32) -> Result<(), Errno> {
        self.changeable()?;
        if self.upper {
            return upper::write(&self.fd, &self.stat()?.with_mode(mode));
        }
        fs::fchmod(&self.fd, Mode::from_raw_mode(mode & MODE_MASK))
    }

    /// As [`Share::chown`].
    ///
    /// # Errors
    /// `EPERM` for a change; `EROFS`.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        self.changeable()?;
        let attr = self.stat()?;
        if self.upper {
            upper::write(&self.fd, &attr.with_owner(uid, gid))
        } else {
            attr.same_owner(uid, gid)
        }
    }

    /// As [`Share::set_times`].
    ///
    /// # Errors
    /// What `futimens(2)` says; `EROFS`.
    pub fn set_times(&self, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
        self.changeable()?;
        let times = Timestamps { last_access: atime.raw(), last_modification: mtime.raw() };
        fs::futimens(&self.fd, &times)
    }

    /// Switches between appending and writing at the position.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub fn set_append(&self, append: bool) -> Result<(), Errno> {
        fs::fcntl_setfl(&self.fd, if append { OFlags::APPEND } else { OFlags::empty() })
    }

    /// Sets a byte-range lock that belongs to this open file, so that sandboxes and host processes exclude each
    /// other. Never waits.
    ///
    /// # Errors
    /// `EAGAIN` where another lock stands in the way.
    pub fn set_lock(&self, lock: Lock) -> Result<(), Errno> {
        sys::set_lock(&self.fd, lock)
    }

    /// The lock that would stand in the way of `lock`.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub fn get_lock(&self, lock: Lock) -> Result<Option<Lock>, Errno> {
        sys::get_lock(&self.fd, lock)
    }
}

impl Share {
    /// Opens a regular file or directory, or creates a regular file (`O_CREAT`, with exactly the permission bits of
    /// `mode`). Never waits and never touches a device, whatever the path names.
    ///
    /// # Errors
    /// What `open(2)` says; `EACCES` for a FIFO or device, `ENXIO` for a socket, `EROFS` for a change in a read-only
    /// share.
    pub fn open(&self, path: &[u8], links: Links, flags: OFlags, mode: u32) -> Result<OpenFile, Errno> {
        self.open_seen(path, links, flags, mode, None)
    }

    /// [`Share::open`] for a caller that has just looked at `path` with [`Share::stat`] and gives what it said. A file
    /// that is another one by now is looked at again.
    ///
    /// # Errors
    /// As [`Share::open`].
    pub fn open_seen(
        &self,
        path: &[u8],
        links: Links,
        flags: OFlags,
        mode: u32,
        mut seen: Option<Attr>,
    ) -> Result<OpenFile, Errno> {
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        let follow = !flags.contains(OFlags::NOFOLLOW);
        for _ in 0..RACE_RETRIES {
            let found = match seen.take().map_or_else(|| self.stat(path, links, follow), Ok) {
                Ok(attr) => attr,
                Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => {
                    match self.create(path, links, flags, mode) {
                        Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => continue,
                        other => return other,
                    }
                }
                Err(other) => return Err(other),
            };
            if flags.contains(OFlags::CREATE | OFlags::EXCL) {
                return Err(Errno::EXIST);
            }
            check_kind(found.kind(), writes || flags.contains(OFlags::CREATE))?;
            if writes {
                self.writable()?;
            }
            // O_NONBLOCK: should the path meanwhile name a FIFO, the open still does not wait. TRUNC comes after
            // the check that it is the file which was looked at.
            let host = (flags & HOST_FLAGS).difference(OFlags::TRUNC) | OFlags::NONBLOCK | OFlags::NOCTTY;
            let end = if follow && links != Links::Refuse { OFlags::empty() } else { OFlags::NOFOLLOW };
            let fd = match self.resolve(path, links, host | end, Mode::empty()) {
                Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => continue,
                other => other?,
            };
            let attr = self.seen(&fd)?;
            if attr.id != found.id {
                continue;
            }
            if flags.contains(OFlags::TRUNC) && attr.kind() == FileType::RegularFile {
                if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
                    fs::ftruncate(&fd, 0)?;
                } else {
                    self.truncate(path, links, 0)?;
                }
            }
            return Ok(OpenFile {
                fd,
                attr,
                access: self.access,
                hold: self.hold.clone(),
                upper: self.is_upper(),
            });
        }
        Err(Errno::AGAIN)
    }

    fn create(&self, path: &[u8], links: Links, flags: OFlags, mode: u32) -> Result<OpenFile, Errno> {
        self.writable()?;
        if path.ends_with(b"/") {
            return Err(Errno::ISDIR);
        }
        let (dir, name) = self.parent(path, links)?;
        let host = (flags & HOST_FLAGS).difference(OFlags::TRUNC | OFlags::DIRECTORY);
        let host = host | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(&dir, name, host, Mode::from_raw_mode(mode & 0o777)) {
            // A link that leads to nothing: not created through, the target might be anywhere.
            Err(Errno::EXIST) if self.stat(path, links, false)?.kind() == FileType::Symlink => {
                return Err(Errno::LOOP);
            }
            other => other?,
        };
        let mut attr = self.seen(&fd)?;
        if self.is_upper() {
            attr = Attr { uid: 0, gid: 0, ..attr.with_mode(mode & 0o1777) };
            upper::write(&fd, &attr)?;
        } else if attr.mode & 0o777 != mode & 0o777 {
            fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o777))?;
            attr.mode = attr.mode & !0o777 | mode & 0o777;
        }
        Ok(OpenFile { fd, attr, access: self.access, hold: self.hold.clone(), upper: self.is_upper() })
    }

    /// A regular file without a name in the directory `path` (`O_TMPFILE`).
    ///
    /// # Errors
    /// What `open(2)` says; `EOPNOTSUPP` where the host's file system cannot.
    pub fn open_unnamed(
        &self,
        path: &[u8],
        links: Links,
        flags: OFlags,
        mode: u32,
    ) -> Result<OpenFile, Errno> {
        self.writable()?;
        let host = (flags & OFlags::RWMODE) | OFlags::TMPFILE;
        let fd = self.resolve(path, links, host, Mode::from_raw_mode(mode & 0o777))?;
        let attr = stat_fd(&fd)?;
        Ok(OpenFile { fd, attr, access: self.access, hold: self.hold.clone(), upper: self.is_upper() })
    }

    /// Opens again what a saved state describes. Nothing is created or truncated.
    ///
    /// # Errors
    /// `ESTALE` where the path is gone or names another file, else what `open(2)` says.
    pub fn reopen(&self, state: &OpenState) -> Result<OpenFile, Errno> {
        let keep = OFlags::RWMODE | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC | OFlags::DIRECTORY;
        let flags = OFlags::from_bits_truncate(state.flags) & keep;
        let file = match self.open(&state.path, Links::Refuse, flags, 0) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) => return Err(Errno::STALE),
            other => other?,
        };
        if file.id() == state.id { Ok(file) } else { Err(Errno::STALE) }
    }
}

/// Refuses what must not be opened.
fn check_kind(kind: FileType, writes: bool) -> Result<(), Errno> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory if writes => Err(Errno::ISDIR),
        FileType::Directory => Ok(()),
        FileType::Symlink => Err(Errno::LOOP),
        FileType::Socket => Err(Errno::NXIO),
        _ => Err(Errno::ACCESS),
    }
}
