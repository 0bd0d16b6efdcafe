//! In which order, and in how many runs, pages are stored.
//!
//! Every run costs one mmap call at each start, about 3 us, so a region is stored in few runs: gaps
//! between stored pages are stored too when they are short, and the shortest ones first when there would be
//! too many runs. In a base such a gap is zero and becomes a hole in the file, which costs nothing; in a diff
//! it holds the parent's pages once more. Long zero gaps stay outside the file: a guest's first write to them
//! is then an anonymous zero page and not a copy out of the page cache.

use std::ops::Range;

use crate::pages::PageSet;

/// Limits for the runs of one region. [`Default`] suits a base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Gaps shorter than this are always stored.
    pub min_gap_pages: u64,
    /// At most this many runs, for the working set and for the rest each (the rest is split further where
    /// the working set lies within).
    pub max_runs: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self { min_gap_pages: 16, max_runs: 16 }
    }
}

impl Layout {
    /// What suits a diff, where a stored gap is not free.
    #[must_use]
    pub const fn diff() -> Self {
        Self { min_gap_pages: 2, max_runs: 1024 }
    }

    /// Splits `data` into runs of the working set and runs of the rest, each in the order of addresses.
    pub(crate) fn arrange(&self, data: &PageSet, first: &PageSet) -> (PageSet, PageSet) {
        let first = self.fold(&data.intersect(first));
        let rest = self.fold(data).subtract(&first);
        (first, rest)
    }

    fn fold(&self, set: &PageSet) -> PageSet {
        let mut kept = self.longest_gaps(set);
        let mut folded = PageSet::default();
        let mut open: Option<Range<u64>> = None;
        for run in set.runs() {
            match &mut open {
                Some(last) if !kept.keep(run.start - last.end) => last.end = run.end,
                _ => folded.push(open.replace(run).unwrap_or(0..0)),
            }
        }
        folded.push(open.unwrap_or(0..0));
        folded
    }

    /// The gaps that may stay gaps.
    fn longest_gaps(&self, set: &PageSet) -> LongestGaps {
        let allowed = self.max_runs.max(1) - 1;
        let mut gaps: Vec<u64> = set.runs().zip(set.runs().skip(1)).map(|(a, b)| b.start - a.end).collect();
        gaps.retain(|&gap| gap >= self.min_gap_pages);
        gaps.sort_unstable_by(|a, b| b.cmp(a));
        match gaps.get(allowed) {
            None => LongestGaps { above: self.min_gap_pages.saturating_sub(1), ties: 0 },
            Some(&tie) => {
                let longer = gaps.partition_point(|&gap| gap > tie);
                LongestGaps { above: tie, ties: allowed - longer }
            }
        }
    }
}

/// All gaps longer than `above`, and the first `ties` that are just as long.
struct LongestGaps {
    above: u64,
    ties: usize,
}

impl LongestGaps {
    fn keep(&mut self, gap: u64) -> bool {
        let tie = gap == self.above && self.ties > 0;
        self.ties -= usize::from(tie);
        tie || gap > self.above
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(runs: &[Range<u64>]) -> PageSet {
        runs.iter().cloned().collect()
    }

    #[test]
    fn short_gaps_are_stored_and_long_ones_are_not() {
        let layout = Layout { min_gap_pages: 4, max_runs: 10 };
        let (first, rest) = layout.arrange(&set(&[0..2, 5..6, 10..11]), &PageSet::default());
        assert!(first.is_empty());
        assert_eq!(rest, set(&[0..6, 10..11]));
    }

    #[test]
    fn the_shortest_gaps_go_when_there_are_too_many_runs() {
        let layout = Layout { min_gap_pages: 1, max_runs: 2 };
        let (_, rest) = layout.arrange(&set(&[0..1, 3..4, 10..11, 12..13]), &PageSet::default());
        assert_eq!(rest, set(&[0..4, 10..13]));
    }

    #[test]
    fn of_gaps_equally_long_as_many_stay_as_may() {
        let layout = Layout { min_gap_pages: 1, max_runs: 3 };
        let (_, rest) = layout.arrange(&set(&[0..1, 5..6, 10..11, 15..16]), &PageSet::default());
        assert_eq!(rest, set(&[0..1, 5..6, 10..16]));
    }

    #[test]
    fn the_working_set_is_cut_out_of_the_rest() {
        let layout = Layout { min_gap_pages: 2, max_runs: 10 };
        let (first, rest) = layout.arrange(&set(&[0..10, 20..30]), &set(&[2..4, 12..22]));
        assert_eq!(first, set(&[2..4, 20..22]));
        assert_eq!(rest, set(&[0..2, 4..10, 22..30]));
    }

    proptest! {
        #[test]
        fn every_page_is_stored_exactly_once(
            data in prop::collection::vec((0..500_u64, 1..9_u64), 0..40),
            first in prop::collection::vec((0..500_u64, 1..9_u64), 0..10),
            min_gap_pages in 0..8_u64,
            max_runs in 0..12_usize,
        ) {
            let ranges = |v: Vec<(u64, u64)>| v.into_iter().map(|(at, n)| at..at + n).collect::<PageSet>();
            let (data, wanted) = (ranges(data), ranges(first));
            let (first, rest) = Layout { min_gap_pages, max_runs }.arrange(&data, &wanted);
            prop_assert!(first.intersect(&rest).is_empty());
            prop_assert!(data.subtract(&first).subtract(&rest).is_empty());
            prop_assert!(data.intersect(&wanted).subtract(&first).is_empty());
            prop_assert!(first.runs().len() <= max_runs.max(1));
            prop_assert!(rest.runs().len() <= max_runs.max(1) + first.runs().len());
        }
    }
}
