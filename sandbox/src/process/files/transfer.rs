//! Where the bytes of a read go and those of a write come from.
//!
//! The calls give the program's memory, checked piece by piece; tests give slices. A file of the host is read and
//! written straight to and from there ([`Sink::read_from`], [`Source::write_to`]); everything else goes through
//! [`Sink::put`] and [`Source::take`].

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Takes the bytes of a read, in order.
pub trait Sink {
    /// Bytes that it still takes.
    fn room(&self) -> usize;

    /// Takes as many of `bytes` as there is room and memory for.
    ///
    /// # Errors
    /// `EFAULT` where not even one could be taken.
    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno>;

    /// Takes the bytes of a host file from `position` on.
    ///
    /// # Errors
    /// What `preadv(2)` says; `EFAULT` where not even one could be taken.
    fn read_from(&mut self, fd: BorrowedFd<'_>, position: u64) -> Result<usize, Errno>;
}

/// Gives the bytes of a write, in order.
pub trait Source {
    /// Bytes that are left.
    fn left(&self) -> usize;

    /// Fills the front of `into` and says how far.
    ///
    /// # Errors
    /// `EFAULT` where not even one byte could be read.
    fn take(&mut self, into: &mut [u8]) -> Result<usize, Errno>;

    /// Writes at most `max` bytes into a host file at `position`.
    ///
    /// # Errors
    /// What `pwritev(2)` says; `EFAULT` where not even one byte could be read.
    fn write_to(&mut self, fd: BorrowedFd<'_>, position: u64, max: usize) -> Result<usize, Errno>;
}

/// The front of a source.
pub(crate) struct Capped<'a> {
    source: &'a mut dyn Source,
    left: usize,
}

impl<'a> Capped<'a> {
    /// At most `left` bytes of `source`.
    pub(crate) fn new(source: &'a mut dyn Source, left: usize) -> Self {
        let left = left.min(source.left());
        Self { source, left }
    }
}

impl Source for Capped<'_> {
    fn left(&self) -> usize {
        self.left
    }

    fn take(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let n = into.len().min(self.left);
        let n = self.source.take(&mut into[..n])?;
        self.left -= n;
        Ok(n)
    }

    fn write_to(&mut self, fd: BorrowedFd<'_>, position: u64, max: usize) -> Result<usize, Errno> {
        let n = self.source.write_to(fd, position, max.min(self.left))?;
        self.left -= n;
        Ok(n)
    }
}

impl Sink for &mut [u8] {
    fn room(&self) -> usize {
        self.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let n = bytes.len().min(self.len());
        let (now, later) = std::mem::take(self).split_at_mut(n);
        now.copy_from_slice(&bytes[..n]);
        *self = later;
        Ok(n)
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>, position: u64) -> Result<usize, Errno> {
        let n = rustix::io::pread(fd, &mut **self, position)?;
        *self = &mut std::mem::take(self)[n..];
        Ok(n)
    }
}

impl Source for &[u8] {
    fn left(&self) -> usize {
        self.len()
    }

    fn take(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let n = into.len().min(self.len());
        into[..n].copy_from_slice(&self[..n]);
        *self = &self[n..];
        Ok(n)
    }

    fn write_to(&mut self, fd: BorrowedFd<'_>, position: u64, max: usize) -> Result<usize, Errno> {
        let n = rustix::io::pwrite(fd, &self[..max.min(self.len())], position)?;
        *self = &self[n..];
        Ok(n)
    }
}

/// Gives `sink` the front of `bytes`, all that it takes.
pub(crate) fn put_all(sink: &mut dyn Sink, bytes: &[u8]) -> Result<usize, Errno> {
    let n = sink.room().min(bytes.len());
    if n == 0 { Ok(0) } else { sink.put(&bytes[..n]) }
}

/// Takes at most `max` bytes out of `source`, in memory that grows only with what is really there.
pub(crate) fn take_vec(source: &mut dyn Source, max: usize) -> Result<Vec<u8>, Errno> {
    const PIECE: usize = 64 << 10;
    let mut bytes = Vec::new();
    while bytes.len() < max && source.left() > 0 {
        let start = bytes.len();
        bytes.resize(start + PIECE.min(max - start).min(source.left()), 0);
        match source.take(&mut bytes[start..]) {
            Ok(n) => {
                let short = start + n < bytes.len();
                bytes.truncate(start + n);
                if short {
                    break;
                }
            }
            Err(e) if start == 0 => return Err(e),
            Err(_) => {
                bytes.truncate(start);
                break;
            }
        }
    }
    Ok(bytes)
}
