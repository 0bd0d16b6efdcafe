//! A disk as a section of a snapshot: its size, what a private one has changed, and which file is below.
//!
//! The file itself is not in it. A guest has parts of its disk in memory: so the file must be as it was, which its length
//! and, where it is the very file, the time of its last change show.

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use novum_snapshot::{Snapshot, State, Writer};
use serde::{Deserialize, Serialize};

use super::SECTOR;
use super::disk::{CLUSTER, Disk, MOST_BYTES};
use crate::linux::virtio::StateError;
use crate::linux::virtio::state::{Bytes, put, take};

/// Most changes of a private disk that go into a snapshot.
const MOST_CHANGED: u64 = 256 << 20;

/// A disk.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DiskState {
    file: FileState,
    size_bytes: u64,
    /// Bytes of the file that the disk still shows.
    base_bytes: u64,
    /// Number and content of each cluster of a private disk; none where all is zero.
    clusters: Option<Vec<(u64, Option<Bytes>)>>,
}

impl State for DiskState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

/// The file below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    bytes: u64,
    dev: u64,
    ino: u64,
    /// Seconds and nanoseconds of the last change; a block device's node does not know.
    changed: Option<(i64, i64)>,
}

impl FileState {
    fn of(disk: &Disk) -> io::Result<Self> {
        let metadata = disk.base.metadata()?;
        let changed = metadata.is_file().then(|| (metadata.mtime(), metadata.mtime_nsec()));
        let bytes = io::Seek::seek(&mut &disk.base, io::SeekFrom::End(0))? / SECTOR * SECTOR;
        Ok(Self { bytes, dev: metadata.dev(), ino: metadata.ino(), changed })
    }

    /// Whether a guest that knew `self` can go on with `now`.
    fn check(&self, now: &Self) -> Result<(), String> {
        if self.bytes != now.bytes {
            return Err(format!("its file had {} bytes and has {}", self.bytes, now.bytes));
        }
        if (self.dev, self.ino) == (now.dev, now.ino) && self.changed != now.changed {
            return Err("its file was changed since, of which the guest would know nothing".into());
        }
        Ok(())
    }
}

pub(super) fn save(disk: &Disk, owner: &str, to: &mut Writer) -> Result<(), StateError> {
    let host = StateError::host;
    let file = FileState::of(disk).map_err(host(owner, "looking at its file"))?;
    let clusters = match &disk.overlay {
        None => None,
        Some(overlay) => {
            let numbers: Vec<u64> = overlay.clusters().collect();
            if numbers.len() as u64 * CLUSTER > MOST_CHANGED {
                let reason = format!(
                    "{} bytes of a private disk were changed, more than the {MOST_CHANGED} that a snapshot holds; \
                     give the guest a writable disk of its own",
                    numbers.len() as u64 * CLUSTER
                );
                return Err(StateError::refused(owner, reason));
            }
            let read = |number| Ok((number, read_cluster(disk, number)?));
            let clusters = numbers.into_iter().map(read).collect::<io::Result<_>>();
            Some(clusters.map_err(host(owner, "reading its changes"))?)
        }
    };
    let (size_bytes, base_bytes) = (disk.size_bytes, disk.base_bytes);
    put(to, owner, &DiskState { file, size_bytes, base_bytes, clusters })
}

fn read_cluster(disk: &Disk, number: u64) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; length_of(disk.size_bytes, number) as usize];
    disk.read(&mut bytes, number * CLUSTER)?;
    Ok(bytes.iter().any(|byte| *byte != 0).then_some(Bytes(bytes)))
}

/// Bytes of a cluster: the last one may be shorter.
fn length_of(size_bytes: u64, number: u64) -> u64 {
    CLUSTER.min(size_bytes.saturating_sub(number.saturating_mul(CLUSTER)))
}

/// `disk` was just opened.
pub(super) fn restore(disk: &mut Disk, owner: &str, from: &Snapshot) -> Result<(), StateError> {
    let state: DiskState = take(from, owner)?;
    let now = FileState::of(disk).map_err(StateError::host(owner, "looking at its file"))?;
    let refused = |reason| StateError::refused(owner, reason);
    state.file.check(&now).map_err(refused)?;
    check(&state, disk).map_err(refused)?;
    (disk.size_bytes, disk.base_bytes) = (state.size_bytes, state.base_bytes);
    let (Some(overlay), Some(clusters)) = (&mut disk.overlay, &state.clusters) else { return Ok(()) };
    let mut write = || {
        overlay.resize(state.size_bytes)?;
        for (number, content) in clusters {
            if let Some(Bytes(bytes)) = content {
                overlay.file.write_all_at(bytes, number * CLUSTER)?;
            }
            overlay.add(*number);
        }
        Ok(())
    };
    write().map_err(StateError::host(owner, "writing its changes"))
}

fn check(state: &DiskState, disk: &Disk) -> Result<(), String> {
    let DiskState { file, size_bytes, base_bytes, clusters } = state;
    let whole = *size_bytes > 0 && *size_bytes <= MOST_BYTES && size_bytes.is_multiple_of(SECTOR);
    if clusters.is_some() != disk.overlay.is_some() {
        return Err("one of the two is private and the other is not".into());
    }
    if !whole || *base_bytes > file.bytes || (clusters.is_none() && *size_bytes != file.bytes) {
        return Err(format!("no disk has {size_bytes} bytes, {base_bytes} of them from its file"));
    }
    let fits = |(number, content): &(u64, Option<Bytes>)| {
        let length = length_of(*size_bytes, *number);
        length > 0 && content.as_ref().is_none_or(|bytes| bytes.0.len() as u64 == length)
    };
    match clusters.iter().flatten().find(|cluster| !fits(cluster)) {
        Some((number, _)) => Err(format!("cluster {number} is not on the disk")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
