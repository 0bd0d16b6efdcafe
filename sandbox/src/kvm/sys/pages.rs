//! How much of a region only this process holds: `PAGEMAP_SCAN` (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use super::Region;

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// Ranges that one call brings.
const RANGES: usize = 128;

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    ranges: u64,
    ranges_len: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    returned: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Range {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    /// Bytes of pages that are nobody else's: written copies of a private file's pages, and anonymous memory other
    /// than the zero page. Safe to call while a guest runs in the region.
    ///
    /// # Errors
    /// `ENOTTY` on kernels before 6.7.
    pub(crate) fn private_bytes(&self) -> io::Result<u64> {
        let pagemap = pagemap().ok_or(io::ErrorKind::NotFound)?;
        let mut ranges = [Range::default(); RANGES];
        let (mut at, end) = (self.host_address(0, 0), self.host_address(self.len(), 0));
        let mut bytes = 0;
        while at < end {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start: at,
                end,
                ranges: ranges.as_mut_ptr() as u64,
                ranges_len: RANGES as u64,
                inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                all_of: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                returned: PAGE_IS_PRESENT,
                ..Scan::default()
            };
            // SAFETY: the kernel reads `scan`, writes its `walk_end` and at most `RANGES` entries of `ranges`; both live
            // until the call's end. It only looks at the page tables of the range.
            let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
            bytes += ranges[..found.min(RANGES)].iter().map(|range| range.end - range.start).sum::<u64>();
            if scan.walk_end <= at {
                break;
            }
            at = scan.walk_end;
        }
        Ok(bytes)
    }
}

fn pagemap() -> Option<&'static File> {
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use crate::kvm::sys::{Backing, Protection, Region};

    const PAGE: u64 = 4096;

    #[test]
    fn only_pages_that_were_written_are_private() {
        let region = Region::reserve(64 << 20).unwrap();
        if region.private_bytes().is_err_and(|e| e.raw_os_error() == Some(libc::ENOTTY)) {
            eprintln!("SKIPPED: only_pages_that_were_written_are_private: no PAGEMAP_SCAN before Linux 6.7");
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 512 * PAGE as usize]).unwrap();
        region.map(0, 512 * PAGE, Protection::READ_WRITE, Backing::Private(file.as_fd(), 0)).unwrap();
        region.map(512 * PAGE, 512 * PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        let mut bytes = [0; 8];
        (0..1024).for_each(|page| assert_eq!(region.read(page * PAGE, &mut bytes), 8));
        assert_eq!(region.private_bytes().unwrap(), 0, "what was only read is the file's or the zero page");
        // Every second page: more ranges than one call brings.
        (0..1024).step_by(2).for_each(|page| assert_eq!(region.write(page * PAGE, b"mine"), 4));
        assert_eq!(region.private_bytes().unwrap(), 512 * PAGE);
    }
}
