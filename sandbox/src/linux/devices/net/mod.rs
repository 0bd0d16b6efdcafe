//! virtio-net: a network card whose other end is a tap of the host.
//!
//! ```text
//! guest driver ── transmit ring ── frame without its header ──> tap ── a bridge, a route, whatever the host does
//!              <── receive ring ── frame behind a header ────── tap
//! ```
//! Source: VIRTIO 1.2 §5.1. No offloads are offered: both kernels then finish checksums and split segments themselves, and
//! the header of a frame says nothing. Each frame is one chain. The host's own rules (bridge, firewall) decide what
//! a guest reaches; this file passes frames and looks at none.

mod serve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::linux::sys;
use crate::linux::virtio::{Activation, VirtioDevice, Worker, read_config_bytes};

const DEVICE_ID: u32 = 1;
/// Receive, transmit.
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Features (§5.1.3).
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
/// What a link can carry.
const MTUS: std::ops::RangeInclusive<u16> = 68..=65_521;

/// The address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address made from a guest's number, in the range that belongs to nobody.
    #[must_use]
    pub fn of(number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self([0x52, 0x4e, a, b, c, d])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Vec<u8> = text
            .split(':')
            .filter(|part| part.len() == 2)
            .filter_map(|part| u8::from_str_radix(part, 16).ok())
            .collect();
        let colons = text.bytes().filter(|byte| *byte == b':').count();
        match <[u8; 6]>::try_from(bytes) {
            Ok(bytes) if colons == 5 && bytes[0] & 1 == 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is not the address of one card; write it as 52:4e:00:00:00:01")),
        }
    }
}

/// A guest's network card, the host's side of it. Clones are the same card.
#[derive(Clone, Debug)]
pub struct Net(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tap: OwnedFd,
    mac: MacAddress,
    mtu: u16,
}

impl Net {
    /// A card on the host's tap `name`, which is made where it is not there.
    ///
    /// # Errors
    /// `PermissionDenied` with advice where that needs CAP_NET_ADMIN, `InvalidInput` for a name or MTU that no link
    /// has, else what the host says.
    pub fn open(name: &str, mac: MacAddress, mtu: u16) -> io::Result<Self> {
        let tap = sys::open_tap(name).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let advice = format!(
                    "the tap {name:?} cannot be opened without CAP_NET_ADMIN; as root: ip tuntap add {name} mode tap user <you>"
                );
                io::Error::new(io::ErrorKind::PermissionDenied, advice)
            }
            io::ErrorKind::NotFound => io::Error::new(error.kind(), "there is no /dev/net/tun; as root: modprobe tun"),
            _ => error,
        })?;
        Self::new(tap, mac, mtu)
    }

    /// A card on `tap`, of which each read and each write is one frame.
    fn new(tap: OwnedFd, mac: MacAddress, mtu: u16) -> io::Result<Self> {
        if !MTUS.contains(&mtu) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("an MTU of {mtu}")));
        }
        rustix::io::ioctl_fionbio(&tap, true)?;
        Ok(Self(Arc::new(Shared { tap, mac, mtu })))
    }
}

/// The device.
pub(crate) struct NetDevice {
    net: Net,
    worker: Option<Worker>,
}

impl NetDevice {
    pub(crate) fn new(net: Net) -> Self {
        Self { net, worker: None }
    }
}

impl VirtioDevice for NetDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        MAC | MTU
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { mac, mtu, .. } = &*self.net.0;
        // Address, status and number of queues (features that are not offered), MTU.
        read_config_bytes(&[&mac.0[..], &[0; 4], &mtu.to_le_bytes()].concat(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let net = self.net.clone();
        let work = move |rings, stop: &EventFd| serve::serve(rings, &net.0.tap, stop);
        self.worker = Some(Worker::run("virtio-net", activation.rings, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }
}
