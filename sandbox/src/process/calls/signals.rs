//! Signals: rt_sigaction(2), rt_sigprocmask(2), sigaltstack(2), rt_sigreturn(2), kill(2), tgkill(2), sigsuspend(2),
//! sigtimedwait(2), pause(2).

use std::time::Instant;

use rustix::io::Errno;

use super::identity::PID;
use super::time::read_timespec;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::signal::{Action, AltStack, Detail, Info, SI_TKILL, SI_USER, SigSet, Signal};
use crate::process::wait::Wait;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_rt_sigaction, rt_sigaction),
    (libc::SYS_rt_sigprocmask, rt_sigprocmask),
    (libc::SYS_rt_sigpending, rt_sigpending),
    (libc::SYS_rt_sigreturn, |_, _| Ok(Outcome::SignalReturn)),
    (libc::SYS_rt_sigsuspend, rt_sigsuspend),
    (libc::SYS_rt_sigtimedwait, rt_sigtimedwait),
    (libc::SYS_rt_sigqueueinfo, |process, args| queue(process, args[0], None, args[1], args[2])),
    (libc::SYS_rt_tgsigqueueinfo, |process, args| queue(process, args[0], Some(args[1]), args[2], args[3])),
    (libc::SYS_sigaltstack, sigaltstack),
    (libc::SYS_pause, pause),
    (libc::SYS_kill, kill),
    (libc::SYS_tkill, |process, args| send(process, PID, args[0], args[1])),
    (libc::SYS_tgkill, |process, args| send(process, args[0], args[1], args[2])),
];

/// The size of the kernel's `sigset_t`.
const SET_BYTES: u64 = 8;

fn check_size(bytes: u64) -> Result<(), Errno> {
    if bytes == SET_BYTES { Ok(()) } else { Err(Errno::INVAL) }
}

fn rt_sigaction(process: &mut Process, [signal, new, old, size, ..]: Args) -> Result<Outcome, Errno> {
    check_size(size)?;
    let signal = Signal::new(signal).ok_or(Errno::INVAL)?;
    let before = process.actions.get(signal);
    if new != 0 {
        if matches!(signal, Signal::KILL | Signal::STOP) {
            return Err(Errno::INVAL);
        }
        let bytes: [u8; Action::BYTES] = process.memory.get(new)?;
        process.set_action(signal, Action::from_bytes(&bytes));
        process.discard_ignored(signal);
    }
    process.memory.put_if(old, &before.bytes())?;
    Ok(Outcome::ZERO)
}

fn rt_sigprocmask(process: &mut Process, [how, new, old, size, ..]: Args) -> Result<Outcome, Errno> {
    check_size(size)?;
    let before = process.threads.current().signals.blocked;
    if new != 0 {
        let set = SigSet(process.memory.get(new)?);
        let blocked = match how as i32 {
            libc::SIG_BLOCK => before.union(set),
            libc::SIG_UNBLOCK => before.minus(set),
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::INVAL),
        };
        process.threads.current_mut().signals.blocked = blocked.without_unblockable();
    }
    process.memory.put_if(old, &before.0)?;
    Ok(Outcome::ZERO)
}

fn rt_sigpending(process: &mut Process, [address, size, ..]: Args) -> Result<Outcome, Errno> {
    if size > SET_BYTES {
        return Err(Errno::INVAL);
    }
    let thread = &process.threads.current().signals;
    let waiting = thread.pending.set().union(process.pending.set());
    let bytes = (waiting.0 & thread.blocked.0).to_le_bytes();
    process.memory.write(address, &bytes[..size as usize])?;
    Ok(Outcome::ZERO)
}

fn pause(process: &mut Process, _: Args) -> Result<Outcome, Errno> {
    if process.interrupted() { Err(Errno::INTR) } else { Ok(Outcome::Block(Wait::default())) }
}

fn rt_sigsuspend(process: &mut Process, [address, size, ..]: Args) -> Result<Outcome, Errno> {
    check_size(size)?;
    if process.resumed().is_none() {
        let set = SigSet(process.memory.get(address)?);
        process.swap_mask(set);
    }
    pause(process, [0; 6])
}

fn rt_sigtimedwait(process: &mut Process, [set, info, timeout, size, ..]: Args) -> Result<Outcome, Errno> {
    check_size(size)?;
    let wanted = SigSet(process.memory.get(set)?).without_unblockable();
    if let Some(found) = process.take_from(|signal| wanted.contains(signal)) {
        process.memory.put_if(info, &found.bytes())?;
        return Ok(Outcome::Value(u64::from(found.signal.number())));
    }
    let until = match process.resumed() {
        Some(wait) => wait.until,
        None if timeout == 0 => None,
        None => Instant::now().checked_add(read_timespec(process, timeout)?),
    };
    if until.is_some_and(|until| Instant::now() >= until) {
        return Err(Errno::AGAIN);
    }
    if process.interrupted() {
        return Err(Errno::INTR);
    }
    Ok(Outcome::Block(Wait { until, inside: true, ..Wait::default() }))
}

/// `struct stack_t`: pointer, flags, size.
fn sigaltstack(process: &mut Process, [new, old, ..]: Args) -> Result<Outcome, Errno> {
    let thread = process.threads.current();
    let before = thread.signals.stack;
    let standing = before.holds(thread.state.regs.rsp);
    let flags = if standing { before.flags | AltStack::ON } else { before.flags };
    let wanted: Option<[u64; 3]> = if new == 0 { None } else { Some(process.memory.get(new)?) };
    if let Some([pointer, flags, bytes]) = wanted {
        let flags = flags as u32;
        if standing {
            return Err(Errno::PERM);
        }
        let stack = match flags & !AltStack::AUTODISARM {
            AltStack::DISABLED => AltStack::default(),
            0 | AltStack::ON if bytes < AltStack::LEAST_BYTES => return Err(Errno::NOMEM),
            0 | AltStack::ON => AltStack { pointer, flags: flags & AltStack::AUTODISARM, bytes },
            _ => return Err(Errno::INVAL),
        };
        process.threads.current_mut().signals.stack = stack;
    }
    process.memory.put_if(old, &[before.pointer, u64::from(flags), before.bytes])?;
    Ok(Outcome::ZERO)
}

fn kill(process: &mut Process, [pid, signal, ..]: Args) -> Result<Outcome, Errno> {
    // The program itself, its group, or "everyone but init and me", of whom there are none.
    match pid as i32 {
        -1 => return Err(Errno::SRCH),
        0 | 1 => {}
        _ => return Err(Errno::SRCH),
    }
    if signal != 0 {
        let signal = Signal::new(signal).ok_or(Errno::INVAL)?;
        process.post(Info { signal, code: SI_USER, detail: Detail::Sent { pid: PID as u32 } }, None);
    }
    Ok(Outcome::ZERO)
}

fn send(process: &mut Process, pid: u64, thread: u64, signal: u64) -> Result<Outcome, Errno> {
    let thread = thread as u32;
    if pid as i32 <= 0 || thread as i32 <= 0 {
        return Err(Errno::INVAL);
    }
    if pid != PID || process.threads.get(thread).is_none() {
        return Err(Errno::SRCH);
    }
    if signal != 0 {
        let signal = Signal::new(signal).ok_or(Errno::INVAL)?;
        let info = Info { signal, code: SI_TKILL, detail: Detail::Sent { pid: PID as u32 } };
        if !process.post(info, Some(thread)) {
            return Err(Errno::AGAIN);
        }
    }
    Ok(Outcome::ZERO)
}

/// A `siginfo_t` of the program's own making: its code and value are taken, its sender is ours.
fn queue(
    process: &mut Process,
    pid: u64,
    thread: Option<u64>,
    signal: u64,
    info: u64,
) -> Result<Outcome, Errno> {
    if pid != PID {
        return Err(Errno::SRCH);
    }
    let signal = Signal::new(signal).ok_or(Errno::INVAL)?;
    let code: i32 = process.memory.get(info.checked_add(8).ok_or(Errno::FAULT)?)?;
    let value: u64 = process.memory.get(info.checked_add(24).ok_or(Errno::FAULT)?)?;
    let thread = match thread {
        Some(thread) if process.threads.get(thread as u32).is_none() => return Err(Errno::SRCH),
        thread => thread.map(|thread| thread as u32),
    };
    let detail = Detail::Queued { pid: PID as u32, value };
    if process.post(Info { signal, code, detail }, thread) { Ok(Outcome::ZERO) } else { Err(Errno::AGAIN) }
}
