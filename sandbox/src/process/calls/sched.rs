//! Scheduling: sched_setscheduler(2), sched_getparam(2), sched_setaffinity(2), getpriority(2), sched_rr_get_interval(2).
//!
//! Threads take equal turns on one vCPU whatever they ask for: policies and nice values are kept and told. Real-time
//! policies are refused, because nothing would keep their promise.

use rustix::io::Errno;

use super::identity::PID;
use super::time::timespec;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::run::SLICE;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_sched_yield, |_, _| Ok(Outcome::Yield)),
    (libc::SYS_sched_getaffinity, sched_getaffinity),
    (libc::SYS_sched_setaffinity, sched_setaffinity),
    (libc::SYS_sched_get_priority_min, |_, [policy, ..]| Ok(Outcome::Value(priorities(policy)?.0))),
    (libc::SYS_sched_get_priority_max, |_, [policy, ..]| Ok(Outcome::Value(priorities(policy)?.1))),
    (libc::SYS_sched_getscheduler, |process, [id, ..]| Ok(Outcome::Value(process.policy(id)?))),
    (libc::SYS_sched_setscheduler, sched_setscheduler),
    (libc::SYS_sched_getparam, sched_getparam),
    (libc::SYS_sched_setparam, sched_setparam),
    (libc::SYS_sched_rr_get_interval, sched_rr_get_interval),
    (libc::SYS_getpriority, getpriority),
    (libc::SYS_setpriority, setpriority),
    (libc::SYS_getcpu, getcpu),
];

const OTHER: u64 = libc::SCHED_OTHER as u64;
const FIFO: u64 = libc::SCHED_FIFO as u64;
const ROUND_ROBIN: u64 = libc::SCHED_RR as u64;
const BATCH: u64 = libc::SCHED_BATCH as u64;
const IDLE: u64 = libc::SCHED_IDLE as u64;
const DEADLINE: u64 = 6;
const RESET_ON_FORK: u64 = 0x4000_0000;

/// The least and the greatest priority of a policy.
fn priorities(policy: u64) -> Result<(u64, u64), Errno> {
    match policy {
        FIFO | ROUND_ROBIN => Ok((1, 99)),
        OTHER | BATCH | IDLE | DEADLINE => Ok((0, 0)),
        _ => Err(Errno::INVAL),
    }
}

impl Process {
    /// The id of the thread that `id` names; 0 is the caller.
    fn named_thread(&self, id: u64) -> Result<u32, Errno> {
        match id as i32 {
            ..0 => Err(Errno::INVAL),
            0 => Ok(self.threads.current().id),
            id => self.threads.get(id as u32).map(|thread| thread.id).ok_or(Errno::SRCH),
        }
    }

    fn policy(&self, id: u64) -> Result<u64, Errno> {
        let id = self.named_thread(id)?;
        Ok(self.threads.get(id).map_or(OTHER, |thread| u64::from(thread.policy)))
    }
}

/// One CPU: threads take turns on the sandbox's vCPU.
fn sched_getaffinity(process: &mut Process, [id, size, address, ..]: Args) -> Result<Outcome, Errno> {
    if size < 8 || !size.is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    process.thread_or_none(id)?;
    process.memory.put(address, &1u64)?;
    Ok(Outcome::Value(8))
}

/// The mask may name what it likes, as long as the one CPU is in it.
fn sched_setaffinity(process: &mut Process, [id, size, address, ..]: Args) -> Result<Outcome, Errno> {
    process.thread_or_none(id)?;
    let first: u8 = if size == 0 { 0 } else { process.memory.get(address)? };
    if first & 1 == 0 { Err(Errno::INVAL) } else { Ok(Outcome::ZERO) }
}

impl Process {
    /// As [`Self::named_thread`], for calls that say `ESRCH` of a negative id.
    fn thread_or_none(&self, id: u64) -> Result<u32, Errno> {
        self.named_thread(id).map_err(|_| Errno::SRCH)
    }
}

fn sched_setscheduler(process: &mut Process, [id, policy, param, ..]: Args) -> Result<Outcome, Errno> {
    let priority: i32 = process.memory.get(param).map_err(|e| if param == 0 { Errno::INVAL } else { e })?;
    let thread = process.named_thread(id)?;
    let policy = policy & !RESET_ON_FORK;
    let (least, most) = priorities(policy)?;
    if policy == DEADLINE || !(least as i32..=most as i32).contains(&priority) {
        return Err(Errno::INVAL);
    }
    if matches!(policy, FIFO | ROUND_ROBIN) {
        return Err(Errno::PERM);
    }
    if let Some(thread) = process.threads.get_mut(thread) {
        thread.policy = policy as u8;
    }
    Ok(Outcome::ZERO)
}

fn sched_getparam(process: &mut Process, [id, param, ..]: Args) -> Result<Outcome, Errno> {
    if param == 0 {
        return Err(Errno::INVAL);
    }
    process.named_thread(id)?;
    process.memory.put(param, &0i32)?;
    Ok(Outcome::ZERO)
}

fn sched_setparam(process: &mut Process, [id, param, ..]: Args) -> Result<Outcome, Errno> {
    let policy = process.policy(id)?;
    sched_setscheduler(process, [id, policy, param, 0, 0, 0])
}

fn sched_rr_get_interval(process: &mut Process, [id, address, ..]: Args) -> Result<Outcome, Errno> {
    process.named_thread(id)?;
    process.memory.put(address, &timespec(SLICE))?;
    Ok(Outcome::ZERO)
}

/// Whether `who` names this program: by process or thread, by group, by user.
fn is_own(process: &Process, which: u64, who: u64) -> Result<(), Errno> {
    let who = who as u32;
    let own = match which as u32 {
        libc::PRIO_PROCESS => who == 0 || process.threads.get(who).is_some(),
        libc::PRIO_PGRP => matches!(u64::from(who), 0 | PID),
        libc::PRIO_USER => who == 0 || who == process.credentials.user.real,
        _ => return Err(Errno::INVAL),
    };
    if own { Ok(()) } else { Err(Errno::SRCH) }
}

/// The system call tells 20 less the nice value, so that no answer is negative.
fn getpriority(process: &mut Process, [which, who, ..]: Args) -> Result<Outcome, Errno> {
    is_own(process, which, who)?;
    Ok(Outcome::Value((20 - process.nice) as u64))
}

fn setpriority(process: &mut Process, [which, who, nice, ..]: Args) -> Result<Outcome, Errno> {
    is_own(process, which, who)?;
    let nice = (nice as i32).clamp(-20, 19);
    if nice < process.nice && process.credentials.user.effective != 0 {
        return Err(Errno::ACCESS);
    }
    process.nice = nice;
    Ok(Outcome::ZERO)
}

fn getcpu(process: &mut Process, [cpu, node, ..]: Args) -> Result<Outcome, Errno> {
    process.memory.put_if(cpu, &0u32)?;
    process.memory.put_if(node, &0u32)?;
    Ok(Outcome::ZERO)
}
