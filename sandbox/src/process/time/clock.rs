//! The clocks of one program.
//!
//! The clocks are the host's, with one difference: the ones that only go forward (MONOTONIC, MONOTONIC_RAW, BOOTTIME) are shifted so that
//! they continue where they stood when the program's state was saved; the wall clock is always the present one.
//! Reads by call and reads through the [vDSO](super::vdso) use the same numbers, so that neither runs ahead of the other.
//!
//! The vDSO's page comes into force when the program's own reading of the time-stamp counter, handed over by the
//! vDSO's system call, is shown to be the host's: taken between the last entry into the guest and this exit. A vCPU
//! whose counter is offset or scaled keeps making system calls, which is slow but right.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::sys::counter;
use super::vdso::{SERVED, Vvar};

/// The page's numbers are made anew when they are older than this: what a rate that is a millionth off adds up to
/// in it stays below what anyone can measure from inside.
const FRESH: Duration = Duration::from_millis(200);

/// CLOCK_REALTIME.
pub(crate) const REALTIME: u64 = 0;
/// CLOCK_MONOTONIC.
pub(crate) const MONOTONIC: u64 = 1;

/// The clocks of one program. Plain data.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    vvar: Vvar,
    /// Nanoseconds per tick times 2^32; `None`: the rate is not known, so the page is never in force.
    mult: Option<u64>,
    /// Added to the host's forward-only clocks.
    shift_ns: i64,
    /// The highest sequence number of earlier pages.
    last_sequence: u32,
    /// The counter's ticks that make the page old.
    fresh_ticks: u64,
}

impl Clock {
    /// The host's clocks. `counter_khz`: the rate of the time-stamp counter where it is constant.
    pub(crate) fn new(counter_khz: Option<u32>) -> Self {
        let rate = counter_khz.filter(|khz| *khz > 0).map(u64::from);
        Self {
            vvar: Vvar::default(),
            mult: rate.map(|khz| (1_000_000 << 32) / khz),
            shift_ns: 0,
            last_sequence: 0,
            fresh_ticks: rate.unwrap_or(0) * FRESH.as_millis() as u64,
        }
    }

    /// Whether `number` names a clock that [`Clock::now`] reads.
    pub(crate) fn knows(number: u64) -> bool {
        host_clock(number).is_some()
    }

    /// The time on clock `number`; `None` for the others (CPU time is the run loop's business).
    pub(crate) fn now(&self, number: u64) -> Option<Duration> {
        let host = host_clock(number)?;
        if self.vvar.sequence != 0 && number < 8 && SERVED & 1 << number != 0 {
            let (seconds, nanoseconds) = self.vvar.read(number as usize, counter());
            return Some(Duration::new(seconds, nanoseconds as u32));
        }
        Some(self.shifted(number, read(host)))
    }

    /// What must be added to the host's forward-only clocks to get the program's.
    pub(crate) fn shift_ns(&self) -> i64 {
        self.shift_ns
    }

    /// Lets the forward-only clocks continue from `monotonic`. The page stays in force where it is: that was shown of this
    /// vCPU. `sequence` is that of the page which the program saw last. Returns the page's bytes.
    pub(crate) fn resume_at(&mut self, monotonic: Duration, sequence: u32) -> Vec<u8> {
        let host = read(ClockId::Monotonic);
        self.shift_ns = i64::try_from(monotonic.as_nanos() as i128 - host.as_nanos() as i128).unwrap_or(0);
        self.last_sequence = self.last_sequence.max(self.vvar.sequence).max(sequence);
        self.vvar = match self.vvar.sequence {
            0 => Vvar::default(),
            _ => Vvar { sequence: self.next_sequence(), mult: self.vvar.mult, ..self.readings() },
        };
        self.vvar.bytes().to_vec()
    }

    /// The page's sequence number.
    pub(crate) fn sequence(&self) -> u32 {
        self.vvar.sequence.max(self.last_sequence)
    }

    /// Another number than any that a reader of the page may have begun with.
    fn next_sequence(&self) -> u32 {
        self.sequence().wrapping_add(2).max(2)
    }

    /// The program says that its counter stood at `reading`; the host's stood at `entered` before and stands at
    /// `left` now. Returns the page's bytes if it comes into force.
    pub(crate) fn prove(&mut self, reading: u64, entered: u64, left: u64) -> Option<Vec<u8>> {
        let right = (entered..=left).contains(&reading);
        if !right || self.vvar.sequence != 0 {
            return None;
        }
        let mult = self.mult?;
        self.vvar = Vvar { sequence: self.next_sequence(), mult, ..self.readings() };
        Some(self.vvar.bytes().to_vec())
    }

    /// The page's bytes, if it is in force and has grown old.
    pub(crate) fn refresh(&mut self) -> Option<Vec<u8>> {
        let old = &self.vvar;
        if old.sequence == 0 || counter().wrapping_sub(old.tsc_base) < self.fresh_ticks {
            return None;
        }
        let mut new = self.readings();
        for (number, base) in new.bases.iter_mut().enumerate().skip(1) {
            // Forward-only: never behind what the program may have read already.
            *base = (*base).max(old.read(number, new.tsc_base));
        }
        let sequence = self.next_sequence();
        self.vvar = Vvar { sequence, mult: old.mult, ..new };
        Some(self.vvar.bytes().to_vec())
    }

    /// All clocks at one moment.
    fn readings(&self) -> Vvar {
        let mut vvar = Vvar { tsc_base: counter(), ..Vvar::default() };
        for number in (0..8).filter(|number| SERVED & 1 << number != 0) {
            if let Some(host) = host_clock(number) {
                let now = self.shifted(number, read(host));
                vvar.bases[number as usize] = (now.as_secs(), u64::from(now.subsec_nanos()));
            }
        }
        vvar
    }

    fn shifted(&self, number: u64, host: Duration) -> Duration {
        if matches!(number, 0 | 5 | 8) {
            return host;
        }
        let total = host.as_nanos() as i128 + i128::from(self.shift_ns);
        let total = u64::try_from(total.max(0)).unwrap_or(u64::MAX);
        Duration::from_nanos(total)
    }
}

/// REALTIME, MONOTONIC, MONOTONIC_RAW, the coarse ones (read as the exact ones), BOOTTIME, the two alarm clocks
/// (read only).
fn host_clock(number: u64) -> Option<ClockId> {
    match number {
        0 | 5 | 8 => Some(ClockId::Realtime),
        1 | 6 => Some(ClockId::Monotonic),
        4 => Some(ClockId::MonotonicRaw),
        7 | 9 => Some(ClockId::Boottime),
        _ => None,
    }
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force() -> Clock {
        let mut clock = Clock::new(Some(2_000_000));
        let before = counter();
        let reading = counter();
        assert!(clock.prove(reading, before, counter()).is_some());
        clock
    }

    #[test]
    fn a_counter_that_is_not_the_hosts_is_not_believed() {
        let mut clock = Clock::new(Some(2_000_000));
        let entered = counter();
        let left = counter();
        assert!(clock.prove(0, entered, left).is_none());
        assert!(clock.prove(left + 1_000_000_000, entered, left).is_none());
        assert!(Clock::new(None).prove(entered, entered, left).is_none());
    }

    #[test]
    fn forward_only_clocks_never_go_back() {
        // A rate that is far too fast: the page runs ahead of the host, and must stay there.
        let mut clock = in_force();
        clock.fresh_ticks = 0;
        clock.vvar.mult = u64::MAX >> 30;
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let now = clock.now(MONOTONIC).unwrap();
            assert!(now >= last);
            last = now;
            clock.refresh();
        }
    }

    #[test]
    fn the_monotonic_clock_continues_where_it_stood() {
        let mut clock = in_force();
        clock.resume_at(Duration::from_secs(12), 40);
        assert!(clock.vvar.sequence > 40);
        let now = clock.now(MONOTONIC).unwrap();
        assert!(now >= Duration::from_secs(12) && now < Duration::from_secs(72));
        let wall = clock.now(REALTIME).unwrap();
        let real = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(real.abs_diff(wall) < Duration::from_secs(60));
    }

    #[test]
    fn every_update_is_seen_by_a_preempted_reader() {
        let mut clock = in_force();
        clock.fresh_ticks = 0;
        let first = clock.vvar.sequence;
        assert!(clock.refresh().is_some());
        assert_ne!(clock.vvar.sequence, first);
    }
}
