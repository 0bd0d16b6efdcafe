//! Who tries again: blocked threads whose wait may be over. None of them may depend on the thread that has the CPU ever
//! leaving it by itself.

use std::time::{Duration, Instant};

use super::{Machine, RunError, SLICE};
use crate::process::thread::Status;
use crate::process::wait::Wait;

/// Bytes that a program can make its own in a nanosecond, at the most: in large pages.
const FILLED_PER_NANOSECOND: u64 = 16;
const LONGEST_UNSEEN: Duration = Duration::from_secs(2);

impl Machine {
    /// While one thread has the CPU the deadline, timers and the others' waits go on: the timer must strike for them too.
    pub(in crate::process) fn watch_waits(&mut self) -> Result<(), RunError> {
        if self.ticking {
            return Ok(());
        }
        // It may have struck while all threads waited, where nobody sets it again.
        if self.strikes <= Instant::now() {
            return self.arm();
        }
        if self.process.threads.len() == 1 {
            return Ok(());
        }
        let early = self.next_due().is_some_and(|due| due < self.strikes);
        if early || self.must_tick() { self.arm() } else { Ok(()) }
    }

    /// From the moment on at which the program could use more than its limit without another call, the timer ticks.
    pub(super) fn watch_memory(&mut self) -> Result<(), RunError> {
        if !self.ticking && self.process.memory.is_overcommitted() { self.arm() } else { Ok(()) }
    }

    /// Whether more memory is in use than allowed. A look costs in the pages that there are: on a busy machine it takes longer
    /// than a tick, and the program would never get on; so it is not made more often than it can find something new.
    pub(super) fn is_over_limit(&mut self) -> bool {
        let (memory, began) = (&self.process.memory, Instant::now());
        if !memory.is_overcommitted() || began < self.look_due {
            return false;
        }
        let (held, limit) = (memory.held_bytes(), memory.limit_bytes());
        let cost = began.elapsed();
        let filled = Duration::from_nanos(limit.saturating_sub(held) / FILLED_PER_NANOSECOND);
        self.look_due = began + cost + filled.max(4 * cost).clamp(SLICE / 2, LONGEST_UNSEEN);
        held > limit
    }

    /// A signal may have come before the current thread's call began to wait, or the call lets in one that waits already.
    pub(super) fn retry_if_signalled(&mut self) {
        let thread = self.process.threads.current();
        if self.process.has_signal(thread) {
            let id = thread.id;
            self.process.threads.wake_current_if(id);
        }
    }

    /// Blocked threads whose wait this may end are tried again.
    pub(super) fn wake(&mut self, ends: impl Fn(&Wait) -> bool) {
        let woken: Vec<u32> = self
            .process
            .threads
            .iter()
            .filter(|thread| matches!(&thread.status, Status::Blocked(pending) if ends(&pending.wait)))
            .map(|thread| thread.id)
            .collect();
        for id in woken {
            self.process.threads.wake(id);
        }
    }

    /// Wakes the blocked threads whose time has come.
    pub(super) fn wake_due(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self.waits().filter(|(_, wait)| wait.is_due(now)).map(|(id, _)| id).collect();
        self.wake_all(due);
    }

    pub(super) fn wake_all(&mut self, ids: Vec<u32>) {
        for id in ids {
            self.process.threads.wake(id);
            self.process.threads.wake_current_if(id);
        }
    }

    /// While all threads wait: lets those try again that wait for a change inside of the process; whether there are any.
    pub(super) fn wake_changed(&mut self) -> bool {
        if !self.process.take_changed() {
            return false;
        }
        let ids: Vec<u32> = self.waits().filter(|(_, wait)| wait.inside).map(|(id, _)| id).collect();
        let any = !ids.is_empty();
        self.wake_all(ids);
        any
    }
}
