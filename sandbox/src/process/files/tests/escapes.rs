//! Nothing that a program can name leads out of its root and its shares, and nothing there makes the VMM wait.

use std::fs as host;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, OFlags};

use super::*;

/// `root/` and `share/` beside a secret; both are full of traps.
fn trapped() -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for path in ["root/sub/deep", "share/sub/deep", "outside"] {
        host::create_dir_all(at(path)).unwrap();
    }
    host::write(at("outside/secret"), "SECRET").unwrap();
    for side in ["root", "share"] {
        let at = |path: &str| dir.path().join(side).join(path);
        host::write(at("file"), "inside").unwrap();
        symlink(dir.path().join("outside/secret"), at("absolute")).unwrap();
        symlink("../outside/secret", at("relative")).unwrap();
        symlink("../../../../../../../../../../etc/passwd", at("sub/up")).unwrap();
        symlink(dir.path(), at("dir")).unwrap();
        symlink("/proc/self/root", at("magic")).unwrap();
        symlink("/proc/1/cwd", at("cwd")).unwrap();
        symlink("/proc/self/fd/9", at("fd")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let folder = rustix::fs::open(dir.path().join(side), OFlags::PATH, Mode::empty()).unwrap();
        rustix::fs::mknodat(&folder, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
        // Only root may make one.
        let device = rustix::fs::makedev(1, 3);
        let _ = rustix::fs::mknodat(&folder, "device", FileType::CharacterDevice, Mode::RWXU, device);
    }
    let files = files_with(Some(&at("root")), &[(&at("share"), "/mnt", false)]);
    (dir, files)
}

#[test]
fn no_path_reads_outside() {
    let (dir, mut files) = trapped();
    let secret = dir.path().join("outside/secret").display().to_string();
    let names = [
        "absolute",
        "relative",
        "sub/up",
        "dir/outside/secret",
        "magic/etc/passwd",
        "cwd/etc/passwd",
        "fd",
        "../outside/secret",
        "../../../../../../../etc/passwd",
        "sub/../../outside/secret",
        "loop",
    ];
    for base in ["/", "/mnt/", "/mnt/sub/../", "/proc/self/root/", "/proc/self/cwd/mnt/"] {
        for name in names.iter().copied().chain([secret.as_str(), "etc/passwd", "proc/self/root/etc/passwd"])
        {
            let path = format!("{base}{name}");
            for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH] {
                if let Ok(fd) = files.test_open(&path, flags) {
                    let label = files.read_link(fd, b"").unwrap_or_default();
                    panic!("{path} opened {}", String::from_utf8_lossy(&label));
                }
            }
        }
    }
}

#[test]
fn no_path_writes_outside() {
    let (dir, mut files) = trapped();
    for base in ["/", "/mnt/"] {
        for name in ["absolute", "relative", "dir/outside/new", "sub/up"] {
            let path = format!("{base}{name}");
            let _ = files.put_file(&path, b"broken");
            let _ = files.truncate(path.as_bytes(), 0);
            let _ = files.remove(CWD, path.as_bytes(), false);
            let _ = files.make_dir(CWD, path.as_bytes(), 0o777);
            let _ = files.rename((CWD, format!("{base}file").as_bytes()), (CWD, path.as_bytes()), 0);
        }
    }
    assert_eq!(host::read(dir.path().join("outside/secret")).unwrap(), b"SECRET");
    assert_eq!(host::read_dir(dir.path().join("outside")).unwrap().count(), 1);
    assert_eq!(host::read(dir.path().join("root/file")).unwrap(), b"inside");
}

#[test]
fn fifos_and_devices_of_the_host_are_refused_at_once() {
    let (dir, mut files) = trapped();
    for base in ["/", "/mnt/"] {
        for name in ["fifo", "device"] {
            let path = format!("{base}{name}");
            if !dir.path().join("share").join(name).exists() {
                continue;
            }
            assert!(files.test_stat(&path).is_ok());
            for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_CREAT] {
                assert_eq!(files.test_open(&path, flags), Err(Errno::ACCESS), "{path}");
            }
            assert_eq!(files.truncate(path.as_bytes(), 0), Err(Errno::INVAL));
        }
    }
}

#[test]
fn links_are_resolved_in_the_sandbox_wherever_they_are_stored() {
    let (dir, mut files) = trapped();
    symlink("/file", dir.path().join("share/to-root")).unwrap();
    symlink("/mnt/sub", dir.path().join("root/to-share")).unwrap();
    host::write(dir.path().join("share/sub/here"), "through").unwrap();
    assert_eq!(files.content("/mnt/to-root").unwrap(), b"inside");
    assert_eq!(files.content("/to-share/here").unwrap(), b"through");
    assert_eq!(files.content("/to-share/../../file").unwrap(), b"inside");
    assert_eq!(files.content("/mnt/../mnt/sub/../../file").unwrap(), b"inside");
}

#[test]
fn a_chain_of_links_ends_at_forty() {
    let mut files = empty();
    files.put_file("/l0", b"end").unwrap();
    for i in 1..=41 {
        files.make_link(format!("l{}", i - 1).as_bytes(), CWD, format!("/l{i}").as_bytes()).unwrap();
    }
    assert_eq!(files.content("/l40").unwrap(), b"end");
    assert_eq!(files.content("/l41"), Err(Errno::LOOP));
}

#[test]
fn a_share_swapped_under_a_walk_still_leads_nowhere_else() {
    let (dir, mut files) = trapped();
    let base = dir.path().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let (real, link) = (base.join("share/sub/deep"), base.join("outside/deep"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = host::rename(&real, &link);
                let _ = symlink(base.join("outside"), &real);
                let _ = host::remove_file(&real);
                let _ = host::rename(&link, &real);
            }
        }
    });
    for _ in 0..5000 {
        for path in ["/mnt/sub/deep/secret", "/mnt/sub/deep/../../outside/secret", "/mnt/sub/deep/../secret"]
        {
            assert!(files.content(path).is_err());
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
}

#[test]
fn openat2_keeps_its_promises() {
    let (_dir, mut files) = trapped();
    let mnt = files.test_open("/mnt", libc::O_RDONLY).unwrap();
    let sub = files.test_open("/sub", libc::O_RDONLY).unwrap();
    let root = files.test_open("/", libc::O_RDONLY).unwrap();
    let mut open = |dir, path: &str, limits| files.open(dir, path.as_bytes(), 0, 0, limits);
    let beneath = Limits { beneath: true, ..Limits::default() };
    assert_eq!(open(sub, "../file", beneath), Err(Errno::XDEV));
    assert_eq!(open(sub, "/file", beneath), Err(Errno::XDEV));
    assert!(open(sub, "deep/..", beneath).is_ok());
    let in_root = Limits { in_root: true, ..Limits::default() };
    assert_eq!(open(sub, "../../file", in_root), Err(Errno::NOENT));
    assert!(open(mnt, "/../file", in_root).is_ok());
    let no_links = Limits { no_links: true, ..Limits::default() };
    assert_eq!(open(root, "dev/stdin", no_links), Err(Errno::LOOP));
    let no_magic = Limits { no_magic: true, ..Limits::default() };
    assert_eq!(open(root, "proc/self/cwd/file", no_magic), Err(Errno::LOOP));
    let no_crossing = Limits { no_crossing: true, ..Limits::default() };
    assert_eq!(open(root, "mnt/file", no_crossing), Err(Errno::XDEV));
    assert_eq!(open(mnt, "../file", no_crossing), Err(Errno::XDEV));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_paths_stay_inside(parts in prop::collection::vec(
        prop::sample::select(vec![
            "..", ".", "", "mnt", "sub", "deep", "dir", "magic", "cwd", "up", "absolute", "relative", "proc", "self",
            "root", "outside", "secret", "etc", "passwd", "fd", "0", "dev", "stdin", "file",
        ]),
        1..14,
    )) {
        let (_dir, mut files) = trapped();
        let path = format!("/{}", parts.join("/"));
        if let Ok(bytes) = files.content(&path) {
            prop_assert!(bytes == b"inside" || path.contains("proc") || bytes.is_empty(), "{}", path);
        }
    }
}
