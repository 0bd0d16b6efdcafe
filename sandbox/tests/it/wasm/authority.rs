//! What a tenant can see of the host: its shares, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use novum_sandbox::{ExitStatus, Share};

use super::programs::program;
use super::{Bed, run};

/// Opens `path` (relative to the first share) with `oflags` and `rights`, writes to it or reads from it, and exits
/// with the errno of the first call that failed.
fn open(path: &str, oflags: u32, write: bool) -> String {
    let (rights, call) = if write { (64, "fd_write") } else { (2, "fd_read") };
    program(
        &format!(
            r#"(import "wasi_snapshot_preview1" "path_open"
                 (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
               (import "wasi_snapshot_preview1" "{call}" (func $use (param i32 i32 i32 i32) (result i32)))
               (data (i32.const 200) "{path}")"#
        ),
        &format!(
            "(local.set $a (call $open (i32.const 3) (i32.const 1) (i32.const 200) (i32.const {len})
               (i32.const {oflags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 400)))
             (if (local.get $a) (then (call $exit (local.get $a))))
             (i32.store (i32.const 0) (i32.const 1000))
             (i32.store (i32.const 4) (i32.const 6))
             (local.set $a (call $use (i32.load (i32.const 400)) (i32.const 0) (i32.const 1) (i32.const 8)))
             (if (local.get $a) (then (call $exit (local.get $a))))
             (call $say (i32.const 1) (i32.const 1000) (i32.const 6))",
            len = path.len()
        ),
    )
}

const CREATE: u32 = 1;
const NOENT: i32 = 44;
const PERM: i32 = 63;
const ROFS: i32 = 69;

async fn try_open(root: &Path, read_only: bool, program: String) -> (ExitStatus, String) {
    let bed = Bed::new();
    let share = Share { source: root.to_owned(), target: "/data".into(), read_only };
    let image = bed.image(program, |manifest| manifest.shares.push(share)).await.unwrap();
    let reply = run(&image, b"").await.unwrap();
    (reply.exit, String::from_utf8_lossy(&reply.output).into_owned())
}

/// `root/` is shared; `secret` beside it is not.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("root/sub")).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(dir.path().join("root/file"), "shared").unwrap();
    symlink("../secret", dir.path().join("root/up")).unwrap();
    symlink(dir.path().join("secret"), dir.path().join("root/absolute")).unwrap();
    symlink("..", dir.path().join("root/parent")).unwrap();
    symlink("/proc/self/root/etc/passwd", dir.path().join("root/magic")).unwrap();
    dir
}

#[tokio::test]
async fn a_shared_file_is_read() {
    let dir = tree();
    for path in ["file", "./file", "sub/../file"] {
        let got = try_open(&dir.path().join("root"), true, open(path, 0, false)).await;
        assert_eq!(got, (ExitStatus::Code(0), "shared".into()), "{path}");
    }
}

#[tokio::test]
async fn no_path_leads_out_of_a_share() {
    let dir = tree();
    let absolute = dir.path().join("secret");
    let paths = [
        "../secret",
        "sub/../../secret",
        "up",
        "absolute",
        "parent/secret",
        "magic",
        "/etc/passwd",
        absolute.to_str().unwrap(),
    ];
    for path in paths {
        for read_only in [true, false] {
            let (exit, output) = try_open(&dir.path().join("root"), read_only, open(path, 0, false)).await;
            assert!(matches!(exit, ExitStatus::Code(code) if code != 0), "{path}: {exit:?}");
            assert_eq!(output, "", "{path}");
        }
    }
}

#[tokio::test]
async fn a_writable_share_is_written_and_a_read_only_one_is_not() {
    let dir = tree();
    let root = dir.path().join("root");
    let (exit, _) = try_open(&root, false, open("new", CREATE, true)).await;
    assert_eq!(exit, ExitStatus::Code(0));
    assert_eq!(fs::read(root.join("new")).unwrap(), [0; 6]);
    for path in ["other", "file"] {
        let (exit, _) = try_open(&root, true, open(path, CREATE, true)).await;
        assert!(matches!(exit, ExitStatus::Code(PERM | ROFS)), "{exit:?}");
    }
    assert!(!root.join("other").exists());
    assert_eq!(fs::read(root.join("file")).unwrap(), b"shared");
}

#[tokio::test]
async fn nothing_is_created_outside_a_writable_share() {
    let dir = tree();
    for path in ["../new", "parent/new"] {
        let (exit, _) = try_open(&dir.path().join("root"), false, open(path, CREATE, true)).await;
        assert!(matches!(exit, ExitStatus::Code(code) if code != 0), "{path}: {exit:?}");
    }
    assert!(!dir.path().join("new").exists());
}

#[tokio::test]
async fn a_missing_file_is_reported_as_such() {
    let dir = tree();
    let (exit, _) = try_open(&dir.path().join("root"), true, open("none", 0, false)).await;
    assert_eq!(exit, ExitStatus::Code(NOENT));
}

#[tokio::test]
async fn without_a_share_there_is_no_directory() {
    let reply = Bed::new().call(open("file", 0, false), b"").await.unwrap();
    assert_eq!(reply.exit, ExitStatus::Code(8), "EBADF: descriptor 3 does not exist");
}

#[tokio::test]
async fn a_share_that_does_not_exist_is_refused_at_deployment() {
    let bed = Bed::new();
    let share = Share { source: "/nonexistent/novum".into(), target: "/data".into(), read_only: true };
    match bed.image(super::programs::ECHO, |manifest| manifest.shares.push(share)).await.map(drop) {
        Err(novum_sandbox::Error::Manifest { field, .. }) => assert_eq!(field, "share[0].source"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sockets_cannot_be_had() {
    let sock = program(
        r#"(import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))"#,
        "(call $exit (call $accept (i32.const 3) (i32.const 0) (i32.const 100)))",
    );
    let reply = Bed::new().call(sock, b"").await.unwrap();
    assert!(matches!(reply.exit, ExitStatus::Code(code) if code != 0), "{:?}", reply.exit);
}
