//! Bytes as requests to a private disk and to a writable one: the one leaves its file alone, the other keeps its length.
//! Both the property test and the fuzz target (`sandbox/fuzz`) use it.

use std::path::Path;

use super::request::Requests;
use super::{Block, DiskAccess, SECTOR};
use crate::linux::virtio::driver::{self, Feed};

const SECTORS: u64 = 300;

/// Serves what `bytes` stand for to disks in `dir`.
///
/// # Panics
/// Where a request panics, or changes what it must not.
pub(crate) fn serve(bytes: &[u8], dir: &Path) {
    let path = dir.join("disk");
    let before: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / 7) as u8).collect();
    for access in [DiskAccess::Private { folder: None }, DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
        std::fs::write(&path, &before).unwrap();
        let writable = access == DiskAccess::ReadWrite;
        let block = Block::open(&path, access, "disk").unwrap();
        let mut requests = Requests::new(block.0.clone(), bytes.len().is_multiple_of(2));
        driver::serve(bytes, &mut requests, header);
        assert_eq!(block.size_bytes(), SECTORS * SECTOR);
        let after = std::fs::read(&path).unwrap();
        assert!(if writable { after.len() == before.len() } else { after == before });
    }
}

/// struct virtio_blk_req without its data, mostly of a kind and at a place that are there.
fn header(feed: &mut Feed<'_>) -> Vec<u8> {
    let kind = match feed.byte() {
        any @ 0..32 => any.into(),
        other => [0u32, 1, 1, 4, 8, 11, 13, 13][usize::from(other % 8)],
    };
    [&kind.to_le_bytes()[..], &[0; 4], &feed.number().to_le_bytes()].concat()
}
