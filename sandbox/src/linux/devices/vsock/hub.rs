//! All streams of one guest: which packet belongs to which, and whose turn it is to send.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use serde::{Deserialize, Serialize};

use super::connection::{Connection, State};
use super::packet::{Header, STREAM, op};

/// The host's address (VIRTIO 1.2 §5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// Most streams of one guest.
pub(super) const MOST_CONNECTIONS: usize = 1024;
/// Most streams that wait to be accepted at one port.
const BACKLOG: usize = 64;
/// Answers to packets of no stream that wait for a buffer; then the guest's packets wait.
pub(super) const MOST_REFUSALS: usize = 64;
/// Where the host's own ports begin: below are those that it listens on.
pub(super) const FIRST_OWN_PORT: u32 = 1 << 30;

/// Both ends' ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Who waits for what on a stream.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

impl Wakers {
    fn wake(&mut self) {
        for waker in [self.read.take(), self.write.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Connection,
    pub(super) wakers: Wakers,
    /// It stands in [`Hub::turns`].
    queued: bool,
    /// It came from a snapshot, and nobody here has taken it over.
    pub(super) unclaimed: bool,
}

/// Who listens at a port.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) waiting: VecDeque<Key>,
    pub(super) waker: Option<Waker>,
}

/// The streams.
#[derive(Debug)]
pub(super) struct Hub {
    /// The address that the guest was given.
    guest_cid: u64,
    /// The address that its kernel uses: it reads its own only when its driver starts, so that a restored guest goes on
    /// with that of the saved one. It means something between the guest and this hub only.
    pub(super) spoken_cid: u64,
    pub(super) entries: HashMap<Key, Entry>,
    pub(super) ports: HashMap<u32, Port>,
    /// Streams that have something to send.
    turns: VecDeque<Key>,
    /// Resets for packets of no stream.
    pub(super) refusals: VecDeque<Key>,
    pub(super) next_port: u32,
}

impl Hub {
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            spoken_cid: guest_cid,
            entries: HashMap::new(),
            ports: HashMap::new(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_OWN_PORT,
        }
    }

    pub(super) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Whether a packet of the guest can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.refusals.len() < MOST_REFUSALS
    }

    /// Whether something is to be sent.
    pub(super) fn has_packets(&self) -> bool {
        !self.refusals.is_empty() || !self.turns.is_empty()
    }

    /// A packet of the guest.
    pub(super) fn receive(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid == self.guest_cid {
            self.spoken_cid = self.guest_cid;
        }
        if header.src_cid != self.spoken_cid || header.dst_cid != HOST_CID {
            return;
        }
        let key = Key { host: header.dst_port, guest: header.src_port };
        if header.kind != STREAM {
            return self.refuse(key, header.op);
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return match header.op {
                op::REQUEST => self.request(key, header),
                other => self.refuse(key, other),
            };
        };
        entry.connection.note_credit(header);
        if !entry.connection.receive(header, data) {
            entry.connection.was_reset = true;
            entry.connection.reset();
        }
        entry.wakers.wake();
        self.queue(key);
    }

    /// The guest asks for a stream.
    fn request(&mut self, key: Key, header: &Header) {
        let full = self.entries.len() >= MOST_CONNECTIONS;
        let port = self.ports.get_mut(&key.host).filter(|port| port.waiting.len() < BACKLOG && !full);
        let Some(port) = port else { return self.refuse(key, op::REQUEST) };
        port.waiting.push_back(key);
        let waker = port.waker.take();
        let mut connection = Connection::accepted();
        connection.note_credit(header);
        self.insert(key, connection);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A reset is not answered, or two ends that have forgotten a stream would talk for ever.
    fn refuse(&mut self, key: Key, op: u16) {
        if op != op::RST {
            self.refusals.push_back(key);
        }
    }

    /// Adds a stream.
    pub(super) fn insert(&mut self, key: Key, connection: Connection) {
        self.entries
            .insert(key, Entry { connection, wakers: Wakers::default(), queued: false, unclaimed: false });
        self.queue(key);
    }

    /// Takes over the streams of the host's `port` that a snapshot has brought.
    pub(super) fn claim(&mut self, port: u32) -> Vec<Key> {
        let mut keys = Vec::new();
        for (key, entry) in &mut self.entries {
            if key.host == port && std::mem::take(&mut entry.unclaimed) {
                keys.push(*key);
            }
        }
        keys.sort_unstable();
        keys
    }

    /// Breaks off what a snapshot has brought and nobody has taken over; the guest is told by a reset.
    pub(super) fn break_off_unclaimed(&mut self) {
        let unclaimed: Vec<Key> =
            self.entries.iter().filter(|(_, entry)| entry.unclaimed).map(|(key, _)| *key).collect();
        for key in unclaimed {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.unclaimed = false;
            // One that was over is not reset once more.
            if entry.connection.state != State::Closed {
                entry.connection.reset();
            }
            entry.connection.finish(true);
            self.queue(key);
        }
    }

    /// A new stream of the host to `port`; `None` where there are too many.
    pub(super) fn connect(&mut self, port: u32) -> Option<Key> {
        if self.entries.len() >= MOST_CONNECTIONS {
            return None;
        }
        let key = loop {
            let key = Key { host: self.next_port, guest: port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_OWN_PORT);
            if !self.entries.contains_key(&key) {
                break key;
            }
        };
        self.insert(key, Connection::requested());
        Some(key)
    }

    /// After a change of the stream: it gets its turn if it has something to send, and goes if it is over.
    pub(super) fn queue(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.connection.has_packet() {
            if !std::mem::replace(&mut entry.queued, true) {
                self.turns.push_back(key);
            }
        } else if entry.connection.orphan && entry.connection.state == State::Closed && !entry.queued {
            self.entries.remove(&key);
        }
    }

    /// The next packet with at most `room` bytes of data.
    pub(super) fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(key) = self.refusals.pop_front() {
            return Some((self.header(key, op::RST, 0, (0, 0)), Vec::new()));
        }
        loop {
            let key = self.turns.pop_front()?;
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.queued = false;
            let next = entry.connection.next(room);
            let credit = entry.connection.tell_credit();
            if let Some(waker) = entry.wakers.write.take() {
                waker.wake();
            }
            self.queue(key);
            if let Some((op, flags, data)) = next {
                return Some((self.header(key, op, flags, credit), data));
            }
        }
    }

    fn header(&self, key: Key, op: u16, flags: u32, (buf_alloc, fwd_cnt): (u32, u32)) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.spoken_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}
