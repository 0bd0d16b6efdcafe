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
use std::sync::atomic::{AtomicBool, Ordering};

use novum_snapshot::{Snapshot, State, Writer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::linux::sys;
use crate::linux::virtio::ring::Interrupt;
use crate::linux::virtio::state::{put, take};
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes};

const DEVICE_ID: u32 = 1;
/// Receive, transmit.
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Features (§5.1.3).
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
/// What a link can carry.
const MTUS: std::ops::RangeInclusive<u16> = 68..=65_521;

/// The address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address made from a guest's number, in the range that belongs to nobody.
    #[must_use]
    pub fn of(number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self([0x52, 0x4e, a, b, c, d])
    }

    /// As it stands in a frame.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
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
    link: AtomicBool,
    /// The guest's interrupt while its driver is at work.
    interrupt: Mutex<Option<Interrupt>>,
}

/// A card as a section of a snapshot: what the guest's driver believes of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Card {
    mac: MacAddress,
    mtu: u16,
    link: bool,
}

impl State for Card {
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 1;
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
        let (link, interrupt) = (AtomicBool::new(true), Mutex::new(None));
        Ok(Self(Arc::new(Shared { tap, mac, mtu, link, interrupt })))
    }

    /// Its address.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.0.mac
    }

    /// Plugs the cable in or out, which the guest is told at once; without it no frame passes. A guest reads its card's
    /// address only when its driver starts: so a card that was restored with another address than the saved one has no
    /// link until it is given one here, after the guest was told its new address (`ip link set eth0 address ...`).
    pub fn set_link(&self, up: bool) {
        self.0.link.store(up, Ordering::SeqCst);
        if let Some(interrupt) = &*self.0.interrupt.lock() {
            interrupt.config_changed();
        }
    }

    /// Whether the cable is in.
    #[must_use]
    pub fn link(&self) -> bool {
        self.0.link.load(Ordering::SeqCst)
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
        MAC | MTU | STATUS
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { mac, mtu, .. } = &*self.net.0;
        let status = u16::from(self.net.link()).to_le_bytes();
        // Address, status, number of queues (a feature that is not offered), MTU.
        read_config_bytes(&[&mac.0[..], &status, &[0; 2], &mtu.to_le_bytes()].concat(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let net = self.net.clone();
        *self.net.0.interrupt.lock() = Some(activation.interrupt);
        let work = move |rings, stop: &EventFd| serve::serve(rings, &net.0, stop);
        self.worker = Some(Worker::run("virtio-net", activation.rings, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        *self.net.0.interrupt.lock() = None;
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        let Shared { mac, mtu, .. } = &*self.net.0;
        put(to, owner, &Card { mac: *mac, mtu: *mtu, link: self.net.link() })
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        let state: Card = take(from, owner)?;
        let Shared { mac, mtu, link, .. } = &*self.net.0;
        if state.mtu != *mtu {
            let reason = format!("the guest's card has an MTU of {}, this one of {mtu}", state.mtu);
            return Err(StateError::refused(owner, reason));
        }
        // Two cards of one address on a bridge take each other's frames.
        link.store(state.link && state.mac == *mac, Ordering::SeqCst);
        Ok(())
    }
}
