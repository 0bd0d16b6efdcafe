//! The stream to the host: messages in, messages out, never waiting.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use novum_proto::guest::v1::{ToGuest, ToHost, to_guest, to_host};
use novum_proto::guest::{Frames, write_frame};

/// Bytes that may wait to be sent before commands' output is left in their pipes.
const MUCH: usize = 256 << 10;
/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// The stream.
pub(crate) struct Link {
    stream: File,
    frames: Frames<ToGuest>,
    outgoing: Vec<u8>,
    /// How many of `outgoing` are sent.
    sent: usize,
    /// What is read goes here first. One for all streams: only as much of it is ever touched as there is to read.
    piece: Box<[u8]>,
}

impl Link {
    /// Over a stream that does not block.
    pub(crate) fn new(stream: OwnedFd) -> Self {
        let piece = vec![0; PIECE].into_boxed_slice();
        Self { stream: stream.into(), frames: Frames::default(), outgoing: Vec::new(), sent: 0, piece }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether there is something to send.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether commands may add output.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() - self.sent < MUCH
    }

    /// Puts a message behind the others.
    pub(crate) fn push(&mut self, message: to_host::Message) {
        write_frame(&ToHost { message: Some(message) }, &mut self.outgoing);
    }

    /// At most `most` bytes that `from` has now.
    pub(crate) fn read(&mut self, from: &mut File, most: usize) -> io::Result<Vec<u8>> {
        let most = most.min(PIECE);
        from.read(&mut self.piece[..most]).map(|count| self.piece[..count].to_vec())
    }

    /// Sends what the stream takes now.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what is there; afterwards [`Self::next`] has it. An error where the host has gone.
    pub(crate) fn receive(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.piece) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the host closed the stream")),
            Ok(count) => {
                self.frames.push(&self.piece[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next message of those that were read. Messages of a newer host that this agent does not know are skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<to_guest::Message>> {
        loop {
            match self.frames.pop().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))? {
                None => return Ok(None),
                Some(ToGuest { message: Some(message) }) => return Ok(Some(message)),
                Some(ToGuest { message: None }) => {}
            }
        }
    }
}
