//! Guest memory into a snapshot's image, and out of it.
//!
//! A page counts where this process has its own copy of it, or where it comes from a file and the snapshot has no parent
//! that has it already: the kernel's file at a cold boot, the parent's pages in a diff's place. All others are zero, or as
//! in the parent. It is written while the guest runs; what the guest changes meanwhile, by KVM's log, and what devices change, by
//! theirs (`virtio/written.rs`), is copied while the machine stands and written over it. What a balloon has taken is given back to the host, and so counts no more.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use kvm_ioctls::VmFd;
use novum_snapshot::{Layout, PageSet, ReadMemory, Region, Snapshot, Source, Writer};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::SnapshotError;
use crate::linux::layout::PAGE;
use crate::linux::memory::{self, Memory};
use crate::linux::sys;

/// Guest memory that is read while the guest runs.
#[derive(Debug)]
struct Live<'a>(&'a GuestRegionMmap<()>);

impl ReadMemory for Live<'_> {
    fn len(&self) -> u64 {
        GuestMemoryRegion::len(self.0)
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        // The writer asks for what is there.
        let _ = self.0.read_slice(into, MemoryRegionAddress(offset));
    }
}

/// Writes what counts of `memory` into `writer`, a base, or a diff over where the memory came from. The guest may run
/// meanwhile: then [`Changes`] has what it changed.
pub(crate) fn write(memory: &Memory, writer: &mut Writer, diff: bool) -> Result<(), SnapshotError> {
    let live: Vec<_> = memory.iter().map(Live).collect();
    let region = |live: &'_ Live<'_>| {
        let pages = Some(counting(live.0, diff)?);
        Ok((live.0.start_addr().0, pages))
    };
    let found = live.iter().map(region).collect::<Result<Vec<_>, SnapshotError>>()?;
    let regions = live
        .iter()
        .zip(found)
        .map(|(live, (start, pages))| Region { pages, ..Region::new(start, Source::Changing(live)) });
    let layout = if diff { Layout::diff() } else { Layout::default() };
    writer.memory(&regions.collect::<Vec<_>>(), &layout)?;
    Ok(())
}

/// Pages that changed after they were written, as they are now.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Guest addresses.
    addresses: Vec<u64>,
    /// The pages' bytes, one after the other. More room than is used, and all of it touched: a machine that stands must not
    /// wait for the host to find memory.
    bytes: Vec<u8>,
}

impl Changes {
    /// Room for that many pages.
    pub(crate) fn room(pages: usize) -> Self {
        Self { addresses: Vec::with_capacity(pages), bytes: vec![0xff; pages * PAGE as usize] }
    }

    /// Copies the pages with these numbers. What is no memory of the guest is left out: a driver may have named it.
    pub(crate) fn copy(&mut self, memory: &Memory, pages: impl IntoIterator<Item = u64>) {
        self.addresses.clear();
        for page in pages {
            let (at, address) = (self.addresses.len() * PAGE as usize, page.saturating_mul(PAGE));
            if self.bytes.len() < at + PAGE as usize {
                self.bytes.resize(at + PAGE as usize, 0);
            }
            if memory.read_slice(&mut self.bytes[at..at + PAGE as usize], GuestAddress(address)).is_ok() {
                self.addresses.push(address);
            }
        }
    }

    /// Hands them to the writer.
    pub(crate) fn write(&self, writer: &mut Writer) -> Result<(), SnapshotError> {
        let pages = self.bytes.chunks_exact(PAGE as usize);
        Ok(writer.memory_changed(self.addresses.iter().copied().zip(pages))?)
    }
}

/// Which pages the guest has written to since it was asked before: KVM's log, for as long as this lives.
pub(crate) struct Changing<'a> {
    vm: &'a VmFd,
    memory: &'a Memory,
}

impl<'a> Changing<'a> {
    /// Begins the log.
    pub(crate) fn begin(vm: &'a VmFd, memory: &'a Memory) -> Result<Self, SnapshotError> {
        let log = Self { vm, memory };
        sys::set_memslots(vm, memory, true).map_err(|error| SnapshotError::Refused(error.to_string()))?;
        Ok(log)
    }

    /// The numbers of the pages since the last call.
    pub(crate) fn pages(&self) -> Result<BTreeSet<u64>, SnapshotError> {
        let mut pages = BTreeSet::new();
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let words = self.vm.get_dirty_log(slot, GuestMemoryRegion::len(region) as usize);
            let what = "the log of written pages";
            let words = words.map_err(|source| SnapshotError::Kvm { doing: "reading", what, source })?;
            let first = region.start_addr().0 / PAGE;
            for run in PageSet::from_bitmap(&words).runs() {
                pages.extend(first + run.start..first + run.end);
            }
        }
        Ok(pages)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // KVM then goes on logging, which costs a little and means nothing.
        let _ = sys::set_memslots(self.vm, self.memory, false);
    }
}

/// The pages of a region that count.
fn counting(region: &GuestRegionMmap<()>, diff: bool) -> Result<PageSet, SnapshotError> {
    let (at, len) = (region.as_ptr(), GuestMemoryRegion::len(region));
    let failed = SnapshotError::host("finding out which memory the guest uses");
    let find = || {
        let pages = PageSet::private(at, len as usize)?;
        if diff {
            return Ok(pages);
        }
        Ok(pages.runs().chain(from_files(at as u64..at as u64 + len)?).collect())
    };
    find().map_err(failed)
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
        let publish = |memory: &Memory, parent: Option<&Snapshot>, changed: Option<(u64, u64)>| {
            let mut writer = match parent {
                None => Writer::base(&store, Host::new(["x"])).unwrap(),
                Some(parent) => Writer::diff(&store, Host::new(["x"]), parent).unwrap(),
            };
            write(memory, &mut writer, parent.is_some()).unwrap();
            let mut changes = Changes::room(0);
            if let Some((at, value)) = changed {
                memory.write_obj(value, GuestAddress(at)).unwrap();
                changes.copy(memory, [at / PAGE, u64::MAX / PAGE]);
            }
            changes.write(&mut writer).unwrap();
            let snapshot = Snapshot::open(&store, &writer.publish().unwrap()).unwrap();
            snapshot.verify().unwrap();
            let pages = snapshot
                .mapping_plan()
                .runs()
                .filter(|run| run.layer == 0)
                .map(|run| run.len / PAGE)
                .sum::<u64>();
            (pages, snapshot)
        };
        let (stored, base) = publish(&first, None, None);
        assert_eq!(stored, 4, "three pages of the file and one that was written");
        let second = restore(&base, size).unwrap();
        let word = |memory: &Memory, at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!((word(&second, 1 << 20), word(&second, 33 << 20)), (0x0707_0707_0707_0707, 42));
        second.write_obj(43u64, GuestAddress(34 << 20)).unwrap();
        let (stored, diff) = publish(&second, Some(&base), Some((35 << 20, 44)));
        assert_eq!(stored, 2, "only what differs from the parent, and what changed at last");
        let third = restore(&diff, size).unwrap();
        assert_eq!(
            [33 << 20, 34 << 20, 35 << 20, 1 << 20].map(|at| word(&third, at) & 0xff),
            [42, 43, 44, 7]
        );
        assert_eq!(word(&first, 34 << 20), 0);
        assert!(restore(&base, size + PAGE).is_err(), "another size of memory is refused");
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
            write(memory, &mut writer, diff).unwrap();
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
