//! Calls that rustix does not have: `fchmodat2(2)` and open-file-description locks (`fcntl(2)`, "Open file
//! description locks").
#![allow(unsafe_code)] // Two raw system calls, wrapped.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

fn check(rc: libc::c_long) -> Result<(), Errno> {
    if rc >= 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(code))
}

/// Changes the permission bits of what an `O_PATH` descriptor refers to.
pub(super) fn chmod(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the duration of the borrow; the path is a static empty C string; the call
    // reads no other memory.
    let rc = unsafe { libc::syscall(libc::SYS_fchmodat2, raw, c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    match check(rc) {
        // Linux before 6.6. The link in /proc leads to the very inode that was looked at.
        Err(Errno::NOSYS) => {
            rustix::fs::chmod(format!("/proc/self/fd/{raw}"), rustix::fs::Mode::from_raw_mode(mode))
        }
        other => other,
    }
}

/// What kind of lock a range of bytes has or shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None.
    Unlock,
}

/// A lock on a range of bytes, from the file's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its kind.
    pub kind: LockKind,
    /// First byte.
    pub start: i64,
    /// Number of bytes; 0 means up to the end of the file, however it grows.
    pub length: i64,
}

impl Lock {
    fn raw(self) -> libc::flock {
        let kind = match self.kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        };
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.start,
            l_len: self.length,
            l_pid: 0,
        }
    }
}

/// Sets a lock that belongs to the open file, without waiting: `EAGAIN` where another one stands in the way.
pub(super) fn set_lock(fd: impl AsFd, lock: Lock) -> Result<(), Errno> {
    let raw = lock.raw();
    // SAFETY: the descriptor is open for the duration of the borrow; F_OFD_SETLK reads one `flock`, which lives
    // across the call.
    let rc = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const raw) };
    check(libc::c_long::from(rc))
}

/// The lock that would stand in the way of `lock`, if any.
pub(super) fn get_lock(fd: impl AsFd, lock: Lock) -> Result<Option<Lock>, Errno> {
    let mut raw = lock.raw();
    // SAFETY: the descriptor is open for the duration of the borrow; F_OFD_GETLK reads and writes one `flock`,
    // which lives across the call.
    let rc = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut raw) };
    check(libc::c_long::from(rc))?;
    let kind = match i32::from(raw.l_type) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    Ok(Some(Lock { kind, start: raw.l_start, length: raw.l_len }))
}
