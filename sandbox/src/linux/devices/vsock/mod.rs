//! virtio-vsock: streams between programs in the guest and this process.
//!
//! ```text
//! guest driver ── rx, tx, event rings ── thread (this file) ── Hub (hub.rs) ── Stream, Listener (stream.rs)
//!                  packets                                      │              for the host's own code
//!                                                               └─ Connection (connection.rs): state, credit, bytes
//! state.rs: all of it as a section of a snapshot
//! ```
//! There is no socket and no vhost: a stream's bytes are in this process, so that a snapshot can hold them. Source:
//! VIRTIO 1.2 §5.10. A packet is the guest's word: what does not fit the connection's state resets the connection, and
//! what a guest can make the host keep is bounded (connections, bytes of each, answers that wait for a buffer).

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
mod hub;
mod packet;
mod state;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use novum_snapshot::{Snapshot, Writer};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::linux::virtio::ring::Ring;
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes, worker};

pub use stream::{Listener, Stream, Vsock};

const DEVICE_ID: u32 = 19;
/// rx, tx, event.
const QUEUE_SIZES: &[u16] = &[256, 256, 16];
const RX: usize = 0;
const TX: usize = 1;

/// The device.
pub(crate) struct VsockDevice {
    vsock: Vsock,
    worker: Option<Worker>,
}

impl VsockDevice {
    /// Serves the connections of `vsock`.
    pub(crate) fn new(vsock: Vsock) -> Self {
        Self { vsock, worker: None }
    }
}

impl VirtioDevice for VsockDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.vsock.guest_cid().to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let vsock = self.vsock.clone();
        vsock.hub().break_off_unclaimed();
        let work = move |rings, stop: &EventFd| serve(rings, &vsock, stop);
        self.worker = Some(Worker::run("virtio-vsock", activation.rings, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        state::save(&self.vsock.hub(), owner, to)
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        state::restore(&mut self.vsock.hub(), owner, from)
    }
}

fn serve(mut rings: Vec<Ring>, vsock: &Vsock, stop: &EventFd) -> Vec<Ring> {
    loop {
        while exchange(&mut rings, vsock) {}
        let events = [stop, vsock.kick(), rings[RX].kick(), rings[TX].kick()];
        let Ok(ready) = worker::wait(&events) else { break };
        if ready.contains(&0) {
            break;
        }
        for index in ready {
            // It was readable: this only takes note.
            let _ = events[index].read();
        }
    }
    rings
}

/// Moves packets both ways until nothing moves; true where the driver added buffers in the meantime.
fn exchange(rings: &mut [Ring], vsock: &Vsock) -> bool {
    for index in [RX, TX] {
        rings[index].quiet();
    }
    while receive(&mut rings[TX], vsock) | send(&mut rings[RX], vsock) {}
    // New receive buffers matter only while something waits for them; then `send` has not run out of packets.
    let more_tx = rings[TX].listen() && vsock.hub().has_room();
    let more_rx = rings[RX].listen() && vsock.hub().has_packets();
    more_tx || more_rx
}

/// From the guest. True where a packet came.
fn receive(ring: &mut Ring, vsock: &Vsock) -> bool {
    let memory = ring.memory().clone();
    let mut came = false;
    while vsock.hub().has_room() {
        let Some(mut chain) = ring.next() else { break };
        let head = chain.head_index();
        // What cannot be decoded has no sender to be told.
        if let Some((header, data)) = packet::read(&memory, &mut chain) {
            vsock.hub().receive(&header, &data);
        }
        ring.give_back(head, 0);
        came = true;
    }
    if came {
        ring.notify();
    }
    came
}

/// To the guest. True where a packet went.
fn send(ring: &mut Ring, vsock: &Vsock) -> bool {
    let memory = ring.memory().clone();
    let mut went = false;
    while vsock.hub().has_packets() {
        let Some(mut chain) = ring.next() else { break };
        let head = chain.head_index();
        let written = packet::write(&memory, &mut chain, |room| vsock.hub().next_packet(room));
        ring.give_back(head, written);
        went = true;
    }
    if went {
        ring.notify();
    }
    went
}

/// A hub's kick, which its own code writes and [`serve`] waits for.
fn new_kick() -> io::Result<Arc<EventFd>> {
    EventFd::new(EFD_NONBLOCK).map(Arc::new)
}
