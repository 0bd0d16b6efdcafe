//! What a guest knows and has open outlives a snapshot, and what is not there any more is ESTALE.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::super::nodes::ROOT;
use super::super::state::Files;
use super::tests::{ask, create, look_up, open, read, server, size, write};
use super::*;
use crate::linux::virtio::StateError;
use crate::linux::virtio::testing::{OWNER, Saved};

fn save(server: &Server) -> Saved {
    Saved::new(|to| server.save(OWNER, to)).unwrap()
}

fn restore(saved: &Saved, folder: &Path, access: Access) -> Result<Server, StateError> {
    let mut server = Server::new(Arc::new(Share::open_dir(folder, access).unwrap()));
    server.restore(OWNER, &saved.snapshot)?;
    Ok(server)
}

#[test]
fn nodes_and_open_files_come_back() {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let (folder, mut server) = server(access);
        let d = look_up(&mut server, ROOT, "d").unwrap();
        let file = look_up(&mut server, d, "file").unwrap();
        let handle = open(&mut server, file, 0).unwrap();
        let mut server = restore(&save(&server), folder.path(), access).unwrap();
        assert_eq!(
            server.handles.values().filter(|handle| matches!(handle.opened, Opened::Asleep(_))).count(),
            usize::from(access == Access::ReadOnly)
        );
        assert_eq!((size(&mut server, file), look_up(&mut server, d, "file")), (Ok(7), Ok(file)));
        assert_eq!(read(&mut server, handle, 0, 100).unwrap(), b"content");
        assert_ne!(open(&mut server, file, 0).unwrap(), handle);
        let once_more = restore(&save(&server), folder.path(), access);
        assert_eq!(read(&mut once_more.unwrap(), handle, 3, 100).unwrap(), b"tent");
    }
}

#[test]
fn files_that_are_gone_or_others_are_stale() {
    let (folder, mut server) = server(Access::ReadWrite);
    let d = look_up(&mut server, ROOT, "d").unwrap();
    let (removed, unlinked) =
        (create(&mut server, d, "removed").unwrap(), create(&mut server, d, "unlinked").unwrap());
    let replaced = create(&mut server, d, "replaced").unwrap();
    write(&mut server, unlinked.1, 0, b"text").unwrap();
    ask(&mut server, 10, d, b"unlinked\0").unwrap();
    assert_eq!(read(&mut server, unlinked.1, 0, 9).unwrap(), b"text");
    let saved = save(&server);
    fs::remove_file(folder.path().join("d/removed")).unwrap();
    fs::write(folder.path().join("other"), "other").unwrap();
    fs::rename(folder.path().join("other"), folder.path().join("d/replaced")).unwrap();
    let mut clone = restore(&saved, folder.path(), Access::ReadWrite).unwrap();
    for (node, handle) in [removed, unlinked, replaced] {
        assert_eq!(read(&mut clone, handle, 0, 9), Err(Errno::STALE));
        assert_eq!(write(&mut clone, handle, 0, b"x"), Err(Errno::STALE));
        assert!(size(&mut clone, node).is_err());
        ask(&mut clone, 18, node, &[&handle.to_le_bytes()[..], &[0; 16]].concat()).unwrap();
    }
    assert_eq!(fs::read_to_string(folder.path().join("d/replaced")).unwrap(), "other");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_nodes_are_refused_or_harmless(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8), cut in any::<u8>()
    ) {
        let (folder, mut server) = server(Access::ReadWrite);
        let d = look_up(&mut server, ROOT, "d").unwrap();
        let file = look_up(&mut server, d, "file").unwrap();
        open(&mut server, file, 0).unwrap();
        let saved = save(&server).changed::<Files>(|bytes| {
            for (at, value) in &changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            if cut < 30 {
                bytes.truncate(cut.into());
            }
        });
        let Ok(mut server) = restore(&saved, folder.path(), Access::ReadWrite) else { return Ok(()) };
        for node in 0..6 {
            let _ = (size(&mut server, node), look_up(&mut server, node, "file"), open(&mut server, node, 0));
            let _ = read(&mut server, node, 0, 10);
            let _ = ask(&mut server, 12, node, &[&ROOT.to_le_bytes()[..], b"file\0moved\0"].concat());
            server.handle(&[&48u32.to_le_bytes()[..], &2u32.to_le_bytes(), &[0; 8], &node.to_le_bytes(), &[0; 16], &[1; 8]].concat(), 0);
        }
    }
}
