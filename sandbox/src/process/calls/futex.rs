//! Waiting on memory words: futex(2), set_robust_list(2).

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::time::read_timespec;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::memory::Access;
use crate::process::threads::futex::{ANY, WakeOp};
use crate::process::time::clock::{MONOTONIC, REALTIME};
use crate::process::wait::Wait;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_futex, futex),
    (libc::SYS_set_robust_list, set_robust_list),
    (libc::SYS_get_robust_list, |_, _| Err(Errno::PERM)),
];

const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const COMMAND: u64 = 0x7f;
const CLOCK_REALTIME: u64 = 0x100;

/// The size of `struct robust_list_head`.
const ROBUST_HEAD_BYTES: u64 = 24;

fn futex(process: &mut Process, args: Args) -> Result<Outcome, Errno> {
    let [address, operation, value, fourth, second, third] = args;
    if !address.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    // The program's half of the address space, mapped or not.
    let two = matches!(operation & COMMAND, REQUEUE | CMP_REQUEUE | WAKE_OP);
    if (address as i64) < 0 || two && (second as i64) < 0 {
        return Err(Errno::FAULT);
    }
    let most = (value as i32).max(0) as u32;
    match operation & COMMAND {
        WAIT => wait(process, args, ANY, false),
        WAIT_BITSET => wait(process, args, bits(third)?, true),
        WAKE => wake(process, address, ANY, most),
        WAKE_BITSET => wake(process, address, bits(third)?, most),
        REQUEUE => requeue(process, address, second, most, fourth),
        CMP_REQUEUE if word(process, address)? != third as u32 => Err(Errno::AGAIN),
        CMP_REQUEUE => requeue(process, address, second, most, fourth),
        WAKE_OP => wake_op(process, address, second, most, fourth, third as u32),
        // Priority inheritance means nothing where threads take turns; libraries fall back.
        _ => Err(Errno::NOSYS),
    }
}

fn bits(value: u64) -> Result<u32, Errno> {
    match value as u32 {
        0 => Err(Errno::INVAL),
        bits => Ok(bits),
    }
}

fn word(process: &Process, address: u64) -> Result<u32, Errno> {
    process.memory.get(address)
}

/// The first attempt joins the queue; a later one finds itself taken out of it by a wake-up, or not.
fn wait(process: &mut Process, args: Args, bits: u32, absolute: bool) -> Result<Outcome, Errno> {
    let [address, operation, value, timeout, ..] = args;
    let thread = process.threads.current().id;
    let until = match process.resumed() {
        Some(wait) => {
            let until = wait.until;
            if !process.futexes.waits(thread) {
                return Ok(Outcome::ZERO);
            }
            let late = until.is_some_and(|until| Instant::now() >= until);
            if late || process.interrupted() {
                process.futexes.forget(thread);
                return Err(if late { Errno::TIMEDOUT } else { Errno::INTR });
            }
            until
        }
        None => {
            if word(process, address)? != value as u32 {
                return Err(Errno::AGAIN);
            }
            let until = until(process, timeout, absolute, operation & CLOCK_REALTIME != 0)?;
            process.futexes.wait(thread, address, bits);
            until
        }
    };
    Ok(Outcome::Block(Wait { until, ..Wait::default() }))
}

fn until(process: &Process, timeout: u64, absolute: bool, wall: bool) -> Result<Option<Instant>, Errno> {
    if timeout == 0 {
        return Ok(None);
    }
    let time = read_timespec(process, timeout)?;
    let clock = if wall { REALTIME } else { MONOTONIC };
    let left = match absolute {
        true => time.saturating_sub(process.clock.now(clock).unwrap_or(Duration::ZERO)),
        false => time,
    };
    Ok(Instant::now().checked_add(left))
}

fn wake(process: &mut Process, address: u64, bits: u32, most: u32) -> Result<Outcome, Errno> {
    let woken = process.futexes.wake(address, bits, most);
    Ok(Outcome::Value(process.woken(&woken)))
}

fn requeue(process: &mut Process, from: u64, to: u64, most: u32, moved: u64) -> Result<Outcome, Errno> {
    if (moved as i32) < 0 || !to.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    let (woken, moved) = process.futexes.requeue(from, to, most, moved as u32);
    Ok(Outcome::Value(process.woken(&woken) + u64::from(moved)))
}

fn wake_op(
    process: &mut Process,
    address: u64,
    second: u64,
    most: u32,
    most_second: u64,
    packed: u32,
) -> Result<Outcome, Errno> {
    let operation = WakeOp::decode(packed).ok_or(Errno::NOSYS)?;
    if !second.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    let old = word(process, second)?;
    process.memory.put(second, &operation.apply(old))?;
    let mut woken = process.futexes.wake(address, ANY, most);
    if operation.wakes(old) {
        woken.extend(process.futexes.wake(second, ANY, (most_second as i32).max(0) as u32));
    }
    Ok(Outcome::Value(process.woken(&woken)))
}

fn set_robust_list(process: &mut Process, [head, len, ..]: Args) -> Result<Outcome, Errno> {
    if len != ROBUST_HEAD_BYTES {
        return Err(Errno::INVAL);
    }
    process.threads.current_mut().robust_list = head;
    Ok(Outcome::ZERO)
}

impl Process {
    /// Marks threads that a futex woke; how many.
    fn woken(&mut self, threads: &[u32]) -> u64 {
        threads.iter().for_each(|id| self.threads.wake(*id));
        threads.len() as u64
    }

    /// What the kernel does when a thread ends: frees the robust mutexes it holds, clears its id, wakes who joins it.
    pub(crate) fn thread_ended(&mut self, id: u32, clear_child_tid: u64, robust_list: u64) {
        self.futexes.forget(id);
        // A list that cannot be read is the program's own mistake; Linux stops there as well.
        let _ = self.free_robust_list(id, robust_list);
        if clear_child_tid != 0 && self.memory.put(clear_child_tid, &0u32).is_ok() {
            let woken = self.futexes.wake(clear_child_tid, ANY, 1);
            self.woken(&woken);
        }
    }

    fn free_robust_list(&mut self, id: u32, head: u64) -> Result<(), Errno> {
        const LONGEST: usize = 2048;
        if head == 0 {
            return Ok(());
        }
        let [first, offset, pending]: [u64; 3] = self.memory.get(head)?;
        let mut entry = first & !1;
        for _ in 0..LONGEST {
            if entry == head {
                break;
            }
            let next: u64 = self.memory.get(entry)?;
            if entry != pending & !1 {
                self.free_robust(id, entry.wrapping_add(offset))?;
            }
            entry = next & !1;
        }
        if pending != 0 { self.free_robust(id, (pending & !1).wrapping_add(offset)) } else { Ok(()) }
    }

    fn free_robust(&mut self, id: u32, address: u64) -> Result<(), Errno> {
        const OWNER: u32 = 0x3fff_ffff;
        const OWNER_DIED: u32 = 0x4000_0000;
        const WAITERS: u32 = 0x8000_0000;
        if !address.is_multiple_of(4) || self.memory.reachable(address, 4, Access::Write) != 4 {
            return Err(Errno::FAULT);
        }
        let word: u32 = self.memory.get(address)?;
        if word & OWNER == id {
            self.memory.put(address, &(word & WAITERS | OWNER_DIED))?;
            if word & WAITERS != 0 {
                let woken = self.futexes.wake(address, ANY, 1);
                self.woken(&woken);
            }
        }
        Ok(())
    }
}
