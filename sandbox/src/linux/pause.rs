//! Where vCPU threads stop while their machine is paused.
//!
//! ```text
//! pauser   close ── kick each ── wait until all stand ───────────── open
//! vCPU     ... KVM_RUN ─┐ finish the instruction ── stand (park) ─────┘ ── KVM_RUN ...
//! ```
//! A vCPU stands between two instructions: what the last exit began (a port's or a register's access) is finished
//! first. A thread that has ended counts as standing.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    /// How many threads stand or have ended.
    standing: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// From now on vCPUs that ask stop here; kick them, so that they ask.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Lets all go on.
    pub(crate) fn open(&self) {
        // Under the lock, so that nobody falls asleep between looking and waiting.
        let _standing = self.standing.lock();
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether a vCPU should stop.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// A vCPU stops until the gate is open.
    pub(crate) fn park(&self) {
        let mut standing = self.standing.lock();
        *standing += 1;
        self.changed.notify_all();
        while self.is_closed() {
            self.changed.wait(&mut standing);
        }
        *standing -= 1;
    }

    /// A vCPU thread has ended: it stands for ever.
    pub(crate) fn leave(&self) {
        *self.standing.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits until `count` threads stand.
    pub(crate) fn wait(&self, count: usize) {
        let mut standing = self.standing.lock();
        while *standing < count {
            self.changed.wait(&mut standing);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn nobody_passes_a_closed_gate_and_all_pass_an_open_one() {
        let gate = Arc::new(Gate::default());
        let passed = Arc::new(AtomicUsize::new(0));
        gate.close();
        let work = || {
            let (gate, passed) = (gate.clone(), passed.clone());
            std::thread::spawn(move || {
                gate.park();
                passed.fetch_add(1, Ordering::SeqCst);
                gate.leave();
            })
        };
        let threads = [work(), work()];
        gate.wait(2);
        assert_eq!(passed.load(Ordering::SeqCst), 0);
        gate.open();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(passed.load(Ordering::SeqCst), 2);
        gate.close();
        gate.wait(2);
    }
}
