//! Which pages the guest has given: a bit for each, as far up as any was given.

/// Pages by their numbers.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<u64>);

/// Pages of a terabyte; what a larger guest gives beyond is not known here.
const MOST_PAGES: u64 = 1 << 28;

impl Given {
    /// Pages that are memory of the guest.
    pub(super) fn add(&mut self, page: u64, count: u64) {
        let end = (page + count).min(MOST_PAGES);
        let words = end.div_ceil(64) as usize;
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        self.change(page, end, |word, bits| *word |= bits);
    }

    /// Any pages.
    pub(super) fn remove(&mut self, page: u64, count: u64) {
        let end = (page + count).min(self.0.len() as u64 * 64);
        self.change(page, end, |word, bits| *word &= !bits);
    }

    /// Gives `change` each word with the bits of `page..end` that are in it.
    fn change(&mut self, page: u64, end: u64, change: impl Fn(&mut u64, u64)) {
        let mut at = page;
        while at < end {
            let count = (64 - at % 64).min(end - at);
            change(&mut self.0[(at / 64) as usize], u64::MAX >> (64 - count) << (at % 64));
            at += count;
        }
    }

    /// First page and count of each run, in order.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let bits = |(index, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| index as u64 * 64 + bit)
        };
        let words = self.0.iter().enumerate().filter(|(_, word)| **word != 0);
        for page in words.flat_map(bits) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }

    /// What [`Self::runs`] said; `None` where it cannot have.
    pub(super) fn from_runs(runs: &[(u64, u64)]) -> Option<Self> {
        let mut given = Self::default();
        let mut end = 0;
        for (page, count) in runs {
            let next = page.checked_add(*count).filter(|next| *next <= MOST_PAGES)?;
            if *page < end || *count == 0 {
                return None;
            }
            given.add(*page, *count);
            end = next;
        }
        Some(given)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_what_was_added_and_not_removed(
            changes in proptest::collection::vec((any::<bool>(), 0u64..300, 1u64..100), 0..20)
        ) {
            let (mut given, mut model) = (Given::default(), [false; 400]);
            for (add, page, count) in changes {
                if add { given.add(page, count) } else { given.remove(page, count) }
                model[page as usize..(page + count) as usize].fill(add);
            }
            let mut seen = [false; 400];
            let runs = given.runs();
            runs.iter().for_each(|(page, count)| seen[*page as usize..(page + count) as usize].fill(true));
            prop_assert!(seen == model);
            prop_assert_eq!(Given::from_runs(&runs).unwrap().runs(), runs);
        }
    }

    #[test]
    fn runs_that_none_can_have_are_refused() {
        for bad in [&[(0, 0)][..], &[(5, 2), (6, 1)], &[(u64::MAX, 2)], &[(1 << 28, 1)], &[(9, 1), (3, 1)]] {
            assert!(Given::from_runs(bad).is_none(), "{bad:?}");
        }
    }
}
