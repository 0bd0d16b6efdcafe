//! virtio-balloon: takes memory from a running guest and gives it back, and learns which pages it does not use.
//!
//! ```text
//! Balloon (host's handle) ── target ── config interrupt ──> driver inflates: page numbers ──> MADV_DONTNEED
//!                                                           driver reports free ranges   ──> MADV_DONTNEED
//!                         <── statistics, asked for by giving their buffer back
//! ```
//! Source: VIRTIO 1.2 §5.5. A page that was taken is an empty page again when the guest touches it; so the host need not
//! be told when the driver deflates, and a guest that lies about its pages only loses its own memory. It is told all the
//! same: what the guest has given holds nothing, and a snapshot leaves it out.

mod given;
mod serve;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use novum_snapshot::{Snapshot, State, Writer};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::linux::layout::PAGE;
use crate::linux::virtio::ring::Interrupt;
use crate::linux::virtio::state::{put, take};
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes};
use given::Given;
use serve::{Role, serve};

const DEVICE_ID: u32 = 5;
/// Inflate, deflate, statistics, reporting.
const QUEUE_SIZES: &[u16] = &[128, 128, 16, 128];
/// Features (§5.5.3).
const MUST_TELL_HOST: u64 = 1;
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;
/// Where the driver writes how many pages it has given, in the configuration.
const ACTUAL: u64 = 4;

/// What a guest says of its memory; `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// All its memory.
    pub total_bytes: Option<u64>,
    /// What is not used for anything.
    pub free_bytes: Option<u64>,
    /// What could be had without swapping.
    pub available_bytes: Option<u64>,
    /// Caches of files.
    pub cache_bytes: Option<u64>,
    /// Page faults that needed a file or disk.
    pub major_faults: Option<u64>,
    /// All other page faults.
    pub minor_faults: Option<u64>,
}

/// A guest's balloon, the host's side of it. Clones are the same balloon.
#[derive(Clone, Debug)]
pub struct Balloon(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    /// Bytes that the guest has reported as free, in all.
    reported_bytes: AtomicU64,
    /// Pages that the guest has given and not taken back; empty for a driver that does not tell.
    given: Mutex<Given>,
    /// The newest statistics and how often they came.
    statistics: Mutex<(u64, Statistics)>,
    came: Condvar,
    /// The guest has given or taken back.
    changed: Notify,
    /// Written to ask for new statistics.
    ask: EventFd,
    /// The guest's interrupt while its driver is at work.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Balloon {
    /// An empty balloon.
    ///
    /// # Errors
    /// Where the host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            reported_bytes: AtomicU64::new(0),
            given: Mutex::default(),
            statistics: Mutex::default(),
            came: Condvar::new(),
            changed: Notify::new(),
            ask: EventFd::new(EFD_NONBLOCK)?,
            interrupt: Mutex::new(None),
        })))
    }

    /// Asks the guest to give up this much of its memory, in whole pages; less than before gives memory back. The guest
    /// takes its time, and takes memory back by itself before it would kill for lack of it.
    pub fn set_target_bytes(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.0.target_pages.store(pages, Ordering::SeqCst);
        if let Some(interrupt) = &*self.0.interrupt.lock() {
            interrupt.config_changed();
        }
    }

    /// How much it was asked to give up.
    #[must_use]
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.0.target_pages.load(Ordering::SeqCst)) * PAGE
    }

    /// Returns when the guest has given up as much as it was asked to, neither more nor less.
    pub async fn settled(&self) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.actual_bytes() == self.target_bytes() {
                return;
            }
            changed.await;
        }
    }

    /// How much it says it has given up.
    #[must_use]
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.0.actual_pages.load(Ordering::SeqCst)) * PAGE
    }

    /// Bytes that the guest has reported as free and the host has taken back since the start. The guest uses them again
    /// without asking.
    #[must_use]
    pub fn reported_bytes(&self) -> u64 {
        self.0.reported_bytes.load(Ordering::SeqCst)
    }

    /// The ranges of guest memory, as (address, bytes), that the guest has given and not taken back: nothing in them
    /// matters to it, so that a snapshot needs not hold them. Only meaningful while the guest is paused.
    #[must_use]
    pub fn given_ranges(&self) -> Vec<(u64, u64)> {
        let runs = self.0.given.lock().runs();
        runs.into_iter().map(|(page, count)| (page * PAGE, count * PAGE)).collect()
    }

    /// Asks for the guest's statistics; `None` where it does not answer in time.
    #[must_use]
    pub fn statistics(&self, patience: Duration) -> Option<Statistics> {
        let deadline = Instant::now() + patience;
        let mut statistics = self.0.statistics.lock();
        let (before, _) = *statistics;
        // It only fails where the counter would overflow: then it is asked already.
        let _ = self.0.ask.write(1);
        while statistics.0 == before {
            if self.0.came.wait_until(&mut statistics, deadline).timed_out() {
                return None;
            }
        }
        Some(statistics.1)
    }
}

/// A balloon as a section of a snapshot.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pages {
    target_pages: u32,
    actual_pages: u32,
    /// First page and count.
    given: Vec<(u64, u64)>,
}

impl State for Pages {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u32 = 1;
}

/// The device.
pub(crate) struct BalloonDevice {
    balloon: Balloon,
    worker: Option<Worker>,
}

impl BalloonDevice {
    pub(crate) fn new(balloon: Balloon) -> Self {
        Self { balloon, worker: None }
    }
}

impl VirtioDevice for BalloonDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        MUST_TELL_HOST | STATISTICS | DEFLATE_ON_OOM | REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { target_pages, actual_pages, .. } = &*self.balloon.0;
        let words = [target_pages, actual_pages].map(|word| word.load(Ordering::SeqCst).to_le_bytes());
        read_config_bytes(&words.concat(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.balloon.0.actual_pages.store(u32::from_le_bytes(word), Ordering::SeqCst);
            self.balloon.0.changed.notify_waiters();
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let balloon = self.balloon.clone();
        // Queues of features that were not accepted are not there, and the later ones move up (§5.5.2).
        let mut roles = vec![Role::Inflate, Role::Deflate];
        roles.extend((activation.features & STATISTICS != 0).then_some(Role::Statistics));
        roles.extend((activation.features & REPORTING != 0).then_some(Role::Report));
        *self.balloon.0.interrupt.lock() = Some(activation.interrupt);
        let tells = activation.features & MUST_TELL_HOST != 0;
        let work = move |rings, stop: &EventFd| serve(rings, &roles, tells, &balloon.0, stop);
        self.worker = Some(Worker::run("virtio-balloon", activation.rings, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        *self.balloon.0.interrupt.lock() = None;
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.balloon.0.actual_pages.store(0, Ordering::SeqCst);
        *self.balloon.0.given.lock() = Given::default();
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        let Shared { target_pages, actual_pages, given, .. } = &*self.balloon.0;
        let [target_pages, actual_pages] =
            [target_pages, actual_pages].map(|word| word.load(Ordering::SeqCst));
        put(to, owner, &Pages { target_pages, actual_pages, given: given.lock().runs() })
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        let state: Pages = take(from, owner)?;
        let given = Given::from_runs(&state.given);
        let given = given.ok_or_else(|| StateError::refused(owner, "no guest has given such pages"))?;
        let shared = &self.balloon.0;
        shared.target_pages.store(state.target_pages, Ordering::SeqCst);
        shared.actual_pages.store(state.actual_pages, Ordering::SeqCst);
        *shared.given.lock() = given;
        Ok(())
    }
}
