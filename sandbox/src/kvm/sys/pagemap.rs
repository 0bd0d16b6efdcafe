//! Which pages of a [`Region`] are this process's own: written since they were mapped.
//!
//! Source: Linux Documentation/admin-guide/mm/pagemap.rst (`PAGEMAP_SCAN`, Linux 6.7; before it, the entries of the
//! pagemap file, which cannot tell the zero page from a page of our own).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Region;

const PAGE: u64 = 4096;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO_PAGE: u64 = 1 << 5;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

fn pagemap() -> io::Result<&'static File> {
    static FILE: OnceLock<File> = OnceLock::new();
    if let Some(file) = FILE.get() {
        return Ok(file);
    }
    let file = File::open("/proc/self/pagemap")?;
    Ok(FILE.get_or_init(|| file))
}

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
/// The first mapping at or above the address.
const COVERING_OR_NEXT: u64 = 0x10;

/// `struct procmap_query`, without names.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    /// Rights, page size, offset, inode; device and lengths; addresses for names.
    rest: [u64; 8],
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Our own copies: written, or swapped out after that.
    Private,
    /// Everything that was touched and is still here, shared or our own.
    Present,
}

impl Region {
    /// Bytes of pages that are nobody else's: written copies of a private file's pages, and anonymous memory other
    /// than the zero page. Safe to call while a guest runs in the region.
    ///
    /// # Errors
    /// `ENOTTY` on kernels before 6.7.
    pub(crate) fn private_bytes(&self) -> io::Result<u64> {
        let found = scan(self.host_address(0, 0), 0..self.len(), Pages::Private)?;
        Ok(found.iter().map(|range| range.end - range.start).sum())
    }

    /// How many mappings the host has here, counted up to one more than `most`.
    ///
    /// # Errors
    /// Those of reading `/proc/self/maps`.
    pub(crate) fn mappings(&self, most: usize) -> io::Result<usize> {
        let file = File::open("/proc/self/maps")?;
        match self.query_mappings(&file, most) {
            // Before Linux 6.11.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                let (start, len) = (self.host_address(0, 0), self.len());
                let inside = |line: &str| {
                    let at = line.split('-').next().and_then(|at| u64::from_str_radix(at, 16).ok());
                    at.is_some_and(|at| (start..start + len).contains(&at))
                };
                Ok(io::read_to_string(file)?.lines().filter(|line| inside(line)).count())
            }
            counted => counted,
        }
    }

    fn query_mappings(&self, file: &File, most: usize) -> io::Result<usize> {
        let (mut at, mut count) = (self.host_address(0, 0), 0);
        let end = at + self.len();
        while at < end && count <= most {
            let size = size_of::<Query>() as u64;
            let mut query = Query { size, flags: COVERING_OR_NEXT, address: at, ..Query::default() };
            // SAFETY: `query` is what the kernel expects under this number; without names it writes nowhere else.
            let found = unsafe { libc::ioctl(file.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
            match io::Error::last_os_error() {
                _ if found == 0 && query.end > at => at = query.end,
                error if error.raw_os_error() == Some(libc::ENOENT) => break,
                error => return Err(error),
            }
            count += usize::from(query.start < end);
        }
        Ok(count)
    }

    /// The pages of `offset..offset + len` that are `wanted`, as sorted ranges of offsets.
    pub(crate) fn pages(&self, offset: u64, len: u64, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
        static NO_SCAN: AtomicBool = AtomicBool::new(false);
        let base = self.host_address(offset, len) - offset;
        if !NO_SCAN.load(Ordering::Relaxed) {
            match scan(base, offset..offset + len, wanted) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    NO_SCAN.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        read_entries(base, offset..offset + len, wanted)
    }
}

fn scan(base: u64, range: Range<u64>, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
    let file = pagemap()?;
    let mut found = [Found::default(); 128];
    let mut all: Vec<Range<u64>> = Vec::new();
    let refused = match wanted {
        Pages::Private => IS_FILE | IS_ZERO_PAGE,
        Pages::Present => 0,
    };
    let mut at = base + range.start;
    let end = base + range.end;
    while at < end {
        let mut arg = Scan {
            size: size_of::<Scan>() as u64,
            start: at,
            end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_inverted: refused,
            category_mask: refused,
            category_anyof_mask: if wanted == Pages::Private { IS_PRESENT | IS_SWAPPED } else { IS_PRESENT },
            return_mask: IS_PRESENT,
            ..Scan::default()
        };
        // SAFETY: `arg` is what the kernel expects under this number, `vec` has room for `vec_len` results; the scanned
        // addresses are only looked at.
        let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for part in &found[..count] {
            push(&mut all, part.start - base..part.end - base);
        }
        if arg.walk_end <= at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = arg.walk_end;
    }
    Ok(all)
}

fn push(all: &mut Vec<Range<u64>>, part: Range<u64>) {
    match all.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ => all.push(part),
    }
}

fn read_entries(base: u64, range: Range<u64>, wanted: Pages) -> io::Result<Vec<Range<u64>>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    let file = pagemap()?;
    let mut all = Vec::new();
    let mut buffer = vec![0u8; 32 << 10];
    let mut at = range.start;
    while at < range.end {
        let bytes = buffer.len().min(((range.end - at) / PAGE * 8) as usize);
        file.read_exact_at(&mut buffer[..bytes], (base + at) / PAGE * 8)?;
        for entry in buffer[..bytes].chunks_exact(8) {
            let entry = u64::from_ne_bytes(std::array::from_fn(|i| entry[i]));
            let own = entry & SWAPPED != 0 || entry & (PRESENT | FILE_OR_SHARED) == PRESENT;
            if own || (wanted == Pages::Present && entry & PRESENT != 0) {
                push(&mut all, at..at + PAGE);
            }
            at += PAGE;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::{Backing, Protection};
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn only_written_pages_are_our_own_and_both_ways_of_asking_agree() {
        let region = Region::reserve(2 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * PAGE).unwrap();
        region.map(0, 8 * PAGE, Protection::READ_WRITE, Backing::Private(file.as_fd(), 0)).unwrap();
        region.map(16 * PAGE, 4 * PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        region.read(0, &mut [0]);
        region.write(2 * PAGE, &[1; 2 * PAGE as usize]);
        region.write(17 * PAGE, b"x");
        let own = region.pages(0, 2 << 20, Pages::Private).unwrap();
        assert_eq!(own, [2 * PAGE..4 * PAGE, 17 * PAGE..18 * PAGE]);
        let base = region.host_address(0, 1);
        assert_eq!(read_entries(base, 0..2 << 20, Pages::Private).unwrap(), own);
        assert!(region.pages(0, PAGE, Pages::Present).unwrap().contains(&(0..PAGE)));
    }

    #[test]
    fn more_ranges_than_one_call_brings_are_all_counted() {
        let region = Region::reserve(64 << 20).unwrap();
        if region.private_bytes().is_err_and(|e| e.raw_os_error() == Some(libc::ENOTTY)) {
            eprintln!(
                "SKIPPED: more_ranges_than_one_call_brings_are_all_counted: no PAGEMAP_SCAN before Linux 6.7"
            );
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
