//! A reset leads back to the checkpoint, whatever was done since.

use std::fs as host;

use proptest::prelude::*;

use super::*;

fn rooted() -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    host::create_dir_all(dir.path().join("a/b")).unwrap();
    host::write(dir.path().join("a/file"), vec![1; 100]).unwrap();
    host::write(dir.path().join("a/b/large"), vec![2; 200_000]).unwrap();
    let files = files_with(Some(dir.path()), &[]);
    (dir, files)
}

/// Every file below `path` with what can be seen of it.
fn picture(files: &mut Files, path: &str, out: &mut Vec<String>) {
    let attr = files.stat(CWD, path.as_bytes(), End::Stay, false).unwrap();
    out.push(format!("{path} {:o} {} {} {:?} {}", attr.mode, attr.nlink, attr.size, attr.mtime, attr.id.ino));
    match attr.kind() {
        FileType::Directory => {
            for name in files.names(path).unwrap() {
                let top = path == "/" && ["proc", "dev", "sys"].contains(&name.as_str());
                if !top {
                    picture(files, &format!("{}/{name}", path.trim_end_matches('/')), out);
                }
            }
        }
        FileType::RegularFile => out.push(format!("{:?}", files.content(path).unwrap())),
        _ => out.push(format!("{:?}", files.read_link(CWD, path.as_bytes()).unwrap())),
    }
}

fn all(files: &mut Files) -> Vec<String> {
    let mut out = vec![format!("{:?}", files.private_bytes())];
    picture(files, "/", &mut out);
    out
}

#[test]
fn a_reset_brings_back_files_descriptors_and_directories() {
    let (_dir, mut files) = rooted();
    files.put_file("/tmp/kept", b"before").unwrap();
    files.make_dir(CWD, b"/work", 0o755).unwrap();
    files.change_dir(b"/work").unwrap();
    let fd = files.test_open("/a/b/large", libc::O_RDWR).unwrap();
    files.test_read(fd, 10).unwrap();
    let before = all(&mut files);
    files.checkpoint();
    files.put_file("/tmp/kept", b"secret of one request").unwrap();
    files.put_file("/tmp/new", b"secret of one request").unwrap();
    files.test_write(fd, b"overwritten").unwrap();
    files.rename((CWD, b"/a"), (CWD, b"/moved"), 0).unwrap();
    files.change_dir(b"/moved").unwrap();
    files.remove(CWD, b"/work", true).unwrap();
    files.set_umask(0);
    let other = files.test_open("/tmp/new", libc::O_RDONLY).unwrap();
    files.reset();
    assert_eq!(all(&mut files), before);
    assert_eq!(files.working_dir().unwrap(), b"/work");
    assert_eq!(files.set_umask(0o022), 0o022);
    assert_eq!(files.test_read(other, 1), Err(Errno::BADF.into()));
    assert_eq!(files.seek(fd, 0, libc::SEEK_CUR), Ok(10));
    assert_eq!(files.test_read(fd, 3).unwrap(), [2; 3]);
}

#[test]
fn a_reset_brings_back_large_files_written_in_place() {
    let (_dir, mut files) = rooted();
    files.put_file("/big", &vec![3; 300_000]).unwrap();
    files.checkpoint();
    for _ in 0..3 {
        let fd = files.test_open("/big", libc::O_RDWR).unwrap();
        files.test_write(fd, &[9; 1000]).unwrap();
        files.truncate_open(fd, 500).unwrap();
        files.reset();
        assert_eq!(files.content("/big").unwrap(), vec![3; 300_000]);
    }
}

#[test]
fn unlinked_open_files_come_back_with_their_content() {
    let mut files = empty();
    files.put_file("/gone", b"still here").unwrap();
    let fd = files.test_open("/gone", libc::O_RDWR).unwrap();
    files.remove(CWD, b"/gone", false).unwrap();
    files.checkpoint();
    files.test_write(fd, b"changed!!!").unwrap();
    files.close(fd).unwrap();
    files.put_file("/other", b"takes its place").unwrap();
    files.reset();
    assert_eq!(files.test_read(fd, 99).unwrap(), b"still here");
    assert_eq!(files.test_stat("/other"), Err(Errno::NOENT));
}

#[test]
fn pipes_and_counters_come_back_as_they_were() {
    let mut files = empty();
    let [read, write] = files.make_pipe(true, false).unwrap();
    let event = files.make_event(7, false, true, false).unwrap();
    files.test_write(write, b"kept").unwrap();
    files.checkpoint();
    files.test_read(read, 4).unwrap();
    files.test_write(write, b"secret").unwrap();
    files.test_read(event, 8).unwrap();
    files.close(write).unwrap();
    files.reset();
    assert_eq!(files.test_read(read, 99).unwrap(), b"kept");
    assert_eq!(files.test_read(event, 8).unwrap(), 7_u64.to_ne_bytes());
    assert_eq!(files.test_write(write, b"x"), Ok(1));
}

#[test]
fn host_files_keep_their_position_and_lose_their_locks() {
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("file"), "0123456789").unwrap();
    let mut files = files_with(None, &[(dir.path(), "/mnt", false)]);
    let fd = files.test_open("/mnt/file", libc::O_RDWR).unwrap();
    files.test_read(fd, 4).unwrap();
    files.checkpoint();
    files.flock(fd, Some(true), true).unwrap();
    files.test_read(fd, 4).unwrap();
    files.reset();
    assert_eq!(files.test_read(fd, 2).unwrap(), b"45");
    let mut other = files_with(None, &[(dir.path(), "/mnt", false)]);
    let rival = other.test_open("/mnt/file", libc::O_RDWR).unwrap();
    assert_eq!(other.flock(rival, Some(true), true), Ok(()));
}

#[test]
fn forks_have_their_own_locks_and_positions_in_a_share() {
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("file"), "0123456789").unwrap();
    let mut image = files_with(None, &[(dir.path(), "/mnt", false)]);
    assert_eq!(image.fork().err(), Some(Errno::INVAL));
    let fd = image.test_open("/mnt/file", libc::O_RDWR).unwrap();
    image.test_read(fd, 4).unwrap();
    image.checkpoint();
    let (mut one, mut two) = (image.fork().unwrap(), image.fork().unwrap());
    assert_eq!(one.flock(fd, Some(true), true), Ok(()));
    assert_eq!(two.flock(fd, Some(true), true), Err(Errno::AGAIN.into()));
    assert_eq!(one.test_read(fd, 2).unwrap(), b"45");
    assert_eq!(two.test_read(fd, 3).unwrap(), b"456");
    host::remove_file(dir.path().join("file")).unwrap();
    assert_eq!(image.fork().err(), Some(Errno::STALE));
}

#[derive(Clone, Debug)]
enum Change {
    Put(String, usize),
    Remove(String, bool),
    Rename(String, String, u32),
    MakeDir(String),
    Link(String, String),
    Symlink(String, String),
    Mode(String, u32),
    Truncate(String, u64),
    Look(String),
    Open(String),
    Unnamed,
}

fn change() -> impl Strategy<Value = Change> {
    let path = || {
        let names = prop::sample::select(vec!["a", "b", "file", "large", "tmp", "x", "y"]);
        prop::collection::vec(names, 1..4).prop_map(|names| format!("/{}", names.join("/")))
    };
    let size = || prop::sample::select(vec![0_usize, 10, 5000, 100_000]);
    prop_oneof![
        3 => (path(), size()).prop_map(|(p, n)| Change::Put(p, n)),
        3 => (path(), any::<bool>()).prop_map(|(p, d)| Change::Remove(p, d)),
        3 => (path(), path(), 0..3_u32).prop_map(|(a, b, f)| Change::Rename(a, b, f)),
        2 => path().prop_map(Change::MakeDir),
        1 => (path(), path()).prop_map(|(a, b)| Change::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Change::Symlink(a, b)),
        1 => (path(), 0..0o1000_u32).prop_map(|(p, m)| Change::Mode(p, m)),
        1 => (path(), size()).prop_map(|(p, n)| Change::Truncate(p, n as u64)),
        1 => path().prop_map(Change::Look),
        1 => path().prop_map(Change::Open),
        1 => Just(Change::Unnamed),
    ]
}

/// Makes one change; that it fails is as good.
fn make(files: &mut Files, change: &Change) {
    match change {
        Change::Put(path, n) => drop(files.put_file(path, &vec![7; *n])),
        Change::Remove(path, dir) => drop(files.remove(CWD, path.as_bytes(), *dir)),
        Change::Rename(a, b, flags) => drop(files.rename((CWD, a.as_bytes()), (CWD, b.as_bytes()), *flags)),
        Change::MakeDir(path) => drop(files.make_dir(CWD, path.as_bytes(), 0o755)),
        Change::Link(a, b) => drop(files.link((CWD, a.as_bytes()), (CWD, b.as_bytes()), false, false)),
        Change::Symlink(text, path) => drop(files.make_link(text.as_bytes(), CWD, path.as_bytes())),
        Change::Mode(path, mode) => {
            if let Ok(place) = files.find(CWD, path.as_bytes(), End::Follow, false) {
                let _ = files.change_mode(place, *mode);
            }
        }
        Change::Truncate(path, n) => drop(files.truncate(path.as_bytes(), *n as i64)),
        Change::Look(path) => drop(files.test_stat(path)),
        Change::Open(path) => drop(files.test_open(path, libc::O_RDWR)),
        Change::Unnamed => {
            if let Ok(fd) = files.make_memory_file(b"m", false) {
                let _ = files.test_write(fd, &[5; 70_000]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn forks_do_not_see_each_other(
        before in prop::collection::vec(change(), 0..20),
        mine in prop::collection::vec(change(), 1..25),
        theirs in prop::collection::vec(change(), 1..25),
    ) {
        let (_dir, mut image) = rooted();
        image.put_file("/tmp/big", &vec![4; 150_000]).unwrap();
        before.iter().for_each(|change| make(&mut image, change));
        let expected = all(&mut image);
        image.checkpoint();
        let (mut one, mut two) = (image.fork().unwrap(), image.fork().unwrap());
        prop_assert_eq!(all(&mut one), expected.clone());
        mine.iter().for_each(|change| make(&mut one, change));
        prop_assert_eq!(all(&mut two), expected.clone());
        let after = all(&mut one);
        theirs.iter().for_each(|change| make(&mut two, change));
        prop_assert_eq!(all(&mut one), after);
        prop_assert_eq!(all(&mut image), expected.clone());
        two.reset();
        prop_assert_eq!(all(&mut two), expected.clone());
        prop_assert_eq!(all(&mut image.fork().unwrap()), expected);
    }

    #[test]
    fn a_reset_undoes_any_changes(
        before in prop::collection::vec(change(), 0..20),
        rounds in prop::collection::vec(prop::collection::vec(change(), 1..25), 1..4),
    ) {
        let (_dir, mut files) = rooted();
        before.iter().for_each(|change| make(&mut files, change));
        let expected = all(&mut files);
        files.checkpoint();
        for round in rounds {
            round.iter().for_each(|change| make(&mut files, change));
            files.reset();
            prop_assert_eq!(all(&mut files), expected.clone());
        }
    }
}

#[test]
fn what_copies_share_counts_once_in_their_sum() {
    let (_dir, mut files) = rooted();
    files.put_file("/tmp/large", &vec![7; 1 << 20]).unwrap();
    files.put_file("/a/file", b"changed").unwrap();
    let alone = files.held_bytes();
    // Generated files count too, and are free for the program.
    assert!(alone >= files.private_bytes().0);
    let mut copies: Vec<_> = (0..3).map(|_| files.copy_layer().unwrap()).collect();
    let sum = |copies: &[Files]| files.held_bytes() + copies.iter().map(Files::held_bytes).sum::<u64>();
    // Each division loses less than four bytes.
    let about = |bytes: u64| bytes.saturating_sub(4096)..=bytes;
    assert!(about(alone).contains(&sum(&copies)), "{} of {alone}", sum(&copies));
    assert!(about(alone / 4).contains(&copies[0].held_bytes()));
    // What one of them writes is its own; what a copy leaves behind the others share.
    copies[0].put_file("/tmp/own", &vec![8; 2 << 20]).unwrap();
    assert!(copies[0].held_bytes() >= (2 << 20) + alone / 4 - 4096);
    copies.clear();
    assert_eq!(files.held_bytes(), alone);
}
