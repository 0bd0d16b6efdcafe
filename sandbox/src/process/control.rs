//! How the rest of the gateway reaches a vCPU thread that may be inside the guest or waiting: one word of flags, one
//! event descriptor to wait on, one signal to leave the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Wake;

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::kvm::sys::KickTarget;

/// Shared between a sandbox's thread and those who use the sandbox.
#[derive(Debug)]
pub(crate) struct Control {
    event: OwnedFd,
    signalled: AtomicBool,
    cancelled: AtomicBool,
    target: OnceLock<KickTarget>,
}

impl Control {
    /// For one sandbox.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            event,
            signalled: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            target: OnceLock::new(),
        }))
    }

    /// The calling thread is the one to reach from now on.
    pub(crate) fn adopt(&self) {
        let _ = self.target.set(KickTarget::current());
    }

    /// Stops the run, wherever it is.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.notify();
        if let Some(target) = self.target.get() {
            target.kick();
        }
    }

    /// The run that was to stop is over: the next one may go on.
    pub(crate) fn rearm(&self) {
        self.cancelled.store(false, Ordering::SeqCst);
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
