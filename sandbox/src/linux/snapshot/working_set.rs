//! The pages that a restored guest touches until it has answered, brought in ahead at later restores.
//!
//! A page that the guest writes costs it three ways out of the VM where it must be copied first: one to read it, one to
//! write it, and one because KVM forgets the page when it is copied. Where it was copied ahead it costs one, which is
//! cheaper too. A page that is only read costs one way out in any case, a cheaper one where it is at hand.
//!
//! A set is learnt from a guest that was restored without one, or it would only ever grow.

use std::io;
use std::ops::Range;

use novum_snapshot::PageSet;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::linux::layout::PAGE;
use crate::linux::memory::Memory;
use crate::linux::sys::{self, For};

/// Most bytes that are written ahead. A guest that wrote more was given a large task rather than that it always does so,
/// and all that is copied ahead is private memory of every guest that waits.
const MOST_WRITTEN: u64 = 4 << 20;
/// Most bytes that are brought in to be read: they are shared, but each takes a moment.
const MOST_READ: u64 = 32 << 20;
/// Pages between two of the set that are read ahead with them: less than another call costs.
const GAP: u64 = 16;

/// See the module: pages of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    written: Vec<Range<u64>>,
    read: Vec<Range<u64>>,
}

impl WorkingSet {
    /// What a guest that came from a snapshot has touched of it.
    pub(crate) fn learn(memory: &Memory) -> io::Result<Self> {
        let mut set = Self::default();
        for region in memory.iter() {
            let (at, len, first) = (region.as_ptr(), region.len() as usize, region.start_addr().0 / PAGE);
            let moved = |run: Range<u64>| first + run.start..first + run.end;
            set.written.extend(PageSet::private(at, len)?.runs().map(moved));
            set.read.extend(joined(PageSet::of_files(at, len)?.runs()).into_iter().map(moved));
        }
        for (ranges, most) in [(&mut set.written, MOST_WRITTEN), (&mut set.read, MOST_READ)] {
            if bytes(ranges) > most {
                ranges.clear();
            }
        }
        Ok(set)
    }

    /// Bytes that were written, and bytes that were only read.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (bytes(&self.written), bytes(&self.read))
    }

    /// Brings them in, in memory that no guest uses yet.
    pub(crate) fn populate(&self, memory: &Memory) {
        // What is read first: where the file's pages are at hand, copying them costs less.
        for (ranges, purpose) in [(&self.read, For::Reading), (&self.written, For::Writing)] {
            for range in ranges {
                if let Some((region, offset, length)) = place(memory, range) {
                    sys::populate(region, offset, length, purpose);
                }
            }
        }
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum::<u64>() * PAGE
}

/// Runs with short gaps filled.
fn joined(runs: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end < GAP => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}

/// Where pages are: their region, offset and length in it. `None` where the guest has no such memory.
fn place<'a>(memory: &'a Memory, pages: &Range<u64>) -> Option<(&'a GuestRegionMmap<()>, u64, u64)> {
    let region = memory.find_region(GuestAddress(pages.start * PAGE))?;
    let offset = pages.start * PAGE - region.start_addr().0;
    let length = (pages.end - pages.start) * PAGE;
    (offset + length <= region.len()).then_some((region, offset, length))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::Bytes;

    use super::*;
    use crate::linux::memory;

    #[test]
    fn what_was_written_and_what_was_read_is_there_before_it_is_used() {
        const FIRST: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 64 * PAGE as usize], 0).unwrap();
        let new = || {
            let memory = memory::allocate(64 << 20).unwrap();
            assert!(sys::map_file(&memory, GuestAddress(FIRST), file.as_fd(), 0, 64 * PAGE).unwrap());
            memory
        };
        let used = new();
        used.write_obj(1u8, GuestAddress(FIRST + 9 * PAGE)).unwrap();
        used.write_obj(1u8, GuestAddress(32 << 20)).unwrap();
        assert_eq!(used.read_obj::<u8>(GuestAddress(FIRST + 40 * PAGE)).unwrap(), 7);
        let set = WorkingSet::learn(&used).unwrap();
        assert_eq!(set.bytes().0, 2 * PAGE);
        assert!(set.bytes().1 >= PAGE, "{set:?}");
        let fresh = new();
        set.populate(&fresh);
        let learnt = WorkingSet::learn(&fresh).unwrap();
        assert_eq!(learnt.written, set.written);
        assert_eq!(fresh.read_obj::<u8>(GuestAddress(FIRST + 9 * PAGE)).unwrap(), 7, "the file's bytes");
        assert_eq!(fresh.read_obj::<u8>(GuestAddress(32 << 20)).unwrap(), 0);
    }

    #[test]
    fn a_guest_that_wrote_much_teaches_nothing_about_writing() {
        let memory = memory::allocate(64 << 20).unwrap();
        for page in 0..MOST_WRITTEN / PAGE + 1 {
            memory.write_obj(1u8, GuestAddress(page * PAGE)).unwrap();
        }
        assert_eq!(WorkingSet::learn(&memory).unwrap().bytes().0, 0);
    }

    #[test]
    fn a_set_of_a_larger_guest_is_left_out_where_there_is_no_memory() {
        let memory = memory::allocate(32 << 20).unwrap();
        let pages = |at: u64| at / PAGE..at / PAGE + 2;
        let set = WorkingSet { written: vec![pages(1 << 40), pages((32 << 20) - PAGE)], read: vec![] };
        set.populate(&memory);
        assert_eq!(WorkingSet::learn(&memory).unwrap().bytes().0, 0);
    }
}
