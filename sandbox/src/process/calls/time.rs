//! Clocks, sleeping and timers: clock_gettime(2), nanosleep(2), clock_nanosleep(2), setitimer(2), timer_create(2),
//! times(2), getrusage(2).

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::signal::Signal;
use crate::process::time::clock::{Clock, MONOTONIC, REALTIME};
use crate::process::time::timers::{Base, Notify, Setting};
use crate::process::time::vdso;
use crate::process::wait::Wait;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_clock_gettime, clock_gettime),
    (libc::SYS_clock_getres, clock_getres),
    (libc::SYS_clock_settime, |_, _| Err(Errno::PERM)),
    (libc::SYS_settimeofday, |_, _| Err(Errno::PERM)),
    (libc::SYS_adjtimex, |_, _| Err(Errno::PERM)),
    (libc::SYS_clock_adjtime, |_, _| Err(Errno::PERM)),
    (libc::SYS_gettimeofday, gettimeofday),
    (libc::SYS_time, time),
    (libc::SYS_nanosleep, |process, args| sleep(process, MONOTONIC, false, args[0], args[1])),
    (libc::SYS_clock_nanosleep, clock_nanosleep),
    (libc::SYS_times, times),
    (libc::SYS_getrusage, getrusage),
    (libc::SYS_getitimer, getitimer),
    (libc::SYS_setitimer, setitimer),
    (libc::SYS_alarm, alarm),
    (libc::SYS_timer_create, timer_create),
    (libc::SYS_timer_settime, timer_settime),
    (libc::SYS_timer_gettime, timer_gettime),
    (libc::SYS_timer_getoverrun, timer_getoverrun),
    (libc::SYS_timer_delete, timer_delete),
];

const PROCESS_CPU: u64 = 2;
const THREAD_CPU: u64 = 3;
/// The kernel's ticks per second for programs (`USER_HZ`).
const HERTZ: u64 = 100;

/// `struct timespec`.
pub(super) fn read_timespec(process: &Process, address: u64) -> Result<Duration, Errno> {
    let [seconds, nanoseconds]: [i64; 2] = process.memory.get(address)?;
    match (u64::try_from(seconds), u32::try_from(nanoseconds)) {
        (Ok(seconds), Ok(nanoseconds)) if nanoseconds < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanoseconds))
        }
        _ => Err(Errno::INVAL),
    }
}

pub(super) fn timespec(time: Duration) -> [u64; 2] {
    [time.as_secs(), u64::from(time.subsec_nanos())]
}

fn timeval(time: Duration) -> [u64; 2] {
    [time.as_secs(), u64::from(time.subsec_micros())]
}

fn read_timeval(words: [i64; 2]) -> Result<Duration, Errno> {
    match (u64::try_from(words[0]), u32::try_from(words[1])) {
        (Ok(seconds), Ok(microseconds)) if microseconds < 1_000_000 => {
            Ok(Duration::new(seconds, microseconds * 1000))
        }
        _ => Err(Errno::INVAL),
    }
}

/// A moment of the host for `time` from now; what lies too far ahead is never.
fn after(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}

fn clock(process: &Process, number: u64) -> Result<Duration, Errno> {
    match number {
        PROCESS_CPU | THREAD_CPU => Ok(process.cpu_time(number == THREAD_CPU)),
        // Clocks of a process or thread by its id (clock_getcpuclockid): bits 0 to 2 are 2, 4 marks a thread.
        _ if (number as i32) < 0 => Ok(process.cpu_time(number & 4 != 0)),
        _ => process.clock.now(number).ok_or(Errno::INVAL),
    }
}

fn clock_gettime(
    process: &mut Process,
    [number, address, _, _, proof, reading]: Args,
) -> Result<Outcome, Errno> {
    if proof == vdso::PROOF {
        process.prove_counter(reading);
    }
    let now = clock(process, number)?;
    process.memory.put(address, &timespec(now))?;
    Ok(Outcome::ZERO)
}

fn clock_getres(process: &mut Process, [number, address, ..]: Args) -> Result<Outcome, Errno> {
    clock(process, number)?;
    process.memory.put_if(address, &timespec(Duration::from_nanos(1)))?;
    Ok(Outcome::ZERO)
}

fn gettimeofday(
    process: &mut Process,
    [address, zone, _, _, proof, reading]: Args,
) -> Result<Outcome, Errno> {
    if proof == vdso::PROOF {
        process.prove_counter(reading);
    }
    let now = clock(process, REALTIME)?;
    process.memory.put_if(address, &timeval(now))?;
    process.memory.put_if(zone, &[0u32; 2])?;
    Ok(Outcome::ZERO)
}

fn time(process: &mut Process, [address, ..]: Args) -> Result<Outcome, Errno> {
    let now = clock(process, REALTIME)?.as_secs();
    process.memory.put_if(address, &now)?;
    Ok(Outcome::Value(now))
}

fn clock_nanosleep(
    process: &mut Process,
    [number, flags, request, remaining, ..]: Args,
) -> Result<Outcome, Errno> {
    const TIMER_ABSTIME: u64 = 1;
    match number {
        THREAD_CPU => return Err(Errno::INVAL),
        _ if !Clock::knows(number) => return Err(Errno::OPNOTSUPP),
        _ => {}
    }
    sleep(process, number, flags & TIMER_ABSTIME != 0, request, remaining)
}

fn sleep(
    process: &mut Process,
    number: u64,
    absolute: bool,
    request: u64,
    remaining: u64,
) -> Result<Outcome, Errno> {
    let asked = read_timespec(process, request)?;
    let until = match process.resumed() {
        Some(wait) => wait.until,
        None if absolute => after(asked.saturating_sub(clock(process, number)?)),
        None => after(asked),
    };
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    if left.is_zero() {
        return Ok(Outcome::ZERO);
    }
    if process.interrupted() {
        if !absolute {
            process.memory.put_if(remaining, &timespec(left))?;
        }
        return Err(Errno::INTR);
    }
    Ok(Outcome::Block(Wait { until, ..Wait::default() }))
}

fn times(process: &mut Process, [address, ..]: Args) -> Result<Outcome, Errno> {
    let ticks = |time: Duration| time.as_millis() as u64 * HERTZ / 1000;
    let user = ticks(process.cpu_time(false));
    process.memory.put_if(address, &[user, 0, 0, 0])?;
    Ok(Outcome::Value(ticks(clock(process, MONOTONIC)?)))
}

/// `struct rusage`: times, the resident set; what nobody counted is 0, as on Linux.
fn getrusage(process: &mut Process, [who, address, ..]: Args) -> Result<Outcome, Errno> {
    let mut words = [0u64; 18];
    match who as i32 {
        libc::RUSAGE_CHILDREN => {}
        libc::RUSAGE_SELF | libc::RUSAGE_THREAD => {
            words[..2].copy_from_slice(&timeval(process.cpu_time(who as i32 == libc::RUSAGE_THREAD)));
            words[4] = process.memory.resident_bytes() / 1024;
        }
        _ => return Err(Errno::INVAL),
    }
    process.memory.put(address, &words)?;
    Ok(Outcome::ZERO)
}

fn getitimer(process: &mut Process, [which, address, ..]: Args) -> Result<Outcome, Errno> {
    let which = usize::try_from(which).map_err(|_| Errno::INVAL)?;
    let left = process.timers.interval_left(which, &process.times()).ok_or(Errno::INVAL)?;
    put_itimerval(process, address, left)
}

fn put_itimerval(
    process: &Process,
    address: u64,
    (left, interval): (Duration, Duration),
) -> Result<Outcome, Errno> {
    // A timer that is about to go off shows one microsecond: zero means disarmed.
    let left = if left.is_zero() { left } else { left.max(Duration::from_micros(1)) };
    let (interval, left) = (timeval(interval), timeval(left));
    process.memory.put_if(address, &[interval[0], interval[1], left[0], left[1]])?;
    Ok(Outcome::ZERO)
}

fn setitimer(process: &mut Process, [which, new, old, ..]: Args) -> Result<Outcome, Errno> {
    let which = usize::try_from(which).ok().filter(|which| *which < 3).ok_or(Errno::INVAL)?;
    let (interval, value) = match new {
        0 => (Duration::ZERO, Duration::ZERO),
        _ => {
            let words: [i64; 4] = process.memory.get(new)?;
            (read_timeval([words[0], words[1]])?, read_timeval([words[2], words[3]])?)
        }
    };
    let now = process.times();
    let before = process.timers.set_interval(which, value, interval, &now).ok_or(Errno::INVAL)?;
    put_itimerval(process, old, before)
}

fn alarm(process: &mut Process, [seconds, ..]: Args) -> Result<Outcome, Errno> {
    let after = Duration::from_secs(seconds & u64::from(u32::MAX));
    let now = process.times();
    let before = process.timers.set_interval(0, after, Duration::ZERO, &now);
    let (left, _) = before.unwrap_or_default();
    // Rounded to the nearest second, never to 0 while armed.
    let rounded = left.as_secs() + u64::from(left.subsec_millis() >= 500);
    Ok(Outcome::Value(if left.is_zero() { 0 } else { rounded.max(1) }))
}

fn base(number: u64) -> Result<Base, Errno> {
    match number {
        0 | 8 | 11 => Ok(Base::Wall),
        1 | 7 | 9 => Ok(Base::Monotonic),
        PROCESS_CPU | THREAD_CPU => Ok(Base::Cpu),
        _ if (number as i32) < 0 => Ok(Base::Cpu),
        _ => Err(Errno::INVAL),
    }
}

/// `struct sigevent`: value, signal, how to notify, thread.
fn read_sigevent(process: &Process, address: u64) -> Result<impl Fn(i32) -> Notify + use<>, Errno> {
    const SIGEV_THREAD_ID: u32 = 4;
    let (value, signal, how, thread) = match address {
        0 => (None, Signal::ALRM.number(), libc::SIGEV_SIGNAL as u32, 0),
        _ => {
            let value: u64 = process.memory.get(address)?;
            let [signal, how, thread]: [u32; 3] = process.memory.get(address + 8)?;
            (Some(value), signal, how, thread)
        }
    };
    let signal = Signal::new(u64::from(signal));
    let thread = match how {
        SIGEV_THREAD_ID if process.threads.get(thread).is_some() => Some(thread),
        SIGEV_THREAD_ID => return Err(Errno::INVAL),
        _ => None,
    };
    let silent = how == libc::SIGEV_NONE as u32;
    if !silent && (!matches!(how, 0 | SIGEV_THREAD_ID) || signal.is_none()) {
        return Err(Errno::INVAL);
    }
    Ok(move |id: i32| match signal {
        Some(signal) if !silent => Notify::Signal { signal, value: value.unwrap_or(id as u64), thread },
        _ => Notify::Nothing,
    })
}

fn timer_create(process: &mut Process, [number, event, id, ..]: Args) -> Result<Outcome, Errno> {
    let notify = read_sigevent(process, event)?;
    let made = process.timers.create(base(number)?, notify).map_err(|_| Errno::AGAIN)?;
    if let Err(errno) = process.memory.put(id, &made) {
        let _ = process.timers.delete(made);
        return Err(errno);
    }
    Ok(Outcome::ZERO)
}

fn put_itimerspec(
    process: &Process,
    address: u64,
    (left, interval): (Duration, Duration),
) -> Result<Outcome, Errno> {
    let words = [timespec(interval), timespec(left)];
    process.memory.put_if(address, &[words[0][0], words[0][1], words[1][0], words[1][1]])?;
    Ok(Outcome::ZERO)
}

fn timer_settime(process: &mut Process, [id, flags, new, old, ..]: Args) -> Result<Outcome, Errno> {
    const TIMER_ABSTIME: u64 = 1;
    let interval = read_timespec(process, new)?;
    let value = read_timespec(process, new.checked_add(16).ok_or(Errno::FAULT)?)?;
    let now = process.times();
    let base = process.timers.base(id as i32).ok_or(Errno::INVAL)?;
    let at = match value {
        Duration::ZERO => None,
        value if flags & TIMER_ABSTIME != 0 => Some(value),
        value => Some(now.on(base).saturating_add(value)),
    };
    let before = process.timers.set(id as i32, Setting { at, interval }, &now).map_err(|_| Errno::INVAL)?;
    put_itimerspec(process, old, before)
}

fn timer_gettime(process: &mut Process, [id, address, ..]: Args) -> Result<Outcome, Errno> {
    let left = process.timers.left(id as i32, &process.times()).map_err(|_| Errno::INVAL)?;
    put_itimerspec(process, address, left)
}

fn timer_getoverrun(process: &mut Process, [id, ..]: Args) -> Result<Outcome, Errno> {
    let overrun = process.timers.overrun(id as i32).map_err(|_| Errno::INVAL)?;
    Ok(Outcome::Value(overrun as u64))
}

fn timer_delete(process: &mut Process, [id, ..]: Args) -> Result<Outcome, Errno> {
    process.timers.delete(id as i32).map_err(|_| Errno::INVAL)?;
    Ok(Outcome::ZERO)
}
