//! A virtqueue in use: the ring, its kick, its interrupt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::linux::memory::Memory;

/// A request of the driver.
pub(crate) type Chain = DescriptorChain<Arc<Memory>>;

/// InterruptStatus: a ring has used buffers.
pub(crate) const USED_RING: u32 = 1;

/// A device's interrupt: the status register and the irqfd.
#[derive(Clone)]
pub(crate) struct Interrupt {
    status: Arc<AtomicU32>,
    event: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that is raised by `event`.
    pub(crate) fn new(event: EventFd) -> Self {
        Self { status: Arc::default(), event: Arc::new(event) }
    }

    /// Raises it because a ring was used.
    pub(crate) fn raise(&self) {
        self.status.fetch_or(USED_RING, Ordering::SeqCst);
        // It only fails where the counter would overflow: then it is raised already.
        let _ = self.event.write(1);
    }

    /// The register InterruptStatus.
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen `bits`.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}

/// What a device gets when its driver is ready.
pub(crate) struct Activation {
    /// One for each of its queues.
    pub(crate) rings: Vec<Ring>,
}

/// One queue with all that serving it needs.
pub(crate) struct Ring {
    queue: Queue,
    kick: EventFd,
    memory: Arc<Memory>,
    interrupt: Interrupt,
}

impl Ring {
    /// `queue` was checked by the transport.
    pub(crate) fn new(queue: Queue, kick: EventFd, memory: Arc<Memory>, interrupt: Interrupt) -> Self {
        Self { queue, kick, memory, interrupt }
    }

    /// Readable after a kick.
    pub(crate) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Guest memory.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The next request, if there is one.
    pub(crate) fn next(&mut self) -> Option<Chain> {
        self.queue.pop_descriptor_chain(self.memory.clone())
    }

    /// Gives the chain with this head back, with `written` bytes in it. A driver that broke its ring gets nothing
    /// back: that is its own loss.
    pub(crate) fn give_back(&mut self, head: u16, written: u32) {
        let _ = self.queue.add_used(&*self.memory, head, written);
    }

    /// Interrupts the driver if it wants that for what was given back.
    pub(crate) fn notify(&mut self) {
        if self.queue.needs_notification(&*self.memory).unwrap_or(true) {
            self.interrupt.raise();
        }
    }

    /// Asks for no kicks while we are at it.
    pub(crate) fn quiet(&mut self) {
        let _ = self.queue.disable_notification(&*self.memory);
    }

    /// Asks for kicks again; true where more came in the meantime. False where the ring is broken, so that nobody
    /// spins on it.
    pub(crate) fn listen(&mut self) -> bool {
        self.queue.enable_notification(&*self.memory).unwrap_or(false)
    }

    /// Takes note of a kick.
    pub(crate) fn clear_kick(&self) -> io::Result<u64> {
        self.kick.read()
    }

    /// Back to the transport.
    pub(crate) fn into_queue(self) -> Queue {
        self.queue
    }
}
