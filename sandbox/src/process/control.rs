//! How the rest of the gateway reaches a vCPU thread that may be inside the guest or waiting: one word of flags, one
//! event descriptor to wait on, one signal to leave the guest. Visits are what others do to the program on its own thread,
//! between two of its instructions; a pause is a visit that lasts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Wake;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Process;
use crate::kvm::sys::KickTarget;

/// What somebody does to the program on its thread.
pub(crate) type Visit = Box<dyn FnOnce(&mut Process) + Send>;

/// Shared between a sandbox's thread and those who use the sandbox.
#[derive(Debug)]
pub(crate) struct Control {
    event: OwnedFd,
    signalled: AtomicBool,
    cancelled: AtomicBool,
    /// The first byte of the reply is out.
    replied: AtomicBool,
    target: OnceLock<KickTarget>,
    /// There is something in `visits` to look at.
    visited: AtomicBool,
    visits: Mutex<Visits>,
    /// `visits` or `cancelled` changed.
    change: Condvar,
}

#[derive(Default)]
struct Visits {
    waiting: VecDeque<Visit>,
    paused: bool,
    /// The run is over: nobody attends any more.
    closed: bool,
}

impl std::fmt::Debug for Visits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Visits").field("waiting", &self.waiting.len()).field("paused", &self.paused).finish()
    }
}

impl Control {
    /// For one sandbox.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            event,
            signalled: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            replied: AtomicBool::new(false),
            target: OnceLock::new(),
            visited: AtomicBool::new(false),
            visits: Mutex::default(),
            change: Condvar::new(),
        }))
    }

    /// The calling thread is the one to reach from now on.
    pub(crate) fn adopt(&self) {
        let _ = self.target.set(KickTarget::current());
    }

    /// Stops the run, wherever it is.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        if self.visited.load(Ordering::SeqCst) {
            // It may stand still in a pause, which looks at the flag under this lock.
            drop(self.visits.lock());
            self.change.notify_all();
        }
        self.reach();
    }

    /// Gets the thread out of the guest, or out of its wait.
    fn reach(&self) {
        self.notify();
        if let Some(target) = self.target.get() {
            target.kick();
        }
    }

    /// Has something done on the program's thread; `false` where its run is over, and it will not be.
    pub(crate) fn visit(&self, visit: Visit) -> bool {
        self.change_visits(|visits| visits.waiting.push_back(visit))
    }

    /// Lets the program stand still, or go on; visits are served meanwhile. `false` where its run is over.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        self.change_visits(|visits| visits.paused = paused)
    }

    fn change_visits(&self, change: impl FnOnce(&mut Visits)) -> bool {
        let mut visits = self.visits.lock();
        if visits.closed {
            return false;
        }
        change(&mut visits);
        self.visited.store(true, Ordering::SeqCst);
        drop(visits);
        self.change.notify_all();
        self.reach();
        true
    }

    /// On the program's thread: lets visitors in, and stands still while paused.
    pub(crate) fn attend(&self, process: &mut Process) {
        if !self.visited.load(Ordering::SeqCst) {
            return;
        }
        let mut visits = self.visits.lock();
        loop {
            while let Some(visit) = visits.waiting.pop_front() {
                MutexGuard::unlocked(&mut visits, || visit(process));
            }
            if !visits.paused || self.is_cancelled() {
                break;
            }
            self.change.wait(&mut visits);
        }
        self.visited.store(visits.paused, Ordering::SeqCst);
    }

    /// Whether nobody attends any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.visits.lock().closed
    }

    /// The run is over: whoever still waits to be let in is told by the visit's drop.
    pub(crate) fn close(&self) {
        let mut visits = self.visits.lock();
        visits.closed = true;
        let waiting = std::mem::take(&mut visits.waiting);
        drop(visits);
        drop(waiting);
    }

    /// The run that was to stop is over: the next one may go on.
    pub(crate) fn rearm(&self) {
        self.cancelled.store(false, Ordering::SeqCst);
    }

    /// The reply of a run has begun, or not yet.
    pub(crate) fn set_replied(&self, replied: bool) {
        self.replied.store(replied, Ordering::Relaxed);
    }

    /// Whether it has begun.
    pub(crate) fn has_replied(&self) -> bool {
        self.replied.load(Ordering::Relaxed)
    }

    /// Whether the run is to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Wakes the thread where it waits on [`Self::event`].
    pub(crate) fn notify(&self) {
        if !self.signalled.swap(true, Ordering::SeqCst) {
            // A full counter is a set event.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Readable when somebody notified.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes a notification.
    pub(crate) fn take_notice(&self) {
        if self.signalled.load(Ordering::SeqCst) {
            let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
            self.signalled.store(false, Ordering::SeqCst);
        }
    }
}

/// Input that arrives and output that has room wake the thread.
impl Wake for Control {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}
