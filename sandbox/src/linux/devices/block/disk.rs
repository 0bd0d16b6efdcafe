//! Where a disk's bytes are.
//!
//! A private disk reads its base and keeps what the guest changes, by clusters of 64 KiB, in an overlay: a sparse file
//! without a name, in memory or in a folder. A cluster that is in the overlay is never read from the base again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;

use super::SECTOR;

/// Bytes of a cluster.
pub(super) const CLUSTER: u64 = 64 << 10;
/// Largest disk: the map of an overlay then has 2 MiB.
pub(super) const MOST_BYTES: u64 = 1 << 40;
/// Zeroes that are written where the file system cannot make them itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Who may change a disk's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// Nobody; the guest sees a write-protected disk.
    ReadOnly,
    /// The guest; no other guest may use the file then.
    ReadWrite,
    /// Nobody, but the guest sees its own changes until the disk is dropped.
    Private {
        /// Where a file without a name holds the changes; in memory where there is none.
        folder: Option<PathBuf>,
    },
}

/// An open disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) base: File,
    /// Bytes of the base; what lies behind is zero.
    pub(super) base_bytes: u64,
    pub(super) size_bytes: u64,
    writable: bool,
    pub(super) overlay: Option<Overlay>,
}

#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) file: File,
    /// A bit for each cluster that is in the file.
    present: Vec<u64>,
}

impl Disk {
    pub(super) fn open(path: &Path, access: &DiskAccess) -> io::Result<Self> {
        let writable = *access == DiskAccess::ReadWrite;
        let base = File::options().read(true).write(writable).open(path)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&base)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(invalid("a disk is a regular file or a block device".into()));
        }
        // The end of a block device is where a seek ends; its metadata has no length.
        let base_bytes = io::Seek::seek(&mut &base, io::SeekFrom::End(0))? / SECTOR * SECTOR;
        if base_bytes == 0 || base_bytes > MOST_BYTES {
            return Err(invalid(format!("a disk of {base_bytes} bytes: 512 to {MOST_BYTES} are possible")));
        }
        let overlay = match access {
            DiskAccess::Private { folder } => Some(Overlay::new(folder.as_deref(), base_bytes)?),
            _ => None,
        };
        Ok(Self { base, base_bytes, size_bytes: base_bytes, writable, overlay })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.size_bytes / SECTOR
    }

    pub(super) fn resize(&mut self, size_bytes: u64) -> io::Result<()> {
        if size_bytes > MOST_BYTES {
            return Err(invalid(format!("a disk of {size_bytes} bytes: at most {MOST_BYTES} are possible")));
        }
        match &mut self.overlay {
            None if self.writable => {
                self.base.set_len(size_bytes)?;
                self.base_bytes = size_bytes;
            }
            None => return Err(io::ErrorKind::PermissionDenied.into()),
            Some(overlay) => {
                // What is cut off is gone: it must not come back when the disk grows again.
                self.base_bytes = self.base_bytes.min(size_bytes);
                overlay.resize(size_bytes)?;
            }
        }
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Whether the disk has these bytes.
    pub(super) fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size_bytes)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable || self.overlay.is_some()
    }

    /// Reads bytes that the disk holds.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(overlay) = &self.overlay else { return self.read_base(buffer, offset) };
        for (at, piece) in pieces(offset, buffer.len()) {
            let part = &mut buffer[piece];
            match overlay.has(at / CLUSTER) {
                true => overlay.file.read_exact_at(part, at)?,
                false => self.read_base(part, at)?,
            }
        }
        Ok(())
    }

    fn read_base(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let there = self.base_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[there..].fill(0);
        self.base.read_exact_at(&mut buffer[..there], offset)
    }

    /// Writes bytes that the disk holds.
    pub(super) fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.overlay.is_none() {
            return self.base.write_all_at(data, offset);
        }
        for (at, piece) in pieces(offset, data.len()) {
            let part = &data[piece];
            self.own_cluster(at, part.len() as u64)?;
            if let Some(overlay) = &self.overlay {
                overlay.file.write_all_at(part, at)?;
            }
        }
        Ok(())
    }

    /// Brings the cluster of `at` into the overlay, of which `length` bytes at `at` will be written.
    fn own_cluster(&mut self, at: u64, length: u64) -> io::Result<()> {
        let cluster = at / CLUSTER;
        let Some(overlay) = &self.overlay else { return Ok(()) };
        if overlay.has(cluster) {
            return Ok(());
        }
        if length < CLUSTER {
            let start = cluster * CLUSTER;
            let mut bytes = vec![0; CLUSTER.min(self.size_bytes - start) as usize];
            self.read_base(&mut bytes, start)?;
            overlay.file.write_all_at(&bytes, start)?;
        }
        if let Some(overlay) = &mut self.overlay {
            overlay.add(cluster);
        }
        Ok(())
    }

    /// Makes bytes that the disk holds zero; `free` gives their space back.
    pub(super) fn zero(&mut self, offset: u64, length: u64, free: bool) -> io::Result<()> {
        if self.overlay.is_none() {
            let flags = if free { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
            return match fallocate(&self.base, flags | FallocateFlags::KEEP_SIZE, offset, length) {
                Err(Errno::OPNOTSUPP) => write_zeroes(&self.base, offset, length),
                other => Ok(other?),
            };
        }
        let mut at = offset;
        while at < offset + length {
            let part = (CLUSTER - at % CLUSTER).min(offset + length - at);
            self.own_cluster(at, part)?;
            if let Some(overlay) = &self.overlay {
                // Holes of the overlay read as zero.
                fallocate(&overlay.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, part)?;
            }
            at += part;
        }
        Ok(())
    }

    /// The guest does not need these bytes any more; what they are then does not matter.
    pub(super) fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.overlay.is_some() {
            return self.zero(offset, length, true);
        }
        match fallocate(&self.base, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    /// What was written stays. A private disk promises nothing.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.overlay.is_some() { Ok(()) } else { self.base.sync_data() }
    }
}

impl Overlay {
    fn new(folder: Option<&Path>, size_bytes: u64) -> io::Result<Self> {
        let file = match folder {
            None => rustix::fs::memfd_create("novum-disk", MemfdFlags::CLOEXEC)?,
            Some(folder) => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?
            }
        };
        let mut overlay = Self { file: file.into(), present: Vec::new() };
        overlay.resize(size_bytes)?;
        Ok(overlay)
    }

    pub(super) fn resize(&mut self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)?;
        let clusters = size_bytes.div_ceil(CLUSTER);
        self.present.resize(clusters.div_ceil(64) as usize, 0);
        // Bits behind the end, in the last word.
        if let (Some(last), bits @ 1..) = (self.present.last_mut(), clusters % 64) {
            *last &= (1 << bits) - 1;
        }
        Ok(())
    }

    fn has(&self, cluster: u64) -> bool {
        self.present[(cluster / 64) as usize] & 1 << (cluster % 64) != 0
    }

    /// The clusters that it has.
    pub(super) fn clusters(&self) -> impl Iterator<Item = u64> {
        (0..self.present.len() as u64 * 64).filter(|cluster| self.has(*cluster))
    }

    pub(super) fn add(&mut self, cluster: u64) {
        self.present[(cluster / 64) as usize] |= 1 << (cluster % 64);
    }
}

/// The parts of `length` bytes at `offset` that lie in one cluster each: place on the disk, place in the buffer.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let part = (length - done).min((CLUSTER - at % CLUSTER) as usize);
        let piece = done..done + part;
        done += part;
        (part > 0).then_some((at, piece))
    })
}

fn write_zeroes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let part = (length - done).min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..part as usize], offset + done)?;
        done += part;
    }
    Ok(())
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
