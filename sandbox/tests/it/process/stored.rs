//! Images in a store: found again by another engine, or refused and taken anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use novum_sandbox::{Image, Renewal, Sandbox, Share, kept};
use novum_snapshot::{Digest, Snapshot, Store};

use super::images::text;
use super::{Run, compile, has_kvm, has_program};

/// A program, and a store in which gateways that come one after the other keep its image.
struct Kept {
    dir: tempfile::TempDir,
    program: PathBuf,
    run: Run,
}

impl Kept {
    fn new(source: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("share")).unwrap();
        std::fs::write(dir.path().join("share/file"), "a shared file").unwrap();
        let program = compile(dir.path(), source, &["-pthread"]);
        let mut run = Run::new().with_libraries().args(args);
        let (source, target) = (dir.path().join("share"), "/share".to_owned());
        run.manifest.shares.push(Share { source, target, read_only: true });
        Self { dir, program, run }
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path().join("store")).unwrap()
    }

    /// The image, without what was learnt of it.
    fn digest(&self) -> Option<Digest> {
        let name = kept::reference(novum_sandbox::EngineKind::Process, &self.run.manifest.name, 1);
        let kept = self.store().get_ref(&name).unwrap()?;
        let parent = Snapshot::open(&self.store(), &kept).ok().and_then(|snapshot| snapshot.parent());
        Some(parent.unwrap_or(kept))
    }

    /// Until what the first run stored into is kept, which happens on a thread of the engine's.
    fn wait_for_working_set(&self) {
        let name = kept::reference(novum_sandbox::EngineKind::Process, &self.run.manifest.name, 1);
        let is_kept = || {
            let top = self.store().get_ref(&name).unwrap().expect("an image is kept");
            Snapshot::open(&self.store(), &top).is_ok_and(|snapshot| snapshot.parent().is_some())
        };
        let began = std::time::Instant::now();
        while !is_kept() {
            assert!(began.elapsed().as_secs() < 60, "the working set is kept");
            std::thread::yield_now();
        }
    }

    fn file(&self) -> PathBuf {
        self.store().path(&self.digest().expect("an image is kept"))
    }

    async fn prepare(&self) -> Arc<dyn Image> {
        let image = self.run.prepare_with(&self.program, Some(self.store())).await.unwrap();
        assert_eq!(image.renewal(), Renewal::Reset, "the program has an image");
        image
    }

    /// The reply to one call of a sandbox that a new engine starts, without the first line, and that line.
    async fn ask(&self) -> (String, String) {
        let image = self.prepare().await;
        let mut sandbox = image.start().await.unwrap();
        let reply = text(&mut sandbox, b"question").await;
        let again = text(&mut sandbox, b"question").await;
        assert_eq!(reply, again, "a reset leads back to the stored image");
        self.wait_for_working_set();
        let (nonce, rest) = reply.split_once('\n').unwrap();
        (nonce.to_owned(), rest.to_owned())
    }

    /// Writes `bytes` in the place of the image's file.
    fn damage(&self, spoil: impl FnOnce(&mut Vec<u8>)) {
        let path = self.file();
        let mut bytes = std::fs::read(&path).unwrap();
        spoil(&mut bytes);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

const EVERYTHING: &str = include_str!("stored.c");

const EXPECTED: &str = "line question fpu 1414 heap 42 large far
file 456 at 7
link 0123456789
big end mapped md
share shared file
status Name: zero 8
pipe piped
socket first
socket 2nd
epoll 1 77 event 5
timers 1 1
limit 100 200 signal 0 10
threads 36 waited 1 local 3
";

#[tokio::test]
async fn a_program_goes_on_from_a_stored_image_as_from_any_other() {
    if !has_kvm("a_program_goes_on_from_a_stored_image_as_from_any_other") {
        return;
    }
    let kept = Kept::new(EVERYTHING, &["/share/file"]);
    let (first, reply) = kept.ask().await;
    assert_eq!(reply, EXPECTED);
    let digest = kept.digest();
    let (second, reply) = kept.ask().await;
    assert_eq!((second, reply), (first, EXPECTED.to_owned()), "the program did not run again");
    assert_eq!(kept.digest(), digest);
    let mode = std::os::unix::fs::PermissionsExt::mode(&kept.file().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o400, "nobody else reads the image");
}

/// Prints random bytes before it reads.
const NONCE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
int main(int argc, char **argv) {
    unsigned long nonce;
    char line[100] = {0};
    getrandom(&nonce, sizeof nonce, 0);
    if (argc > 1) {
        int config = open(argv[1], O_RDONLY);
        read(config, line, 20);
        close(config);
    }
    printf("nonce %016lx\n%s\n", nonce, line);
    fflush(stdout);
    memset(line, 0, 100);
    if (read(0, line, 99) < 0) return 1;
    puts(line);
    return 0;
}
"#;

#[tokio::test]
async fn a_damaged_image_is_taken_anew() {
    if !has_kvm("a_damaged_image_is_taken_anew") {
        return;
    }
    let kept = Kept::new(NONCE, &[]);
    let (mut before, _) = kept.ask().await;
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [(&str, Spoil); 6] = [
        ("a page", |bytes| bytes[3 * 4096 + 5] ^= 1),
        ("a section", |bytes| *bytes.iter_mut().rev().nth(2000).unwrap() ^= 1),
        ("its end", |bytes| bytes.truncate(bytes.len() - 7)),
        ("its second half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("all of it", Vec::clear),
        ("its header", |bytes| bytes[30] ^= 1),
    ];
    for (what, spoil) in spoils {
        kept.damage(spoil);
        let (after, _) = kept.ask().await;
        assert_ne!(after, before, "{what} was damaged");
        Snapshot::open(&kept.store(), &kept.digest().unwrap()).unwrap().verify().unwrap();
        assert_eq!(kept.ask().await.0, after, "the new one is kept");
        before = after;
    }
    std::fs::remove_file(kept.file()).unwrap();
    assert_ne!(kept.ask().await.0, before);
}

#[tokio::test]
async fn a_file_that_changed_makes_the_image_useless() {
    if !has_kvm("a_file_that_changed_makes_the_image_useless") {
        return;
    }
    let kept = Kept::new(NONCE, &["/share/file"]);
    let (before, said) = kept.ask().await;
    assert_eq!(said, "a shared file\nquestion\n");
    assert_eq!(kept.ask().await.0, before);
    std::fs::write(kept.dir.path().join("share/file"), "another text").unwrap();
    let (after, said) = kept.ask().await;
    assert_eq!(said, "another text\nquestion\n", "the program has read it again");
    assert_ne!(after, before);
    assert_eq!(kept.ask().await.0, after);
}

#[tokio::test]
async fn an_image_of_another_manifest_is_not_used() {
    if !has_kvm("an_image_of_another_manifest_is_not_used") {
        return;
    }
    let mut kept = Kept::new(NONCE, &[]);
    let (before, _) = kept.ask().await;
    kept.run.manifest.env.insert("A".into(), "b".into());
    let (after, _) = kept.ask().await;
    assert_ne!(after, before);
    kept.run.manifest.timeout *= 2;
    assert_eq!(kept.ask().await.0, after, "the image does not depend on the time limit");
}

#[tokio::test]
async fn an_image_that_is_in_use_is_not_removed() {
    if !has_kvm("an_image_that_is_in_use_is_not_removed") {
        return;
    }
    let kept = Kept::new(NONCE, &[]);
    let image = kept.prepare().await;
    let (store, digest) = (kept.store(), kept.digest().unwrap());
    let name = &kept.run.manifest.name;
    kept::release(&store, novum_sandbox::EngineKind::Process, name, 1).unwrap();
    assert_eq!(kept.digest(), None);
    let everything = novum_snapshot::collect::Prune { unused_for: Some(Default::default()), max_bytes: None };
    assert_eq!(store.prune(&everything).unwrap().in_use, 1);
    let mut sandbox: Box<dyn Sandbox> = image.start().await.unwrap();
    assert!(text(&mut sandbox, b"x").await.starts_with("nonce"));
    drop(sandbox);
    // The sandbox's thread lets go of the image in its own time.
    while store.contains(&digest) {
        std::thread::yield_now();
        store.prune(&everything).unwrap();
    }
}

#[tokio::test]
async fn python_goes_on_from_a_stored_image() {
    if !has_program("python_goes_on_from_a_stored_image", "/usr/bin/python3") {
        return;
    }
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let script = "import json, os, sys, time; t = time.time_ns(); line = sys.stdin.readline(); \
                  print(t, json.dumps({'line': line, 'cwd': os.getcwd()}))";
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new().args(&["-I", "-c", script]).with_libraries();
    let mut replies = Vec::new();
    for _ in 0..2 {
        let store = Store::open(Path::new(dir.path())).unwrap();
        let image = run.prepare_with(&python, Some(store)).await.unwrap();
        let mut sandbox = image.start().await.unwrap();
        replies.push(text(&mut sandbox, b"hello\n").await);
    }
    assert!(replies[0].contains(r#"{"line": "hello\n""#), "{}", replies[0]);
    assert_eq!(replies[0], replies[1], "the interpreter did not start again");
}
