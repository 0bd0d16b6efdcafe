use std::fs as host;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::*;

const ALL: [Links; 3] = [Links::Refuse, Links::Beneath, Links::InRoot];

/// A share `share/` beside a secret that no path of it may reach.
fn shared(access: Access) -> (tempfile::TempDir, Share) {
    let dir = tempfile::tempdir().unwrap();
    host::create_dir_all(dir.path().join("share/sub/deep")).unwrap();
    host::create_dir(dir.path().join("outside")).unwrap();
    host::write(dir.path().join("outside/secret"), "SECRET").unwrap();
    host::write(dir.path().join("share/file"), "inside").unwrap();
    host::write(dir.path().join("share/sub/file"), "inside").unwrap();
    let share = Share::open_dir(&dir.path().join("share"), access).unwrap();
    (dir, share)
}

fn read(file: &OpenFile) -> Vec<u8> {
    let mut buffer = vec![0; 64];
    let n = rustix::io::pread(file.fd(), &mut buffer, 0).unwrap();
    buffer.truncate(n);
    buffer
}

fn open(share: &Share, path: &[u8], links: Links) -> Result<OpenFile, Errno> {
    share.open(path, links, OFlags::RDONLY, 0)
}

#[test]
fn no_path_reads_outside() {
    let (dir, share) = shared(Access::ReadWrite);
    let root = dir.path().join("share");
    let secret = dir.path().join("outside/secret");
    symlink(&secret, root.join("absolute")).unwrap();
    symlink("../outside/secret", root.join("relative")).unwrap();
    symlink("../../../../../../../../etc/passwd", root.join("sub/up")).unwrap();
    symlink(dir.path(), root.join("dir")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("/proc/self/cwd", root.join("cwd")).unwrap();
    let below = format!("dir{}", secret.display());
    let magic = format!("magic{}", secret.display());
    let dots = format!("{}{}", "../".repeat(64), &secret.display().to_string()[1..]);
    let paths = [
        "absolute",
        "relative",
        "sub/up",
        "dir/outside/secret",
        &below,
        &magic,
        "magic/etc/passwd",
        "cwd/Cargo.toml",
        "../outside/secret",
        "sub/../../outside/secret",
        &dots,
        "/proc/self/environ",
        "/etc/passwd",
        "sub/deep/../../../outside/secret",
    ];
    for path in paths {
        for links in ALL {
            match open(&share, path.as_bytes(), links) {
                Ok(file) => panic!("{path} with {links:?} read {:?}", String::from_utf8_lossy(&read(&file))),
                Err(e) => assert!(
                    matches!(e, Errno::ACCESS | Errno::NOENT | Errno::LOOP | Errno::NOTDIR),
                    "{path} {links:?}: {e}"
                ),
            }
        }
    }
}

#[test]
fn writes_through_links_do_not_reach_outside() {
    let (dir, share) = shared(Access::ReadWrite);
    let root = dir.path().join("share");
    symlink(dir.path().join("outside"), root.join("dir")).unwrap();
    symlink(dir.path().join("outside/new"), root.join("new")).unwrap();
    for links in ALL {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        assert!(share.open(b"new", links, flags, 0o644).is_err());
        assert!(share.open(b"dir/made", links, flags, 0o644).is_err());
        assert!(share.make_dir(b"dir/made", links, 0o755).is_err());
        assert!(share.remove(b"dir/secret", links, false).is_err());
        assert!(share.rename(b"file", b"dir/file", links, RenameFlags::empty()).is_err());
        assert!(share.link(b"file", b"dir/file", links).is_err());
        assert!(share.symlink(b"x", b"dir/link", links).is_err());
        assert!(share.truncate(b"dir/secret", links, 0).is_err());
        assert!(share.chmod(b"dir/secret", links, true, 0o777).is_err());
    }
    let names: Vec<_> = host::read_dir(dir.path().join("outside")).unwrap().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(host::read(dir.path().join("outside/secret")).unwrap(), b"SECRET");
}

#[test]
fn absolute_links_resolve_within_the_root_where_it_is_the_root() {
    let (dir, share) = shared(Access::ReadOnly);
    symlink("/sub/file", dir.path().join("share/link")).unwrap();
    assert_eq!(read(&open(&share, b"/link", Links::InRoot).unwrap()), b"inside");
    assert_eq!(open(&share, b"link", Links::Beneath).unwrap_err(), Errno::ACCESS);
    assert_eq!(open(&share, b"link", Links::Refuse).unwrap_err(), Errno::LOOP);
    assert_eq!(share.read_link(b"link", Links::Refuse).unwrap(), b"/sub/file");
    assert_eq!(share.read_link(b"file", Links::Refuse).unwrap_err(), Errno::INVAL);
}

#[test]
fn fifos_sockets_and_devices_are_seen_but_not_opened() {
    let (dir, share) = shared(Access::ReadWrite);
    let root = rustix::fs::open(dir.path().join("share"), OFlags::PATH, Mode::empty()).unwrap();
    rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("share/socket")).unwrap();
    let mut names: Vec<(&[u8], FileType)> = vec![(b"fifo", FileType::Fifo), (b"socket", FileType::Socket)];
    // Only root may make one.
    let device = rustix::fs::makedev(1, 3);
    if rustix::fs::mknodat(&root, "device", FileType::CharacterDevice, Mode::RWXU, device).is_ok() {
        names.push((b"device", FileType::CharacterDevice));
    }
    for (name, kind) in names {
        assert_eq!(share.stat(name, Links::Refuse, false).unwrap().kind(), kind);
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::CREATE] {
            let refused = share.open(name, Links::Refuse, flags, 0o600).unwrap_err();
            assert!(matches!(refused, Errno::ACCESS | Errno::NXIO), "{kind:?}: {refused}");
        }
        assert!(share.truncate(name, Links::Refuse, 0).is_err());
    }
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let (_dir, share) = shared(Access::ReadOnly);
    let l = Links::Refuse;
    assert_eq!(share.open(b"file", l, OFlags::RDWR, 0).unwrap_err(), Errno::ROFS);
    assert_eq!(share.open(b"file", l, OFlags::TRUNC, 0).unwrap_err(), Errno::ROFS);
    assert_eq!(share.open(b"new", l, OFlags::CREATE | OFlags::RDWR, 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(share.open_unnamed(b"", l, OFlags::RDWR, 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(share.make_dir(b"new", l, 0o700), Err(Errno::ROFS));
    assert_eq!(share.remove(b"file", l, false), Err(Errno::ROFS));
    assert_eq!(share.rename(b"file", b"new", l, RenameFlags::empty()), Err(Errno::ROFS));
    assert_eq!(share.link(b"file", b"new", l), Err(Errno::ROFS));
    assert_eq!(share.symlink(b"x", b"new", l), Err(Errno::ROFS));
    assert_eq!(share.chmod(b"file", l, true, 0o600), Err(Errno::ROFS));
    assert_eq!(share.chown(b"file", l, true, None, None), Err(Errno::ROFS));
    assert_eq!(share.set_times(b"file", l, true, SetTime::Now, SetTime::Now), Err(Errno::ROFS));
    assert_eq!(share.truncate(b"file", l, 0), Err(Errno::ROFS));
    assert!(share.open(b"file", l, OFlags::RDONLY | OFlags::CREATE, 0o600).is_ok());
}

#[test]
fn a_mount_point_is_the_end_of_the_share() {
    let share = Share::open_dir(Path::new("/"), Access::ReadOnly).unwrap();
    for links in ALL {
        assert_eq!(open(&share, b"proc/self/environ", links).unwrap_err(), Errno::ACCESS);
    }
}

#[test]
fn modes_are_exact_and_never_set_a_user() {
    let (dir, share) = shared(Access::ReadWrite);
    let l = Links::Refuse;
    share.open(b"new", l, OFlags::CREATE | OFlags::WRONLY, 0o6666).unwrap();
    share.make_dir(b"dir", l, 0o777).unwrap();
    let mode = |name: &str| host::metadata(dir.path().join("share").join(name)).unwrap().permissions().mode();
    assert_eq!(mode("new") & 0o7777, 0o666);
    assert_eq!(mode("dir") & 0o7777, 0o777);
    share.chmod(b"new", l, true, 0o6755).unwrap();
    assert_eq!(mode("new") & 0o7777, 0o755);
    let uid = share.stat(b"new", l, true).unwrap().uid;
    assert_eq!(share.chown(b"new", l, true, Some(uid), None), Ok(()));
    assert_eq!(share.chown(b"new", l, true, Some(uid + 1), None), Err(Errno::PERM));
}

#[test]
fn times_and_lengths_are_set() {
    let (_dir, share) = shared(Access::ReadWrite);
    let l = Links::Refuse;
    let then = Time { seconds: 1_000_000, nanos: 5 };
    share.set_times(b"file", l, true, SetTime::Omit, SetTime::To(then)).unwrap();
    share.truncate(b"sub/file", l, 3).unwrap();
    assert_eq!(share.stat(b"file", l, true).unwrap().mtime, then);
    assert_eq!(share.stat(b"sub/file", l, true).unwrap().size, 3);
    assert_eq!(share.truncate(b"sub", l, 3), Err(Errno::ISDIR));
}

#[test]
fn an_open_file_is_opened_again_only_if_it_is_the_same() {
    let (dir, share) = shared(Access::ReadWrite);
    let file = share.open(b"file", Links::Refuse, OFlags::RDWR, 0).unwrap();
    let state = OpenState { path: b"file".to_vec(), flags: OFlags::RDWR.bits(), position: 3, id: file.id() };
    assert_eq!(share.reopen(&state).unwrap().id(), file.id());
    share.rename(b"file", b"moved", Links::Refuse, RenameFlags::empty()).unwrap();
    assert_eq!(share.reopen(&state).unwrap_err(), Errno::STALE);
    host::write(dir.path().join("share/file"), "other").unwrap();
    assert_eq!(share.reopen(&state).unwrap_err(), Errno::STALE);
}

#[test]
fn a_directory_is_read_in_pieces_by_cookie() {
    let (dir, share) = shared(Access::ReadWrite);
    for i in 0..300 {
        host::write(dir.path().join(format!("share/sub/f{i:03}")), "").unwrap();
    }
    let mut names = Vec::new();
    let mut cookie = 0;
    let mut open = share.open_dir_at(b"sub", Links::Refuse).unwrap();
    loop {
        let mut piece = 0;
        open.read(cookie, |entry| {
            if piece == 7 {
                return false;
            }
            piece += 1;
            cookie = entry.cookie;
            names.push(entry.name);
            true
        })
        .unwrap();
        if piece == 0 {
            break;
        }
        // What was listed may go; what was not yet listed still comes, once.
        if names.len() == 70 {
            for name in &names {
                let path = [b"sub/", name.as_slice()].concat();
                let _ = share.remove(&path, Links::Refuse, false);
            }
        }
    }
    names.sort();
    assert_eq!(names.len(), 302);
    names.dedup();
    assert_eq!(names.len(), 302);
}

#[test]
fn locks_of_two_open_files_exclude_each_other() {
    let (_dir, share) = shared(Access::ReadWrite);
    let one = share.open(b"file", Links::Refuse, OFlags::RDWR, 0).unwrap();
    let two = share.open(b"file", Links::Refuse, OFlags::RDWR, 0).unwrap();
    let lock = Lock { kind: LockKind::Write, start: 10, length: 5 };
    one.set_lock(lock).unwrap();
    assert_eq!(two.set_lock(lock), Err(Errno::AGAIN));
    assert_eq!(two.get_lock(lock).unwrap(), Some(lock));
    assert_eq!(two.set_lock(Lock { start: 15, ..lock }), Ok(()));
    one.set_lock(Lock { kind: LockKind::Unlock, ..lock }).unwrap();
    assert_eq!(two.set_lock(lock), Ok(()));
}

#[test]
fn a_directory_moved_out_during_the_walk_leads_nowhere_else() {
    let (dir, share) = shared(Access::ReadWrite);
    let root = dir.path().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mover = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = host::rename(root.join("share/sub/deep"), root.join("outside/deep"));
                let _ = host::rename(root.join("outside/deep"), root.join("share/sub/deep"));
            }
        }
    });
    for _ in 0..5_000 {
        for path in [&b"sub/deep/../secret"[..], b"sub/deep/../../outside/secret", b"sub/deep/../../secret"] {
            if let Ok(file) = open(&share, path, Links::Beneath) {
                assert_ne!(read(&file), b"SECRET");
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    mover.join().unwrap();
}

proptest! {
    #[test]
    fn random_paths_stay_inside(parts in prop::collection::vec(
        prop::sample::select(vec!["..", ".", "sub", "deep", "up", "abs", "root", "file", "outside", "secret", "", "etc"]),
        1..12,
    ), slash: bool) {
        let (dir, share) = shared(Access::ReadOnly);
        let root = dir.path().join("share");
        symlink("..", root.join("up")).unwrap();
        symlink(dir.path(), root.join("abs")).unwrap();
        symlink("/", root.join("sub/root")).unwrap();
        let path = format!("{}{}", if slash { "/" } else { "" }, parts.join("/"));
        for links in ALL {
            if let Ok(file) = open(&share, path.as_bytes(), links) {
                if file.attr_at_open().kind() == FileType::RegularFile {
                    prop_assert_eq!(read(&file), b"inside");
                } else {
                    let real = rustix::fs::readlink(
                        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.fd())), Vec::new()).unwrap();
                    prop_assert!(real.to_bytes().starts_with(root.as_os_str().as_encoded_bytes()));
                }
            }
        }
    }
}
