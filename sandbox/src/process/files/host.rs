//! Small helpers over the host's files, and the clock.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::share::Time;

/// The present.
pub(crate) fn now() -> Time {
    let t = clock_gettime(ClockId::Realtime);
    Time { seconds: t.tv_sec, nanos: t.tv_nsec as u32 }
}

/// Reads `size` bytes from the start; fewer where the file is shorter.
pub(crate) fn read_all(fd: impl AsFd, size: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; size];
    let mut done = 0;
    while done < size {
        match rustix::io::pread(&fd, &mut bytes[done..], done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Another descriptor of a file of ours, which cannot write: nothing that is mapped through it can be stored into.
pub(crate) fn reopen_to_read(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Writes all of `bytes` at the start.
pub(crate) fn write_all(fd: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::pwrite(&fd, &bytes[done..], done as u64)?;
    }
    Ok(())
}
