//! virtio-fs: one shared directory, by FUSE messages on a ring, without a daemon.
//!
//! ```text
//! hiprio and request ring ── Messages (messages.rs) ── Server (server.rs) ──┬─ names.rs    lookup, create, rename, remove
//!                            bytes in, bytes out      dispatch            ├─ content.rs  open, read, write, readdir
//!                                                     nodes.rs: node ids  ├─ attr.rs     getattr, setattr, statfs
//!                                                                         └─ attributes.rs  extended ones, of an upper layer
//! share/: the host's side, which no path leaves          state.rs: nodes and open files as a section of a snapshot
//! ```
//! Sources: VIRTIO 1.2 §5.11 (device id 26); the messages are FUSE 7.31, Linux's include/uapi/linux/fuse.h. There is no
//! DAX window. Locks are the guest's own, unlike over 9p. Whatever a guest writes is decoded, checked, and refused with
//! an error; nothing of it can panic.

mod attr;
mod attributes;
mod content;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
mod names;
mod nodes;
mod server;
mod state;

use std::io;
use std::sync::Arc;

use novum_snapshot::{Snapshot, Writer};
use parking_lot::Mutex;
use virtio_queue::Queue;

use crate::linux::devices::messages::{self, Messages};
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes};
use crate::share::Share;
use server::{MAX_REQUEST, Server};

const DEVICE_ID: u32 = 26;
/// High priority (forgetting), requests.
const QUEUE_SIZES: &[u16] = &[64, 256];
/// Bytes of the tag in the configuration.
const TAG_BYTES: usize = 36;

/// The device.
pub(crate) struct Fs {
    /// struct virtio_fs_config: the tag, and one request queue.
    config: Vec<u8>,
    /// What is open outlives a pause.
    server: Arc<Mutex<Server>>,
    worker: Option<Worker>,
}

impl Fs {
    /// Shares `share` under `tag`, of which 36 bytes are used.
    pub(crate) fn new(tag: &str, share: Arc<Share>) -> Self {
        let mut config = vec![0; TAG_BYTES];
        let tag = &tag.as_bytes()[..tag.len().min(TAG_BYTES)];
        config[..tag.len()].copy_from_slice(tag);
        config.extend(1u32.to_le_bytes());
        Self { config, server: Arc::new(Mutex::new(Server::new(share))), worker: None }
    }
}

impl VirtioDevice for Fs {
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
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker = Some(Worker::start("virtio-fs", activation.rings, Messages(self.server.clone()))?);
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
    const MAX_REQUEST: usize = MAX_REQUEST;

    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        Self::handle(self, request, room)
    }
}
