//! Bytes as a sequence of messages to a server: no panic, no reply that is none, nothing outside of the share. Both the
//! property test ([`super::server`]'s) and the fuzz target (`sandbox/fuzz`) use it.
//!
//! A message is its type, the room for its reply, a count (one byte each) and this many fields; a field is a byte that
//! tells its kind and what this kind needs. Where the bytes end, the sequence ends.

use std::path::Path;

use super::server::{MAX_MESSAGE, MESSAGES, RLERROR, Server, TVERSION, VERSION};
use super::wire::{Encoder, HEADER};
use crate::linux::devices::hostile::{MOST_MESSAGES, NAMES, beside_a_secret, check_reply};

/// Serves what `bytes` stand for over a folder of `dir`, which must be empty.
///
/// # Panics
/// Where a message panics, has a reply that is none, or gets out of the share.
pub(crate) fn serve(bytes: &[u8], dir: &Path) {
    beside_a_secret(dir, false, |share| {
        let mut server = Server::new(share);
        let mut version = Encoder(vec![0; HEADER]);
        version.u32(MAX_MESSAGE as u32);
        version.string(VERSION);
        answered(&mut server, TVERSION, version, MAX_MESSAGE);
        let mut attach = Encoder(vec![0; HEADER]);
        [0, u32::MAX].into_iter().for_each(|word| attach.u32(word));
        answered(&mut server, 104, attach, MAX_MESSAGE);
        let mut bytes = bytes.iter().copied();
        for _ in 0..MOST_MESSAGES {
            let Some((kind, room, message)) = next_message(&mut bytes) else { break };
            answered(&mut server, kind, message, room);
        }
    });
}

fn answered(server: &mut Server, kind: u8, message: Encoder, room: usize) {
    let mut message = message.0;
    let size = (message.len() as u32).to_le_bytes();
    message[..4].copy_from_slice(&size);
    message[4] = kind;
    let reply = server.handle(&message, room);
    check_reply(&reply, room, kind.into());
    assert!(reply.is_empty() || [RLERROR, kind.wrapping_add(1)].contains(&reply[4]), "message {kind}");
}

fn next_message(bytes: &mut impl Iterator<Item = u8>) -> Option<(u8, usize, Encoder)> {
    let (kind, room, fields) = (bytes.next()?, usize::from(bytes.next()?), bytes.next()? % 12);
    let mut message = Encoder(vec![0; HEADER]);
    for _ in 0..fields {
        match bytes.next()? % 8 {
            0..3 => message.u32(u32::from(bytes.next()?) % 6),
            3 | 4 => message.string(NAMES[usize::from(bytes.next()?) % NAMES.len()]),
            5 => message.u64(bytes.next()?.into()),
            6 => message.u32((1 << (bytes.next()? % 32)) | u32::from(bytes.next()?)),
            _ => message.u16(bytes.next()?.into()),
        }
    }
    // Most numbers are no message's.
    let kind = if kind < 128 { kind } else { MESSAGES[usize::from(kind) % MESSAGES.len()].0 };
    // Mostly as much as Linux's client gives.
    Some((kind, if room < 32 { room } else { room * 64 }, message))
}
