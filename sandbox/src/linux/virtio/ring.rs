//! A virtqueue in use: the ring, its kick, its interrupt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::written::WriteLog;
use crate::linux::memory::Memory;

/// A request of the driver.
pub(crate) type Chain = DescriptorChain<Arc<Memory>>;

/// InterruptStatus: a ring has used buffers.
pub(crate) const USED_RING: u32 = 1;
/// InterruptStatus: the configuration has changed.
pub(crate) const CONFIG_CHANGED: u32 = 2;

/// A device's interrupt: the status register, the configuration's generation and the irqfd; and what else its rings share:
/// whether the device shall stop, and where it writes.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    stopping: Arc<AtomicBool>,
    event: Arc<EventFd>,
    written: Arc<WriteLog>,
}

impl Interrupt {
    /// An interrupt that is raised by `event`.
    pub(crate) fn new(event: EventFd) -> Self {
        let (status, generation, stopping, written) = Default::default();
        Self { status, generation, stopping, event: Arc::new(event), written }
    }

    /// Raises it because a ring was used.
    pub(crate) fn raise(&self) {
        self.raise_for(USED_RING);
    }

    /// Raises it because the configuration has changed (it has already).
    pub(crate) fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise_for(CONFIG_CHANGED);
    }

    /// The register ConfigGeneration.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// While it is set the rings are empty for the device: a guest that never stops asking cannot keep it from pausing.
    pub(crate) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::SeqCst);
    }

    /// Where buffers that the device writes to are noted.
    pub(super) fn written(&self) -> &WriteLog {
        &self.written
    }

    fn raise_for(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        // It only fails where the counter would overflow: then it is raised already.
        let _ = self.event.write(1);
    }

    /// Registers as a snapshot has them.
    pub(crate) fn restore(&self, status: u32, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Raises it again where the driver has not acknowledged it; once more than needed does no harm.
    pub(crate) fn repeat(&self) {
        if self.status() != 0 {
            // It only fails where the counter would overflow: then it is raised already.
            let _ = self.event.write(1);
        }
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
    /// One for each of its queues; those that the driver does not use stay empty.
    pub(crate) rings: Vec<Ring>,
    /// What the driver has accepted of the device's features.
    pub(crate) features: u64,
    /// For changes of the configuration; the rings have it too.
    pub(crate) interrupt: Interrupt,
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
        if !self.queue.ready() || self.interrupt.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let chain = self.queue.pop_descriptor_chain(self.memory.clone())?;
        self.interrupt.written.note(&chain);
        Some(chain)
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
        if !self.queue.ready() {
            return;
        }
        let _ = self.queue.disable_notification(&*self.memory);
    }

    /// Asks for kicks again; true where more came in the meantime. False where the ring is broken, so that nobody
    /// spins on it.
    pub(crate) fn listen(&mut self) -> bool {
        let more = self.queue.ready() && self.queue.enable_notification(&*self.memory).unwrap_or(false);
        more && !self.interrupt.stopping.load(Ordering::SeqCst)
    }

    /// Puts the last chain back, which was not given back: it is the next one again.
    pub(crate) fn put_back(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
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
