//! Counters and latencies of one function, sharded by worker so that the invocation path does not contend: a worker
//! writes only its own shard; readers add the shards up. [`crate::expose`] prints them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::note::{Outcome, Stop};
use crate::timings::Timings;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Tells this thread which shard is its own.
pub fn set_shard(index: usize) {
    SHARD.set(index);
}

/// Upper bounds of the latency buckets, in nanoseconds; one more bucket holds the rest.
pub const BUCKETS_NS: [u64; 21] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
];

/// How an invocation ended, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Exit code 0.
    Ok,
    /// Another exit code.
    Exit,
    /// A crash.
    Fault,
    /// Ended by the gateway.
    Stopped(Stop),
    /// The queue was full.
    Refused,
    /// The deadline passed, or the caller left, while it waited.
    Abandoned,
}

impl Count {
    /// Every kind with its label.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Ok, "ok"),
        (Self::Exit, "exit"),
        (Self::Fault, "fault"),
        (Self::Stopped(Stop::Deadline), "deadline"),
        (Self::Stopped(Stop::Memory), "memory"),
        (Self::Stopped(Stop::Output), "output"),
        (Self::Stopped(Stop::Cancelled), "cancelled"),
        (Self::Stopped(Stop::Draining), "draining"),
        (Self::Stopped(Stop::Host), "host"),
        (Self::Refused, "refused"),
        (Self::Abandoned, "abandoned"),
    ];

    fn index(self) -> usize {
        Self::ALL.iter().position(|(count, _)| *count == self).unwrap_or(0)
    }
}

impl From<&Outcome> for Count {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::Ok,
            Outcome::Exit(_) => Self::Exit,
            Outcome::Fault(_) => Self::Fault,
            Outcome::Stopped(stop) => Self::Stopped(*stop),
        }
    }
}

/// A latency histogram.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn record(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// The sum of some histograms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Counts; the last one has no upper bound.
    pub buckets: [u64; BUCKETS_NS.len() + 1],
    /// Of all latencies.
    pub sum_ns: u64,
}

/// Which part of an invocation a histogram measures.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Waiting.
    Queued,
    /// Making a sandbox ready.
    Start,
    /// Running.
    Run,
    /// From arrival until a clean sandbox was there.
    Ready,
    /// From arrival until the guest ran.
    Resumed,
    /// From arrival to the first byte of output.
    FirstByte,
    /// From arrival until the reply was given to the connection.
    Answered,
}

const PARTS: usize = Part::Answered as usize + 1;

/// Two cache lines apart from its neighbours (Intel SDM: adjacent-line prefetch).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    counts: [AtomicU64; Count::ALL.len()],
    cold: AtomicU64,
    warm: AtomicU64,
    parts: [Histogram; PARTS],
}

/// One function's numbers, across its versions.
#[derive(Debug)]
pub struct FunctionStats {
    shards: Box<[Shard]>,
    recent: Recent,
}

impl FunctionStats {
    /// All zero, for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers.max(1)).map(|_| Shard::default()).collect(), recent: Recent::default() }
    }

    fn shard(&self) -> &Shard {
        &self.shards[SHARD.get() % self.shards.len()]
    }

    /// An invocation that had a sandbox ended.
    pub fn record(&self, count: Count, timings: &Timings) {
        let shard = self.shard();
        shard.counts[count.index()].fetch_add(1, Ordering::Relaxed);
        let temperature = if timings.cold { &shard.cold } else { &shard.warm };
        temperature.fetch_add(1, Ordering::Relaxed);
        shard.parts[Part::Queued as usize].record(timings.queued);
        shard.parts[Part::Start as usize].record(timings.start);
        shard.parts[Part::Run as usize].record(timings.run);
        let clocks = &timings.clocks;
        shard.parts[Part::Ready as usize].record(clocks.ready);
        for (part, moment) in [(Part::Resumed, clocks.resumed), (Part::FirstByte, clocks.first_byte)] {
            if let Some(moment) = moment {
                shard.parts[part as usize].record(moment);
            }
        }
        shard.parts[Part::Answered as usize].record(clocks.answered);
        self.recent.record(timings.queued + timings.start + timings.run);
    }

    /// An invocation ended without a sandbox.
    pub fn count(&self, count: Count) {
        self.shard().counts[count.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// How many ended so.
    #[must_use]
    pub fn total(&self, count: Count) -> u64 {
        self.sum(|shard| &shard.counts[count.index()])
    }

    /// Invocations whose sandbox was made for them.
    #[must_use]
    pub fn cold(&self) -> u64 {
        self.sum(|shard| &shard.cold)
    }

    /// Invocations that took a ready sandbox.
    #[must_use]
    pub fn warm(&self) -> u64 {
        self.sum(|shard| &shard.warm)
    }

    /// The latencies of one part.
    #[must_use]
    pub fn latencies(&self, part: Part) -> Latencies {
        let mut sum = Latencies::default();
        for shard in &self.shards {
            let histogram = &shard.parts[part as usize];
            for (total, bucket) in sum.buckets.iter_mut().zip(&histogram.buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
            sum.sum_ns = sum.sum_ns.wrapping_add(histogram.sum_ns.load(Ordering::Relaxed));
        }
        sum
    }

    /// Of queued + start + run, the `q`-quantile (0 to 1) over the last invocations; `None` before the first.
    #[must_use]
    pub fn recent_quantile(&self, q: f64) -> Option<Duration> {
        self.recent.quantile(q)
    }

    fn sum(&self, of: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    }
}

/// The latencies of the last invocations.
#[derive(Debug)]
struct Recent {
    next: AtomicUsize,
    /// Microseconds plus one; 0 is an empty slot.
    slots: Box<[AtomicU32; 256]>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { next: AtomicUsize::new(0), slots: Box::new([const { AtomicU32::new(0) }; 256]) }
    }
}

impl Recent {
    fn record(&self, latency: Duration) {
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX - 1);
        self.slots[slot].store(us.saturating_add(1), Ordering::Relaxed);
    }

    fn quantile(&self, q: f64) -> Option<Duration> {
        let all = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let mut sorted: Vec<u32> = all.filter(|us| *us > 0).collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (last as f64 * q.clamp(0.0, 1.0)).round() as usize;
        Some(Duration::from_micros(u64::from(sorted[index] - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up() {
        let stats = FunctionStats::new(4);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let stats = &stats;
                scope.spawn(move || {
                    set_shard(worker);
                    for _ in 0..1000 {
                        let run = Duration::from_micros(3);
                        stats.record(Count::Ok, &Timings { run, cold: worker == 0, ..Timings::default() });
                        stats.count(Count::Refused);
                    }
                });
            }
        });
        assert_eq!((stats.total(Count::Ok), stats.total(Count::Refused)), (4000, 4000));
        assert_eq!((stats.cold(), stats.warm()), (1000, 3000));
        let run = stats.latencies(Part::Run);
        assert_eq!((run.buckets[2], run.sum_ns), (4000, 12_000_000));
    }

    #[test]
    fn every_outcome_has_its_own_counter() {
        let indices: std::collections::HashSet<_> = Count::ALL.iter().map(|(c, _)| c.index()).collect();
        assert_eq!(indices.len(), Count::ALL.len());
    }

    #[test]
    fn quantiles_are_of_the_last_invocations() {
        let recent = Recent::default();
        assert_eq!(recent.quantile(0.5), None);
        for us in 0..1000 {
            recent.record(Duration::from_micros(us));
        }
        assert_eq!(recent.quantile(0.0), Some(Duration::from_micros(744)));
        assert_eq!(recent.quantile(1.0), Some(Duration::from_micros(999)));
    }
}
