//! Killing writers at any moment leaves no half snapshot. The killed process is this test binary itself.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use novum_snapshot::*;

const CHILD: &str = "NOVUM_SNAPSHOT_TEST_STORE";
const PUBLISHED: &str = "a snapshot is published";

/// Not a test of its own: what the processes to be killed run.
#[test]
fn endless_writer() {
    let Ok(root) = std::env::var(CHILD) else { return };
    let store = Store::open(root).unwrap();
    let memory: Vec<u8> = (0..200 * PAGE).map(|i| (i / 97) as u8).collect();
    let mut parent: Option<Snapshot> = None;
    loop {
        let mut writer = match parent.take().filter(|parent| parent.depth() < 3) {
            Some(parent) => Writer::diff(&store, host(), &parent).unwrap(),
            None => Writer::base(&store, host()).unwrap(),
        };
        writer.put("", &Name("n".repeat(3000))).unwrap();
        let region = Region { pages: Some(set(&[3, 5, 90])), ..region(0, &memory) };
        writer.memory(&[region], &Layout::default()).unwrap();
        let digest = writer.publish_as(&"last".parse().unwrap()).unwrap();
        parent = Some(Snapshot::open(&store, &digest).unwrap());
        println!("{PUBLISHED}");
    }
}

fn drafts(store: &Store) -> usize {
    let list = |name: &str| std::fs::read_dir(store.root().join(name)).unwrap();
    let names = list("snapshots").chain(list("refs")).map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".draft-")).count()
}

#[test]
fn killed_writers_leave_nothing_half() {
    let t = temp_store();
    let (mut published, mut strays) = (0, 0);
    for round in 0..30 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "endless_writer", "--nocapture"])
            .env(CHILD, t.store.root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Kept open: a writer that cannot print would end by itself.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let published_lines = lines.by_ref().filter(|line| line.ends_with(PUBLISHED));
        assert_eq!(published_lines.take(1 + round % 3).count(), 1 + round % 3);
        // Somewhere within the next one: what is checked afterwards holds for every moment.
        std::thread::sleep(Duration::from_micros(round as u64 * 97 % 1500));
        child.kill().unwrap();
        child.wait().unwrap();
        strays += drafts(&t.store);
        // Opening sweeps.
        let store = Store::open(t.store.root()).unwrap();
        assert_eq!(drafts(&store), 0);
        for entry in store.list().unwrap() {
            assert_eq!(entry.damage, None);
            Snapshot::open(&store, &entry.digest).unwrap().verify().unwrap();
            published += 1;
        }
        if let Some(last) = store.get_ref(&"last".parse().unwrap()).unwrap() {
            Snapshot::open(&store, &last).unwrap();
        }
        store
            .prune(&novum_snapshot::collect::Prune { unused_for: Some(Duration::ZERO), max_bytes: None })
            .unwrap();
    }
    println!("{published} snapshots were published, {strays} drafts were swept");
    assert!(published >= 30);
}
