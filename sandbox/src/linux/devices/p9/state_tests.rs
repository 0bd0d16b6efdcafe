//! What a client has open outlives a snapshot, and what is not there any more is ESTALE.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::super::state::Fids;
use super::tests::{call, open, server, walk};
use super::*;
use crate::linux::devices::files::Kept;
use crate::linux::virtio::StateError;
use crate::linux::virtio::testing::{OWNER, Saved};
use crate::share::Access;

fn save(server: &Server) -> Saved {
    Saved::new(|to| server.save(OWNER, to)).unwrap()
}

fn restore(saved: &Saved, folder: &Path, access: Access) -> Result<Server, StateError> {
    let mut server = Server::new(Arc::new(Share::open_dir(folder, access).unwrap()));
    server.restore(OWNER, &saved.snapshot)?;
    Ok(server)
}

fn read(server: &mut Server, fid: u32) -> Result<Vec<u8>, Errno> {
    let read = call(server, 116, |m| {
        m.u32(fid);
        m.u64(1);
        m.u32(100);
    });
    read.map(|reply| reply[4..].to_vec())
}

fn write(server: &mut Server, fid: u32, text: &[u8]) -> Result<Vec<u8>, Errno> {
    call(server, 118, |m| {
        m.u32(fid);
        m.u64(0);
        m.u32(text.len() as u32);
        m.0.extend(text);
    })
}

fn lock(server: &mut Server, fid: u32, kind: u8) -> Result<u8, Errno> {
    let reply = call(server, 52, |m| {
        m.u32(fid);
        m.u8(kind);
        m.u32(0);
        m.u64(0);
        m.u64(10);
    });
    reply.map(|reply| reply[0])
}

/// Files `a`, `b`, `c`, `d/e`, open at fids 2 to 5, and the folder itself at 6.
fn opened(folder: &Path, access: Access) -> Server {
    fs::create_dir(folder.join("d")).unwrap();
    ["a", "b", "c", "d/e"]
        .into_iter()
        .for_each(|name| fs::write(folder.join(name), format!("={name}")).unwrap());
    let mut server = server(folder, access);
    let flags = if access == Access::ReadOnly { libc::O_RDONLY } else { libc::O_RDWR };
    for (fid, names) in
        [(2, vec![&b"a"[..]]), (3, vec![b"b"]), (4, vec![b"c"]), (5, vec![b"d", b"e"]), (6, vec![])]
    {
        walk(&mut server, 1, fid, &names).unwrap();
        open(&mut server, fid, if fid == 6 { 0 } else { flags as u32 }).unwrap();
    }
    server
}

#[test]
fn open_files_come_back_and_those_that_are_gone_or_others_are_stale() {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let folder = tempfile::tempdir().unwrap();
        let saved = save(&opened(folder.path(), access));
        fs::remove_file(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("new"), "=x").unwrap();
        fs::rename(folder.path().join("new"), folder.path().join("c")).unwrap();
        let mut server = restore(&saved, folder.path(), access).unwrap();
        assert_eq!(read(&mut server, 2).unwrap(), b"a");
        assert_eq!(read(&mut server, 5).unwrap(), b"d/e");
        let written = if access == Access::ReadOnly { Err(Errno::BADF) } else { Ok(b"\x01\0\0\0".to_vec()) };
        assert_eq!(write(&mut server, 2, b"+"), written);
        let list = call(&mut server, 40, |m| {
            m.u32(6);
            m.u64(0);
            m.u32(4000);
        });
        assert!(list.unwrap().len() > 100);
        for fid in [3, 4] {
            assert_eq!(read(&mut server, fid), Err(Errno::STALE));
            assert_eq!(write(&mut server, fid, b"+"), Err(Errno::STALE));
            assert_eq!(walk(&mut server, fid, 9, &[]), Err(Errno::STALE));
        }
        // A second snapshot has them as they are; then they can be closed, and their names are not touched.
        let mut server = restore(&save(&server), folder.path(), access).unwrap();
        assert_eq!((read(&mut server, 2).is_ok(), read(&mut server, 3)), (true, Err(Errno::STALE)));
        call(&mut server, 120, |m| m.u32(3)).unwrap();
        assert_eq!(call(&mut server, 122, |m| m.u32(4)), Err(Errno::STALE));
        assert_eq!(fs::read_to_string(folder.path().join("c")).unwrap(), "=x");
    }
}

#[test]
fn a_file_that_was_unlinked_while_it_was_open_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = opened(folder.path(), Access::ReadWrite);
    let unlink = |m: &mut Encoder| {
        m.u32(1);
        m.string(b"a");
        m.u32(0);
    };
    call(&mut server, 76, unlink).unwrap();
    assert_eq!(read(&mut server, 2).unwrap(), b"a", "it goes on in the guest that was saved");
    let mut clone = restore(&save(&server), folder.path(), Access::ReadWrite).unwrap();
    assert_eq!(read(&mut clone, 2), Err(Errno::STALE));
    assert_eq!(read(&mut clone, 3).unwrap(), b"b");
}

#[test]
fn locks_are_had_again_or_the_file_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = opened(folder.path(), Access::ReadWrite);
    assert_eq!(lock(&mut server, 2, 1), Ok(0));
    let saved = save(&server);
    // The guest that was saved still has it.
    let mut clone = restore(&saved, folder.path(), Access::ReadWrite).unwrap();
    assert_eq!(lock(&mut clone, 2, 1), Err(Errno::STALE));
    drop(server);
    let mut clone = restore(&saved, folder.path(), Access::ReadWrite).unwrap();
    let mut other = self::server(folder.path(), Access::ReadWrite);
    walk(&mut other, 1, 2, &[b"a"]).unwrap();
    open(&mut other, 2, libc::O_RDWR as u32).unwrap();
    assert_eq!(lock(&mut other, 2, 1), Ok(1), "the clone has the lock");
    assert_eq!(lock(&mut clone, 2, 2), Ok(0));
    assert_eq!(lock(&mut other, 2, 1), Ok(0));
}

#[test]
fn a_file_of_a_read_only_share_is_opened_when_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let saved = save(&opened(folder.path(), Access::ReadOnly));
    let mut server = restore(&saved, folder.path(), Access::ReadOnly).unwrap();
    let asleep = |server: &Server| {
        server.fids.values().filter(|fid| matches!(fid.opened, Some(Opened::Asleep(_)))).count()
    };
    assert_eq!(asleep(&server), 5);
    read(&mut server, 2).unwrap();
    assert_eq!(asleep(&server), 4);
    let again: Fids = save(&server).snapshot.take(OWNER).unwrap();
    assert!(again.fids.iter().all(|(number, _, kept)| *number == 1 || !matches!(kept, Some(Kept::Lost))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_fids_are_refused_or_harmless(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8), cut in any::<u8>()
    ) {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let mut server = opened(&share, Access::ReadWrite);
        lock(&mut server, 2, 0).unwrap();
        let saved = save(&server).changed::<Fids>(|bytes| {
            for (at, value) in &changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            if cut < 30 {
                bytes.truncate(cut.into());
            }
        });
        let Ok(mut server) = restore(&saved, &share, Access::ReadWrite) else { return Ok(()) };
        for fid in 0..10 {
            let _ = write(&mut server, fid, b"+");
            prop_assert_ne!(read(&mut server, fid), Ok(b"ecret".to_vec()));
            let _ = lock(&mut server, fid, 0);
        }
        prop_assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "secret");
    }
}
