//! Which pages of a mapping are this process's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::pages::PageSet;

// Linux Documentation/admin-guide/mm/pagemap.rst
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

impl PageSet {
    /// The pages of private memory (`len` bytes from the page-aligned `address`) that this process has its own
    /// copy of. In anonymous memory all others are zero; in memory mapped from a snapshot all others are as in
    /// the snapshot. So this is what [`Region::pages`](crate::Region::pages) wants, without reading untouched memory.
    ///
    /// Not for shared memory: none of it counts as the process's own. Give a memfd as
    /// [`Source::File`](crate::Source::File) instead.
    ///
    /// # Errors
    /// Those of reading /proc/self/pagemap.
    pub fn private(address: *const u8, len: usize) -> io::Result<Self> {
        scan(address, len, |entry| entry & SWAPPED != 0 || entry & (PRESENT | FILE_OR_SHARED) == PRESENT)
    }

    /// The pages of private memory that this process has at hand as they are in a file: it has read them, or the kernel
    /// has brought them in beside one that it read.
    ///
    /// # Errors
    /// Those of reading /proc/self/pagemap.
    pub fn of_files(address: *const u8, len: usize) -> io::Result<Self> {
        scan(address, len, |entry| entry & (PRESENT | FILE_OR_SHARED) == PRESENT | FILE_OR_SHARED)
    }
}

/// The pages whose entries in the process's page map are `wanted`.
fn scan(address: *const u8, len: usize, wanted: impl Fn(u64) -> bool) -> io::Result<PageSet> {
    let page_size = rustix::param::page_size();
    let pagemap = File::open("/proc/self/pagemap")?;
    let pages = len.div_ceil(page_size);
    let mut offset = (address.addr() / page_size * 8) as u64;
    let mut set = PageSet::default();
    let mut buf = [0; 32 << 10];
    let mut page = 0;
    while page < pages as u64 {
        let n = buf.len().min((pages - page as usize) * 8);
        pagemap.read_exact_at(&mut buf[..n], offset)?;
        for entry in buf[..n].as_chunks::<8>().0 {
            if wanted(u64::from_ne_bytes(*entry)) {
                set.push(page..page + 1);
            }
            page += 1;
        }
        offset += n as u64;
    }
    Ok(set)
}
