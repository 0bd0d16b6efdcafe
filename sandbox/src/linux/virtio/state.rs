//! What a snapshot holds of a transport: registers and rings. What its device holds is a section of the device's own.
//!
//! ```text
//! pause ── save ──> sections virtio-mmio, and the device's, both of one owner ("virtio0", "virtio1", ...)
//!                       │
//!          restore <────┘   into a transport whose device nobody has started; then, once memory and interrupt
//!          resume           controllers are there, the device takes its rings and looks at all of them first
//! ```
//! Requests that were not taken from a ring before the pause are still in it, those that were are answered: so the rings'
//! indices are all there is to say about them. A section is read as a stranger's word: checked, and refused with an error.

use std::io;

use novum_snapshot::{SectionError, Snapshot, State, WriteError, Writer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use virtio_queue::Queue;

use super::mmio::Transport;
use super::ring::{CONFIG_CHANGED, USED_RING};

/// Why the state of a device was not saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The section could not be written.
    #[error("the state of device {owner} cannot be saved")]
    Write {
        /// The device.
        owner: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// The section could not be read.
    #[error("the state of device {owner} cannot be read")]
    Read {
        /// The device.
        owner: String,
        /// Why.
        #[source]
        source: SectionError,
    },
    /// It was read, but does not fit.
    #[error("the state of device {owner} does not fit: {reason}")]
    Refused {
        /// The device.
        owner: String,
        /// What does not fit to what.
        reason: String,
    },
    /// The device is at work.
    #[error("device {owner} must be paused first")]
    Running {
        /// The device.
        owner: String,
    },
    /// The host has not what the device needs.
    #[error("device {owner} cannot go on here: {doing} failed")]
    Host {
        /// The device.
        owner: String,
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// What was read does not fit.
    pub(crate) fn refused(owner: &str, reason: impl Into<String>) -> Self {
        Self::Refused { owner: owner.into(), reason: reason.into() }
    }

    /// For `map_err`: a [`StateError::Host`].
    pub(crate) fn host(owner: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let owner = owner.into();
        move |source| Self::Host { owner, doing, source }
    }
}

/// Saves one section of a device.
pub(crate) fn put<S: State>(to: &mut Writer, owner: &str, state: &S) -> Result<(), StateError> {
    to.put(owner, state).map_err(|source| StateError::Write { owner: owner.into(), source })
}

/// Reads one section of a device.
pub(crate) fn take<S: State>(from: &Snapshot, owner: &str) -> Result<S, StateError> {
    from.take(owner).map_err(|source| StateError::Read { owner: owner.into(), source })
}

/// Bytes that are written at once; a vector of them would be written one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Postcard borrows: as much as is there, whatever the length says.
        <&[u8]>::deserialize(from).map(|bytes| Self(bytes.to_vec()))
    }
}

/// A ring between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    size: u16,
    ready: bool,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl QueueState {
    fn of(queue: &Queue) -> Self {
        let virtio_queue::QueueState {
            max_size: _,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = queue.state();
        Self { size, ready, next_avail, next_used, event_idx, desc_table, avail_ring, used_ring }
    }

    fn queue(self, max_size: u16) -> Result<Queue, virtio_queue::Error> {
        let Self { size, ready, next_avail, next_used, event_idx, desc_table, avail_ring, used_ring } = self;
        Queue::try_from(virtio_queue::QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        })
    }
}

/// A transport's registers and rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TransportState {
    device_id: u32,
    /// The driver had started the device.
    started: bool,
    status: u32,
    queue: u32,
    device_features_half: u32,
    driver_features_half: u32,
    driver_features: u64,
    interrupt_status: u32,
    generation: u32,
    queues: Vec<QueueState>,
}

impl State for TransportState {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u32 = 1;
}

impl Transport {
    /// Saves registers, rings and device. The transport must be paused.
    ///
    /// # Errors
    /// [`StateError`]
    pub(crate) fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        if self.active {
            return Err(StateError::Running { owner: owner.into() });
        }
        let state = TransportState {
            device_id: self.device.device_id(),
            started: self.started,
            status: self.status,
            queue: self.queue,
            device_features_half: self.device_features_half,
            driver_features_half: self.driver_features_half,
            driver_features: self.driver_features,
            interrupt_status: self.interrupt.status(),
            generation: self.interrupt.generation(),
            queues: self.queues.iter().map(QueueState::of).collect(),
        };
        put(to, owner, &state)?;
        self.device.save(owner, to)
    }

    /// Becomes what [`Self::save`] has saved, paused. The device must be of the same kind and offer what the driver has
    /// accepted; kicks and interrupts are those of this transport.
    ///
    /// # Errors
    /// [`StateError`]; the transport is then of no more use.
    pub(crate) fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        if self.active {
            return Err(StateError::Running { owner: owner.into() });
        }
        let state: TransportState = take(from, owner)?;
        let queues = self.check(&state).map_err(|reason| StateError::refused(owner, reason))?;
        self.device.restore(owner, from)?;
        self.queues = queues;
        self.started = state.started;
        self.status = state.status;
        self.queue = state.queue;
        self.device_features_half = state.device_features_half;
        self.driver_features_half = state.driver_features_half;
        self.driver_features = state.driver_features;
        self.interrupt.restore(state.interrupt_status, state.generation);
        Ok(())
    }

    /// Starts the device again where the driver had started it, and repeats an interrupt that the driver has not
    /// answered: one that came while the controllers were saved may be lost.
    ///
    /// # Errors
    /// Where the host has no thread for it, or its rings are not in memory.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        if self.started && !self.active {
            self.activate()?;
        }
        self.interrupt.repeat();
        Ok(())
    }

    fn check(&self, state: &TransportState) -> Result<Vec<Queue>, String> {
        let (device, sizes) = (self.device.device_id(), self.device.queue_sizes());
        if state.device_id != device {
            return Err(format!("it is of a device with virtio's number {}, not {device}", state.device_id));
        }
        let missing = state.driver_features & !self.features();
        // A driver may have written anything that it was never told is accepted.
        if state.started && missing != 0 {
            return Err(format!("its driver has features {missing:#x}, which are not offered here"));
        }
        if state.queues.len() != sizes.len() {
            return Err(format!("it has {} rings, not {}", state.queues.len(), sizes.len()));
        }
        if state.interrupt_status & !(USED_RING | CONFIG_CHANGED) != 0 || state.status > 0xff {
            return Err(format!(
                "status {:#x} and interrupt status {:#x} are none",
                state.status, state.interrupt_status
            ));
        }
        let queue = |(index, (queue, max_size)): (usize, (&QueueState, &u16))| {
            queue.queue(*max_size).map_err(|error| format!("ring {index}: {error}"))
        };
        state.queues.iter().zip(sizes).enumerate().map(queue).collect()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
