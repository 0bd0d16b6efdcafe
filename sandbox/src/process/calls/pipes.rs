//! Descriptors without a path: pipe(2), eventfd(2), timerfd_create(2), memfd_create(2).

use std::time::Duration;

use rustix::io::Errno;
use rustix::time::ClockId;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_pipe, |p, [into, ..]| pipe2(p, [into, 0, 0, 0, 0, 0])),
    (libc::SYS_pipe2, pipe2),
    (libc::SYS_eventfd, |p, [count, ..]| eventfd2(p, [count, 0, 0, 0, 0, 0])),
    (libc::SYS_eventfd2, eventfd2),
    (libc::SYS_timerfd_create, timerfd_create),
    (libc::SYS_timerfd_settime, timerfd_settime),
    (libc::SYS_timerfd_gettime, timerfd_gettime),
    (libc::SYS_memfd_create, memfd_create),
];

/// Gives the program two descriptors, or takes them back where it cannot be told.
pub(super) fn hand_out(process: &mut Process, fds: [i32; 2], into: u64) -> Result<Outcome, Errno> {
    let told = process.memory.put(into, &fds);
    if told.is_err() {
        for fd in fds {
            process.files.close(fd)?;
        }
    }
    process.done(told)
}

fn pipe2(process: &mut Process, [into, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECT) != 0 {
        return Err(Errno::INVAL);
    }
    if flags & libc::O_DIRECT != 0 {
        // Packets in pipes are not had.
        return Err(Errno::INVAL);
    }
    let ends = process.files.make_pipe(flags & libc::O_NONBLOCK != 0, flags & libc::O_CLOEXEC != 0)?;
    hand_out(process, ends, into)
}

fn eventfd2(process: &mut Process, [count, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    if flags & !(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE) != 0 {
        return Err(Errno::INVAL);
    }
    let made = process.files.make_event(
        u64::from(count as u32),
        flags & libc::EFD_SEMAPHORE != 0,
        flags & libc::EFD_NONBLOCK != 0,
        flags & libc::EFD_CLOEXEC != 0,
    );
    process.made(made)
}

fn timerfd_create(process: &mut Process, [clock, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    let clock = match clock as i32 {
        libc::CLOCK_REALTIME => ClockId::Realtime,
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        libc::CLOCK_BOOTTIME => ClockId::Boottime,
        _ => return Err(Errno::INVAL),
    };
    if flags & !(libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    let made =
        process.files.make_timer(clock, flags & libc::TFD_NONBLOCK != 0, flags & libc::TFD_CLOEXEC != 0);
    process.made(made)
}

fn duration(seconds: i64, nanos: i64) -> Result<Duration, Errno> {
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Errno::INVAL),
    }
}

/// `struct itimerspec`: interval, then value.
fn itimerspec((left, interval): (Duration, Duration)) -> [i64; 4] {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    [seconds(interval), i64::from(interval.subsec_nanos()), seconds(left), i64::from(left.subsec_nanos())]
}

fn timerfd_settime(process: &mut Process, [n, flags, new, old, ..]: Args) -> Result<Outcome, Errno> {
    const CANCEL_ON_SET: i32 = 2;
    let flags = flags as i32;
    if flags & !(libc::TFD_TIMER_ABSTIME | CANCEL_ON_SET) != 0 {
        return Err(Errno::INVAL);
    }
    let raw: [i64; 4] = process.memory.get(new)?;
    let (interval, value) = (duration(raw[0], raw[1])?, duration(raw[2], raw[3])?);
    let before = process.files.set_timer(fd(n), value, interval, flags & libc::TFD_TIMER_ABSTIME != 0)?;
    let told = process.memory.put_if(old, &itimerspec(before));
    process.done(told)
}

fn timerfd_gettime(process: &mut Process, [n, into, ..]: Args) -> Result<Outcome, Errno> {
    let left = process.files.timer_left(fd(n))?;
    process.memory.put(into, &itimerspec(left))?;
    Ok(Outcome::ZERO)
}

fn memfd_create(process: &mut Process, [name, flags, ..]: Args) -> Result<Outcome, Errno> {
    const EXEC: u32 = 0x10;
    const NOEXEC_SEAL: u32 = 0x8;
    let flags = flags as u32;
    if flags & !(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | EXEC | NOEXEC_SEAL) != 0 {
        return Err(Errno::INVAL);
    }
    // 249 bytes of name and a NUL byte, as in Linux `mm/memfd.c`.
    let name =
        process.memory.cstr(name, 250).map_err(|e| if e == Errno::NAMETOOLONG { Errno::INVAL } else { e })?;
    let made = process.files.make_memory_file(&name, flags & libc::MFD_CLOEXEC != 0);
    process.made(made)
}
