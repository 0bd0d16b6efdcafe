//! One stretch of host addresses that backs the guest-physical memory of one VM.
//!
//! ```text
//! HVA = base + GPA
//!   base ├──────────────┬───────────────┬───────────── ─ ─ ─ ┤ base + len
//!        │ mapped pages │ reserved      │ mapped ...         │
//!        └──────────────┴───────────────┴───────────── ─ ─ ─ ┘
//! ```
//! All of it is reserved (`PROT_NONE`, no memory behind) for as long as the `Region` lives, so that `MAP_FIXED`
//! inside of it can never hit a mapping of somebody else: a page is replaced, never given back to the process.
//!
//! Copies go through `process_vm_readv(2)`/`process_vm_writev(2)` on this process: where the page cannot be
//! reached (a mapped file was truncated by its owner, memory ran out), they say `EFAULT` where a plain load would
//! raise `SIGBUS` and take every tenant of the process along.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the host lets KVM and us do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protection {
    /// Loads and instruction fetches.
    pub(crate) read: bool,
    /// Stores.
    pub(crate) write: bool,
}

impl Protection {
    /// Loads and stores.
    pub(crate) const READ_WRITE: Self = Self { read: true, write: true };

    fn bits(self) -> i32 {
        let mut bits = libc::PROT_NONE;
        if self.read {
            bits |= libc::PROT_READ;
        }
        if self.write {
            bits |= libc::PROT_WRITE;
        }
        bits
    }
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backing<'a> {
    /// Zeroes, private.
    Anonymous,
    /// A file from this byte offset; writes go to a private copy.
    Private(BorrowedFd<'a>, u64),
    /// A file from this byte offset; writes go to the file.
    Shared(BorrowedFd<'a>, u64),
}

/// `madvise(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Drop the contents; zeroes or the file's bytes come back.
    DontNeed,
    /// Drop them when memory is short.
    Free,
    /// Take away a part of a shared file.
    Remove,
    /// Use 2 MiB pages.
    HugePage,
    /// Fault in for reading, in bulk.
    PopulateRead,
    /// Fault in for writing, in bulk.
    PopulateWrite,
}

impl Advice {
    fn value(self) -> i32 {
        match self {
            Self::DontNeed => libc::MADV_DONTNEED,
            Self::Free => libc::MADV_FREE,
            Self::Remove => libc::MADV_REMOVE,
            Self::HugePage => libc::MADV_HUGEPAGE,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
        }
    }
}

/// The reservation. Dropping it unmaps everything; the VM that uses it must be gone by then.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<c_void>,
    len: u64,
    /// Calls that may have cut the host's mappings, each into two more at most, since they were counted.
    cuts: AtomicU32,
}

// SAFETY: the mapping belongs to this value alone and is only reached through calls that check bounds; nothing in
// it is tied to a thread.
unsafe impl Send for Region {}
// SAFETY: as above; shared access is `process_vm_readv`, which the kernel orders.
unsafe impl Sync for Region {}

/// Alignment of a region: that of a large page, so that GPA, HVA and the guest's virtual addresses agree in it.
const ALIGN: u64 = 2 << 20;
const PAGE: u64 = 4096;

impl Region {
    /// Reserves `len` bytes of addresses (a multiple of 2 MiB).
    pub(crate) fn reserve(len: u64) -> io::Result<Self> {
        assert!(len > 0 && len.is_multiple_of(ALIGN), "a region is a multiple of 2 MiB");
        let with_slack = len + ALIGN;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                with_slack as usize,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start as u64;
        let aligned = start.next_multiple_of(ALIGN);
        trim(start, aligned - start);
        trim(aligned + len, start + with_slack - (aligned + len));
        let base = NonNull::new(aligned as *mut c_void).expect("mmap does not return 0 without MAP_FIXED");
        Ok(Self { base, len, cuts: AtomicU32::new(0) })
    }

    /// Bytes of addresses.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The host address of `offset`, for KVM's memslots and for `readv`-like calls.
    ///
    /// # Panics
    /// Where `offset..offset + len` leaves the region.
    pub(crate) fn host_address(&self, offset: u64, len: u64) -> u64 {
        self.check(offset, len);
        self.base.as_ptr() as u64 + offset
    }

    fn check(&self, offset: u64, len: u64) {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{offset:#x}+{len:#x} leaves the region");
    }

    fn at(&self, offset: u64, len: u64) -> *mut c_void {
        self.host_address(offset, len) as *mut c_void
    }

    /// Whether the host has more than `most` mappings here, as it was when it was last worth a count: some thousand changes ago
    /// at most. Neighbours that look alike need not be one mapping for the host, so only it can say.
    pub(crate) fn has_more_mappings(&self, most: usize) -> bool {
        const UNCOUNTED: u32 = 4096;
        if self.cuts.load(Ordering::Relaxed) < UNCOUNTED {
            return false;
        }
        let many = self.mappings(most).is_ok_and(|count| count > most);
        if !many {
            self.cuts.store(0, Ordering::Relaxed);
        }
        many
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
    }

    /// Maps `backing` over what was there.
    pub(crate) fn map(
        &self,
        offset: u64,
        len: u64,
        protection: Protection,
        backing: Backing<'_>,
    ) -> io::Result<()> {
        let (flags, fd, file_offset) = match backing {
            Backing::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            Backing::Private(fd, at) => (libc::MAP_PRIVATE, fd.as_raw_fd(), at),
            Backing::Shared(fd, at) => (libc::MAP_SHARED, fd.as_raw_fd(), at),
        };
        self.map_raw(offset, len, protection.bits(), flags | libc::MAP_NORESERVE, fd, file_offset)
    }

    /// Back to reserved addresses with nothing behind.
    pub(crate) fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.map_raw(offset, len, libc::PROT_NONE, flags, -1, 0)
    }

    fn map_raw(&self, offset: u64, len: u64, prot: i32, flags: i32, fd: i32, at: u64) -> io::Result<()> {
        let at = libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let address = self.at(offset, len);
        self.cut();
        // SAFETY: the range was checked to lie inside the reservation, which belongs to us alone, so that MAP_FIXED
        // replaces only pages of this guest; nobody holds a Rust reference into it.
        let got = unsafe { libc::mmap(address, len as usize, prot, flags | libc::MAP_FIXED, fd, at) };
        if got == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Changes what KVM and we may do with mapped pages.
    pub(crate) fn protect(&self, offset: u64, len: u64, protection: Protection) -> io::Result<()> {
        self.cut();
        // SAFETY: the range lies in the reservation; no Rust reference points into it.
        check(unsafe { libc::mprotect(self.at(offset, len), len as usize, protection.bits()) })
    }

    /// `madvise(2)`.
    pub(crate) fn advise(&self, offset: u64, len: u64, advice: Advice) -> io::Result<()> {
        if advice == Advice::HugePage {
            self.cut();
        }
        // SAFETY: the range lies in the reservation; every advice we have leaves it mapped.
        check(unsafe { libc::madvise(self.at(offset, len), len as usize, advice.value()) })
    }

    /// Moves the pages of `from` over those of `to`, which must not overlap; `from` is only reserved afterwards.
    /// The page tables move, not the bytes.
    pub(crate) fn move_pages(&self, from: u64, to: u64, len: u64) -> io::Result<()> {
        assert!(from + len <= to || to + len <= from, "moved ranges overlap");
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        self.cut();
        // SAFETY: both ranges lie in the reservation. DONTUNMAP keeps the old addresses ours: without it another
        // thread's mmap could take them.
        let got =
            unsafe { libc::mremap(self.at(from, len), len as usize, len as usize, flags, self.at(to, len)) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.unmap(from, len)
    }

    /// Copies out; returns how many bytes could be copied before a page that cannot be read.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let remote = libc::iovec { iov_base: self.at(offset, into.len() as u64), iov_len: into.len() };
        // SAFETY: `local` is a live buffer of ours; `remote` is only reached by the kernel, which checks it.
        copied(unsafe { libc::process_vm_readv(own_pid(), &raw const local, 1, &raw const remote, 1, 0) })
    }

    /// Copies in; returns how many bytes could be copied before a page that cannot be written.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> usize {
        let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
        let remote = libc::iovec { iov_base: self.at(offset, from.len() as u64), iov_len: from.len() };
        // SAFETY: `local` is only read; `remote` is guest memory, to which no Rust reference points.
        copied(unsafe { libc::process_vm_writev(own_pid(), &raw const local, 1, &raw const remote, 1, 0) })
    }

    /// For each page from `offset` on whether the host holds it: one byte, 0 or 1.
    pub(crate) fn resident_pages(&self, offset: u64, pages: &mut [u8]) -> io::Result<()> {
        let len = pages.len() as u64 * PAGE;
        // SAFETY: the range lies in the reservation; `pages` has a byte for each of its pages.
        check(unsafe { libc::mincore(self.at(offset, len), len as usize, pages.as_mut_ptr()) })?;
        pages.iter_mut().for_each(|page| *page &= 1);
        Ok(())
    }

    /// `msync(2)`: shared files get what was stored.
    pub(crate) fn sync(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: the range lies in the reservation; nothing is unmapped.
        check(unsafe { libc::msync(self.at(offset, len), len as usize, libc::MS_SYNC) })
    }

    /// Reads a 64-bit word of a page that we mapped ourselves (page tables).
    pub(crate) fn word(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8));
        let at = self.at(offset, 8).cast::<u64>();
        // SAFETY: in bounds, aligned; the caller's page is anonymous memory of ours that stays mapped (a page that
        // is not mapped would stop the process, not corrupt it). Volatile because a guest may read it too.
        unsafe { at.read_volatile() }
    }

    /// Writes a 64-bit word of a page that we mapped ourselves (page tables).
    pub(crate) fn set_word(&self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(8));
        let at = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `word`; no Rust reference points there.
        unsafe { at.write_volatile(value) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        trim(self.base.as_ptr() as u64, self.len);
    }
}

/// Asked once: this process does not fork and go on.
fn own_pid() -> i32 {
    static PID: OnceLock<i32> = OnceLock::new();
    *PID.get_or_init(|| rustix::process::getpid().as_raw_nonzero().get())
}

fn copied(result: isize) -> usize {
    usize::try_from(result).unwrap_or(0)
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmaps addresses that belong to the caller.
fn trim(start: u64, len: u64) {
    if len > 0 {
        // SAFETY: the caller owns the range and nothing uses it any more.
        let result = unsafe { libc::munmap(start as *mut c_void, len as usize) };
        debug_assert_eq!(result, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn region() -> Region {
        Region::reserve(ALIGN).unwrap()
    }

    #[test]
    fn reserved_pages_cannot_be_read() {
        let region = region();
        assert_eq!(region.read(0, &mut [0; 8]), 0);
        region.map(0, PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        assert!(region.write(PAGE - 4, &[7; 8]) < 8, "a copy that crosses into a reserved page is cut short");
        assert_eq!(region.write(PAGE - 8, &[7; 8]), 8);
        region.unmap(0, PAGE).unwrap();
        assert_eq!(region.read(PAGE - 8, &mut [0; 8]), 0);
    }

    #[test]
    fn moved_pages_keep_their_bytes_and_leave_nothing_behind() {
        let region = region();
        region.map(0, PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        region.map(4 * PAGE, PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        assert_eq!(region.write(8, b"here"), 4);
        region.move_pages(0, 4 * PAGE, PAGE).unwrap();
        let mut bytes = [0; 4];
        assert_eq!(region.read(4 * PAGE + 8, &mut bytes), 4);
        assert_eq!(&bytes, b"here");
        assert_eq!(region.read(0, &mut bytes), 0);
    }

    #[test]
    fn a_truncated_file_is_an_error_and_not_a_signal() {
        let region = region();
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE).unwrap();
        region.map(0, 2 * PAGE, Protection::READ_WRITE, Backing::Private(file.as_fd(), 0)).unwrap();
        assert_eq!(region.write(PAGE, b"x"), 1);
        file.set_len(0).unwrap();
        assert_eq!(region.read(PAGE, &mut [0]), 0);
        assert_eq!(region.write(PAGE, b"x"), 0);
    }
}
