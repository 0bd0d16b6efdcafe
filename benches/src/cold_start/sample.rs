//! Samples, taken one after the other or by several threads at once.
//!
//! Where they would take longer than [`BATCH`], there are only as many as that has time for, but at least [`FEWEST`]: the whole
//! run is to end within minutes.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

/// Samples whose times are not counted, for each thread.
const WARM: usize = 3;
/// Time for all samples of a batch together.
const BATCH: Duration = Duration::from_secs(8);
/// Samples of a batch of slow ones.
const FEWEST: usize = 20;
/// Where even those take longer than this, there are fewer, but at least [`LEAST`] of each thread.
const LONGEST: Duration = Duration::from_secs(30);
const LEAST: usize = 3;

/// One start of a program, up to its complete reply.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Took {
    pub(super) whole: Duration,
    /// Until the sandbox was ready, the guest ran, the first byte was there; where that can be seen.
    pub(super) clocks: Option<[Duration; 3]>,
}

impl Took {
    /// Only the whole is known.
    pub(super) fn whole(whole: Duration) -> Self {
        Self { whole, clocks: None }
    }
}

/// Takes one sample. Made by each thread for itself, before the clock starts.
pub(super) type Sampler = Box<dyn FnMut() -> Result<Took>>;

/// Many samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Threads that took them at once.
    pub parallel: usize,
    /// Microseconds of each, in no order between threads.
    pub micros: Vec<f64>,
    /// Medians in microseconds: sandbox ready, guest resumed, first byte; where they can be seen.
    pub clocks_p50: Option<[f64; 3]>,
    /// From the first sample's start to the last one's end, clean-up between samples included.
    pub seconds: f64,
    /// Page faults of this process and its children for one sample.
    pub faults: f64,
}

impl Batch {
    /// The value below which this share of the samples lies.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(self.micros.clone(), share)
    }

    /// Samples per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    values[(last as f64 * share).round() as usize]
}

/// How many samples of a batch of `count` each of `parallel` threads takes, where the quickest so far took `quickest`.
fn share(count: usize, parallel: usize, quickest: Duration) -> usize {
    let each = BATCH.as_micros() / quickest.as_micros().max(1);
    let fitting = usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(parallel);
    count.min(fitting.max(FEWEST)).div_ceil(parallel)
}

/// Takes `count` samples, fewer of slow ones, by `parallel` threads.
pub(super) fn take(
    count: usize,
    parallel: usize,
    make: &(dyn Fn(usize) -> Result<Sampler> + Sync),
) -> Result<Batch> {
    let ready = Barrier::new(parallel + 1);
    let run = || -> Result<(Instant, Vec<Took>, Instant)> {
        let sampler = make(parallel).and_then(|mut sampler| {
            let warm: Vec<Took> = (0..WARM).map(|_| sampler()).collect::<Result<_>>()?;
            let quickest = warm.iter().map(|took| took.whole).min().unwrap_or_default();
            Ok((sampler, share(count, parallel, quickest)))
        });
        ready.wait();
        let (mut sampler, each) = sampler?;
        let began = Instant::now();
        let in_time = |n: &usize| *n < LEAST || began.elapsed() < LONGEST;
        let all = (0..each).take_while(in_time).map(|_| sampler()).collect::<Result<_>>()?;
        Ok((began, all, Instant::now()))
    };
    let batch = std::thread::scope(|scope| -> Result<Batch> {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(run)).collect();
        ready.wait();
        let faults = faults();
        let (mut all, mut times) = (Vec::new(), Vec::new());
        for thread in threads {
            let (began, took, ended) = thread.join().map_err(|_| anyhow!("a sampling thread panicked"))??;
            all.extend(took);
            times.extend([began, ended]);
        }
        let (first, last) = (times.iter().min(), times.iter().max());
        let seconds = first.zip(last).map_or(0.0, |(first, last)| (*last - *first).as_secs_f64());
        let faults = (self::faults() - faults) as f64 / all.len() as f64;
        Ok(Batch { parallel, micros: micros(&all), clocks_p50: clocks(&all), seconds, faults })
    });
    batch.context("taking samples")
}

/// To a tenth: more is noise.
fn tenths(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 100.0).round() / 10.0
}

fn micros(all: &[Took]) -> Vec<f64> {
    all.iter().map(|took| tenths(took.whole)).collect()
}

fn clocks(all: &[Took]) -> Option<[f64; 3]> {
    let clocks: Option<Vec<_>> = all.iter().map(|took| took.clocks).collect();
    let clocks = clocks.filter(|clocks| !clocks.is_empty())?;
    Some([0, 1, 2].map(|i| quantile(clocks.iter().map(|at| tenths(at[i])).collect(), 0.5)))
}

/// Page faults of this process, all its threads, and the children that it waited for (proc_pid_stat(5): minflt, cminflt, majflt,
/// cmajflt, from after the name).
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(7).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_takes_its_share_after_a_warm_up() {
        let make = |_| -> Result<Sampler> {
            let mut n = 0;
            Ok(Box::new(move || {
                n += 1;
                let micros = |n: usize| Duration::from_micros(n as u64);
                let clocks = Some([micros(1), micros(2), micros(n)]);
                Ok(Took { whole: micros(n), clocks })
            }))
        };
        let batch = take(8, 2, &make).unwrap();
        assert_eq!((batch.micros.len(), batch.parallel), (8, 2));
        assert_eq!([0.0, 1.0].map(|q| batch.quantile(q)), [4.0, 7.0]);
        assert_eq!(batch.clocks_p50.unwrap()[..2], [1.0, 2.0]);
        assert!(batch.per_second() > 0.0 && batch.faults >= 0.0);
    }

    #[test]
    fn slow_samples_are_fewer() {
        let millis = Duration::from_millis;
        assert_eq!([share(1000, 1, millis(8)), share(1000, 2, millis(16))], [1000, 500]);
        assert_eq!([share(1000, 1, millis(100)), share(1000, 2, millis(100))], [80, 80]);
        assert_eq!([share(1000, 1, millis(1000)), share(10, 1, millis(1000))], [20, 10]);
        assert_eq!(share(1000, 1, Duration::ZERO), 1000);
    }

    #[test]
    fn a_failing_sample_is_an_error_and_no_hang() {
        let make = |_| -> Result<Sampler> { Err(anyhow!("no such program")) };
        assert!(format!("{:#}", take(4, 2, &make).unwrap_err()).contains("no such program"));
    }
}
