//! Which guest-physical memory stands behind which virtual addresses, and in which memslots.
//!
//! Virtual addresses get guest-physical ones in granules of 16 MiB when something accessible is first mapped there,
//! and keep them for ever (the page tables must not change). Guest-physical memory is covered by memslots that are
//! added as it is used, each as large as all before it up to a limit: few slots, and little kernel memory for small
//! programs.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use crate::kvm::layout::{FIRST_GRANULES, GRANULE, LARGE_PAGE, SYSTEM_SIZE, USER_END};

const LARGEST_SLOT: u64 = 1 << 30;

/// A memslot: guest-physical, and the same offset in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// First address.
    pub(crate) gpa: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// A piece of virtual addresses with the guest-physical memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Virtual.
    pub(crate) gva: u64,
    /// Guest-physical: the offset in the region.
    pub(crate) gpa: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// The slot that every VM has.
pub(crate) fn first_slot() -> Slot {
    Slot { gpa: 0, len: SYSTEM_SIZE + FIRST_GRANULES * GRANULE }
}

/// The granules in use.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    granules: BTreeMap<u64, u64>,
    next: u64,
    limit: u64,
    covered: u64,
    fresh: Vec<Slot>,
}

impl Extents {
    /// Only the system area; guest-physical addresses up to `limit`.
    pub(crate) fn new(limit: u64) -> Self {
        let fresh = vec![first_slot()];
        Self { granules: BTreeMap::new(), next: SYSTEM_SIZE, limit, covered: fresh[0].len, fresh }
    }

    /// Slots that were added since the last question.
    pub(crate) fn take_new(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.fresh)
    }

    /// Bytes of guest-physical memory that are given away.
    pub(super) fn used(&self) -> u64 {
        self.next
    }

    /// The same for another VM, which knows none of the slots: two at most cover them all.
    pub(super) fn for_new_vm(&self) -> Self {
        let first = first_slot();
        let rest = Slot { gpa: first.len, len: self.covered - first.len };
        let fresh = [first, rest].into_iter().filter(|slot| slot.len > 0).collect();
        Self { fresh, ..self.clone() }
    }

    /// The granules with the memory behind, what is given away, and what slots cover.
    pub(super) fn parts(&self) -> (&BTreeMap<u64, u64>, u64, u64) {
        (&self.granules, self.next, self.covered)
    }

    /// Of such parts, in a region of `limit` bytes; `None` where they cannot be.
    pub(super) fn from_parts(
        granules: BTreeMap<u64, u64>,
        next: u64,
        covered: u64,
        limit: u64,
    ) -> Option<Self> {
        let whole = |gpa: u64| gpa >= SYSTEM_SIZE && (gpa - SYSTEM_SIZE).is_multiple_of(GRANULE);
        let good = |(gva, gpa): (&u64, &u64)| {
            gva.is_multiple_of(GRANULE) && *gva < USER_END && whole(*gpa) && *gpa < next
        };
        let places: BTreeSet<u64> = granules.values().copied().collect();
        let fits = first_slot().len <= covered && next <= covered && covered <= limit;
        let fits = fits && whole(next) && covered.is_multiple_of(LARGE_PAGE);
        (fits && places.len() == granules.len() && granules.iter().all(good)).then(|| Self {
            granules,
            next,
            limit,
            covered,
            fresh: Vec::new(),
        })
    }

    /// The VM has the first slot already.
    pub(super) fn has_first_slot(&mut self) {
        self.fresh.retain(|slot| slot.gpa > 0);
    }

    /// Bytes in memslots.
    pub(super) fn covered(&self) -> u64 {
        self.covered
    }

    /// The guest-physical address of `gva`.
    pub(crate) fn find(&self, gva: u64) -> Option<u64> {
        let within = gva % GRANULE;
        self.granules.get(&(gva - within)).map(|gpa| gpa + within)
    }

    /// Guest-physical memory of its own for `len` bytes (a multiple of the granule).
    pub(crate) fn allocate(&mut self, len: u64) -> Result<u64, Errno> {
        let gpa = self.next;
        let end = gpa.checked_add(len).filter(|&end| end <= self.limit).ok_or(Errno::NOMEM)?;
        if end > self.covered {
            let wanted = self.covered.next_power_of_two().min(LARGEST_SLOT);
            let slot_end = end.max(self.covered + wanted / GRANULE * GRANULE).min(self.limit);
            self.fresh.push(Slot { gpa: self.covered, len: slot_end - self.covered });
            self.covered = slot_end;
        }
        self.next = end;
        Ok(gpa)
    }

    /// Gives guest-physical memory to every granule that `start..end` touches.
    pub(crate) fn ensure(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let mut granule = start / GRANULE * GRANULE;
        while granule < end {
            if !self.granules.contains_key(&granule) {
                let gpa = self.allocate(GRANULE)?;
                self.granules.insert(granule, gpa);
            }
            granule += GRANULE;
        }
        Ok(())
    }

    /// The pieces of `start..end` that are contiguous in guest-physical memory.
    pub(crate) fn runs(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        let mut at = start;
        std::iter::from_fn(move || {
            while at < end {
                let granule_end = at / GRANULE * GRANULE + GRANULE;
                let Some(gpa) = self.find(at) else {
                    // Addresses are many, places few.
                    at = self.granules.range(at..).next().map_or(end, |(granule, _)| *granule);
                    continue;
                };
                let gva = at;
                at = granule_end.min(end);
                while at < end && self.find(at) == Some(gpa + (at - gva)) {
                    at = (at + GRANULE).min(end);
                }
                return Some(Run { gva, gpa, len: at - gva });
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_granules_are_one_run_and_others_are_not() {
        let mut extents = Extents::new(1 << 34);
        extents.ensure(0x40_0000, 0x40_1000).unwrap();
        extents.ensure(GRANULE, GRANULE + 1).unwrap();
        extents.ensure(5 * GRANULE, 5 * GRANULE + 1).unwrap();
        let runs: Vec<Run> = extents.runs(0x40_0000, 6 * GRANULE).collect();
        let first = Run { gva: 0x40_0000, gpa: SYSTEM_SIZE + 0x40_0000, len: 2 * GRANULE - 0x40_0000 };
        let second = Run { gva: 5 * GRANULE, gpa: SYSTEM_SIZE + 2 * GRANULE, len: GRANULE };
        assert_eq!(runs, [first, second]);
    }

    #[test]
    fn slots_cover_what_is_used_without_gaps() {
        let mut extents = Extents::new(1 << 34);
        extents.ensure(0, 1 << 30).unwrap();
        extents.ensure(1 << 40, (1 << 40) + GRANULE).unwrap();
        let mut end = 0;
        for slot in extents.take_new() {
            assert_eq!(slot.gpa, end);
            end = slot.gpa + slot.len;
        }
        assert!(end >= SYSTEM_SIZE + (1 << 30) + GRANULE);
        assert_eq!(extents.ensure(1 << 41, (1 << 41) + (1 << 35)), Err(Errno::NOMEM));
    }
}
