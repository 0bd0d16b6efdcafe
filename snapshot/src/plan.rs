//! From layers to mappings: which bytes of which file belong at which guest address.
//!
//! Each layer covers parts of its parent:
//!
//! ```text
//! guest addresses   0 ────────────────────────────────────────────▶
//! checkpoint                  ▓▓▓            0000
//! function             ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒
//! base              ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░   (then zero)
//! plan              ░░░▒▒▒▒▒▒▓▓▓▒▒▒▒▒▒░░░░░░░    ░░░░░░
//! ```
//!
//! The regions of the plan are those of the top layer; what none of its layers stores is zero.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::format::Header;
use crate::index::{Index, MAX_DEPTH, Place, RegionRecord};

/// How to build the memory of a snapshot out of its files. It can be sent to another process together with
/// the files ([`Snapshot::files`](crate::Snapshot::files)).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// By guest address; regions do not overlap.
    pub regions: Vec<PlannedRegion>,
}

/// One region of guest memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlannedRegion {
    /// Where it starts for the guest.
    pub guest_address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What the engine said when it saved the region.
    pub flags: u64,
    /// What is not zero, by guest address; runs do not overlap and have no length of zero.
    pub runs: Vec<PlannedRun>,
}

/// Bytes of a file that belong at a guest address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlannedRun {
    /// Where it starts for the guest.
    pub guest_address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Which file: 0 is the top layer's.
    pub layer: u32,
    /// Where in the file.
    pub offset: u64,
    /// Whether it is part of that layer's working set.
    pub first: bool,
}

impl PlannedRun {
    fn end(&self) -> u64 {
        self.guest_address + self.len
    }

    /// The part of the run within `range`.
    fn clip(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.guest_address.max(range.start);
        let end = self.end().min(range.end);
        let skipped = start.checked_sub(self.guest_address)?;
        (start < end).then(|| Self {
            guest_address: start,
            len: end - start,
            offset: self.offset + skipped,
            ..*self
        })
    }

    /// Whether `next` goes on where this one ends, in memory as in the file.
    fn joins(&self, next: &Self) -> bool {
        self.end() == next.guest_address
            && self.offset + self.len == next.offset
            && (self.layer, self.first) == (next.layer, next.first)
    }
}

impl Plan {
    /// The runs of all regions.
    pub fn runs(&self) -> impl Iterator<Item = &PlannedRun> {
        self.regions.iter().flat_map(|region| &region.runs)
    }

    /// The runs that touch a range of guest addresses.
    pub fn runs_within(&self, range: Range<u64>) -> impl Iterator<Item = PlannedRun> + '_ {
        let from = self.regions.partition_point(|region| region.guest_address + region.len <= range.start);
        let regions = self.regions[from..].iter().take_while({
            let end = range.end;
            move |region| region.guest_address < end
        });
        regions.flat_map(move |region| {
            let (range, runs) = (range.clone(), &region.runs);
            let from = runs.partition_point(|run| run.end() <= range.start);
            runs[from..].iter().map_while(move |run| run.clip(&range))
        })
    }

    /// Lays the layer with number `layer` over this plan.
    fn cover(&self, layer: u32, header: &Header, index: &Index) -> Self {
        let regions = index.regions.iter().map(|region| self.cover_region(layer, header, index, region));
        Self { regions: regions.collect() }
    }

    fn cover_region(
        &self,
        layer: u32,
        header: &Header,
        index: &Index,
        region: &RegionRecord,
    ) -> PlannedRegion {
        let at = |page: u64| region.guest_address + page * header.page();
        let mut runs = Joined::default();
        let mut next = region.guest_address;
        for run in &region.runs {
            runs.extend(self.runs_within(next..at(run.page)));
            next = at(run.page + run.pages);
            let Place::Data(first_page) = run.place else { continue };
            runs.extend([PlannedRun {
                guest_address: at(run.page),
                len: run.pages * header.page(),
                layer,
                offset: header.data_offset(first_page),
                first: first_page < index.first_pages,
            }]);
        }
        runs.extend(self.runs_within(next..region.guest_address + region.len));
        let RegionRecord { guest_address, len, flags, .. } = *region;
        PlannedRegion { guest_address, len, flags, runs: runs.0 }
    }
}

/// Runs that are made one where they join.
#[derive(Default)]
struct Joined(Vec<PlannedRun>);

impl Joined {
    fn extend(&mut self, runs: impl IntoIterator<Item = PlannedRun>) {
        for run in runs {
            match self.0.last_mut() {
                Some(last) if last.joins(&run) => last.len += run.len,
                _ => self.0.push(run),
            }
        }
    }
}

/// The plan of a chain of layers, the top one first.
pub(crate) fn resolve<'a, I>(layers: I) -> Plan
where
    I: IntoIterator<Item = (&'a Header, &'a Index)>,
{
    let numbered = (0..MAX_DEPTH).zip(layers).collect::<Vec<_>>();
    let cover = |below: Plan, &(number, (header, index)): &(_, _)| below.cover(number, header, index);
    numbered.iter().rfold(Plan::default(), cover)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Run;
    use crate::seal::{Salt, Tag};
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const TOTAL: u64 = 64;

    fn header() -> Header {
        Header {
            page_size: PAGE as u32,
            file_len: 0,
            data_pages: 1000,
            index_offset: 0,
            salt: Salt::fixed([0; 32]),
            index_tag: Tag::from_bytes([0; 32]),
        }
    }

    /// One region at address 0 in which each run is (skipped pages, pages, zero?, place).
    fn index(pages: u64, runs: &[(u64, u64, bool, u64)]) -> Index {
        let mut page = 0;
        let mut region = RegionRecord { guest_address: 0, len: pages * PAGE, flags: 0, runs: Vec::new() };
        for &(skip, len, zero, first) in runs {
            let start = page + skip;
            if start + len > pages {
                break;
            }
            let place = if zero { Place::Zero } else { Place::Data(first) };
            region.runs.push(Run { page: start, pages: len, place });
            page = start + len;
        }
        Index { regions: vec![region], first_pages: 10, ..Index::default() }
    }

    /// What the drawing says, page by page.
    fn slow(layers: &[Index], page: u64) -> Option<(u32, u64)> {
        for (number, index) in (0..).zip(layers) {
            let region = &index.regions[0];
            if page >= region.len / PAGE {
                return None;
            }
            match region.runs.iter().find(|run| (run.page..run.page + run.pages).contains(&page)) {
                Some(Run { place: Place::Zero, .. }) => return None,
                Some(Run { place: Place::Data(first), page: start, .. }) => {
                    return Some((number, header().data_offset(first + page - start)));
                }
                None => {}
            }
        }
        None
    }

    proptest! {
        #[test]
        fn a_plan_says_what_the_layers_say_page_by_page(
            layers in prop::collection::vec(
                (TOTAL / 2..TOTAL, prop::collection::vec((0..6_u64, 1..8_u64, any::<bool>(), 0..900_u64), 0..20)),
                1..5,
            ),
        ) {
            let layers: Vec<Index> = layers.iter().map(|(pages, runs)| index(*pages, runs)).collect();
            let header = header();
            let plan = resolve(layers.iter().map(|index| (&header, index)));
            let runs: Vec<_> = plan.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end() <= w[1].guest_address && !w[0].joins(w[1])));
            for page in 0..layers[0].regions[0].len / PAGE {
                let found: Vec<_> = plan.runs_within(page * PAGE..(page + 1) * PAGE).collect();
                prop_assert_eq!(found.first().map(|run| (run.layer, run.offset)), slow(&layers, page));
                prop_assert!(found.len() <= 1);
            }
        }
    }

    #[test]
    fn runs_that_join_become_one() {
        let layer = index(16, &[(0, 4, false, 20), (0, 4, false, 24), (0, 2, false, 40)]);
        let header = header();
        let plan = resolve([(&header, &layer)]);
        let lens: Vec<_> = plan.runs().map(|run| (run.guest_address / PAGE, run.len / PAGE)).collect();
        assert_eq!(lens, [(0, 8), (8, 2)]);
    }

    #[test]
    fn a_region_that_shrank_and_grew_again_holds_zeros() {
        let data = |pages, runs: &[_]| index(pages, runs);
        let layers = [data(8, &[]), data(4, &[]), data(8, &[(0, 8, false, 0)])];
        let header = header();
        let plan = resolve(layers.iter().map(|index| (&header, index)));
        assert_eq!(plan.runs().map(|run| run.len).sum::<u64>(), 4 * PAGE);
    }
}
