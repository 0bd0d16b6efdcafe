//! Pipes (pipe(7)).

use std::collections::VecDeque;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::stop::{Need, Stop};
use super::transfer::{Sink, Source, put_all, take_vec};

/// Writes up to this many bytes are not torn apart (`PIPE_BUF`).
const ATOMIC_BYTES: usize = 4096;
/// Capacity of a new pipe.
pub(crate) const CAPACITY: usize = 64 << 10;
/// Largest capacity that a program may ask for.
const CAPACITY_MAX: usize = 1 << 20;

/// Names a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PipeId(pub(super) u32);

impl PipeId {
    pub(crate) fn ino(self) -> u64 {
        0x1000 + u64::from(self.0)
    }
}

/// Which end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Read,
    Write,
}

/// A queue of bytes between two ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Open files of each end.
    pub(super) readers: u32,
    pub(super) writers: u32,
    /// Counts writes and reads, for edge-triggered epoll.
    pub(super) written: u64,
    pub(super) taken: u64,
}

impl Pipe {
    /// A pipe with one open file at each end.
    pub(crate) fn new() -> Self {
        Self { bytes: VecDeque::new(), capacity: CAPACITY, readers: 1, writers: 1, written: 0, taken: 0 }
    }

    /// Whether one that was read from a stored image can be; `readers` and `writers` are the open files of its ends.
    pub(super) fn is_possible(&self, readers: usize, writers: usize) -> bool {
        let ends = (self.readers as usize, self.writers as usize) == (readers, writers);
        ends && self.bytes.len() <= self.capacity && self.capacity <= CAPACITY_MAX
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// `F_SETPIPE_SZ`: the next power of two, at least a page.
    pub(crate) fn set_capacity(&mut self, wanted: usize) -> Result<usize, Errno> {
        if wanted > CAPACITY_MAX {
            return Err(Errno::PERM);
        }
        let capacity = wanted.max(ATOMIC_BYTES).next_power_of_two();
        if capacity < self.bytes.len() {
            return Err(Errno::BUSY);
        }
        self.capacity = capacity;
        Ok(capacity)
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    /// Whether poll(2) calls the write end writable.
    pub(crate) fn writable(&self) -> bool {
        self.room() >= ATOMIC_BYTES
    }

    pub(crate) fn read(&mut self, sink: &mut dyn Sink, nonblocking: bool) -> Result<usize, Stop> {
        if self.bytes.is_empty() {
            if self.writers == 0 {
                return Ok(0);
            }
            return Err(Stop::unless(Need::INSIDE, nonblocking));
        }
        let n = pop(&mut self.bytes, sink)?;
        self.taken += 1;
        Ok(n)
    }

    /// Puts bytes back that were just read.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        bytes.iter().rev().for_each(|byte| self.bytes.push_front(*byte));
    }

    /// Takes what there is room for; a caller that waits for the rest calls again.
    pub(crate) fn write(&mut self, source: &mut dyn Source, nonblocking: bool) -> Result<usize, Stop> {
        let wanted = source.left();
        if self.readers == 0 {
            return Err(Errno::PIPE.into());
        }
        let room = self.room();
        if room == 0 || (wanted <= ATOMIC_BYTES && room < wanted) {
            return Err(Stop::unless(Need::INSIDE, nonblocking));
        }
        let n = push(&mut self.bytes, source, room)?;
        self.written += 1;
        Ok(n)
    }
}

/// Moves bytes from the queue into `sink`.
pub(super) fn pop(bytes: &mut VecDeque<u8>, sink: &mut dyn Sink) -> Result<usize, Errno> {
    let mut done = 0;
    for _ in 0..2 {
        let n = match put_all(sink, bytes.as_slices().0) {
            Err(_) if done > 0 => break,
            other => other?,
        };
        bytes.drain(..n);
        done += n;
    }
    Ok(done)
}

/// Appends at most `room` bytes of `source` to the queue.
pub(super) fn push(bytes: &mut VecDeque<u8>, source: &mut dyn Source, room: usize) -> Result<usize, Errno> {
    let taken = take_vec(source, room)?;
    bytes.extend(&taken);
    Ok(taken.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pipe: &mut Pipe, n: usize) -> Result<usize, Stop> {
        pipe.write(&mut vec![7; n].as_slice(), true)
    }

    fn read(pipe: &mut Pipe, n: usize) -> Result<usize, Stop> {
        pipe.read(&mut vec![0; n].as_mut_slice(), true)
    }

    #[test]
    fn small_writes_are_whole_or_not_at_all() {
        let mut pipe = Pipe::new();
        assert_eq!(write(&mut pipe, CAPACITY - 100), Ok(CAPACITY - 100));
        assert_eq!(write(&mut pipe, 101), Err(Errno::AGAIN.into()));
        assert_eq!(write(&mut pipe, 5000), Ok(100));
        assert_eq!(write(&mut pipe, 1), Err(Errno::AGAIN.into()));
        assert_eq!(read(&mut pipe, 1), Ok(1));
        assert_eq!(write(&mut pipe, 1), Ok(1));
    }

    #[test]
    fn a_pipe_without_the_other_end_ends_or_breaks() {
        let mut pipe = Pipe::new();
        write(&mut pipe, 3).unwrap();
        pipe.writers = 0;
        assert_eq!((read(&mut pipe, 9), read(&mut pipe, 9)), (Ok(3), Ok(0)));
        pipe.readers = 0;
        assert_eq!(write(&mut pipe, 1), Err(Errno::PIPE.into()));
    }

    #[test]
    fn the_capacity_has_bounds() {
        let mut pipe = Pipe::new();
        assert_eq!(pipe.set_capacity(1), Ok(4096));
        assert_eq!(pipe.set_capacity(5000), Ok(8192));
        assert_eq!(pipe.set_capacity(usize::MAX), Err(Errno::PERM));
        write(&mut pipe, 8000).unwrap();
        assert_eq!(pipe.set_capacity(1), Err(Errno::BUSY));
    }
}
