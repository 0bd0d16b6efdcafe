//! The host's `preadv`/`pwritev` straight into and out of guest memory, so that file contents are copied once.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::Region;

/// A stretch of a live [`Region`], made by [`Region::range`] only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRange<'a> {
    raw: libc::iovec,
    region: PhantomData<&'a Region>,
}

impl Region {
    /// A part of the region for calls of this module.
    pub(crate) fn range(&self, offset: u64, len: u64) -> HostRange<'_> {
        let base = self.host_address(offset, len) as *mut std::ffi::c_void;
        HostRange { raw: libc::iovec { iov_base: base, iov_len: len as usize }, region: PhantomData }
    }
}

/// The kernel's limit of pieces in one call; what is longer is cut, as a short read.
const PIECES: usize = 1024;

/// Reads from `fd` into guest memory: at `offset`, or at the descriptor's own position.
pub(crate) fn read_into(
    fd: BorrowedFd<'_>,
    into: &[HostRange<'_>],
    offset: Option<u64>,
) -> Result<usize, Errno> {
    let pieces: Vec<libc::iovec> = into.iter().take(PIECES).map(|range| range.raw).collect();
    let count = pieces.len() as i32;
    // SAFETY: every piece lies in a region that outlives this call (`HostRange<'a>` borrows it); the kernel checks
    // that it may be written; no Rust reference points into guest memory.
    let got = unsafe {
        match offset {
            Some(at) => libc::preadv(fd.as_raw_fd(), pieces.as_ptr(), count, file_offset(at)?),
            None => libc::readv(fd.as_raw_fd(), pieces.as_ptr(), count),
        }
    };
    moved(got)
}

/// Writes guest memory to `fd`: at `offset`, or at the descriptor's own position.
pub(crate) fn write_from(
    fd: BorrowedFd<'_>,
    from: &[HostRange<'_>],
    offset: Option<u64>,
) -> Result<usize, Errno> {
    let pieces: Vec<libc::iovec> = from.iter().take(PIECES).map(|range| range.raw).collect();
    let count = pieces.len() as i32;
    // SAFETY: as in `read_into`; the kernel only loads from the pieces.
    let got = unsafe {
        match offset {
            Some(at) => libc::pwritev(fd.as_raw_fd(), pieces.as_ptr(), count, file_offset(at)?),
            None => libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count),
        }
    };
    moved(got)
}

fn file_offset(at: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(at).map_err(|_| Errno::INVAL)
}

fn moved(result: isize) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
