//! Event counters (eventfd(2)) and timers with a descriptor (timerfd_create(2)).

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::stop::{Need, Stop};

/// An event counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) count: u64,
    pub(crate) semaphore: bool,
    /// Counts writes and reads, for edge-triggered epoll.
    pub(crate) changes: u64,
}

impl Event {
    pub(crate) fn new(count: u64, semaphore: bool) -> Self {
        Self { count, semaphore, changes: 0 }
    }

    pub(crate) fn read(&mut self, nonblocking: bool) -> Result<u64, Stop> {
        if self.count == 0 {
            return Err(Stop::unless(Need::INSIDE, nonblocking));
        }
        let value = if self.semaphore { 1 } else { self.count };
        self.count -= value;
        self.changes += 1;
        Ok(value)
    }

    pub(crate) fn write(&mut self, value: u64, nonblocking: bool) -> Result<(), Stop> {
        if value == u64::MAX {
            return Err(Errno::INVAL.into());
        }
        match self.count.checked_add(value).filter(|sum| *sum < u64::MAX) {
            Some(sum) => self.count = sum,
            None => return Err(Stop::unless(Need::INSIDE, nonblocking)),
        }
        self.changes += 1;
        Ok(())
    }
}

/// A timer.
#[derive(Clone, Debug)]
pub(crate) struct Timer {
    clock: ClockId,
    /// Nanoseconds that the program's forward-only clocks are ahead of the host's.
    shift_ns: i64,
    /// The next expiry, on the program's `clock`.
    next: Option<Duration>,
    /// The time between further ones; zero for none.
    interval: Duration,
    /// Counts settings, for edge-triggered epoll.
    pub(crate) settings: u64,
}

/// A timer in a stored image. Times are on the program's clocks, which go on from where they stood.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TimerState {
    clock: i32,
    next: Option<Duration>,
    interval: Duration,
    settings: u64,
}

impl TimerState {
    pub(super) fn of(timer: &Timer) -> Self {
        let Timer { clock, shift_ns: _, next, interval, settings } = *timer;
        Self { clock: clock as i32, next, interval, settings }
    }

    /// `None` where there is no such clock.
    pub(super) fn restore(self) -> Option<Timer> {
        const CLOCKS: [ClockId; 5] = [
            ClockId::Realtime,
            ClockId::Monotonic,
            ClockId::Boottime,
            ClockId::RealtimeAlarm,
            ClockId::BoottimeAlarm,
        ];
        let clock = CLOCKS.into_iter().find(|clock| *clock as i32 == self.clock)?;
        let Self { next, interval, settings, .. } = self;
        Some(Timer { clock, shift_ns: 0, next, interval, settings })
    }
}

/// A clock's present value for a program with this shift.
fn clock_now(clock: ClockId, shift_ns: i64) -> Duration {
    let t = clock_gettime(clock);
    let host = Duration::new(t.tv_sec as u64, t.tv_nsec as u32);
    let shift = Duration::from_nanos(shift_ns.unsigned_abs());
    match clock {
        ClockId::Realtime | ClockId::RealtimeAlarm => host,
        _ if shift_ns < 0 => host.saturating_sub(shift),
        _ => host.saturating_add(shift),
    }
}

impl Timer {
    pub(crate) fn new(clock: ClockId, shift_ns: i64) -> Self {
        Self { clock, shift_ns, next: None, interval: Duration::ZERO, settings: 0 }
    }

    /// The program's clocks have another distance from the host's now.
    pub(crate) fn set_shift(&mut self, shift_ns: i64) {
        self.shift_ns = shift_ns;
    }

    fn now(&self) -> Duration {
        clock_now(self.clock, self.shift_ns)
    }

    /// Sets it; returns what was left and the old interval. A zero `value` stops it.
    pub(crate) fn set(
        &mut self,
        value: Duration,
        interval: Duration,
        absolute: bool,
    ) -> (Duration, Duration) {
        let old = self.left();
        self.next = match value {
            Duration::ZERO => None,
            value if absolute => Some(value),
            value => Some(self.now().saturating_add(value)),
        };
        self.interval = interval;
        self.settings += 1;
        old
    }

    /// Time to the next expiry (zero if stopped), and the interval.
    pub(crate) fn left(&self) -> (Duration, Duration) {
        let Some(next) = self.next else { return (Duration::ZERO, self.interval) };
        let now = self.now();
        let left = match next.checked_sub(now) {
            Some(left) if !left.is_zero() => left,
            _ if self.interval.is_zero() => Duration::from_nanos(1),
            _ => {
                let late = (now - next).as_nanos() % self.interval.as_nanos();
                self.interval - Duration::from_nanos(late as u64)
            }
        };
        (left, self.interval)
    }

    /// Expiries since the last read.
    pub(crate) fn expired(&self) -> u64 {
        let Some(late) = self.next.and_then(|next| self.now().checked_sub(next)) else { return 0 };
        if self.interval.is_zero() {
            return 1;
        }
        u64::try_from(late.as_nanos() / self.interval.as_nanos()).map_or(u64::MAX, |n| n.saturating_add(1))
    }

    pub(crate) fn read(&mut self, nonblocking: bool) -> Result<u64, Stop> {
        let count = self.expired();
        if count == 0 {
            return Err(Stop::unless(self.need(), nonblocking));
        }
        self.next = match self.next {
            Some(next) if !self.interval.is_zero() => {
                let passed = self.interval.as_nanos().saturating_mul(u128::from(count));
                Some(next.saturating_add(Duration::from_nanos(u64::try_from(passed).unwrap_or(u64::MAX))))
            }
            _ => None,
        };
        self.settings += 1;
        Ok(count)
    }

    /// What waits for the next expiry.
    pub(crate) fn need(&self) -> Need {
        let left = self.next.map(|next| next.saturating_sub(self.now()));
        let until = left.and_then(|left| Instant::now().checked_add(left));
        Need { until, ..Need::INSIDE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_counts_or_hands_out_ones() {
        let mut event = Event::new(0, false);
        assert_eq!(event.read(true), Err(Errno::AGAIN.into()));
        event.write(3, true).unwrap();
        event.write(4, true).unwrap();
        assert_eq!(event.read(true), Ok(7));
        event.semaphore = true;
        event.write(2, true).unwrap();
        assert_eq!((event.read(true), event.read(true)), (Ok(1), Ok(1)));
        assert!(event.read(true).is_err());
    }

    #[test]
    fn a_counter_never_overflows() {
        let mut event = Event::new(0, false);
        assert_eq!(event.write(u64::MAX, true), Err(Errno::INVAL.into()));
        event.write(u64::MAX - 1, true).unwrap();
        assert_eq!(event.write(1, true), Err(Errno::AGAIN.into()));
        assert_eq!(event.write(1, false), Err(Stop::Wait(Need::INSIDE)));
    }

    #[test]
    fn a_timer_in_the_past_has_expired_as_often_as_it_should() {
        let mut timer = Timer::new(ClockId::Monotonic, 0);
        let second = Duration::from_secs(1);
        assert_eq!(timer.read(true), Err(Errno::AGAIN.into()));
        timer.set(Duration::from_nanos(1), Duration::ZERO, true);
        assert_eq!(timer.read(true), Ok(1));
        assert_eq!(timer.expired(), 0);
        timer.set(clock_now(ClockId::Monotonic, 0).saturating_sub(second), second * 3600, true);
        assert_eq!(timer.read(true), Ok(1));
        assert_eq!(timer.read(true), Err(Errno::AGAIN.into()));
        let (left, interval) = timer.set(Duration::ZERO, Duration::ZERO, false);
        assert!(left > second * 3000 && interval == second * 3600);
        assert_eq!(timer.left(), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_timer_follows_the_programs_clock() {
        let mut timer = Timer::new(ClockId::Monotonic, 0);
        let hour = Duration::from_secs(3600);
        timer.set(hour, Duration::ZERO, false);
        timer.set_shift(7200 * 1_000_000_000);
        assert_eq!(timer.expired(), 1);
        timer.set_shift(-1_000_000_000);
        assert!(timer.left().0 > hour);
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let mut timer = Timer::new(ClockId::Monotonic, 0);
        timer.set(Duration::MAX, Duration::MAX, false);
        assert_eq!(timer.expired(), 0);
        timer.set(Duration::from_nanos(1), Duration::from_nanos(1), true);
        assert!(timer.read(true).unwrap() > 1);
        let _ = timer.need();
    }
}
