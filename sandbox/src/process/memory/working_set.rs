//! The pages of an image that its program touches in a run, populated in bulk at later starts.
//!
//! A page that the host has ready costs the program 1 us at its first touch; one that it has not 3 us to read and 5 to
//! write. Bulk population costs 0.2 to 0.5 us a page. So it wins where most of the pages are touched again, which is so for the
//! pages of one run of the same program, but not for those of a large input ([`LARGEST`]), nor for the few that a small program
//! reads ([`SMALLEST`]).
//!
//! A set is learnt from a sandbox that was not populated itself, or it would only ever grow.

use std::ops::Range;

use super::AddressSpace;
use super::image::{MemoryImage, Source};
use crate::kvm::layout::{PAGE, SYSTEM_SIZE};
use crate::kvm::sys::{Advice, Pages};

/// Most bytes that are populated. More is rather the run's input than the program's working set, and private memory of
/// every idle sandbox.
const LARGEST: u64 = 16 << 20;
/// Fewest bytes that are populated for reading: for less the calls cost more than the faults do.
const SMALLEST: u64 = 512 << 10;
/// Pages between two of the set that are populated with them: less than another call costs.
const GAP: u64 = 2 * PAGE;

/// See the module: ranges of guest-physical memory, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkingSet {
    written: Vec<Range<u64>>,
    read: Vec<Range<u64>>,
}

impl WorkingSet {
    /// Bytes that were written, and bytes that were only read.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let sum = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum();
        (sum(&self.written), sum(&self.read))
    }
}

impl AddressSpace {
    /// What a run of a sandbox without population has touched of its image.
    pub(crate) fn working_set(&self) -> std::io::Result<WorkingSet> {
        let Some(image) = &self.image else { return Ok(WorkingSet::default()) };
        let used = self.extents.used() - SYSTEM_SIZE;
        let of_image = |ranges: Vec<Range<u64>>| self.still_of(image, ranges);
        let written = of_image(self.region.pages(SYSTEM_SIZE, used, Pages::Private)?);
        let present = of_image(self.region.pages(SYSTEM_SIZE, used, Pages::Present)?);
        let read = super::renew::outside(&present, &written);
        Ok(WorkingSet { written: limited(joined(written)), read: limited(joined(read)) })
    }

    /// The parts of `ranges` in memory that is mapped as the image has it.
    fn still_of(&self, image: &MemoryImage, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        for range in &ranges {
            let pieces = image.touching(range.start, range.end).filter(|piece| !piece.tables);
            let pieces = pieces.filter(|piece| !matches!(piece.source, Source::Clocks(_)));
            parts.extend(pieces.filter_map(|piece| piece.part(range.start, range.end)));
        }
        let parts: Vec<Range<u64>> = parts.into_iter().map(|part| part.gpa..part.end()).collect();
        let runs = self.touched.iter().flat_map(|range| self.extents.runs(range.start, range.end));
        let changed: Vec<Range<u64>> = runs.map(|run| run.gpa..run.gpa + run.len).collect();
        super::renew::outside(&parts, &changed)
    }

    /// Makes the pages of `set` present, in the order of the picture.
    pub(crate) fn populate_set(&self, set: &WorkingSet) {
        let populate = |ranges: &[Range<u64>], advice| {
            for range in ranges {
                // What cannot be had now costs a fault later.
                let _ = self.region.advise(range.start, range.end - range.start, advice);
            }
        };
        populate(&set.written, Advice::PopulateWrite);
        if set.bytes().1 >= SMALLEST {
            populate(&set.read, Advice::PopulateRead);
        }
    }
}

fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start - last.end <= GAP => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

fn limited(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    if bytes <= LARGEST { ranges } else { Vec::new() }
}
