//! Guest memory into a snapshot's image, and out of it.
//!
//! A page counts where this process has its own copy of it, or where it comes from a file and the snapshot has no parent
//! that has it already: the kernel's file at a cold boot, the parent's pages in a diff's place. All others are zero, or as
//! in the parent. What a balloon has taken is given back to the host, and so counts no more.

use std::io;
use std::ops::Range;

use novum_snapshot::{Layout, PageSet, Region, Snapshot, Source, Writer};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::SnapshotError;
use crate::linux::layout::PAGE;
use crate::linux::memory::{self, Memory};
use crate::linux::sys;

/// Puts all of `memory` into `writer`, a base or a diff over `parent`. Nobody may write to it meanwhile.
pub(crate) fn save(
    memory: &Memory,
    parent: Option<&Snapshot>,
    writer: &mut Writer,
) -> Result<u64, SnapshotError> {
    let regions = memory.iter().map(|region| {
        let bytes = sys::bytes(region);
        let at = bytes.as_ptr();
        let mut pages = PageSet::private(at, bytes.len())?;
        if parent.is_none() {
            let files = from_files(at as u64..at as u64 + bytes.len() as u64)?;
            pages = pages.runs().chain(files).collect();
        }
        let region = Region::new(region.start_addr().0, Source::Slice(bytes));
        Ok(Region { pages: Some(pages), ..region })
    });
    let regions = regions.collect::<io::Result<Vec<_>>>();
    let regions = regions.map_err(SnapshotError::host("finding out which memory the guest uses"))?;
    let layout = if parent.is_some() { Layout::diff() } else { Layout::default() };
    Ok(writer.memory(&regions, &layout)?)
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
    use vm_memory::Bytes;

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
            let stored = save(memory, parent, &mut writer).unwrap();
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
    fn lines_of_maps_tell_files_from_memory() {
        let file = mapping("7f00-7f80 rw-p 00001000 fd:00 1234 /x y");
        assert_eq!(file, Some((0x7f00..0x7f80, true)));
        assert_eq!(mapping("7f00-7f80 rw-p 00000000 00:00 0"), Some((0x7f00..0x7f80, false)));
        assert_eq!(mapping(""), None);
    }
}
