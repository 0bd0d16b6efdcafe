//! The server against its protocol, message by message.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::share::Access;

const ROOM: usize = 8192;

pub(super) fn server(folder: &Path, access: Access) -> Server {
    let mut server = Server::new(Arc::new(Share::open_dir(folder, access).unwrap()));
    let version = message(TVERSION, |m| {
        m.u32(1 << 20);
        m.string(VERSION);
    });
    let reply = server.handle(&version, ROOM);
    assert_eq!(&reply[HEADER..HEADER + 4], &(MAX_MESSAGE as u32).to_le_bytes());
    assert!(call(&mut server, 104, |m| [1, u32::MAX].into_iter().for_each(|word| m.u32(word))).is_ok());
    server
}

pub(super) fn message(kind: u8, fields: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut encoder = Encoder(vec![0; HEADER]);
    fields(&mut encoder);
    let size = (encoder.0.len() as u32).to_le_bytes();
    encoder.0[..4].copy_from_slice(&size);
    encoder.0[4] = kind;
    encoder.0
}

/// The reply's fields, or the error.
pub(super) fn call(
    server: &mut Server,
    kind: u8,
    fields: impl FnOnce(&mut Encoder),
) -> Result<Vec<u8>, Errno> {
    let reply = server.handle(&message(kind, fields), ROOM);
    assert_eq!(u32::from_le_bytes(reply[..4].try_into().unwrap()) as usize, reply.len());
    match reply[4] {
        RLERROR => Err(Errno::from_raw_os_error(i32::from_le_bytes(reply[HEADER..].try_into().unwrap()))),
        other => {
            assert_eq!(other, kind + 1);
            Ok(reply[HEADER..].to_vec())
        }
    }
}

pub(super) fn walk(server: &mut Server, from: u32, to: u32, names: &[&[u8]]) -> Result<usize, Errno> {
    let reply = call(server, 110, |m| {
        m.u32(from);
        m.u32(to);
        m.u16(names.len() as u16);
        names.iter().for_each(|name| m.string(name));
    })?;
    Ok(usize::from(u16::from_le_bytes([reply[0], reply[1]])))
}

pub(super) fn open(server: &mut Server, fid: u32, flags: u32) -> Result<Vec<u8>, Errno> {
    call(server, 12, |m| [fid, flags].into_iter().for_each(|word| m.u32(word)))
}

#[test]
fn a_file_is_created_written_renamed_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server(folder.path(), Access::ReadWrite);
    walk(&mut server, 1, 2, &[]).unwrap();
    call(&mut server, 14, |m| {
        m.u32(2);
        m.string(b"new");
        [libc::O_RDWR as u32, 0o640, 0].into_iter().for_each(|word| m.u32(word));
    })
    .unwrap();
    let written = call(&mut server, 118, |m| {
        m.u32(2);
        m.u64(3);
        m.u32(5);
        m.0.extend(b"hello");
    });
    assert_eq!(written.unwrap(), 5u32.to_le_bytes());
    call(&mut server, 74, |m| {
        m.u32(1);
        m.string(b"new");
        m.u32(1);
        m.string(b"old");
    })
    .unwrap();
    assert_eq!(fs::read(folder.path().join("old")).unwrap(), b"\0\0\0hello");
    let read = call(&mut server, 116, |m| {
        m.u32(2);
        m.u64(2);
        m.u32(100);
    });
    assert_eq!(read.unwrap(), b"\x06\0\0\0\0hello");
    let attr = call(&mut server, 24, |m| {
        m.u32(2);
        m.u64(u64::MAX);
    });
    let attr = attr.unwrap();
    assert_eq!(&attr[21..25], &0o100_640u32.to_le_bytes(), "mode");
    assert_eq!(&attr[49..57], &8u64.to_le_bytes(), "size");
}

#[test]
fn a_directory_is_listed_once_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    (0..50).for_each(|index| fs::write(folder.path().join(format!("file{index}")), "").unwrap());
    let mut server = server(folder.path(), Access::ReadOnly);
    walk(&mut server, 1, 2, &[]).unwrap();
    open(&mut server, 2, 0).unwrap();
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let reply = call(&mut server, 40, |m| {
            m.u32(2);
            m.u64(cookie);
            m.u32(200);
        });
        let reply = reply.unwrap();
        let mut entries = Decoder(&reply[4..]);
        if entries.0.is_empty() {
            break;
        }
        while !entries.0.is_empty() {
            entries.bytes(13).unwrap();
            cookie = entries.u64().unwrap();
            entries.u8().unwrap();
            names.push(String::from_utf8(entries.string().unwrap().to_vec()).unwrap());
        }
    }
    names.sort();
    let mut expected: Vec<String> = (0..50).map(|index| format!("file{index}")).collect();
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn no_walk_leaves_the_share() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    fs::write(folder.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink("../secret", folder.path().join("in/link")).unwrap();
    let mut server = server(&folder.path().join("in"), Access::ReadWrite);
    let root = walk(&mut server, 1, 2, &[b"..", b"..", b"link"]);
    assert_eq!(root, Ok(3), "above the root is the root");
    assert!(open(&mut server, 2, 0).is_err(), "a link is not followed");
    assert_eq!(walk(&mut server, 1, 3, &[b"../secret"]), Err(Errno::INVAL));
    assert_eq!(walk(&mut server, 1, 3, &[b"link", b"x"]), Ok(1), "the reply ends where the way does");
    assert!(open(&mut server, 3, 0).is_err(), "and there is no new fid");
}

#[test]
fn a_read_only_share_refuses_changes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "x").unwrap();
    let mut server = server(folder.path(), Access::ReadOnly);
    walk(&mut server, 1, 2, &[b"a"]).unwrap();
    assert_eq!(open(&mut server, 2, libc::O_WRONLY as u32), Err(Errno::ROFS));
    let remove = |m: &mut Encoder| {
        m.u32(1);
        m.string(b"a");
        m.u32(0);
    };
    assert_eq!(call(&mut server, 76, remove), Err(Errno::ROFS));
}

#[test]
fn an_unlinked_file_can_still_be_used() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "text").unwrap();
    let mut server = server(folder.path(), Access::ReadWrite);
    walk(&mut server, 1, 2, &[b"a"]).unwrap();
    open(&mut server, 2, libc::O_RDWR as u32).unwrap();
    fs::remove_file(folder.path().join("a")).unwrap();
    let attr = call(&mut server, 24, |m| {
        m.u32(2);
        m.u64(u64::MAX);
    });
    assert_eq!(&attr.unwrap()[49..57], &4u64.to_le_bytes());
}

#[test]
fn unknown_messages_and_fids_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server(folder.path(), Access::ReadWrite);
    assert_eq!(call(&mut server, 30, |m| m.u32(1)), Err(Errno::OPNOTSUPP));
    assert_eq!(call(&mut server, 120, |m| m.u32(77)), Err(Errno::BADF));
    assert_eq!(call(&mut server, 24, |m| m.u16(1)), Err(Errno::INVAL), "cut short");
    assert!(server.handle(&[1, 2, 3], ROOM).is_empty());
    assert!(server.handle(&message(120, |m| m.u32(77)), 5).is_empty(), "not even an error fits");
}

proptest! {
    #[test]
    fn no_message_panics(
        kind in prop_oneof![Just(0u8), 1u8..128], fields in proptest::collection::vec(any::<u8>(), 0..64), room in 0usize..300
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut server = server(folder.path(), Access::ReadOnly);
        let reply = server.handle(&message(kind, |m| m.0.extend(&fields)), room);
        prop_assert!(reply.len() <= room);
    }

    #[test]
    fn no_sequence_of_messages_panics_or_gets_out(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
        crate::linux::devices::p9::driver::serve(&bytes, tempfile::tempdir().unwrap().path());
    }
}
