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

#[test]
fn instances_in_instances_are_looked_at_once() {
    const LEVELS: usize = 5;
    const EACH: usize = 100;
    let mut files = empty();
    let levels: Vec<Vec<i32>> =
        (0..LEVELS).map(|_| (0..EACH).map(|_| files.make_epoll(false).unwrap()).collect()).collect();
    // From the top: with all below it, every connection would be looked for in all that is there.
    for pair in levels.windows(2) {
        for (&above, &below) in
            pair[0].iter().flat_map(|above| pair[1].iter().map(move |below| (above, below)))
        {
            files.epoll_control(above, libc::EPOLL_CTL_ADD, below, (libc::EPOLLIN as u32, 7)).unwrap();
        }
    }
    let event = files.make_event(0, false, true, false).unwrap();
    let last = levels[LEVELS - 1][EACH - 1];
    files.epoll_control(last, libc::EPOLL_CTL_ADD, event, (libc::EPOLLIN as u32, 7)).unwrap();
    assert_eq!(files.ready_fd(levels[1][0]).unwrap().events, 0);
    files.test_write(event, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(files.ready_fd(levels[1][0]).unwrap().events & libc::EPOLLIN as u32, libc::EPOLLIN as u32);
    assert_eq!(files.epoll_collect(levels[1][0], 1000).unwrap().0.len(), EACH);
    // A ring is still found.
    let ring = files.epoll_control(last, libc::EPOLL_CTL_ADD, levels[0][0], (libc::EPOLLIN as u32, 7));
    assert_eq!(ring, Err(Errno::LOOP));
}

#[test]
fn what_all_instances_watch_is_bounded() {
    let mut files = empty();
    let targets: Vec<i32> = (0..600).map(|_| files.make_event(0, false, true, false).unwrap()).collect();
    let added = (0..200).find_map(|_| {
        let epoll = files.make_epoll(false).unwrap();
        let mut add = |fd| files.epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, (libc::EPOLLIN as u32, 7));
        targets.iter().find_map(|&fd| add(fd).err())
    });
    assert_eq!(added, Some(Errno::NOSPC));
}

fn empty_file(files: &mut Files, n: usize) -> i32 {
    files.test_open(&format!("/tmp/{n}"), libc::O_RDWR | libc::O_CREAT).unwrap()
}

#[test]
fn small_files_that_were_mapped_take_descriptors_only_while_they_are() {
    let mut files = empty();
    for n in 0..5000 {
        let fd = empty_file(&mut files, n);
        files.map(fd, true, true).unwrap();
        files.close(fd).unwrap();
    }
    let mut held = Vec::new();
    let refused = (5000..7500).find_map(|n| {
        let fd = empty_file(&mut files, n);
        let mapped = files.map(fd, false, false).map(|mapping| held.push(mapping));
        files.close(fd).unwrap();
        mapped.err()
    });
    assert_eq!((refused, held.len()), (Some(Errno::NFILE), 2048));
    held.clear();
    let fd = files.test_open("/tmp/7", libc::O_RDWR).unwrap();
    files.test_write(fd, b"it is a file as before").unwrap();
    assert_eq!(files.content("/tmp/7").unwrap(), b"it is a file as before");
}

#[test]
fn listings_paths_and_pipes_take_only_so_much() {
    let mut files = empty();
    for n in 0..4000 {
        let fd = empty_file(&mut files, n);
        files.close(fd).unwrap();
    }
    let listed = (0..100).find_map(|_| {
        let fd = files.test_open("/tmp", libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        files.read_dir(fd, |_, _| false).err()
    });
    assert_eq!(listed, Some(Errno::NOMEM));
    let grown = (0..100).find_map(|_| {
        let [_, write] = files.make_pipe(true, false).unwrap();
        files.set_pipe_capacity(write, 1 << 20).err()
    });
    assert_eq!(grown, Some(Errno::PERM));
    let name = [b'd'; 250];
    for _ in 0..100 {
        files.make_dir(CWD, &name, 0o755).unwrap();
        files.change_dir(&name).unwrap();
    }
    assert_eq!(files.working_dir(), Err(Errno::NOENT));
    let fd = files.test_open("file", libc::O_RDWR | libc::O_CREAT).unwrap();
    files.test_write(fd, b"deep").unwrap();
    assert_eq!(files.content("file").unwrap(), b"deep");
}
