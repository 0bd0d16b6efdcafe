//! The pages of an image into which its program stores while it serves a call, copied in bulk at later starts.
//!
//! ```text
//! first run of a sandbox that had nothing ready           later sandboxes
//!   first byte of the reply: pages stored into ── first ──> copied before the program goes on with its first call
//!   its end: those since then ─────────────────── rest ───> copied when the first byte is out
//! ```
//! A store into a page that is not there leaves the guest, copies the page and costs 5 us; one of a set costs 0.4 us to copy with its
//! neighbours, and at its first touch 0.5 us, because KVM shadows up to eight neighbours of a page that are copies too. In two parts, because what a program does after its reply (an interpreter that takes
//! itself down) often touches more than the reply did, for which nobody should wait, and which an idle sandbox does not hold.
//!
//! Pages that are only read are not populated: the host maps sixteen at each fault by itself, and which of those were wanted cannot be
//! told, so that a set holds many times more than what is used (Python: 1,660 pages for 310 that are touched; 0.6 ms to save 0.1).
//!
//! A set is learnt from a sandbox that was not populated itself, or it would only ever grow. It is kept with the image ([`State`]).

use std::ops::Range;

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

use super::AddressSpace;
use super::image::{MemoryImage, Source};
use crate::kvm::layout::{PAGE, SYSTEM_SIZE};
use crate::kvm::sys::{Advice, Pages};

/// Most bytes that are populated. More is rather the run's input than the program's working set.
const LARGEST: u64 = 16 << 20;
/// Pages between two of the set that are populated with them: less than another call costs.
const GAP: u64 = 2 * PAGE;

/// Pages of an image that were stored into: ranges of guest-physical memory, sorted, which is the order of the image's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Touched(Vec<Range<u64>>);

impl Touched {
    /// Bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// What is worth populating at once.
    fn settled(self) -> Self {
        let mut all: Vec<Range<u64>> = Vec::with_capacity(self.0.len());
        for range in self.0 {
            match all.last_mut() {
                Some(last) if range.start - last.end <= GAP => last.end = range.end,
                _ => all.push(range),
            }
        }
        let all = Self(all);
        if all.bytes() <= LARGEST { all } else { Self::default() }
    }

    /// Whether such a set can be of memory up to `end`.
    fn is_possible(&self, end: u64) -> bool {
        let pages = |range: &Range<u64>| {
            let whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
            whole && range.start >= SYSTEM_SIZE && range.start < range.end && range.end <= end
        };
        let sorted = self.0.windows(2).all(|pair| pair[0].end <= pair[1].start);
        self.0.iter().all(pages) && sorted && self.bytes() <= LARGEST
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkingSet {
    /// Until the first byte of the reply was out.
    pub(crate) first: Touched,
    /// From then to the end.
    pub(crate) rest: Touched,
}

impl State for WorkingSet {
    const KIND: &'static str = "process-working-set";
    const VERSION: u32 = 1;
}

impl WorkingSet {
    /// Of what a run had stored into when its first byte came, and at its end.
    pub(crate) fn new(first: Touched, all: &Touched) -> Self {
        let rest = Touched(super::renew::outside(&all.0, &first.0));
        Self { first: first.settled(), rest: rest.settled() }
    }
}

impl MemoryImage {
    /// Whether `set` can be one of this image.
    pub(crate) fn has(&self, set: &WorkingSet) -> bool {
        set.first.is_possible(self.extents.used()) && set.rest.is_possible(self.extents.used())
    }
}

impl AddressSpace {
    /// The pages of its image into which the program has stored so far.
    pub(crate) fn stored_pages(&self) -> std::io::Result<Touched> {
        let Some(image) = &self.image else { return Ok(Touched::default()) };
        let used = self.extents.used() - SYSTEM_SIZE;
        let written = self.region.pages(SYSTEM_SIZE, used, Pages::Private)?;
        Ok(Touched(self.still_of(image, &written)))
    }

    /// The parts of `ranges` in memory that is mapped as the image has it.
    fn still_of(&self, image: &MemoryImage, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        for range in ranges {
            let pieces = image.touching(range.start, range.end).filter(|piece| !piece.tables);
            let pieces = pieces.filter(|piece| !matches!(piece.source, Source::Clocks(_)));
            parts.extend(pieces.filter_map(|piece| piece.part(range.start, range.end)));
        }
        let parts: Vec<Range<u64>> = parts.into_iter().map(|part| part.gpa..part.end()).collect();
        let runs = self.touched.iter().flat_map(|range| self.extents.runs(range.start, range.end));
        let changed: Vec<Range<u64>> = runs.map(|run| run.gpa..run.gpa + run.len).collect();
        super::renew::outside(&parts, &changed)
    }

    /// Copies the pages of `set`, in the order of the image's file.
    pub(crate) fn populate_set(&self, set: &Touched) {
        for range in &set.0 {
            // What cannot be had now costs a fault later.
            let _ = self.region.advise(range.start, range.end - range.start, Advice::PopulateWrite);
        }
    }
}

#[cfg(test)]
// Ranges are meant as written: one alone, one that is empty.
#[allow(clippy::single_range_in_vec_init, clippy::reversed_empty_ranges)]
mod tests {
    use super::*;

    const FIRST: u64 = SYSTEM_SIZE;

    fn pages(ranges: &[Range<u64>]) -> Touched {
        Touched(ranges.iter().map(|range| FIRST + range.start * PAGE..FIRST + range.end * PAGE).collect())
    }

    #[test]
    fn what_was_stored_into_before_the_reply_is_not_part_of_the_rest() {
        let set = WorkingSet::new(pages(&[0..2, 10..11]), &pages(&[0..3, 10..11, 20..24]));
        assert_eq!(set.first, pages(&[0..2, 10..11]));
        assert_eq!(set.rest, pages(&[2..3, 20..24]));
        assert_eq!(set.rest.bytes(), 5 * PAGE);
    }

    #[test]
    fn neighbours_are_populated_together_and_too_much_is_not_populated() {
        assert_eq!(pages(&[0..1, 3..4, 7..8]).settled(), pages(&[0..4, 7..8]));
        let many = LARGEST / PAGE;
        assert_eq!(pages(&[0..many]).settled(), pages(&[0..many]));
        assert_eq!(pages(&[0..many + 1]).settled(), Touched::default());
    }

    #[test]
    fn a_set_that_cannot_be_is_found() {
        let end = FIRST + 100 * PAGE;
        assert!(pages(&[0..2, 2..100]).is_possible(end));
        assert!(!pages(&[0..101]).is_possible(end), "beyond the end");
        assert!(!pages(&[4..5, 3..4]).is_possible(end), "not sorted");
        assert!(!Touched(vec![FIRST - PAGE..FIRST]).is_possible(end), "the system area");
        assert!(!Touched(vec![FIRST + 1..FIRST + PAGE]).is_possible(end), "not whole pages");
        assert!(!Touched(vec![FIRST + PAGE..FIRST]).is_possible(end), "nothing");
    }
}
