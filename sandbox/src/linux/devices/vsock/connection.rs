//! One stream: its state, the bytes on their way, and the credit of both sides (VIRTIO 1.2 §5.10.6.3). Plain data, so
//! that a snapshot can hold it.

use std::collections::VecDeque;
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::packet::{Header, NO_RECEIVE, NO_SEND, op};

/// Bytes that the host keeps of one stream in each direction.
pub(super) const BUFFER_BYTES: usize = 256 << 10;
/// Room that has become free before the guest is told unasked.
const TELL_AFTER: u32 = BUFFER_BYTES as u32 / 2;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// The host asked, the guest has not answered.
    Connecting,
    /// Bytes flow.
    Open,
    /// The guest reset it, or both sides are done: nothing is sent any more.
    Closed,
}

/// What is to be sent beside bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Due {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
    /// The guest was asked for its credit and has not answered.
    asked: bool,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Connection {
    pub(super) state: State,
    /// The guest broke it off, as opposed to ending it.
    pub(super) was_reset: bool,
    /// From the guest, for the host to read.
    pub(super) incoming: VecDeque<u8>,
    /// From the host, not sent yet.
    pub(super) outgoing: VecDeque<u8>,
    /// The guest sends no more.
    pub(super) guest_done: bool,
    /// The guest takes no more.
    pub(super) guest_deaf: bool,
    /// What the host has said it will not do any more, as `flags` of SHUTDOWN.
    host_done: u32,
    /// What of that the guest was told.
    told_done: u32,
    /// The host has let go of it: when everything was sent, it ends.
    pub(super) orphan: bool,
    due: Due,
    peer_room: u32,
    peer_taken: u32,
    sent: u32,
    received: u32,
    taken: u32,
    told_taken: u32,
}

impl Connection {
    fn new(state: State, due: Due) -> Self {
        Self {
            state,
            was_reset: false,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            guest_done: false,
            guest_deaf: false,
            host_done: 0,
            told_done: 0,
            orphan: false,
            due,
            peer_room: 0,
            peer_taken: 0,
            sent: 0,
            received: 0,
            taken: 0,
            told_taken: 0,
        }
    }

    /// Whether it keeps no more than it may: one that came from a file.
    pub(super) fn is_bounded(&self) -> bool {
        self.incoming.len() <= BUFFER_BYTES && self.outgoing.len() <= BUFFER_BYTES
    }

    /// The host asks for it.
    pub(super) fn requested() -> Self {
        Self::new(State::Connecting, Due { request: true, ..Due::default() })
    }

    /// The guest asked for it and is accepted.
    pub(super) fn accepted() -> Self {
        Self::new(State::Open, Due { response: true, ..Due::default() })
    }

    /// Notes what every packet says about the guest's buffer.
    pub(super) fn note_credit(&mut self, header: &Header) {
        (self.peer_room, self.peer_taken) = (header.buf_alloc, header.fwd_cnt);
        self.due.asked = false;
    }

    /// A packet of the guest for this stream. False where it breaks the rules: then the stream must be reset.
    pub(super) fn receive(&mut self, header: &Header, data: &[u8]) -> bool {
        match (header.op, self.state) {
            (op::RST, _) => {
                // A reset that answers our own end is the regular end.
                self.was_reset =
                    !(self.guest_done && self.guest_deaf) && self.told_done != NO_RECEIVE | NO_SEND;
                self.close();
            }
            (op::RESPONSE, State::Connecting) => self.state = State::Open,
            (op::RW, State::Open) => return self.take_in(data),
            (op::SHUTDOWN, State::Open) => self.shutdown(header.flags),
            (op::CREDIT_UPDATE, State::Open) => {}
            (op::CREDIT_REQUEST, State::Open) => self.due.credit = true,
            _ => return false,
        }
        true
    }

    fn take_in(&mut self, data: &[u8]) -> bool {
        let fits = self.incoming.len() + data.len() <= BUFFER_BYTES;
        if !fits || self.guest_done || self.orphan {
            return false;
        }
        self.received = self.received.wrapping_add(data.len() as u32);
        self.incoming.extend(data);
        true
    }

    fn shutdown(&mut self, flags: u32) {
        self.guest_deaf |= flags & NO_RECEIVE != 0;
        self.guest_done |= flags & NO_SEND != 0;
        if self.guest_deaf {
            self.outgoing.clear();
        }
        if self.guest_deaf && self.guest_done {
            // The guest waits for this before it forgets the stream.
            self.reset();
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.outgoing.clear();
        self.due = Due::default();
    }

    /// Breaks it off; the guest is told.
    pub(super) fn reset(&mut self) {
        self.close();
        self.due.reset = true;
    }

    /// Whether the host gets no more bytes than [`Self::incoming`] holds.
    pub(super) fn ended(&self) -> bool {
        self.guest_done || self.state == State::Closed
    }

    /// The host reads; true where the guest should hear of the room.
    pub(super) fn read(&mut self, into: &mut [u8]) -> (usize, bool) {
        let count = self.incoming.read(into).unwrap_or(0);
        self.taken = self.taken.wrapping_add(count as u32);
        let tell = self.taken.wrapping_sub(self.told_taken) >= TELL_AFTER && self.state == State::Open;
        self.due.credit |= tell;
        (count, tell)
    }

    /// The host writes; returns how much was taken.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(BUFFER_BYTES - self.outgoing.len());
        self.outgoing.extend(&bytes[..count]);
        count
    }

    /// The host sends no more, or has let go altogether.
    pub(super) fn finish(&mut self, entirely: bool) {
        self.orphan |= entirely;
        self.host_done |= if entirely { NO_RECEIVE | NO_SEND } else { NO_SEND };
        if entirely {
            self.incoming.clear();
        }
    }

    fn credit(&self) -> usize {
        let flying = self.sent.wrapping_sub(self.peer_taken);
        self.peer_room.saturating_sub(flying) as usize
    }

    /// Whether [`Self::next`] has something.
    pub(super) fn has_packet(&self) -> bool {
        let Due { request, response, reset, credit, asked } = self.due;
        let open = self.state == State::Open;
        let bytes = open && !self.outgoing.is_empty() && (self.credit() > 0 || !asked);
        request || response || reset || (open && credit) || bytes || self.end_is_due()
    }

    fn end_is_due(&self) -> bool {
        self.state == State::Open && self.outgoing.is_empty() && self.told_done != self.host_done
    }

    /// The next packet's op, flags and bytes; `room` is the most bytes.
    pub(super) fn next(&mut self, room: usize) -> Option<(u16, u32, Vec<u8>)> {
        let take = |flag: &mut bool| std::mem::take(flag);
        let bare = |op| Some((op, 0, Vec::new()));
        if take(&mut self.due.reset) {
            return bare(op::RST);
        }
        if take(&mut self.due.request) {
            return bare(op::REQUEST);
        }
        if take(&mut self.due.response) {
            return bare(op::RESPONSE);
        }
        if self.state != State::Open {
            return None;
        }
        let count = self.outgoing.len().min(self.credit()).min(room);
        if count > 0 {
            self.sent = self.sent.wrapping_add(count as u32);
            self.due.credit = false;
            return Some((op::RW, 0, self.outgoing.drain(..count).collect()));
        }
        if take(&mut self.due.credit) {
            return bare(op::CREDIT_UPDATE);
        }
        if !self.outgoing.is_empty() && !self.due.asked {
            self.due.asked = true;
            return bare(op::CREDIT_REQUEST);
        }
        if self.end_is_due() {
            self.told_done = self.host_done;
            return Some((op::SHUTDOWN, self.host_done, Vec::new()));
        }
        None
    }

    /// What every packet to the guest says about the host's buffer.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.told_taken = self.taken;
        (BUFFER_BYTES as u32, self.taken)
    }
}
