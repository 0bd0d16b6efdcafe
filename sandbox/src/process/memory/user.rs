//! Access to the program's memory from the calls: the only way in which a guest address is used.
//!
//! Every function checks the whole range against the mappings and their rights, every time: an address that was
//! good in the last call says nothing about this one.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::AddressSpace;
use super::vma::PAGE;
use crate::kvm::layout::USER_END;
use crate::kvm::sys::HostRange;

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// `struct iovec`, checked: lengths add up to less than `SSIZE_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Guest address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u64,
}

const IOV_MAX: u64 = 1024;
/// Most bytes that one read or write moves (`MAX_RW_COUNT`).
pub(crate) const MAX_TRANSFER: u64 = 0x7fff_f000;

impl AddressSpace {
    /// How many bytes from `address` on allow `access`, at most `len`.
    pub(crate) fn reachable(&self, address: u64, len: u64, access: Access) -> u64 {
        let end = address.saturating_add(len);
        let mut at = address;
        for (start, vma) in self.vmas().touching(address, end) {
            let allowed = match access {
                Access::Read => vma.prot.accessible(),
                Access::Write => vma.prot.write,
                Access::Fetch => vma.prot.exec,
            };
            if start > at || !allowed || !vma.placed {
                break;
            }
            at = vma.end.min(end);
        }
        at - address
    }

    fn check(&self, address: u64, len: u64, access: Access) -> Result<(), Errno> {
        if self.reachable(address, len, access) == len { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Copies bytes out of the program.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.check(address, into.len() as u64, Access::Read)?;
        let mut done = 0;
        for run in self.runs(address, address + into.len() as u64) {
            let part = &mut into[done..done + run.len as usize];
            if self.region().read(run.gpa, part) != part.len() {
                return Err(Errno::FAULT);
            }
            done += part.len();
        }
        Ok(())
    }

    /// Copies bytes into the program.
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        self.check(address, from.len() as u64, Access::Write)?;
        self.write_unchecked(address, from)
    }

    /// Copies bytes into mapped pages whatever the program's own rights are (loading only: the host's protection
    /// still holds).
    pub(super) fn write_unchecked(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        for run in self.runs(address, address + from.len() as u64) {
            let part = &from[done..done + run.len as usize];
            if self.region().write(run.gpa, part) != part.len() {
                return Err(Errno::FAULT);
            }
            done += part.len();
        }
        Ok(())
    }

    /// `len` bytes as a vector. The caller has bounded `len`.
    pub(crate) fn read_vec(&self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.check(address, len as u64, Access::Read)?;
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// A value of plain bytes.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value of plain bytes.
    pub(crate) fn put<T: IntoBytes + Immutable + ?Sized>(
        &self,
        address: u64,
        value: &T,
    ) -> Result<(), Errno> {
        self.write(address, value.as_bytes())
    }

    /// As [`Self::put`], but does nothing at address 0: the many calls with an optional result.
    pub(crate) fn put_if<T: IntoBytes + Immutable>(&self, address: u64, value: &T) -> Result<(), Errno> {
        if address == 0 { Ok(()) } else { self.put(address, value) }
    }

    /// A string that ends with a zero byte, without it. `ENAMETOOLONG` where the first `max` bytes have none.
    pub(crate) fn cstr(&self, address: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let mut at = address;
        while bytes.len() < max {
            // To the end of a page: what lies after the string's end need not be mapped.
            let len = (PAGE - at % PAGE).min(max as u64 - bytes.len() as u64).min(256) as usize;
            let piece = self.read_vec(at, len)?;
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                bytes.extend_from_slice(&piece[..end]);
                return Ok(bytes);
            }
            bytes.extend_from_slice(&piece);
            at = at.checked_add(len as u64).ok_or(Errno::FAULT)?;
        }
        Err(Errno::NAMETOOLONG)
    }

    /// An array of `struct iovec`.
    pub(crate) fn iovecs(&self, address: u64, count: u64) -> Result<Vec<Buffer>, Errno> {
        if count > IOV_MAX {
            return Err(Errno::INVAL);
        }
        let bytes = self.read_vec(address, count as usize * 16)?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let mut room = MAX_TRANSFER;
        let mut buffers = Vec::with_capacity(count as usize);
        for at in (0..bytes.len()).step_by(16) {
            let (address, len) = (word(at), word(at + 8));
            if i64::try_from(len).is_err() {
                return Err(Errno::INVAL);
            }
            if address.checked_add(len).is_none_or(|end| end > USER_END) {
                return Err(Errno::FAULT);
            }
            let len = len.min(room);
            room -= len;
            buffers.push(Buffer { address, len });
        }
        Ok(buffers)
    }

    /// The host ranges behind `buffers`, for one `readv`-like call of the host straight into or out of the program's
    /// memory (`sys::read_at` and its like). Cut at the first byte that does not allow `access`; `EFAULT` where that is the
    /// very first byte.
    pub(crate) fn host_ranges(
        &self,
        buffers: &[Buffer],
        access: Access,
    ) -> Result<Vec<HostRange<'_>>, Errno> {
        let mut ranges = Vec::with_capacity(buffers.len() + 1);
        for buffer in buffers {
            let len = self.reachable(buffer.address, buffer.len, access);
            for run in self.runs(buffer.address, buffer.address + len) {
                ranges.push(self.region().range(run.gpa, run.len));
            }
            if len < buffer.len {
                return if ranges.is_empty() { Err(Errno::FAULT) } else { Ok(ranges) };
            }
        }
        Ok(ranges)
    }
}
