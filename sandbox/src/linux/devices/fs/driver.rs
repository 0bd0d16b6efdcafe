//! Bytes as a sequence of FUSE messages to a server: no panic, no answer that is none, nothing outside of the share. Both
//! the property test ([`super::server`]'s) and the fuzz target (`sandbox/fuzz`) use it.

use std::path::Path;
use std::sync::Arc;

use super::server::{MESSAGES, Server};
use crate::linux::virtio::driver::Feed;
use crate::share::{Access, Share};

const NAMES: [&[u8]; 8] = [b"f", b"out", b"..", b".", b"d", b"new", b"../outside", b""];
const SECRET: &[u8] = b"novum's secret outside of the share";
/// Most messages of one sequence.
const MOST_MESSAGES: usize = 60;
const INIT: u32 = 26;

/// Serves what `bytes` stand for over a folder of `dir`, which must be empty.
///
/// # Panics
/// Where a message panics, has an answer that is none, or gets out of the share.
pub(crate) fn serve(bytes: &[u8], dir: &Path) {
    let (share, outside) = (dir.join("share"), dir.join("outside"));
    std::fs::create_dir_all(share.join("d")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(share.join("f"), "inside").unwrap();
    std::fs::write(outside.join("secret"), SECRET).unwrap();
    std::os::unix::fs::symlink("../outside/secret", share.join("out")).unwrap();
    let mut server = Server::new(Arc::new(Share::open_dir(&share, Access::ReadWrite).unwrap()));
    let init = [7u32, 31, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat();
    answered(&mut server, INIT, 0, &init, 1 << 20);
    let mut feed = Feed(bytes);
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
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), SECRET);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
}

fn body(feed: &mut Feed<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..feed.byte() % 14 {
        match feed.byte() % 8 {
            0..3 => body.extend(u64::from(feed.byte() % 8).to_le_bytes()),
            3 => body.extend(u32::from(feed.byte()).to_le_bytes()),
            4 => body.extend(feed.number().to_le_bytes()),
            5 => body.extend((feed.number() as u32).to_le_bytes()),
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
    assert!(answer.len() <= room, "message {kind}");
    if let Some(length) = answer.first_chunk() {
        assert_eq!(u32::from_le_bytes(*length) as usize, answer.len(), "message {kind}");
        assert_eq!(answer[8..16], 77u64.to_le_bytes(), "message {kind}");
        let error = i32::from_le_bytes([answer[4], answer[5], answer[6], answer[7]]);
        assert!((-4095..=0).contains(&error) && (error == 0 || answer.len() == 16), "message {kind}");
    }
    assert!(!answer.windows(SECRET.len()).any(|window| window == SECRET), "message {kind} read the secret");
}
