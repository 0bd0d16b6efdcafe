//! What a program may do to the host by its files: only so much.

use super::*;
use crate::process::files::tree::{Body, Dir, Node, Tree};

#[test]
fn directories_within_each_other_take_no_stack() {
    const DEPTH: u64 = 40_000;
    let mut tree = Tree::new(None, DEPTH * 2048).unwrap();
    let mut at = NodeId::ROOT;
    for _ in 0..DEPTH {
        let node = Node::new(libc::S_IFDIR | 0o755, Body::Dir(Dir::new(at, b"d")));
        at = tree.create(at, b"d", node).unwrap();
    }
    tree.trim();
    assert_eq!(tree.live() as u64, DEPTH + 1);
}

#[test]
fn a_file_that_is_only_mapped_costs_what_it_cost() {
    let mut files = empty();
    let before = files.private_bytes().0;
    let fd = files.make_memory_file(b"m", false).unwrap();
    files.truncate_open(fd, 1 << 20).unwrap();
    for (shared, write) in [(true, true), (true, false), (false, false)] {
        let MapSource::File(mapping) = files.map(fd, shared, write).unwrap() else { panic!("a file") };
        let (copy, full) = (files.duplicate(fd, 0, false).unwrap(), files.private_bytes().0);
        files.close(copy).unwrap();
        assert_eq!(files.private_bytes().0, full);
        drop(mapping);
    }
    let MapSource::File(mapping) = files.map(fd, true, true).unwrap() else { panic!("a file") };
    files.close(fd).unwrap();
    assert!(files.private_bytes().0 >= before + (1 << 20));
    drop(mapping);
    assert_eq!(files.private_bytes().0, before);
}
