//! virtio-blk: a raw file as a disk, shared with nobody, read-only, or private to this guest.
//!
//! ```text
//! ring ── Requests (request.rs) ── Disk (disk.rs): raw file | base file + overlay of changed clusters
//! Block: the host's handle, for resizing            state.rs: size and changes as a section of a snapshot
//! ```
//! Source: VIRTIO 1.2 §5.2.

mod disk;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
mod request;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use novum_snapshot::{Snapshot, Writer};
use parking_lot::Mutex;
use virtio_queue::Queue;

use crate::linux::virtio::ring::Interrupt;
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes};
use disk::Disk;
use request::{MOST_SEGMENTS, MOST_ZERO_SECTORS, Requests};

pub use disk::DiskAccess;

const DEVICE_ID: u32 = 2;
const QUEUE_SIZES: &[u16] = &[128];
/// Bytes of a sector, virtio's unit whatever the disk's is.
const SECTOR: u64 = 512;
/// What the guest is told to write at a time where it can; it may write sectors, as file systems of small blocks do.
const BLOCK_SECTORS: u32 = 8;

/// Features (§5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// A disk, the host's side of it. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Block(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What the guest reads as the disk's id, at most 20 bytes.
    id: Vec<u8>,
    access: DiskAccess,
    disk: Mutex<Disk>,
    /// The guest's interrupt while its driver is at work. Locked after `disk`.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Block {
    /// The raw file `path` as a disk with the serial number `id`, of which 20 bytes are used.
    ///
    /// # Errors
    /// Where the file cannot be opened as `access` wants, is no regular file or block device, or is empty.
    pub fn open(path: &Path, access: DiskAccess, id: &str) -> io::Result<Self> {
        let disk = Mutex::new(Disk::open(path, &access)?);
        let id = id.as_bytes()[..id.len().min(request::ID_BYTES)].to_vec();
        Ok(Self(Arc::new(Shared { id, access, disk, interrupt: Mutex::new(None) })))
    }

    /// Its present size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.disk.lock().sectors() * SECTOR
    }

    /// Changes the size, which the guest is told at once. A writable raw file gets this length; a private disk only
    /// grows or shrinks for this guest.
    ///
    /// # Errors
    /// `InvalidInput` for a size of no whole sectors or of zero, `PermissionDenied` for a read-only disk, else what the
    /// host says.
    pub fn resize(&self, size_bytes: u64) -> io::Result<()> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a disk of {size_bytes} bytes")));
        }
        self.0.disk.lock().resize(size_bytes)?;
        if let Some(interrupt) = &*self.0.interrupt.lock() {
            interrupt.config_changed();
        }
        Ok(())
    }
}

/// The device.
pub(crate) struct BlockDevice {
    block: Block,
    worker: Option<Worker>,
}

impl BlockDevice {
    pub(crate) fn new(block: Block) -> Self {
        Self { block, worker: None }
    }

    /// struct virtio_blk_config.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.block.0.disk.lock().sectors().to_le_bytes());
        put(12, &MOST_SEGMENTS.to_le_bytes());
        // Sectors of a physical block, as an exponent; the first one is aligned; best sizes of writes.
        put(24, &[BLOCK_SECTORS.trailing_zeros() as u8, 0, BLOCK_SECTORS as u8, 0]);
        // Discard and write zeroes: most sectors and segments of each; discard by whole blocks; zeroing may free.
        put(36, &MOST_ZERO_SECTORS.to_le_bytes());
        put(40, &request::MOST_RANGES.to_le_bytes());
        put(44, &BLOCK_SECTORS.to_le_bytes());
        put(48, &MOST_ZERO_SECTORS.to_le_bytes());
        put(52, &request::MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for BlockDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let always = SEG_MAX | TOPOLOGY | FLUSH;
        match self.block.0.access {
            DiskAccess::ReadOnly => always | READ_ONLY,
            DiskAccess::ReadWrite | DiskAccess::Private { .. } => always | DISCARD | WRITE_ZEROES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        *self.block.0.interrupt.lock() = Some(activation.interrupt);
        // A driver that cannot flush expects that what was written is written (§5.2.6.2).
        let write_through = activation.features & FLUSH == 0;
        let requests = Requests::new(self.block.0.clone(), write_through);
        self.worker = Some(Worker::start("virtio-blk", activation.rings, requests)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        *self.block.0.interrupt.lock() = None;
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        state::save(&self.block.0.disk.lock(), owner, to)
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        state::restore(&mut self.block.0.disk.lock(), owner, from)
    }
}
