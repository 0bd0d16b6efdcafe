//! Bytes as a sequence of FUSE messages to a server: no panic, no answer that is none, nothing outside of the share. Both
//! the property test ([`super::server`]'s) and the fuzz target (`sandbox/fuzz`) use it.

use std::path::Path;

use super::server::{MESSAGES, Server};
use crate::linux::devices::hostile::{MOST_MESSAGES, NAMES, beside_a_secret, check_reply};
use crate::linux::virtio::driver::Feed;

/// Names of extended attributes, of all kinds.
const ATTRIBUTES: [&[u8]; 4] =
    [b"user.overlay.opaque", b"user.novum.override", b"security.capability", b"user.x"];
const INIT: u32 = 26;

/// Serves what `bytes` stand for over a folder of `dir`, which must be empty; the first one says whether it is an upper
/// layer.
///
/// # Panics
/// Where a message panics, has an answer that is none, or gets out of the share.
pub(crate) fn serve(bytes: &[u8], dir: &Path) {
    let mut feed = Feed(bytes);
    beside_a_secret(dir, feed.byte() % 2 == 0, |share| {
        let mut server = Server::new(share);
        let init = [7u32, 31, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat();
        answered(&mut server, INIT, 0, &init, 1 << 20);
        for _ in 0..MOST_MESSAGES {
            if feed.is_empty() {
                break;
            }
            let kind = match feed.byte() {
                // Most numbers are no message's.
                any @ 0..64 => any.into(),
                other => MESSAGES[usize::from(other) % MESSAGES.len()].0,
            };
            let (room, node) = (usize::from(feed.byte()), u64::from(feed.byte() % 8));
            let body = body(&mut feed);
            answered(&mut server, kind, node, &body, if room < 32 { room } else { room * 64 });
        }
    });
}

fn body(feed: &mut Feed<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..feed.byte() % 14 {
        match feed.byte() % 8 {
            0..3 => body.extend(u64::from(feed.byte() % 8).to_le_bytes()),
            3 => body.extend(u32::from(feed.byte()).to_le_bytes()),
            4 => body.extend(feed.number().to_le_bytes()),
            5 => body.extend((feed.number() as u32).to_le_bytes()),
            6 => {
                body.extend(ATTRIBUTES[usize::from(feed.byte()) % ATTRIBUTES.len()]);
                body.push(0);
            }
            _ => {
                body.extend(NAMES[usize::from(feed.byte()) % NAMES.len()]);
                body.push(0);
            }
        }
    }
    body
}

fn answered(server: &mut Server, kind: u32, node: u64, body: &[u8], room: usize) {
    let mut message = ((40 + body.len()) as u32).to_le_bytes().to_vec();
    message.extend(kind.to_le_bytes());
    message.extend([77, node].map(u64::to_le_bytes).concat());
    message.extend([0; 16]);
    message.extend(body);
    let answer = server.handle(&message, room);
    check_reply(&answer, room, kind);
    if !answer.is_empty() {
        assert_eq!(answer[8..16], 77u64.to_le_bytes(), "message {kind}");
        let error = i32::from_le_bytes([answer[4], answer[5], answer[6], answer[7]]);
        assert!((-4095..=0).contains(&error) && (error == 0 || answer.len() == 16), "message {kind}");
    }
}
