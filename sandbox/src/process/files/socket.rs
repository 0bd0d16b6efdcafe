//! Pairs of connected local sockets (socketpair(2), unix(7)). There are no others: a sandbox has no network.

use std::collections::VecDeque;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::pipe::{pop, push};
use super::stop::{Need, Stop};
use super::transfer::{Sink, Source, put_all, take_vec};

/// Bytes that wait in one direction.
const CAPACITY: usize = 208 << 10;
/// Messages that wait in one direction.
const MESSAGES: usize = 256;

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketEnd {
    pub(super) pair: u32,
    /// 0 or 1.
    pub(super) side: usize,
}

impl SocketEnd {
    pub(crate) fn ino(self) -> u64 {
        0x100_0000 + u64::from(self.pair) * 2 + self.side as u64
    }
}

/// The socket's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SocketKind {
    Stream,
    Datagram,
    Packets,
}

impl SocketKind {
    /// `SOCK_*`.
    pub(crate) fn raw(self) -> i32 {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::Datagram => libc::SOCK_DGRAM,
            Self::Packets => libc::SOCK_SEQPACKET,
        }
    }
}

/// What waits in one direction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Lengths of the messages in `bytes`, unless it is a stream.
    messages: VecDeque<usize>,
    written: u64,
    taken: u64,
}

/// A pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) kind: SocketKind,
    /// `queues[n]` is read by side n.
    queues: [Queue; 2],
    open: [bool; 2],
    /// Side n receives no more; sends no more.
    shut_read: [bool; 2],
    shut_write: [bool; 2],
}

/// What poll(2) wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketState {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer sends no more.
    pub(crate) read_end: bool,
    /// Neither direction works any more.
    pub(crate) hung_up: bool,
    pub(crate) stamp: u64,
}

impl Pair {
    /// Whether one that was read from a stored image can be, which has open files at the sides in `open`.
    pub(super) fn is_possible(&self, open: [bool; 2]) -> bool {
        let whole = |queue: &Queue| {
            let sum = queue.messages.iter().try_fold(0_usize, |sum, len| sum.checked_add(*len));
            queue.bytes.len() <= CAPACITY
                && queue.messages.len() <= MESSAGES
                && (self.kind == SocketKind::Stream || sum == Some(queue.bytes.len()))
        };
        self.open == open && self.queues.iter().all(whole)
    }

    pub(crate) fn new(kind: SocketKind) -> Self {
        Self {
            kind,
            queues: Default::default(),
            open: [true; 2],
            shut_read: [false; 2],
            shut_write: [false; 2],
        }
    }

    /// Takes bytes or one message; a message's rest is lost. `peek` leaves it.
    /// Returns what was copied and the message's length.
    pub(crate) fn receive(
        &mut self,
        side: usize,
        sink: &mut dyn Sink,
        nonblocking: bool,
        peek: bool,
    ) -> Result<(usize, usize), Stop> {
        let ended = self.shut_read[side] || self.shut_write[1 - side] || !self.open[1 - side];
        let stream = self.kind == SocketKind::Stream;
        let queue = &mut self.queues[side];
        if if stream { queue.bytes.is_empty() } else { queue.messages.is_empty() } {
            if ended && (self.kind != SocketKind::Datagram || self.shut_read[side]) {
                return Ok((0, 0));
            }
            return Err(Stop::unless(Need::INSIDE, nonblocking));
        }
        let whole = queue.messages.front().copied().unwrap_or(queue.bytes.len());
        if peek {
            let copy: Vec<u8> = queue.bytes.iter().take(whole).copied().collect();
            return Ok((put_all(sink, &copy)?, whole));
        }
        queue.taken += 1;
        if stream {
            let n = pop(&mut queue.bytes, sink)?;
            return Ok((n, n));
        }
        queue.messages.pop_front();
        let message: Vec<u8> = queue.bytes.drain(..whole).collect();
        Ok((put_all(sink, &message)?, whole))
    }

    /// Gives bytes, or one whole message, to the other side.
    pub(crate) fn send(
        &mut self,
        side: usize,
        source: &mut dyn Source,
        nonblocking: bool,
    ) -> Result<usize, Stop> {
        let wanted = source.left();
        if self.shut_write[side] || self.shut_read[1 - side] {
            return Err(Errno::PIPE.into());
        }
        if !self.open[1 - side] {
            let gone = if self.kind == SocketKind::Datagram { Errno::CONNREFUSED } else { Errno::PIPE };
            return Err(gone.into());
        }
        let stream = self.kind == SocketKind::Stream;
        let queue = &mut self.queues[1 - side];
        let room = CAPACITY - queue.bytes.len();
        if stream {
            if wanted == 0 {
                return Ok(0);
            }
            if room == 0 {
                return Err(Stop::unless(Need::INSIDE, nonblocking));
            }
        } else {
            if wanted > CAPACITY {
                return Err(Errno::MSGSIZE.into());
            }
            if room < wanted || queue.messages.len() == MESSAGES {
                return Err(Stop::unless(Need::INSIDE, nonblocking));
            }
            let message = take_vec(source, wanted)?;
            if message.len() < wanted {
                return Err(Errno::FAULT.into());
            }
            queue.messages.push_back(wanted);
            queue.bytes.extend(&message);
            queue.written += 1;
            return Ok(wanted);
        }
        let n = push(&mut queue.bytes, source, room)?;
        queue.written += 1;
        Ok(n)
    }

    /// `shutdown(2)`.
    pub(crate) fn shutdown(&mut self, side: usize, read: bool, write: bool) {
        self.shut_read[side] |= read;
        self.shut_write[side] |= write;
        self.queues[side].written += 1;
        self.queues[1 - side].written += 1;
    }

    /// One side was closed. True if the other is too.
    pub(crate) fn close(&mut self, side: usize) -> bool {
        self.open[side] = false;
        self.queues[1 - side].written += 1;
        self.queues[side].bytes = VecDeque::new();
        !self.open[1 - side]
    }

    /// Bytes that the next read would give (`FIONREAD`).
    pub(crate) fn pending(&self, side: usize) -> usize {
        let queue = &self.queues[side];
        queue.messages.front().copied().unwrap_or(queue.bytes.len())
    }

    pub(crate) fn state(&self, side: usize) -> SocketState {
        let (mine, theirs) = (&self.queues[side], &self.queues[1 - side]);
        let gone = !self.open[1 - side];
        let read_end = self.shut_read[side]
            || ((self.shut_write[1 - side] || gone) && self.kind != SocketKind::Datagram);
        SocketState {
            readable: !mine.bytes.is_empty() || !mine.messages.is_empty() || read_end,
            writable: theirs.bytes.len() < CAPACITY / 2 && theirs.messages.len() < MESSAGES,
            read_end,
            hung_up: read_end && (gone || self.shut_write[side]),
            stamp: mine.written + theirs.taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(pair: &mut Pair, side: usize, bytes: &[u8]) -> Result<usize, Stop> {
        pair.send(side, &mut &*bytes, true)
    }

    fn receive(pair: &mut Pair, side: usize, n: usize) -> Result<Vec<u8>, Stop> {
        let mut buffer = vec![0; n];
        let (n, _) = pair.receive(side, &mut buffer.as_mut_slice(), true, false)?;
        buffer.truncate(n);
        Ok(buffer)
    }

    #[test]
    fn streams_join_and_messages_stay_apart() {
        let mut pair = Pair::new(SocketKind::Stream);
        send(&mut pair, 0, b"ab").unwrap();
        send(&mut pair, 0, b"cd").unwrap();
        assert_eq!(receive(&mut pair, 1, 3).unwrap(), b"abc");
        assert_eq!(receive(&mut pair, 1, 3).unwrap(), b"d");
        let mut pair = Pair::new(SocketKind::Packets);
        send(&mut pair, 0, b"abc").unwrap();
        send(&mut pair, 0, b"").unwrap();
        send(&mut pair, 0, b"d").unwrap();
        assert_eq!(receive(&mut pair, 1, 2).unwrap(), b"ab");
        assert_eq!(receive(&mut pair, 1, 9).unwrap(), b"");
        assert_eq!(receive(&mut pair, 1, 9).unwrap(), b"d");
        assert_eq!(receive(&mut pair, 1, 9), Err(Errno::AGAIN.into()));
    }

    #[test]
    fn a_closed_side_ends_reads_and_breaks_writes() {
        let mut pair = Pair::new(SocketKind::Stream);
        send(&mut pair, 0, b"last").unwrap();
        assert!(!pair.close(0));
        assert_eq!(receive(&mut pair, 1, 9).unwrap(), b"last");
        assert_eq!(receive(&mut pair, 1, 9).unwrap(), b"");
        assert_eq!(send(&mut pair, 1, b"x"), Err(Errno::PIPE.into()));
        assert!(pair.state(1).hung_up && pair.state(1).readable);
    }

    #[test]
    fn shutdown_ends_one_direction() {
        let mut pair = Pair::new(SocketKind::Stream);
        pair.shutdown(0, false, true);
        assert_eq!(send(&mut pair, 0, b"x"), Err(Errno::PIPE.into()));
        assert_eq!(receive(&mut pair, 1, 9).unwrap(), b"");
        send(&mut pair, 1, b"back").unwrap();
        assert_eq!(receive(&mut pair, 0, 9).unwrap(), b"back");
        assert!(pair.state(1).read_end && !pair.state(1).hung_up);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut pair = Pair::new(SocketKind::Datagram);
        assert_eq!(send(&mut pair, 0, &vec![0; CAPACITY + 1]), Err(Errno::MSGSIZE.into()));
        for _ in 0..MESSAGES {
            send(&mut pair, 0, b"").unwrap();
        }
        assert_eq!(send(&mut pair, 0, b""), Err(Errno::AGAIN.into()));
    }
}
