//! Guest memory into a snapshot's image, and out of it.
//!
//! A page counts where this process has its own copy of it, or where it comes from a file and the snapshot has no parent
//! that has it already: the kernel's file at a cold boot, the parent's pages in a diff's place. All others are zero, or as
//! in the parent. What a balloon has taken is given back to the host, and so counts no more.

use std::io;
use std::ops::Range;

use novum_snapshot::{Layout, PageSet, Region, Snapshot, Source, Writer};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::SnapshotError;
use crate::linux::layout::PAGE;
use crate::linux::memory::{self, Memory};
use crate::linux::sys;

/// Shortest gap between runs of pages that a diff leaves out; shorter ones are stored, as a run costs more at each start.
const LEAST_GAP: u64 = 2;
/// Most runs of a region in a diff.
const MOST_RUNS: usize = 1024;

/// A copy of what counts in a machine's memory, made while the machine stands, so that it need not stand while the copy
/// is written.
pub(crate) struct Copy {
    /// Zeroes where nothing was copied.
    memory: Memory,
    diff: bool,
    /// What was copied of each region.
    pages: Vec<PageSet>,
}

impl Copy {
    /// Makes room for a copy of `memory`, as a base or as a diff over where it came from: what counts now is the
    /// best guess of what will count when the machine stands.
    pub(crate) fn prepare(memory: &Memory, bytes: u64, diff: bool) -> Result<Self, SnapshotError> {
        let copy = memory::allocate(bytes).map_err(|error| SnapshotError::Refused(error.to_string()))?;
        for (from, to) in memory.iter().zip(copy.iter()) {
            for run in counting(from, diff)?.runs() {
                sys::populate(to, run.start * PAGE, (run.end - run.start) * PAGE, sys::For::Writing);
            }
        }
        Ok(Self { memory: copy, diff, pages: Vec::new() })
    }

    /// Copies from `memory`, to which nobody may write meanwhile.
    pub(crate) fn take(&mut self, memory: &Memory) -> Result<(), SnapshotError> {
        for (from, to) in memory.iter().zip(self.memory.iter()) {
            let pages = counting(from, self.diff)?;
            let bytes = sys::bytes(from);
            for run in pages.runs() {
                let at = run.start * PAGE;
                let piece = &bytes[at as usize..(run.end * PAGE) as usize];
                let copied = to.write_slice(piece, MemoryRegionAddress(at));
                copied.map_err(|error| SnapshotError::Refused(error.to_string()))?;
            }
            self.pages.push(pages);
        }
        Ok(())
    }

    /// Puts the copy into `writer`, a base or a diff as was said.
    pub(crate) fn write(&self, writer: &mut Writer) -> Result<u64, SnapshotError> {
        let mut regions = Vec::new();
        for (region, pages) in self.memory.iter().zip(&self.pages) {
            let source = Source::Slice(sys::bytes(region));
            regions.push(Region { pages: Some(pages.clone()), ..Region::new(region.start_addr().0, source) });
        }
        // Gaps of a diff were filled from the memory; the copy has nothing to fill more with.
        let layout =
            if self.diff { Layout { min_gap_pages: 1, max_runs: usize::MAX } } else { Layout::default() };
        Ok(writer.memory(&regions, &layout)?)
    }
}

/// The pages of a region that count.
fn counting(region: &GuestRegionMmap<()>, diff: bool) -> Result<PageSet, SnapshotError> {
    let (at, len) = (region.as_ptr(), region.len());
    let failed = SnapshotError::host("finding out which memory the guest uses");
    let find = || {
        let pages = PageSet::private(at, len as usize)?;
        if diff {
            return Ok(close_gaps(&pages));
        }
        Ok(pages.runs().chain(from_files(at as u64..at as u64 + len)?).collect())
    };
    find().map_err(failed)
}

/// With the pages of short gaps, so that there are not too many runs.
fn close_gaps(pages: &PageSet) -> PageSet {
    let mut least = LEAST_GAP;
    loop {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for run in pages.runs() {
            match runs.last_mut() {
                Some(last) if run.start - last.end < least => last.end = run.end,
                _ => runs.push(run),
            }
        }
        if runs.len() <= MOST_RUNS {
            return runs.into_iter().collect();
        }
        least *= 2;
    }
}

/// Bytes of `memory` that are this machine's own and not shared with a file; 0 where that cannot be found out.
pub(crate) fn private_bytes(memory: &Memory) -> u64 {
    let pages = |region: &GuestRegionMmap<()>| {
        PageSet::private(region.as_ptr(), region.len() as usize).map_or(0, |pages| pages.pages())
    };
    memory.iter().map(pages).sum::<u64>() * PAGE
}

/// The pages of `range`, numbered from its start, that are mapped from files.
fn from_files(range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let within = |line: &str| {
        let (mapped, file) = mapping(line)?;
        let (start, end) = (mapped.start.max(range.start), mapped.end.min(range.end));
        (file && start < end).then(|| (start - range.start) / PAGE..(end - range.start) / PAGE)
    };
    Ok(maps.lines().filter_map(within).collect())
}

/// A line of /proc/self/maps: `start-end perms offset device inode path`; whether it is of a file.
fn mapping(line: &str) -> Option<(Range<u64>, bool)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, words.nth(3)? != "0"))
}

/// The memory of a machine with `bytes` bytes, as `snapshot` has it: its pages are mapped, the first write to one copies it.
pub(crate) fn restore(snapshot: &Snapshot, bytes: u64) -> Result<Memory, SnapshotError> {
    let refused = |reason: String| SnapshotError::Refused(reason);
    let memory = memory::allocate(bytes).map_err(|error| refused(error.to_string()))?;
    let plan = snapshot.mapping_plan();
    let regions = memory.iter().map(|region| (region.start_addr().0, region.len()));
    if !plan.regions.iter().map(|region| (region.guest_address, region.len)).eq(regions) {
        return Err(refused(format!("its memory is not that of a machine with {bytes} bytes")));
    }
    let files = snapshot.files();
    for run in plan.runs() {
        let file = files.get(run.layer as usize).ok_or_else(|| refused("it lacks a layer".into()))?;
        let mapped = sys::map_file(&memory, GuestAddress(run.guest_address), *file, run.offset, run.len);
        if !mapped.map_err(SnapshotError::host("mapping the snapshot"))? {
            return Err(refused(format!("its memory has no place for {:#x}", run.guest_address)));
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use novum_snapshot::{Host, Store};

    use super::*;

    #[test]
    fn memory_comes_back_with_the_pages_of_files_and_of_a_diff() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let file = folder.path().join("kernel");
        std::fs::write(&file, vec![7; 3 * PAGE as usize]).unwrap();
        let file = std::fs::File::open(&file).unwrap();
        let size = 64 << 20;
        let first = memory::allocate(size).unwrap();
        use std::os::fd::AsFd;
        assert!(sys::map_file(&first, GuestAddress(1 << 20), file.as_fd(), 0, 3 * PAGE).unwrap());
        first.write_obj(42u64, GuestAddress(33 << 20)).unwrap();
        let publish = |memory: &Memory, parent: Option<&Snapshot>| {
            let mut writer = match parent {
                None => Writer::base(&store, Host::new(["x"])).unwrap(),
                Some(parent) => Writer::diff(&store, Host::new(["x"]), parent).unwrap(),
            };
            let mut copy = Copy::prepare(memory, size, parent.is_some()).unwrap();
            copy.take(memory).unwrap();
            let stored = copy.write(&mut writer).unwrap();
            (stored, Snapshot::open(&store, &writer.publish().unwrap()).unwrap())
        };
        let (stored, base) = publish(&first, None);
        assert_eq!(stored, 4, "three pages of the file and one that was written");
        let second = restore(&base, size).unwrap();
        let word = |memory: &Memory, at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!((word(&second, 1 << 20), word(&second, 33 << 20)), (0x0707_0707_0707_0707, 42));
        second.write_obj(43u64, GuestAddress(34 << 20)).unwrap();
        let (stored, diff) = publish(&second, Some(&base));
        assert_eq!(stored, 1, "only what differs from the parent");
        let third = restore(&diff, size).unwrap();
        assert_eq!([33 << 20, 34 << 20, 1 << 20].map(|at| word(&third, at) & 0xff), [42, 43, 7]);
        assert_eq!(word(&first, 34 << 20), 0);
        assert!(restore(&base, size + PAGE).is_err(), "another size of memory is refused");
    }

    #[test]
    fn short_gaps_are_closed_and_all_of_them_where_there_are_too_many() {
        let set: PageSet = [0..1, 2..3, 5..6].into_iter().collect();
        assert_eq!(close_gaps(&set).runs().collect::<Vec<_>>(), [0..3, 5..6]);
        let many: PageSet = (0..5000)
            .map(|index| index * 8..index * 8 + 1)
            .chain(std::iter::once(100_000..100_001))
            .collect();
        assert_eq!(close_gaps(&many).runs().collect::<Vec<_>>(), [0..39_993, 100_000..100_001]);
    }

    #[test]
    fn pages_in_the_gaps_of_a_diff_keep_what_the_parent_has() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let size = 32 << 20;
        let fill = |memory: &Memory, pages: &[u64], value: u64| {
            for page in pages {
                memory.write_obj(value + page, GuestAddress(page * PAGE)).unwrap();
            }
        };
        let publish = |memory: &Memory, mut writer: Writer, diff| {
            let mut copy = Copy::prepare(memory, size, diff).unwrap();
            copy.take(memory).unwrap();
            copy.write(&mut writer).unwrap();
            Snapshot::open(&store, &writer.publish().unwrap()).unwrap()
        };
        let memory = memory::allocate(size).unwrap();
        fill(&memory, &(0..64).collect::<Vec<_>>(), 1000);
        let base = publish(&memory, Writer::base(&store, Host::new(["x"])).unwrap(), false);
        let memory = restore(&base, size).unwrap();
        fill(&memory, &[1, 3, 5, 20, 22], 5000);
        let diff = publish(&memory, Writer::diff(&store, Host::new(["x"]), &base).unwrap(), true);
        let memory = restore(&diff, size).unwrap();
        for page in 0..64 {
            let changed = [1, 3, 5, 20, 22].contains(&page);
            let expected = page + if changed { 5000 } else { 1000 };
            assert_eq!(memory.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap(), expected, "page {page}");
        }
    }

    #[test]
    fn lines_of_maps_tell_files_from_memory() {
        let file = mapping("7f00-7f80 rw-p 00001000 fd:00 1234 /x y");
        assert_eq!(file, Some((0x7f00..0x7f80, true)));
        assert_eq!(mapping("7f00-7f80 rw-p 00000000 00:00 0"), Some((0x7f00..0x7f80, false)));
        assert_eq!(mapping(""), None);
    }
}
