//! Waiting for descriptors: poll(2), select(2), epoll_wait(2).

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::guest::{fd, wait};
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::Need;
use crate::process::signal::SigSet;
use crate::process::wait::Wait;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_poll, poll),
    (libc::SYS_ppoll, ppoll),
    (libc::SYS_select, select),
    (libc::SYS_pselect6, pselect6),
    (libc::SYS_epoll_create, epoll_create),
    (libc::SYS_epoll_create1, epoll_create1),
    (libc::SYS_epoll_ctl, epoll_ctl),
    (libc::SYS_epoll_wait, epoll_wait),
    (libc::SYS_epoll_pwait, epoll_pwait),
    (libc::SYS_epoll_pwait2, epoll_pwait2),
];

/// When a wait with this limit ends: counted from its first attempt. `None` for never.
fn deadline(process: &Process, limit: Option<Duration>) -> Option<Instant> {
    match process.resumed() {
        Some(before) => before.deadline,
        None => limit.and_then(|limit| Instant::now().checked_add(limit)),
    }
}

/// What happens when nothing is ready: zero at the deadline, else a wait.
fn nothing_ready(limit: Option<Duration>, deadline: Option<Instant>, need: Need) -> Option<Outcome> {
    let over = limit == Some(Duration::ZERO) || deadline.is_some_and(|at| at <= Instant::now());
    if over {
        return None;
    }
    let until = [need.until, deadline].into_iter().flatten().min();
    Some(Outcome::Block(Wait { until, deadline, ..wait(need) }))
}

fn millis(timeout: i32) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

/// A `struct timespec`, or with `scale` 1000 a `struct timeval`; `None` for no limit.
fn time_limit(process: &Process, address: u64, scale: i64) -> Result<Option<Duration>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let [seconds, fraction]: [i64; 2] = process.memory.get(address)?;
    let nanos = fraction.checked_mul(scale).ok_or(Errno::INVAL)?;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(Errno::INVAL),
    }
}

fn poll(process: &mut Process, [fds, count, timeout, ..]: Args) -> Result<Outcome, Errno> {
    poll_within(process, fds, count, millis(timeout as i32))
}

/// Blocks the signals of the set at `address`, if there is one, until the call has ended.
fn mask(process: &mut Process, address: u64, bytes: u64) -> Result<(), Errno> {
    if address == 0 || process.resumed().is_some() {
        return Ok(());
    }
    if bytes != 8 {
        return Err(Errno::INVAL);
    }
    let set = SigSet(process.memory.get(address)?);
    process.swap_mask(set);
    Ok(())
}

fn ppoll(process: &mut Process, [fds, count, timeout, set, bytes, _]: Args) -> Result<Outcome, Errno> {
    let limit = time_limit(process, timeout, 1)?;
    mask(process, set, bytes)?;
    poll_within(process, fds, count, limit)
}

/// `struct pollfd`: descriptor, wanted events, events; 8 bytes.
const POLLFD_BYTES: usize = 8;
const ALWAYS: u32 = (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) as u32;

fn poll_within(
    process: &mut Process,
    fds: u64,
    count: u64,
    limit: Option<Duration>,
) -> Result<Outcome, Errno> {
    let count = count as u32 as usize;
    if count > process.files.open_files_limit() as usize {
        return Err(Errno::INVAL);
    }
    let mut raw = process.memory.read_vec(fds, count * POLLFD_BYTES)?;
    let (mut ready, mut need) = (0, Need::INSIDE);
    for entry in raw.chunks_exact_mut(POLLFD_BYTES) {
        let n = i32::from_le_bytes(entry[..4].try_into().expect("4 bytes"));
        let wanted = u32::from(u16::from_le_bytes([entry[4], entry[5]])) | ALWAYS;
        let events = match process.files.ready_fd(n) {
            _ if n < 0 => 0,
            Err(_) => libc::POLLNVAL as u32,
            Ok(state) => {
                need = need.or(state.need);
                state.events & wanted
            }
        };
        entry[6..8].copy_from_slice(&(events as u16).to_le_bytes());
        ready += u64::from(events != 0);
    }
    let deadline = deadline(process, limit);
    if ready == 0
        && let Some(block) = nothing_ready(limit, deadline, need)
    {
        return Ok(block);
    }
    process.memory.write(fds, &raw)?;
    Ok(Outcome::Value(ready))
}

/// Events that count for the three sets of select(2).
const SETS: [u32; 3] = [
    (libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | libc::POLLERR) as u32,
    (libc::POLLOUT | libc::POLLWRNORM | libc::POLLERR) as u32,
    libc::POLLPRI as u32,
];

fn select(process: &mut Process, [n, read, write, except, timeout, _]: Args) -> Result<Outcome, Errno> {
    let limit = time_limit(process, timeout, 1000)?;
    let outcome = select_within(process, n, [read, write, except], limit)?;
    if let (Outcome::Value(_), Some(limit)) = (&outcome, limit) {
        let left = match deadline(process, Some(limit)) {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => limit,
        };
        // Linux does not mind either if the limit cannot be written back.
        let _ = process.memory.put(timeout, &[left.as_secs() as i64, i64::from(left.subsec_micros())]);
    }
    Ok(outcome)
}

fn pselect6(process: &mut Process, [n, read, write, except, timeout, set]: Args) -> Result<Outcome, Errno> {
    let limit = time_limit(process, timeout, 1)?;
    // The sixth argument points to the set's address and size.
    if set != 0 {
        let [address, bytes]: [u64; 2] = process.memory.get(set)?;
        mask(process, address, bytes)?;
    }
    select_within(process, n, [read, write, except], limit)
}

fn select_within(
    process: &mut Process,
    n: u64,
    sets: [u64; 3],
    limit: Option<Duration>,
) -> Result<Outcome, Errno> {
    let n = usize::try_from(n as i32).map_err(|_| Errno::INVAL)?;
    let n = n.min(process.files.open_files_limit() as usize);
    let bytes = n.div_ceil(64) * 8;
    let mut wanted = Vec::with_capacity(3);
    for set in sets {
        wanted.push(if set == 0 { vec![0; bytes] } else { process.memory.read_vec(set, bytes)? });
    }
    let (mut found, mut need) = (vec![vec![0_u8; bytes]; 3], Need::INSIDE);
    let mut ready = 0;
    for n in 0..n {
        let (byte, bit) = (n / 8, 1 << (n % 8));
        if wanted.iter().all(|set| set[byte] & bit == 0) {
            continue;
        }
        let state = process.files.ready_fd(n as i32)?;
        need = need.or(state.need);
        for (i, events) in SETS.iter().enumerate() {
            if wanted[i][byte] & bit != 0 && state.events & events != 0 {
                found[i][byte] |= bit;
                ready += 1;
            }
        }
    }
    let deadline = deadline(process, limit);
    if ready == 0
        && let Some(block) = nothing_ready(limit, deadline, need)
    {
        return Ok(block);
    }
    for (set, found) in sets.into_iter().zip(found) {
        if set != 0 {
            process.memory.write(set, &found)?;
        }
    }
    Ok(Outcome::Value(ready))
}

fn epoll_create(process: &mut Process, [size, ..]: Args) -> Result<Outcome, Errno> {
    if size as i32 <= 0 {
        return Err(Errno::INVAL);
    }
    let made = process.files.make_epoll(false);
    process.made(made)
}

fn epoll_create1(process: &mut Process, [flags, ..]: Args) -> Result<Outcome, Errno> {
    if flags as i32 & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    let made = process.files.make_epoll(flags != 0);
    process.made(made)
}

/// `struct epoll_event` of x86-64 is packed: events, then data; 12 bytes.
const EVENT_BYTES: usize = 12;

fn epoll_ctl(process: &mut Process, [epoll, operation, n, event, ..]: Args) -> Result<Outcome, Errno> {
    let operation = operation as i32;
    let change = if operation == libc::EPOLL_CTL_DEL {
        (0, 0)
    } else {
        let raw: [u8; EVENT_BYTES] = process.memory.get(event)?;
        let events = u32::from_le_bytes(raw[..4].try_into().expect("4 bytes"));
        (events, u64::from_le_bytes(raw[4..].try_into().expect("8 bytes")))
    };
    let done = process.files.epoll_control(fd(epoll), operation, fd(n), change);
    process.done(done)
}

fn epoll_wait(process: &mut Process, [epoll, events, max, timeout, ..]: Args) -> Result<Outcome, Errno> {
    epoll_within(process, epoll, events, max, millis(timeout as i32))
}

fn epoll_pwait(
    process: &mut Process,
    [epoll, events, max, timeout, set, bytes]: Args,
) -> Result<Outcome, Errno> {
    mask(process, set, bytes)?;
    epoll_within(process, epoll, events, max, millis(timeout as i32))
}

fn epoll_pwait2(
    process: &mut Process,
    [epoll, events, max, timeout, set, bytes]: Args,
) -> Result<Outcome, Errno> {
    let limit = time_limit(process, timeout, 1)?;
    mask(process, set, bytes)?;
    epoll_within(process, epoll, events, max, limit)
}

fn epoll_within(
    process: &mut Process,
    epoll: u64,
    into: u64,
    max: u64,
    limit: Option<Duration>,
) -> Result<Outcome, Errno> {
    let max = usize::try_from(max as i32).ok().filter(|max| *max > 0).ok_or(Errno::INVAL)?;
    let room = process.memory.reachable(
        into,
        (max as u64).saturating_mul(EVENT_BYTES as u64),
        crate::process::memory::Access::Write,
    );
    let max = max.min(room as usize / EVENT_BYTES);
    if max == 0 {
        return Err(Errno::FAULT);
    }
    let (found, need) = process.files.epoll_collect(fd(epoll), max)?;
    let deadline = deadline(process, limit);
    if found.is_empty()
        && let Some(block) = nothing_ready(limit, deadline, need)
    {
        return Ok(block);
    }
    let mut raw = Vec::with_capacity(found.len() * EVENT_BYTES);
    for (events, data) in &found {
        raw.extend(events.to_le_bytes());
        raw.extend(data.to_le_bytes());
    }
    process.memory.write(into, &raw)?;
    Ok(Outcome::Value(found.len() as u64))
}
