//! Virtio 1.2 on MMIO: the transport, rings, and what a device is.
//!
//! ```text
//! guest driver ── registers ── Transport ── activate / pause ── VirtioDevice
//!       │                                                            │ owns, while active
//!       └── ring in guest memory, kick (ioeventfd), interrupt (irqfd) ── Worker thread ── Handler
//! ```
//! A device gets its rings when the driver is ready and gives them back when it is paused, so that reset, save and
//! resume are one path. Everything in a ring and in a register is the guest's word: hostile until checked.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
pub(crate) mod mmio;
pub(crate) mod ring;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod worker;
mod written;

use novum_snapshot::{Snapshot, Writer};
use virtio_queue::Queue;

pub(crate) use ring::{Activation, Chain};
pub use state::StateError;
pub(crate) use worker::{Handler, Worker};

/// VIRTIO_F_VERSION_1: not a legacy device.
pub(crate) const VERSION_1: u64 = 1 << 32;
/// VIRTIO_RING_F_INDIRECT_DESC.
pub(crate) const INDIRECT: u64 = 1 << 28;
/// VIRTIO_RING_F_EVENT_IDX: fewer kicks and interrupts.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// What every device of ours offers.
pub(crate) const COMMON_FEATURES: u64 = VERSION_1 | INDIRECT | EVENT_IDX;

/// A device, host side.
pub(crate) trait VirtioDevice: Send {
    /// Virtio's number for its kind (VIRTIO 1.2 §5).
    fn device_id(&self) -> u32;
    /// Most entries of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// What it offers beside [`COMMON_FEATURES`].
    fn features(&self) -> u64;
    /// Reads its configuration space; what lies behind the end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver writes into the configuration space; most devices have nothing there to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready: the device takes its rings and works.
    ///
    /// # Errors
    /// Where the host has no thread for it; the guest then sees DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> std::io::Result<()>;
    /// Stops working and gives the rings back, in their order; none where it was not active.
    fn pause(&mut self) -> Vec<Queue>;
    /// The driver has reset it, while it was paused: what it keeps for a driver is forgotten.
    fn reset(&mut self) {}
    /// Puts what it keeps beside its rings into sections of `owner`; only while it is paused. Most devices keep nothing.
    ///
    /// # Errors
    /// [`StateError`]
    fn save(&self, _owner: &str, _to: &mut Writer) -> Result<(), StateError> {
        Ok(())
    }
    /// Becomes what was saved; only before it is activated. What was given at its making (share, disk, CID, MAC) stays as
    /// given. The sections are a stranger's word.
    ///
    /// # Errors
    /// [`StateError`]; the device is then of no more use.
    fn restore(&mut self, _owner: &str, _from: &Snapshot) -> Result<(), StateError> {
        Ok(())
    }
}

/// Copies the part of `config` at `offset` into `data`, zeroes behind its end.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    let length = data.len().min(config.len() - start);
    data[..length].copy_from_slice(&config[start..start + length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_ends_in_zeroes() {
        let mut data = [9; 4];
        read_config_bytes(&[1, 2, 3], 2, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        read_config_bytes(&[1], u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
