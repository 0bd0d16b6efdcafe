//! `novum snapshot`, run as a program on stores that the test fills.

use std::path::Path;
use std::process::{Command, Output};

use novum_snapshot::{Digest, Host, Layout, Region, Snapshot, Source, Store, Writer};
use serde_json::Value;

fn novum(store: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novum"));
    command.arg("snapshot").args(args).arg("--store").arg(store).output().unwrap()
}

fn json(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A base, and a diff over it that a reference keeps.
fn filled() -> (tempfile::TempDir, Store, [Digest; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut writer = Writer::base(&store, Host::new(["cpu.avx2"])).unwrap();
    let memory = vec![7; 64 << 10];
    writer.memory(&[Region::new(0, Source::Slice(&memory))], &Layout::default()).unwrap();
    let base = writer.publish().unwrap();
    let parent = Snapshot::open(&store, &base).unwrap();
    let writer = Writer::diff(&store, Host::new(["cpu.avx2"]), &parent).unwrap();
    let diff = writer.publish_as(&"process.hello".parse().unwrap()).unwrap();
    (dir, store, [base, diff])
}

#[test]
fn snapshots_are_listed_and_inspected() {
    let (dir, _, [base, diff]) = filled();
    let output = novum(dir.path(), &["ls"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("process.hello") && text.contains("(kept as a parent)"),
        "{text}"
    );
    let listed = &json(&novum(dir.path(), &["ls", "--json"]))[0];
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 2);
    let inspected = &json(&novum(dir.path(), &["inspect", "process.hello", "--json"]))[0];
    assert_eq!(inspected["digest"], diff.to_string());
    assert_eq!(inspected["layers"][1]["digest"], base.to_string());
    assert_eq!(inspected["host"]["features"][0], "cpu.avx2");
    let output = novum(dir.path(), &["inspect", "process.goodbye"]);
    assert_eq!(output.status.code(), Some(67));
}

#[test]
fn damage_is_found_and_reported() {
    let (dir, store, [base, diff]) = filled();
    let output = novum(dir.path(), &["verify", "--json"]);
    assert!(output.status.success() && json(&output).iter().all(|line| line["intact"] == true));
    let path = store.path(&base);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let output = novum(dir.path(), &["verify", "--json"]);
    assert_eq!(output.status.code(), Some(65));
    let damaged: Vec<_> = json(&output).into_iter().filter(|line| line["intact"] == false).collect();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0]["digest"], base.to_string());
    // Named, the diff is checked with what is below.
    let output = novum(dir.path(), &["verify", &diff.to_string()[..10]]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("damaged") && text.contains("checksum of data pages 0 to 16"), "{text}");
}

#[test]
fn references_and_leftovers_are_removed() {
    let (dir, store, [base, diff]) = filled();
    let output = novum(dir.path(), &["rm", &base.to_string()]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("is the parent of"));
    let pruned = &json(&novum(dir.path(), &["prune", "--json"]))[0];
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 0);
    let removed = &json(&novum(dir.path(), &["rm", "process.hello", "--json"]))[0];
    assert_eq!(removed["snapshot"], diff.to_string());
    assert!(
        json(&novum(dir.path(), &["prune", "--unused-for", "1h", "--json"]))[0]["removed"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let output = novum(dir.path(), &["prune"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("1 removed"));
    assert!(store.digests().unwrap().is_empty());
}

#[test]
fn looking_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    let output = novum(&path, &["ls"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no snapshot store at"));
    assert!(!path.exists());
}
