//! Operations that change names and attributes.

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{Attr, Links, Share, Time, stat_fd, sys, upper};

/// Permission bits that a tenant may set: no set-user-ID, no set-group-ID.
pub(super) const MODE_MASK: u32 = 0o1777;

/// What `utimensat` does to one of the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leaves it.
    Omit,
    /// The present.
    Now,
    /// This time.
    To(Time),
}

impl SetTime {
    pub(super) fn raw(self) -> Timespec {
        match self {
            Self::Omit => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            Self::Now => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
            Self::To(t) => Timespec { tv_sec: t.seconds, tv_nsec: i64::from(t.nanos) },
        }
    }
}

impl Share {
    /// Makes a directory with exactly these permission bits (the caller applies the tenant's umask; the VMM's own
    /// does not matter).
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn make_dir(&self, path: &[u8], links: Links, mode: u32) -> Result<(), Errno> {
        self.writable()?;
        let (dir, name) = self.parent(path, links)?;
        let mode = mode & MODE_MASK;
        fs::mkdirat(&dir, name, Mode::from_raw_mode(mode))?;
        let made = fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let attr = stat_fd(&made)?;
        match attr.kind() {
            FileType::Directory if self.is_upper() => {
                upper::write(&made, &Attr { uid: 0, gid: 0, mode: attr.mode & !0o7777 | mode, ..attr })
            }
            FileType::Directory if attr.mode & 0o777 != mode & 0o777 => {
                sys::chmod(&made, mode | attr.mode & 0o2000)
            }
            _ => Ok(()),
        }
    }

    /// Removes a name: of a directory (`dir`), or of anything else.
    ///
    /// # Errors
    /// What `unlinkat(2)` says.
    pub fn remove(&self, path: &[u8], links: Links, dir: bool) -> Result<(), Errno> {
        self.writable()?;
        let (parent, name) = self.parent(path, links)?;
        fs::unlinkat(parent, name, if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() })
    }

    /// Renames within the share.
    ///
    /// # Errors
    /// What `renameat2(2)` says; `EINVAL` for flags other than `RENAME_NOREPLACE` and `RENAME_EXCHANGE`, and in an upper
    /// layer `RENAME_WHITEOUT` (a whiteout is a device node).
    pub fn rename(&self, old: &[u8], new: &[u8], links: Links, flags: RenameFlags) -> Result<(), Errno> {
        let whiteout = if self.is_upper() { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | whiteout).contains(flags) {
            return Err(Errno::INVAL);
        }
        self.writable()?;
        let (old_dir, old_name) = self.parent(old, links)?;
        let (new_dir, new_name) = self.parent(new, links)?;
        fs::renameat_with(old_dir, old_name, new_dir, new_name, flags)
    }

    /// Gives the file `old` the further name `new`; a symbolic link is linked itself, not followed.
    ///
    /// # Errors
    /// What `linkat(2)` says.
    pub fn link(&self, old: &[u8], new: &[u8], links: Links) -> Result<(), Errno> {
        self.writable()?;
        let (old_dir, old_name) = self.parent(old, links)?;
        let (new_dir, new_name) = self.parent(new, links)?;
        fs::linkat(old_dir, old_name, new_dir, new_name, AtFlags::empty())
    }

    /// Makes a symbolic link that says `text`, whatever that means to whom.
    ///
    /// # Errors
    /// What `symlink(2)` says.
    pub fn symlink(&self, text: &[u8], path: &[u8], links: Links) -> Result<(), Errno> {
        self.writable()?;
        let (dir, name) = self.parent(path, links)?;
        fs::symlinkat(text, dir, name)
    }

    /// Changes the permission bits; set-user-ID and set-group-ID are dropped, except in an upper layer, where only the
    /// guest sees them.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a symbolic link, else what `chmod(2)` says.
    pub fn chmod(&self, path: &[u8], links: Links, follow: bool, mode: u32) -> Result<(), Errno> {
        self.writable()?;
        let node = self.node(path, links, follow)?;
        let attr = self.seen(&node)?;
        match attr.kind() {
            FileType::Symlink => Err(Errno::OPNOTSUPP),
            _ if self.is_upper() => upper::write(node, &attr.with_mode(mode)),
            _ => sys::chmod(node, mode & MODE_MASK),
        }
    }

    /// `chown(2)` by a tenant: only what changes nothing is allowed, except in an upper layer, where only the guest sees
    /// it. `None` leaves the owner or group.
    ///
    /// # Errors
    /// `EPERM` for a change.
    pub fn chown(
        &self,
        path: &[u8],
        links: Links,
        follow: bool,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        self.writable()?;
        let node = self.node(path, links, follow)?;
        let attr = self.seen(&node)?;
        if self.is_upper() {
            upper::write(node, &attr.with_owner(uid, gid))
        } else {
            attr.same_owner(uid, gid)
        }
    }

    /// Sets the times of last read and last change.
    ///
    /// # Errors
    /// What `utimensat(2)` says.
    pub fn set_times(
        &self,
        path: &[u8],
        links: Links,
        follow: bool,
        atime: SetTime,
        mtime: SetTime,
    ) -> Result<(), Errno> {
        self.writable()?;
        let node = self.node(path, links, follow)?;
        let times = Timestamps { last_access: atime.raw(), last_modification: mtime.raw() };
        fs::utimensat(node, c"", &times, AtFlags::EMPTY_PATH)
    }

    /// Changes a regular file's length.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `EINVAL` for what is no regular file, else what `truncate(2)` says.
    pub fn truncate(&self, path: &[u8], links: Links, size: u64) -> Result<(), Errno> {
        self.writable()?;
        let file = self.open(path, links, OFlags::WRONLY, 0)?;
        fs::ftruncate(file.fd(), size)
    }
}
