//! Sets of pages, by number within a region.

use std::ops::Range;

/// A set of pages, kept as sorted runs that neither touch nor overlap.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct PageSet {
    runs: Vec<Range<u64>>,
}

impl PageSet {
    /// The pages from 0 up to `pages`.
    #[must_use]
    pub fn all(pages: u64) -> Self {
        std::iter::once(0..pages).collect()
    }

    /// The set bits of a dirty log: bit `i % 64` of word `i / 64` is page `i`, as KVM_GET_DIRTY_LOG writes it.
    #[must_use]
    pub fn from_bitmap(words: &[u64]) -> Self {
        let mut set = Self::default();
        for (base, &word) in (0..).step_by(64).zip(words) {
            let (mut rest, mut page) = (word, base);
            while rest != 0 {
                let skip = rest.trailing_zeros();
                let run = (rest >> skip).trailing_ones();
                page += u64::from(skip);
                set.push(page..page + u64::from(run));
                page += u64::from(run);
                rest = rest.checked_shr(skip + run).unwrap_or(0);
            }
        }
        set
    }

    /// Adds pages that do not come before the last ones of the set.
    pub(crate) fn push(&mut self, run: Range<u64>) {
        match self.runs.last_mut() {
            _ if run.is_empty() => {}
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => self.runs.push(run),
        }
    }

    /// The runs, sorted.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = Range<u64>> + '_ {
        self.runs.iter().cloned()
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether no page is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether `page` is in the set.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        let at = self.runs.partition_point(|run| run.end <= page);
        self.runs.get(at).is_some_and(|run| run.start <= page)
    }

    /// The pages in both sets.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.runs.as_slice(), other.runs.as_slice());
        let mut both = Self::default();
        while let ([a, ..], [b, ..]) = (left, right) {
            both.push(a.start.max(b.start)..a.end.min(b.end));
            if a.end < b.end { left = &left[1..] } else { right = &right[1..] }
        }
        both
    }

    /// The pages of this set that are not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        let mut cuts = other.runs.as_slice();
        for run in &self.runs {
            let mut start = run.start;
            while let [cut, ..] = cuts {
                if cut.start >= run.end {
                    break;
                }
                rest.push(start..cut.start.max(start));
                start = start.max(cut.end);
                if cut.end > run.end {
                    break;
                }
                cuts = &cuts[1..];
            }
            rest.push(start.min(run.end)..run.end);
        }
        rest
    }
}

impl FromIterator<Range<u64>> for PageSet {
    /// From runs in any order; they may overlap.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut runs: Vec<_> = runs.into_iter().filter(|run| !run.is_empty()).collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut set = Self::default();
        runs.into_iter().for_each(|run| set.push(run));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members(set: &PageSet) -> BTreeSet<u64> {
        set.runs().flatten().collect()
    }

    /// Sorted, not empty, and neither touching nor overlapping.
    fn is_canonical(set: &PageSet) -> bool {
        set.runs.iter().all(|run| !run.is_empty()) && set.runs.windows(2).all(|w| w[0].end < w[1].start)
    }

    fn any_set() -> impl Strategy<Value = PageSet> {
        prop::collection::vec((0..200_u64, 0..20_u64), 0..20)
            .prop_map(|runs| runs.into_iter().map(|(start, len)| start..start + len).collect())
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(a in any_set(), b in any_set()) {
            prop_assert!(is_canonical(&a) && is_canonical(&a.intersect(&b)) && is_canonical(&a.subtract(&b)));
            prop_assert_eq!(members(&a.intersect(&b)), &members(&a) & &members(&b));
            prop_assert_eq!(members(&a.subtract(&b)), &members(&a) - &members(&b));
            prop_assert_eq!(a.pages(), members(&a).len() as u64);
        }

        #[test]
        fn a_bitmap_means_its_set_bits(words in prop::collection::vec(any::<u64>(), 0..4)) {
            let set = PageSet::from_bitmap(&words);
            let bits = (0..words.len() as u64 * 64).filter(|i| words[(i / 64) as usize] >> (i % 64) & 1 == 1);
            prop_assert!(is_canonical(&set));
            prop_assert_eq!(members(&set), bits.collect());
        }
    }

    #[test]
    fn a_full_bitmap_is_one_run() {
        assert_eq!(PageSet::from_bitmap(&[u64::MAX, u64::MAX, 1]), PageSet::all(129));
    }
}
