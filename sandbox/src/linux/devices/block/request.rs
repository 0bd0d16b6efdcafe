//! Requests of the driver (VIRTIO 1.2 §5.2.6): header, data, status byte.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::{SECTOR, Shared};
use crate::linux::memory::Memory;
use crate::linux::virtio::{Chain, Handler};

/// Most pieces of one request: the ring has two descriptors more.
pub(super) const MOST_SEGMENTS: u32 = 126;
/// Most sectors of one range to discard or zero, 64 MiB: little enough to be written by hand.
pub(super) const MOST_ZERO_SECTORS: u32 = 1 << 17;
/// Most ranges of one request.
pub(super) const MOST_RANGES: u32 = 16;
/// Length of a disk's id.
pub(super) const ID_BYTES: usize = 20;
/// Most data of one request. A driver may point at the same memory many times; Linux asks for a few MiB.
const MOST_BYTES: u64 = 64 << 20;
/// Data is moved through a buffer of this size, a multiple of a sector.
const BUFFER_BYTES: usize = 256 << 10;

/// Kinds of requests.
mod kind {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// A range may be freed when it is zeroed.
const UNMAP: u32 = 1;

/// Values of the status byte.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Why a request failed.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// Serves the ring.
pub(super) struct Requests {
    shared: Arc<Shared>,
    write_through: bool,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn new(shared: Arc<Shared>, write_through: bool) -> Self {
        Self { shared, write_through, buffer: vec![0; BUFFER_BYTES] }
    }

    /// Serves one request: `from` has the header and data, `to` is for data.
    fn serve(
        &mut self,
        from: &mut impl Read,
        room: u64,
        to: &mut impl Write,
        given: u64,
    ) -> Result<(), Failure> {
        let mut header = [0; 16];
        from.read_exact(&mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let offset = u64::from_le_bytes(sector).checked_mul(SECTOR).ok_or(Failure::Io)?;
        let length = given.saturating_sub(header.len() as u64);
        match kind {
            kind::READ => self.read(to, offset, room),
            kind::WRITE => self.write(from, offset, length),
            kind::FLUSH => Ok(self.shared.disk.lock().flush()?),
            kind::GET_ID => self.id(to, room),
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(kind, from, length),
            _ => Err(Failure::Unsupported),
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let whole = length.is_multiple_of(SECTOR) && length <= MOST_BYTES;
        if whole && self.shared.disk.lock().holds(offset, length) { Ok(()) } else { Err(Failure::Io) }
    }

    fn read(&mut self, to: &mut impl Write, offset: u64, length: u64) -> Result<(), Failure> {
        self.check(offset, length)?;
        let mut done = 0;
        while done < length {
            let part = &mut self.buffer[..BUFFER_BYTES.min((length - done) as usize)];
            let disk = self.shared.disk.lock();
            // It may have been made smaller meanwhile.
            if !disk.holds(offset + done, part.len() as u64) {
                return Err(Failure::Io);
            }
            disk.read(part, offset + done)?;
            drop(disk);
            to.write_all(part)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, from: &mut impl Read, offset: u64, length: u64) -> Result<(), Failure> {
        self.check(offset, length)?;
        let mut done = 0;
        while done < length {
            let part = &mut self.buffer[..BUFFER_BYTES.min((length - done) as usize)];
            from.read_exact(part)?;
            let mut disk = self.shared.disk.lock();
            if !disk.is_writable() || !disk.holds(offset + done, part.len() as u64) {
                return Err(Failure::Io);
            }
            disk.write(part, offset + done)?;
            done += part.len() as u64;
        }
        self.written()
    }

    fn id(&self, to: &mut impl Write, room: u64) -> Result<(), Failure> {
        let mut id = [0; ID_BYTES];
        id[..self.shared.id.len()].copy_from_slice(&self.shared.id);
        Ok(to.write_all(&id[..ID_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX))])?)
    }

    /// Discard and write zeroes: ranges of (sector, count, flags).
    fn ranges(&self, kind: u32, from: &mut impl Read, length: u64) -> Result<(), Failure> {
        let ranges = length / 16;
        if !length.is_multiple_of(16) || ranges == 0 || ranges > u64::from(MOST_RANGES) {
            return Err(Failure::Io);
        }
        for _ in 0..ranges {
            let mut range = [0; 16];
            from.read_exact(&mut range)?;
            let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = range;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let (count, flags) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes(flags));
            // §5.2.6.2: what is reserved, and unmapping in a discard, is unsupported.
            if flags & !UNMAP != 0 || (kind == kind::DISCARD && flags != 0) {
                return Err(Failure::Unsupported);
            }
            let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
            let bytes = u64::from(count) * SECTOR;
            let mut disk = self.shared.disk.lock();
            if count > MOST_ZERO_SECTORS || !disk.is_writable() || !disk.holds(offset, bytes) {
                return Err(Failure::Io);
            }
            match kind {
                _ if count == 0 => {}
                kind::DISCARD => disk.discard(offset, bytes)?,
                _ => disk.zero(offset, bytes, flags & UNMAP != 0)?,
            }
        }
        self.written()
    }

    fn written(&self) -> Result<(), Failure> {
        if self.write_through {
            self.shared.disk.lock().flush()?;
        }
        Ok(())
    }
}

impl Handler for Requests {
    fn handle(&mut self, _: usize, chain: Chain, memory: &Memory) -> u32 {
        let (Ok(mut from), Ok(mut to)) = (chain.clone().reader(memory), chain.writer(memory)) else {
            return 0;
        };
        // The last byte is the status; without one the driver cannot be told anything.
        let Some(room) = to.available_bytes().checked_sub(1) else { return 0 };
        let Ok(mut status) = to.split_at(room) else { return 0 };
        let given = from.available_bytes() as u64;
        let code = match self.serve(&mut from, room as u64, &mut to, given) {
            Ok(()) => OK,
            Err(Failure::Io) => IO_ERROR,
            Err(Failure::Unsupported) => UNSUPPORTED,
        };
        let written = u32::try_from(to.bytes_written()).unwrap_or(u32::MAX - 1);
        status.write_all(&[code]).map_or(0, |()| written + 1)
    }
}
