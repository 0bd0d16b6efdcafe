//! Who tries again: blocked threads whose wait may be over. None of them may depend on the thread that has the CPU ever
//! leaving it by itself.

use std::time::Instant;

use super::{Machine, RunError};
use crate::process::thread::Status;
use crate::process::wait::Wait;

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
