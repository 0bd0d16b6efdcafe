//! In which calls a region's runs are brought in: mapped, or read where they are short.
//!
//! A diff whose pages lie scattered has a run for each, and cuts its parent's runs to pieces. If short runs are read
//! into private memory instead, the parent's pieces become one mapping again, under the pages that are read:
//!
//! ```text
//! plan     ░░░░▒░░░░░░▒░░░     3 runs of the parent, 2 of the diff: 5 mmap
//! mapped   ░░░░░░░░░░░░░░░     1 mmap
//! read         ▒      ▒        1 preadv: they are next to each other in the diff's file
//! ```

use crate::plan::PlannedRun;

/// Splits runs, sorted and apart, into those to map and those to read over them.
pub(super) fn split(runs: &[PlannedRun], read_up_to: u64) -> (Vec<PlannedRun>, Vec<PlannedRun>) {
    let (mut mapped, mut read): (Vec<PlannedRun>, Vec<PlannedRun>) = Default::default();
    // Up to here nothing is missing since the last mapped run began.
    let mut covered = 0;
    for run in runs {
        let joins = run.guest_address == covered;
        if run.len <= read_up_to {
            read.push(*run);
            covered = if joins { run.guest_address + run.len } else { covered };
            continue;
        }
        match mapped.last_mut() {
            Some(last) if joins && continues(last, run) => {
                last.len = run.guest_address + run.len - last.guest_address
            }
            _ => mapped.push(*run),
        }
        covered = run.guest_address + run.len;
    }
    read.sort_unstable_by_key(|run| (run.layer, run.offset));
    (mapped, read)
}

/// Whether one mapping of the file can hold both.
fn continues(last: &PlannedRun, next: &PlannedRun) -> bool {
    let distance = next.guest_address - last.guest_address;
    last.layer == next.layer && last.offset.checked_add(distance) == Some(next.offset)
}

/// Cuts sorted runs where the file does not go on, and after `most` runs.
pub(super) fn batches(runs: &[PlannedRun], most: usize) -> impl Iterator<Item = &[PlannedRun]> {
    let goes_on =
        |a: &PlannedRun, b: &PlannedRun| a.layer == b.layer && a.offset.checked_add(a.len) == Some(b.offset);
    runs.chunk_by(goes_on).flat_map(move |batch| batch.chunks(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(guest_address: u64, len: u64, layer: u32, offset: u64) -> PlannedRun {
        PlannedRun { guest_address, len, layer, offset, first: false }
    }

    #[test]
    fn a_parents_pieces_become_one_mapping_under_what_is_read() {
        let plan =
            [run(0, 10, 1, 100), run(10, 1, 0, 5), run(11, 9, 1, 111), run(20, 1, 0, 6), run(21, 9, 1, 121)];
        let (mapped, read) = split(&plan, 1);
        assert_eq!(mapped, [run(0, 30, 1, 100)]);
        assert_eq!(read, [run(10, 1, 0, 5), run(20, 1, 0, 6)]);
        assert_eq!(batches(&read, 9).count(), 1);
        assert_eq!(split(&plan, 0), (plan.to_vec(), vec![]));
    }

    #[test]
    fn zeros_in_between_are_not_mapped_over() {
        // At 10 the diff has read 1 of 2 bytes; the other is zero.
        let plan = [run(0, 10, 1, 100), run(10, 1, 0, 5), run(12, 9, 1, 112)];
        assert_eq!(split(&plan, 1).0, [run(0, 10, 1, 100), run(12, 9, 1, 112)]);
        // Zero before and behind what is read.
        let plan = [run(0, 10, 1, 100), run(11, 1, 0, 5), run(12, 9, 1, 112)];
        assert_eq!(split(&plan, 1).0, [run(0, 10, 1, 100), run(12, 9, 1, 112)]);
    }

    #[test]
    fn other_places_of_the_file_are_mapped_apart() {
        let plan = [run(0, 10, 1, 100), run(10, 1, 0, 5), run(11, 9, 1, 211), run(20, 9, 0, 220)];
        assert_eq!(split(&plan, 1).0, [run(0, 10, 1, 100), run(11, 9, 1, 211), run(20, 9, 0, 220)]);
    }

    #[test]
    fn batches_end_where_the_file_or_the_limit_does() {
        let runs = [run(0, 1, 0, 1), run(5, 1, 0, 2), run(9, 1, 0, 3), run(20, 1, 0, 9), run(30, 1, 1, 10)];
        let sizes: Vec<_> = batches(&runs, 2).map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }
}
