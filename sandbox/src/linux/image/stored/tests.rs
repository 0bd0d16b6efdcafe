//! What an image depends on; the images themselves are tested in the rig (`tests/linux_engine.rs`).

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::linux::guest::Command;
use crate::linux::virtio::testing::golden;
use crate::share::{Access, Share};

fn known(root: &Path, read_only: bool, paths: &[&str]) -> Vec<Known> {
    let share = Arc::new(Share::open_dir(root, Access::ReadOnly).unwrap());
    let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    vec![Known { device: 2, share, read_only, paths }]
}

#[test]
fn every_change_of_a_file_that_the_guest_knows_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("dir")).unwrap();
    for name in ["changed", "longer", "replaced", "gone", "dir/same"] {
        std::fs::write(at(name), "content").unwrap();
    }
    std::os::unix::fs::symlink("old", at("link")).unwrap();
    let paths = ["", "changed", "dir", "dir/same", "gone", "link", "longer", "missing", "replaced"];
    let known = known(root.path(), true, &paths);
    let (then, changed) = look(&known, Some(now()));
    assert_eq!(changed, None, "what was there before is not late");
    assert_eq!(look(&known, None).0, then);
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().write(true).open(at("changed")).unwrap().set_modified(past).unwrap();
    std::fs::write(at("longer"), "more content").unwrap();
    std::fs::write(at("new"), "content").unwrap();
    std::fs::rename(at("new"), at("replaced")).unwrap();
    std::fs::remove_file(at("gone")).unwrap();
    std::fs::remove_file(at("link")).unwrap();
    std::os::unix::fs::symlink("new", at("link")).unwrap();
    std::fs::write(at("missing"), "").unwrap();
    std::fs::write(at("dir/other"), "").unwrap();
    let (now, _) = look(&known, None);
    let differ = then.0.iter().zip(&now.0).filter(|(then, now)| then != now);
    let differ: Vec<_> = differ.map(|((_, path, _), _)| String::from_utf8_lossy(path).into_owned()).collect();
    assert_eq!(differ, ["changed", "gone", "link", "longer", "missing", "replaced"]);
}

#[test]
fn what_changes_while_the_guest_boots_is_late_unless_the_guest_may_have_done_it() {
    let root = tempfile::tempdir().unwrap();
    let begun = now();
    let file = root.path().join("file");
    let changed = || {
        std::fs::write(&file, "").unwrap();
        crate::share::stat_fd(std::fs::File::open(&file).unwrap()).unwrap().ctime
    };
    while changed() <= begun {}
    for (read_only, late) in [(true, Some("file".to_owned())), (false, None)] {
        assert_eq!(look(&known(root.path(), read_only, &["", "file"]), Some(begun)).1, late);
    }
}

#[test]
fn the_key_tells_everything_apart_that_a_guest_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["kernel", "modules"] {
        std::fs::write(at(name), name).unwrap();
    }
    for name in ["one", "two"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let template = || Template {
        guest: GuestConfig {
            kernel: Kernel { image: at("kernel"), modules: None },
            memory_bytes: 64 << 20,
            vcpus: 1,
            root: Root::Layers(vec![at("one")]),
            directories: vec![Directory { source: at("one"), target: "/d".into(), read_only: true }],
            hostname: "a".into(),
            machine_id: None,
            network: None,
            balloon: false,
            patience: Duration::ZERO,
        },
        command: Command { args: vec!["x".into()], env: Vec::new(), ..Command::default() },
        patience: Duration::ZERO,
    };
    let artifact = Digest::of(b"artifact");
    let first = key(&template(), &artifact).unwrap();
    assert_eq!(key(&template(), &artifact).unwrap(), first);
    let changes: [&dyn Fn(&mut Template); 11] = [
        &|t| t.guest.kernel.image = at("modules"),
        &|t| t.guest.kernel.modules = Some(at("modules")),
        &|t| t.guest.memory_bytes += 4096,
        &|t| t.guest.vcpus = 2,
        &|t| t.guest.root = Root::Layers(vec![at("two")]),
        &|t| t.guest.root = Root::Writable(at("one")),
        &|t| t.guest.directories[0].read_only = false,
        &|t| t.guest.directories[0].source = at("two"),
        &|t| t.guest.hostname = "b".into(),
        &|t| t.command.args.push(String::new()),
        &|t| t.command.env.push(("A".into(), "1".into())),
    ];
    let mut keys = vec![first, key(&template(), &Digest::of(b"another")).unwrap()];
    for change in changes {
        let mut template = template();
        change(&mut template);
        keys.push(key(&template, &artifact).unwrap());
    }
    std::fs::write(at("kernel"), "another kernel").unwrap();
    keys.push(key(&template(), &artifact).unwrap());
    std::fs::rename(at("one"), at("three")).unwrap();
    std::fs::create_dir(at("one")).unwrap();
    keys.push(key(&template(), &artifact).unwrap());
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
    std::fs::remove_file(at("kernel")).unwrap();
    key(&template(), &artifact).unwrap_err();
}

#[test]
fn dependencies_are_written_as_they_always_were() {
    let stamp = Stamp {
        id: Identity { dev: 1, ino: 2 },
        mode: 0o100_644,
        size: 3,
        modified: Time { seconds: 4, nanos: 5 },
    };
    golden(
        &Dependencies(vec![(2, b"a/b".to_vec(), Some(stamp)), (3, Vec::new(), None)]),
        "linux-dependencies 1 020203612f62010102a48302030805030000",
    );
}
