//! The host and the agent in a Linux guest: messages ([`v1`]) and how they lie in the stream.
//!
//! ```text
//! 0        4
//! | length | message (ToGuest or ToHost) | length | message | ...
//! ```
//! Whatever comes is the other side's word: [`Frames`] never holds more than one message of [`MOST_MESSAGE_BYTES`].

use std::marker::PhantomData;

use prost::Message;

/// Version 1. Committed, so that it can be compiled without a protobuf compiler; a test compares it with the `.proto` file.
#[allow(missing_docs, unreachable_pub, clippy::doc_markdown, clippy::large_enum_variant)]
#[rustfmt::skip]
pub mod v1;

/// The number in `Hello`.
pub const PROTOCOL: u32 = 1;
/// The port of the host (CID 2) that the agent connects to.
pub const PORT: u32 = 1024;
/// Longest message.
pub const MOST_MESSAGE_BYTES: usize = 128 << 10;
/// Longest piece of a stream in one message, so that it is not longer than [`MOST_MESSAGE_BYTES`].
pub const MOST_PIECE_BYTES: usize = 64 << 10;
/// What a sender may send of each stream before it gets a Credit.
pub const FIRST_CREDIT_BYTES: u32 = 256 << 10;
/// What a receiver takes before it grants more.
pub const GRANT_AFTER_BYTES: u32 = FIRST_CREDIT_BYTES / 4;

const LENGTH_BYTES: usize = 4;

/// The stream holds something else than messages.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than any message may be.
    #[error("a message of {0} bytes; at most {MOST_MESSAGE_BYTES} are allowed")]
    TooLong(usize),
    /// Not a message.
    #[error("bytes that are no message: {0}")]
    Malformed(prost::DecodeError),
}

/// Appends `message` with its length to `to`.
pub fn write_frame(message: &impl Message, to: &mut Vec<u8>) {
    let length = message.encoded_len();
    to.reserve(LENGTH_BYTES + length);
    to.extend((length as u32).to_le_bytes());
    to.extend(message.encode_to_vec());
}

/// Cuts a stream into messages.
#[derive(Debug)]
pub struct Frames<M> {
    bytes: Vec<u8>,
    /// How many of `bytes` were messages that are out already.
    done: usize,
    message: PhantomData<M>,
}

impl<M> Default for Frames<M> {
    fn default() -> Self {
        Self { bytes: Vec::new(), done: 0, message: PhantomData }
    }
}

impl<M: Message + Default> Frames<M> {
    /// Takes the next bytes of the stream. Call [`Self::pop`] until it has nothing before the next ones.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.done));
        self.bytes.extend_from_slice(bytes);
    }

    /// The bytes that are no message yet, for whoever goes on with the stream elsewhere.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    /// The next message, where all of it is there.
    ///
    /// # Errors
    /// Where the stream is broken; nothing that comes after makes sense then.
    pub fn pop(&mut self) -> Result<Option<M>, FrameError> {
        let rest = &self.bytes[self.done..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MOST_MESSAGE_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(message).map_err(FrameError::Malformed)?;
        self.done += LENGTH_BYTES + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use v1::{Input, ToGuest, to_guest};

    fn input(data: Vec<u8>) -> ToGuest {
        ToGuest { message: Some(to_guest::Message::Input(Input { command: 1, data, end: false })) }
    }

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let messages: Vec<_> = [0, 1, 300, MOST_PIECE_BYTES].map(|length| input(vec![7; length])).into();
        let mut stream = Vec::new();
        messages.iter().for_each(|message| write_frame(message, &mut stream));
        for size in [1, 3, 1000, stream.len()] {
            let (mut frames, mut seen) = (Frames::<ToGuest>::default(), Vec::new());
            for piece in stream.chunks(size) {
                frames.push(piece);
                while let Some(message) = frames.pop().unwrap() {
                    seen.push(message);
                }
            }
            assert!(seen == messages, "cut into {size}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_comes() {
        let mut frames = Frames::<ToGuest>::default();
        frames.push(&u32::MAX.to_le_bytes());
        assert_eq!(frames.pop(), Err(FrameError::TooLong(u32::MAX as usize)));
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = Frames::<ToGuest>::default();
            let length = (bytes.len() as u32).to_le_bytes();
            frames.push(&[&length[..], &bytes].concat());
            let _ = frames.pop();
        }
    }
}
