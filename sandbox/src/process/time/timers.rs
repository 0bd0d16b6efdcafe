//! Timers that send signals: `setitimer`, `alarm`, `timer_create`.
//!
//! Times are on the program's own clocks (wall, monotonic or CPU); the run loop asks [`Timers::next`] how long it
//! may let the program run and calls [`Timers::expire`] when that has passed. Sources: setitimer(2), timer_create(2),
//! timer_settime(2), timer_getoverrun(2).

use std::collections::BTreeMap;
use std::time::Duration;

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

use super::super::signal::{Detail, Info, SI_KERNEL, SI_TIMER, Signal};

/// Which time a timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Base {
    /// CLOCK_REALTIME.
    Wall,
    /// CLOCK_MONOTONIC and BOOTTIME.
    Monotonic,
    /// The program's own running time.
    Cpu,
}

/// The present time on every base.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    pub(crate) wall: Duration,
    pub(crate) monotonic: Duration,
    pub(crate) cpu: Duration,
}

impl Now {
    pub(crate) fn on(&self, base: Base) -> Duration {
        match base {
            Base::Wall => self.wall,
            Base::Monotonic => self.monotonic,
            Base::Cpu => self.cpu,
        }
    }
}

/// When a timer goes off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// On the timer's base; `None`: disarmed.
    pub(crate) at: Option<Duration>,
    /// Zero: once.
    pub(crate) interval: Duration,
}

/// What a POSIX timer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Notify {
    /// `SIGEV_NONE`.
    Nothing,
    /// `SIGEV_SIGNAL`, or with a thread `SIGEV_THREAD_ID`.
    Signal { signal: Signal, value: u64, thread: Option<u32> },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Timer {
    base: Base,
    setting: Setting,
    notify: Notify,
    /// `None`: an interval timer of `setitimer`, which has no id or overruns.
    id: Option<i32>,
    overrun: i32,
}

/// A timer that went off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    pub(crate) info: Info,
    /// The thread it is meant for, else the program.
    pub(crate) thread: Option<u32>,
}

/// Refused: too many timers, or no such one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// All timers of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Timers {
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    interval: [Timer; 3],
    posix: BTreeMap<i32, Timer>,
    next_id: i32,
    changed: bool,
}

/// Most POSIX timers of a program.
const MOST: usize = 1024;
/// DELAYTIMER_MAX.
const MOST_OVERRUNS: u128 = i32::MAX as u128;

impl State for Timers {
    const KIND: &'static str = "process-timers";
    const VERSION: u32 = 1;
}

impl Default for Timers {
    fn default() -> Self {
        let timer = |base, number| Timer {
            base,
            setting: Setting::default(),
            notify: match Signal::new(number) {
                Some(signal) => Notify::Signal { signal, value: 0, thread: None },
                None => Notify::Nothing,
            },
            id: None,
            overrun: 0,
        };
        Self {
            interval: [timer(Base::Monotonic, 14), timer(Base::Cpu, 26), timer(Base::Cpu, 27)],
            posix: BTreeMap::new(),
            next_id: 0,
            changed: false,
        }
    }
}

impl Timers {
    /// Sets interval timer `which` (0 to 2) to go off `after`; returns what was set before as time left and interval.
    pub(crate) fn set_interval(
        &mut self,
        which: usize,
        after: Duration,
        interval: Duration,
        now: &Now,
    ) -> Option<(Duration, Duration)> {
        let before = self.interval_left(which, now)?;
        let timer = &mut self.interval[which];
        let at = (!after.is_zero()).then(|| now.on(timer.base).saturating_add(after));
        timer.setting = Setting { at, interval };
        self.changed = true;
        Some(before)
    }

    /// Time left and interval of interval timer `which`.
    pub(crate) fn interval_left(&self, which: usize, now: &Now) -> Option<(Duration, Duration)> {
        self.interval.get(which).map(|timer| timer.left(now))
    }

    /// Makes a disarmed POSIX timer; its id.
    pub(crate) fn create(&mut self, base: Base, notify: impl Fn(i32) -> Notify) -> Result<i32, Refused> {
        if self.posix.len() >= MOST {
            return Err(Refused);
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(0);
        let timer = Timer { base, setting: Setting::default(), notify: notify(id), id: Some(id), overrun: 0 };
        self.posix.insert(id, timer);
        Ok(id)
    }

    /// The base of POSIX timer `id`.
    pub(crate) fn base(&self, id: i32) -> Option<Base> {
        self.posix.get(&id).map(|timer| timer.base)
    }

    /// Arms or disarms; returns what was set before as time left and interval.
    pub(crate) fn set(
        &mut self,
        id: i32,
        setting: Setting,
        now: &Now,
    ) -> Result<(Duration, Duration), Refused> {
        let timer = self.posix.get_mut(&id).ok_or(Refused)?;
        let before = timer.left(now);
        timer.setting = setting;
        timer.overrun = 0;
        self.changed = true;
        Ok(before)
    }

    /// Time left and interval of POSIX timer `id`.
    pub(crate) fn left(&self, id: i32, now: &Now) -> Result<(Duration, Duration), Refused> {
        self.posix.get(&id).map(|timer| timer.left(now)).ok_or(Refused)
    }

    /// Overruns of the last expiry.
    pub(crate) fn overrun(&self, id: i32) -> Result<i32, Refused> {
        self.posix.get(&id).map(|timer| timer.overrun).ok_or(Refused)
    }

    /// Removes a POSIX timer.
    pub(crate) fn delete(&mut self, id: i32) -> Result<(), Refused> {
        self.posix.remove(&id).map(drop).ok_or(Refused)
    }

    /// Whether a timer was set since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whether any is armed.
    pub(crate) fn any_armed(&self) -> bool {
        self.interval.iter().chain(self.posix.values()).any(|timer| timer.setting.at.is_some())
    }

    /// How long until the first one goes off: `None` for never.
    pub(crate) fn next(&self, now: &Now) -> Option<Duration> {
        self.first(now, |_| true)
    }

    /// The same while the program sleeps, where its running time stands still.
    pub(crate) fn next_asleep(&self, now: &Now) -> Option<Duration> {
        self.first(now, |base| base != Base::Cpu)
    }

    fn first(&self, now: &Now, counts: impl Fn(Base) -> bool) -> Option<Duration> {
        let all = self.interval.iter().chain(self.posix.values()).filter(|timer| counts(timer.base));
        all.filter_map(|timer| timer.setting.at.map(|at| at.saturating_sub(now.on(timer.base)))).min()
    }

    /// Takes what has gone off.
    pub(crate) fn expire(&mut self, now: &Now) -> Vec<Expiry> {
        let all = self.interval.iter_mut().chain(self.posix.values_mut());
        all.filter_map(|timer| timer.expire(now)).collect()
    }
}

impl Timer {
    fn left(&self, now: &Now) -> (Duration, Duration) {
        let left = self.setting.at.map_or(Duration::ZERO, |at| {
            // An armed timer that is about to go off has some time left: zero means disarmed.
            at.saturating_sub(now.on(self.base)).max(Duration::from_nanos(1))
        });
        (left, self.setting.interval)
    }

    fn expire(&mut self, now: &Now) -> Option<Expiry> {
        let at = self.setting.at?;
        let late = now.on(self.base).checked_sub(at)?;
        let interval = self.setting.interval;
        if interval.is_zero() {
            self.setting.at = None;
            self.overrun = 0;
        } else {
            let missed = late.as_nanos() / interval.as_nanos();
            self.overrun = missed.min(MOST_OVERRUNS) as i32;
            let steps = u32::try_from(missed + 1).unwrap_or(u32::MAX);
            let next = interval.checked_mul(steps).and_then(|step| at.checked_add(step));
            self.setting.at = Some(next.unwrap_or_else(|| now.on(self.base).saturating_add(interval)));
        }
        let Notify::Signal { signal, value, thread } = self.notify else { return None };
        let (code, detail) = match self.id {
            Some(id) => (SI_TIMER, Detail::Timer { id, overrun: self.overrun, value }),
            None => (SI_KERNEL, Detail::Sent { pid: 0 }),
        };
        Some(Expiry { info: Info { signal, code, detail }, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Now {
        let t = Duration::from_millis(milliseconds);
        Now { wall: t, monotonic: t, cpu: t }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_alarm_goes_off_once() {
        let mut timers = Timers::default();
        timers.set_interval(0, 10 * MS, Duration::ZERO, &at(5)).unwrap();
        assert_eq!(timers.next(&at(6)), Some(9 * MS));
        assert!(timers.expire(&at(14)).is_empty());
        let gone = timers.expire(&at(15));
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].info.signal, Signal::ALRM);
        assert_eq!(timers.next(&at(16)), None);
    }

    #[test]
    fn an_interval_that_was_missed_is_counted_as_overrun() {
        let mut timers = Timers::default();
        let notify = |id| Notify::Signal { signal: Signal::ALRM, value: id as u64 + 7, thread: Some(3) };
        let id = timers.create(Base::Monotonic, notify).unwrap();
        timers.set(id, Setting { at: Some(10 * MS), interval: 10 * MS }, &at(0)).unwrap();
        let gone = timers.expire(&at(45));
        assert_eq!(gone[0].info.detail, Detail::Timer { id, overrun: 3, value: 7 });
        assert_eq!(gone[0].thread, Some(3));
        assert_eq!(timers.overrun(id), Ok(3));
        assert_eq!(timers.next(&at(45)), Some(5 * MS));
    }

    #[test]
    fn a_timer_of_running_time_wakes_nobody_who_sleeps() {
        let mut timers = Timers::default();
        timers.set_interval(2, MS, MS, &at(0)).unwrap();
        assert_eq!((timers.next(&at(0)), timers.next_asleep(&at(0))), (Some(MS), None));
        timers.set_interval(0, 10 * MS, MS, &at(0)).unwrap();
        assert_eq!(timers.next_asleep(&at(4)), Some(6 * MS));
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let mut timers = Timers::default();
        timers.set_interval(0, Duration::MAX, Duration::MAX, &at(u64::MAX / 2)).unwrap();
        assert!(timers.expire(&at(u64::MAX / 2)).is_empty());
        let id = timers.create(Base::Wall, |_| Notify::Nothing).unwrap();
        timers
            .set(id, Setting { at: Some(Duration::ZERO), interval: Duration::from_nanos(1) }, &at(0))
            .unwrap();
        assert!(timers.expire(&at(u64::MAX / 2)).is_empty());
        assert_eq!(timers.overrun(id), Ok(i32::MAX));
        // As only a stored image has them.
        let longest = Setting { at: Some(Duration::ZERO), interval: Duration::MAX };
        timers.set(id, longest, &at(1)).unwrap();
        assert!(timers.expire(&at(u64::MAX / 2)).is_empty());
        assert_eq!(timers.delete(id), Ok(()));
        assert_eq!(timers.delete(id), Err(Refused));
    }

    #[test]
    fn an_armed_timer_never_looks_disarmed() {
        let mut timers = Timers::default();
        timers.set_interval(2, MS, Duration::ZERO, &at(0)).unwrap();
        assert_eq!(timers.interval_left(2, &at(1)), Some((Duration::from_nanos(1), Duration::ZERO)));
    }
}
