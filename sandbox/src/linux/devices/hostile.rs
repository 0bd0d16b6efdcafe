//! What the drivers of file servers (p9/driver.rs, fs/driver.rs) have in common: a share with a secret beside it, which no
//! sequence of messages may read or change.

use std::path::Path;
use std::sync::Arc;

use crate::share::{Access, Share};

/// Names that messages use.
pub(super) const NAMES: [&[u8]; 8] = [b"f", b"out", b"..", b".", b"d", b"new", b"../outside", b""];
/// Most messages of one sequence.
pub(super) const MOST_MESSAGES: usize = 60;
const SECRET: &[u8] = b"novum's secret outside of the share";

/// Has `serve` serve a share below `dir`, which must be empty: a plain one, or the upper layer of an overlay where it is
/// asked for and can be had.
///
/// # Panics
/// Where something outside of the share is another afterwards.
pub(super) fn beside_a_secret(dir: &Path, upper: bool, serve: impl FnOnce(Arc<Share>)) {
    let (share, outside) = (dir.join("share"), dir.join("outside"));
    std::fs::create_dir_all(share.join("d")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(share.join("f"), "inside").unwrap();
    std::fs::write(outside.join("secret"), SECRET).unwrap();
    std::os::unix::fs::symlink("../outside/secret", share.join("out")).unwrap();
    let plain = || Share::open_dir(&share, Access::ReadWrite).unwrap();
    let opened = if upper { Share::open_upper(&share).unwrap_or_else(|_| plain()) } else { plain() };
    serve(Arc::new(opened));
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), SECRET);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
    let mut names = [0u8; 256];
    // A file system without attributes has none to lose.
    let count = rustix::fs::listxattr(outside.join("secret"), &mut names[..]).unwrap_or(0);
    assert!(!names[..count].starts_with(b"user."), "it has got an attribute");
}

/// Asserts what goes for every reply: it fits, and does not hold the secret.
pub(super) fn check_reply(reply: &[u8], room: usize, kind: u32) {
    assert!(reply.len() <= room, "message {kind}");
    if let Some(size) = reply.first_chunk() {
        assert_eq!(u32::from_le_bytes(*size) as usize, reply.len(), "message {kind}");
    }
    assert!(!reply.windows(SECRET.len()).any(|window| window == SECRET), "message {kind} read the secret");
}
