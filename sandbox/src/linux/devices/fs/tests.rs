//! The server as a guest's kernel speaks to it, and as a hostile one does.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::super::nodes::ROOT;
use super::*;

pub(super) fn server(access: Access) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    fs::write(folder.path().join("d/file"), "content").unwrap();
    let share = Arc::new(Share::open_dir(folder.path(), access).unwrap());
    let mut server = Server::new(share);
    let init = [7u32, 37, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat();
    let answer = ask(&mut server, 26, 0, &init).unwrap();
    assert_eq!(answer.len(), 64);
    (folder, server)
}

fn message(kind: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = ((40 + body.len()) as u32).to_le_bytes().to_vec();
    message.extend(kind.to_le_bytes());
    message.extend(77u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// The fields of the answer, or the error.
pub(super) fn ask(server: &mut Server, kind: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let answer = server.handle(&message(kind, node, body), 1 << 20);
    assert_eq!(u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize, answer.len());
    assert_eq!(answer[8..16], 77u64.to_le_bytes());
    match i32::from_le_bytes(answer[4..8].try_into().unwrap()) {
        0 => Ok(answer[16..].to_vec()),
        error => Err(Errno::from_raw_os_error(-error)),
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(super) fn look_up(server: &mut Server, node: u64, name: &str) -> Result<u64, Errno> {
    ask(server, 1, node, format!("{name}\0").as_bytes()).map(|answer| number(&answer, 0))
}

pub(super) fn open(server: &mut Server, node: u64, flags: u32) -> Result<u64, Errno> {
    ask(server, 14, node, &[flags, 0].map(u32::to_le_bytes).concat()).map(|answer| number(&answer, 0))
}

pub(super) fn read(server: &mut Server, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
    let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]].concat();
    ask(server, 15, 0, &body)
}

pub(super) fn write(server: &mut Server, handle: u64, offset: u64, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let size = (data.len() as u32).to_le_bytes();
    let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size, &[0; 20], data].concat();
    ask(server, 16, 0, &body)
}

pub(super) fn create(server: &mut Server, node: u64, name: &str) -> Result<(u64, u64), Errno> {
    let words = [libc::O_RDWR as u32, 0o644, 0, 0].map(u32::to_le_bytes).concat();
    let answer = ask(server, 35, node, &[&words[..], name.as_bytes(), b"\0"].concat())?;
    Ok((number(&answer, 0), number(&answer, 128)))
}

pub(super) fn size(server: &mut Server, node: u64) -> Result<u64, Errno> {
    ask(server, 3, node, &[0; 16]).map(|answer| number(&answer, 16 + 8))
}

#[test]
fn a_file_is_made_written_renamed_and_used_after_it_is_removed() {
    let (folder, mut server) = server(Access::ReadWrite);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let (node, handle) = create(&mut server, d, "new").unwrap();
    write(&mut server, handle, 3, b"abc").unwrap();
    assert_eq!(read(&mut server, handle, 0, 100).unwrap(), b"\0\0\0abc");
    let names = [&d.to_le_bytes()[..], b"new\0file\0"].concat();
    ask(&mut server, 12, d, &names).unwrap();
    assert_eq!(fs::read(folder.path().join("d/file")).unwrap(), b"\0\0\0abc");
    assert_eq!((look_up(&mut server, d, "file"), size(&mut server, node)), (Ok(node), Ok(6)));
    ask(&mut server, 10, d, b"file\0").unwrap();
    assert_eq!(look_up(&mut server, d, "file"), Err(Errno::NOENT));
    assert_eq!(size(&mut server, node), Ok(6), "it is still open");
    write(&mut server, handle, 6, b"d").unwrap();
    assert_eq!(size(&mut server, node), Ok(7));
    ask(&mut server, 18, node, &[&handle.to_le_bytes()[..], &[0; 16]].concat()).unwrap();
    assert_eq!(size(&mut server, node), Err(Errno::STALE));
    assert_eq!(read(&mut server, handle, 0, 1), Err(Errno::BADF));
}

#[test]
fn directories_move_with_what_the_guest_knows_below_them() {
    let (_folder, mut server) = server(Access::ReadWrite);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let file = look_up(&mut server, d, "file").unwrap();
    ask(&mut server, 12, ROOT, &[&ROOT.to_le_bytes()[..], b"d\0moved\0"].concat()).unwrap();
    assert_eq!(size(&mut server, file), Ok(7));
    assert_eq!(look_up(&mut server, ROOT, "moved"), Ok(d));
    let handle = open(&mut server, file, 0).unwrap();
    assert_eq!(read(&mut server, handle, 3, 100).unwrap(), b"tent");
}

#[test]
fn a_file_that_the_host_replaces_is_another_one() {
    let (folder, mut server) = server(Access::ReadWrite);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let before = look_up(&mut server, d, "file").unwrap();
    fs::write(folder.path().join("other"), "another").unwrap();
    fs::rename(folder.path().join("other"), folder.path().join("d/file")).unwrap();
    assert_eq!(size(&mut server, before), Err(Errno::STALE));
    assert_ne!(look_up(&mut server, d, "file").unwrap(), before);
}

#[test]
fn a_read_only_share_refuses_changes() {
    let (folder, mut server) = server(Access::ReadOnly);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let file = look_up(&mut server, d, "file").unwrap();
    assert_eq!(create(&mut server, d, "new"), Err(Errno::ROFS));
    assert_eq!(open(&mut server, file, libc::O_RDWR as u32), Err(Errno::ROFS));
    assert_eq!(ask(&mut server, 10, d, b"file\0"), Err(Errno::ROFS));
    assert_eq!(ask(&mut server, 9, d, b"\0\0\0\0\0\0\0\0new\0"), Err(Errno::ROFS));
    let mut truncate = vec![0; 88];
    truncate[0] = 8;
    assert_eq!(ask(&mut server, 4, file, &truncate), Err(Errno::ROFS));
    let handle = open(&mut server, file, 0).unwrap();
    let allocate = [handle, 0, 1 << 20, 0].map(u64::to_le_bytes).concat();
    assert_eq!(ask(&mut server, 43, file, &allocate), Err(Errno::ROFS));
    assert_eq!(write(&mut server, handle, 0, b"x"), Err(Errno::BADF));
    // With the file open for reading too.
    assert_eq!(ask(&mut server, 4, file, &truncate), Err(Errno::ROFS));
    assert_eq!(fs::read_to_string(folder.path().join("d/file")).unwrap(), "content");
}

#[test]
fn a_directory_is_listed_once_in_pieces() {
    let (folder, mut server) = server(Access::ReadOnly);
    (0..300).for_each(|n| fs::write(folder.path().join(format!("d/{n:04}")), "").unwrap());
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let handle = number(&ask(&mut server, 27, d, &[0; 8]).unwrap(), 0);
    let (mut names, mut cookie) = (Vec::new(), 0u64);
    loop {
        let body =
            [&handle.to_le_bytes()[..], &cookie.to_le_bytes(), &500u32.to_le_bytes(), &[0; 20]].concat();
        let answer = ask(&mut server, 28, d, &body).unwrap();
        assert!(answer.len() <= 500);
        let mut at = 0;
        while at < answer.len() {
            let length = u32::from_le_bytes(answer[at + 16..at + 20].try_into().unwrap()) as usize;
            cookie = number(&answer, at + 8);
            names.push(String::from_utf8(answer[at + 24..at + 24 + length].to_vec()).unwrap());
            at += (24 + length).next_multiple_of(8);
        }
        if answer.is_empty() {
            break;
        }
    }
    names.sort();
    assert_eq!(names.len(), 303);
    assert_eq!(names[..3], [".", "..", "0000"]);
    names.dedup();
    assert_eq!(names.len(), 303);
}

#[test]
fn what_is_forgotten_is_gone_and_the_root_stays() {
    let (_folder, mut server) = server(Access::ReadOnly);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    assert_eq!(look_up(&mut server, ROOT, "d"), Ok(d));
    assert_eq!(server.nodes.count(), 2);
    assert!(server.handle(&message(2, d, &1u64.to_le_bytes()), 100).is_empty());
    assert_eq!(server.nodes.count(), 2);
    let batch = [&2u64.to_le_bytes()[..], &[d, 9, ROOT, 9].map(u64::to_le_bytes).concat()].concat();
    assert!(server.handle(&message(42, 0, &batch), 100).is_empty());
    assert_eq!(server.nodes.count(), 1);
    assert_eq!(look_up(&mut server, d, "file"), Err(Errno::STALE));
    look_up(&mut server, ROOT, "d").unwrap();
}

#[test]
fn no_name_leaves_the_share() {
    let (folder, mut server) = server(Access::ReadWrite);
    std::os::unix::fs::symlink("/etc", folder.path().join("out")).unwrap();
    let out = look_up(&mut server, ROOT, "out").unwrap();
    for (node, name) in
        [(ROOT, ".."), (ROOT, "."), (ROOT, ""), (ROOT, "d/file"), (ROOT, "/etc"), (out, "passwd")]
    {
        assert!(look_up(&mut server, node, name).is_err(), "{name}");
        assert!(create(&mut server, node, name).is_err(), "{name}");
        let link = [name.as_bytes(), b"\0x\0"].concat();
        assert!(ask(&mut server, 6, node, &link).is_err(), "{name}");
    }
    assert!(open(&mut server, out, 0).is_err());
    assert_eq!(ask(&mut server, 5, out, &[]).unwrap(), b"/etc");
    let device = [libc::S_IFCHR | 0o666, 259, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(ask(&mut server, 8, ROOT, &[&device[..], b"null\0"].concat()), Err(Errno::PERM));
    assert!(!Path::new(&folder.path().join("null")).exists());
}

fn attribute(name: &str, value: &[u8]) -> Vec<u8> {
    let words = [value.len() as u32, 0].map(u32::to_le_bytes).concat();
    [&words[..], name.as_bytes(), b"\0", value].concat()
}

#[test]
fn an_upper_layer_has_attributes_whiteouts_and_owners() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::new(Arc::new(Share::open_upper(folder.path()).unwrap()));
    let (node, handle) = create(&mut server, ROOT, "file").unwrap();
    ask(&mut server, 21, node, &attribute("user.a", b"value")).unwrap();
    let get = |room: u32, name: &str| {
        [&[room, 0].map(u32::to_le_bytes).concat(), name.as_bytes(), &b"\0"[..]].concat()
    };
    assert_eq!(ask(&mut server, 22, node, &get(0, "user.a")).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&mut server, 22, node, &get(5, "user.a")).unwrap(), b"value");
    assert_eq!(ask(&mut server, 22, node, &get(4, "user.a")), Err(Errno::RANGE));
    assert_eq!(ask(&mut server, 22, node, &get(9, "security.capability")), Err(Errno::OPNOTSUPP));
    assert_eq!(ask(&mut server, 23, node, &[100u32, 0].map(u32::to_le_bytes).concat()).unwrap(), b"user.a\0");
    let lies = [&[9u32, 0].map(u32::to_le_bytes).concat()[..], b"user.b\0short"].concat();
    assert!(ask(&mut server, 21, node, &lies).is_err());
    let whiteout = [libc::S_IFCHR, 0, 0, 0].map(u32::to_le_bytes).concat();
    let made = ask(&mut server, 8, ROOT, &[&whiteout[..], b"gone\0"].concat()).unwrap();
    // Mode and device number of struct fuse_attr, behind struct fuse_entry_out.
    assert_eq!(
        (made[40 + 60..][..4].to_vec(), made[40 + 76..][..4].to_vec()),
        (vec![0, 0x20, 0, 0], vec![0; 4])
    );
    let device = [libc::S_IFCHR | 0o666, 259, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(ask(&mut server, 8, ROOT, &[&device[..], b"null\0"].concat()), Err(Errno::PERM));
    let block = [libc::S_IFBLK | 0o666, 0, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(ask(&mut server, 8, ROOT, &[&block[..], b"null\0"].concat()), Err(Errno::PERM));
    // The old name is a whiteout, the new one the file.
    let flags = libc::RENAME_WHITEOUT.to_le_bytes();
    let names = [&ROOT.to_le_bytes()[..], &flags, &[0; 4], b"file\0moved\0"].concat();
    ask(&mut server, 45, ROOT, &names).unwrap();
    assert_eq!(look_up(&mut server, ROOT, "moved"), Ok(node));
    assert_ne!(look_up(&mut server, ROOT, "file").unwrap(), node);
    // The attributes of what has no name any more.
    ask(&mut server, 10, ROOT, b"moved\0").unwrap();
    assert_eq!(ask(&mut server, 22, node, &get(5, "user.a")).unwrap(), b"value");
    ask(&mut server, 24, node, b"user.a\0").unwrap();
    assert_eq!(ask(&mut server, 22, node, &get(5, "user.a")), Err(Errno::NODATA));
    assert_eq!(read(&mut server, handle, 0, 1).unwrap(), b"");
    // Another user's file.
    let mut made = message(9, ROOT, &[&[0o750u32, 0].map(u32::to_le_bytes).concat()[..], b"d\0"].concat());
    made[24..32].copy_from_slice(&[1000u32, 1001].map(u32::to_le_bytes).concat());
    let answer = server.handle(&made, 1 << 20);
    assert_eq!(answer[16 + 40 + 68..][..8], [1000u32, 1001].map(u32::to_le_bytes).concat());
}

#[test]
fn a_share_that_is_no_upper_layer_has_no_attributes() {
    let (_folder, mut server) = server(Access::ReadWrite);
    assert_eq!(ask(&mut server, 21, ROOT, &attribute("user.a", b"value")), Err(Errno::NOSYS));
    assert_eq!(ask(&mut server, 23, ROOT, &[0; 8]), Err(Errno::NOSYS));
    let whiteout = [libc::S_IFCHR, 0, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(ask(&mut server, 8, ROOT, &[&whiteout[..], b"gone\0"].concat()), Err(Errno::PERM));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_message_panics(
        messages in proptest::collection::vec(
            (0u32..50, 0u64..6, proptest::collection::vec(prop_oneof![4 => Just(0u8), 2 => 0u8..5, 1 => any::<u8>()], 0..120), 0usize..300),
            1..30,
        )
    ) {
        let (folder, mut server) = server(Access::ReadWrite);
        for (kind, node, body, room) in messages {
            let answer = server.handle(&message(kind, node, &body), room);
            prop_assert!(answer.len() <= room);
            server.handle(&body, room);
        }
        prop_assert!(folder.path().exists());
    }

    #[test]
    fn no_sequence_of_messages_panics_or_gets_out(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
        crate::linux::devices::fs::driver::serve(&bytes, tempfile::tempdir().unwrap().path());
    }
}
