//! virtio-9p: one shared directory, over 9P2000.L.
//!
//! ```text
//! ring ── Messages (messages.rs) ── Server (server.rs) ──┬─ names.rs   walk, create, link, rename, remove
//!         bytes in, bytes out       fids, dispatch       ├─ content.rs open, read, write, readdir, locks
//!                                                        └─ attr.rs    getattr, setattr, statfs
//! wire.rs: numbers and strings of the protocol         share/: the host's side, which no path leaves
//! state.rs: fids as a section of a snapshot
//! ```
//! Sources: VIRTIO 1.2 §5.9 (9P transport, device id 9); the protocol is 9P2000.L as Linux's client speaks it
//! (include/net/9p/9p.h) over intro(5) of Plan 9. Whatever a guest writes into a message is decoded, checked, and
//! refused with an error of its own; nothing of it can panic.

mod attr;
mod content;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
mod names;
mod server;
mod state;
pub(crate) mod wire;

use std::io;
use std::sync::Arc;

use novum_snapshot::{Snapshot, Writer};
use parking_lot::Mutex;
use virtio_queue::Queue;

use crate::linux::devices::messages::{self, Messages};
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes};
use crate::share::Share;
pub(crate) use server::join;
use server::{MAX_MESSAGE, Server};
pub(crate) use state::known_paths;

const DEVICE_ID: u32 = 9;
/// VIRTIO_9P_MOUNT_TAG: the configuration holds the tag.
const MOUNT_TAG: u64 = 1;
/// As many as Linux's client puts into one request.
const QUEUE_SIZES: &[u16] = &[128];

/// The device.
pub(crate) struct P9 {
    /// Length (two bytes) and text of the mount tag.
    config: Vec<u8>,
    /// What is open outlives a pause; a new mount begins with a message that closes it.
    server: Arc<Mutex<Server>>,
    worker: Option<Worker>,
}

impl P9 {
    /// Shares `share` under the mount tag `tag`.
    pub(crate) fn new(tag: &str, share: Arc<Share>) -> Self {
        let tag = &tag.as_bytes()[..tag.len().min(usize::from(u16::MAX))];
        let config = [&(tag.len() as u16).to_le_bytes()[..], tag].concat();
        Self { config, server: Arc::new(Mutex::new(Server::new(share))), worker: None }
    }
}

impl VirtioDevice for P9 {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        MOUNT_TAG
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker = Some(Worker::start("virtio-9p", activation.rings, Messages(self.server.clone()))?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        self.server.lock().save(owner, to)
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        self.server.lock().restore(owner, from)
    }
}

impl messages::Server for Server {
    const MAX_REQUEST: usize = MAX_MESSAGE;

    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        Self::handle(self, request, room)
    }
}
