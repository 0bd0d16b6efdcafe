//! The store: references, removal, limits, several users at once.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use common::*;
use novum_snapshot::collect::Prune;
use novum_snapshot::*;

fn name(text: &str) -> RefName {
    text.parse().unwrap()
}

fn open(store: &Store, digest: &Digest) -> Snapshot {
    Snapshot::open(store, digest).unwrap()
}

/// A diff over `parent` of one changed page.
fn child(store: &Store, parent: &Digest, byte: u8) -> Digest {
    let parent = open(store, parent);
    let mut writer = Writer::diff(store, host(), &parent).unwrap();
    let memory = image(&[byte]);
    writer.memory(&[region(0x1000, &memory)], &Layout::diff()).unwrap();
    writer.publish().unwrap()
}

/// Lets the snapshot look as if nobody had opened it for some days.
fn age(store: &Store, digest: &Digest, days: u64) {
    let file = std::fs::File::open(store.path(digest)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
}

fn prune_all() -> Prune {
    Prune { unused_for: Some(Duration::ZERO), max_bytes: None }
}

#[test]
fn snapshots_are_private_and_read_only() {
    let t = temp_store();
    let digest = base(&t.store, &image(&[1]));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&t.store.path(&digest)), 0o400);
    assert_eq!(mode(t.store.root()), 0o700);
}

#[test]
fn zero_pages_take_no_room() {
    let t = temp_store();
    let digest = base(&t.store, &image(&[[1].as_slice(), &[0; 15], &[1]].concat()));
    let metadata = std::fs::metadata(t.store.path(&digest)).unwrap();
    assert!(metadata.len() > 17 * 4096 && metadata.blocks() * 512 < 8 * 4096);
}

#[test]
fn references_keep_a_snapshot_and_what_is_below() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let (kept, lost) = (child(&t.store, &bottom, 2), child(&t.store, &bottom, 3));
    t.store.set_ref(&name("function"), &kept).unwrap();
    let pruned = t.store.prune(&prune_all()).unwrap();
    assert_eq!(pruned.removed, [lost]);
    assert!(pruned.freed_bytes > 0);
    assert_eq!(mapped(&open(&t.store, &kept)), [image(&[2])]);

    assert_eq!(t.store.remove_ref(&name("function")).unwrap(), Some(kept));
    // The child goes before its parent.
    assert_eq!(t.store.prune(&prune_all()).unwrap().removed, [kept, bottom]);
    assert!(matches!(Snapshot::open(&t.store, &kept), Err(OpenError::Missing(_))));
    assert!(matches!(t.store.remove_ref(&name("function")), Err(StoreError::MissingRef(_))));
}

#[test]
fn a_reference_is_replaced_only_where_it_is_as_expected() {
    let t = temp_store();
    let (first, second) = (base(&t.store, &image(&[1])), base(&t.store, &image(&[2])));
    let f = name("f");
    assert!(!t.store.replace_ref(&f, &first, &second).unwrap(), "there is none");
    assert_eq!(t.store.get_ref(&f).unwrap(), None);
    t.store.set_ref(&f, &first).unwrap();
    assert!(!t.store.replace_ref(&f, &second, &second).unwrap(), "it is another");
    assert!(t.store.replace_ref(&f, &first, &second).unwrap());
    assert_eq!(t.store.get_ref(&f).unwrap(), Some(second));
    t.store.remove(&first).unwrap();
    assert!(matches!(t.store.replace_ref(&f, &second, &first), Err(StoreError::Missing(_))));
}

#[test]
fn publishing_under_a_name_leaves_no_moment_without_it() {
    let t = temp_store();
    let first = Writer::base(&t.store, host()).unwrap().publish_as(&name("f")).unwrap();
    assert_eq!(t.store.get_ref(&name("f")).unwrap(), Some(first));
    let second = Writer::base(&t.store, host()).unwrap().publish_as(&name("f")).unwrap();
    assert_eq!(t.store.get_ref(&name("f")).unwrap(), Some(second));
    let mut third = Writer::base(&t.store, host()).unwrap();
    third.refer(&name("g"));
    assert_eq!(t.store.get_ref(&name("g")).unwrap(), None);
    let third = third.publish().unwrap();
    assert_eq!(t.store.get_ref(&name("g")).unwrap(), Some(third));
    assert_eq!(t.store.prune(&prune_all()).unwrap().removed, [first]);
}

#[test]
fn an_open_snapshot_is_not_removed() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let top = child(&t.store, &bottom, 2);
    let in_use = open(&t.store, &top);
    let pruned = t.store.prune(&prune_all()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.in_use), (0, 1));
    assert!(matches!(t.store.remove(&top), Err(StoreError::InUse(_))));
    drop(in_use);
    assert_eq!(t.store.prune(&prune_all()).unwrap().removed.len(), 2);
}

#[test]
fn a_parent_stays_while_a_diff_over_it_is_written() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let writer = {
        let parent = open(&t.store, &bottom);
        Writer::diff(&t.store, host(), &parent).unwrap()
    };
    assert!(t.store.prune(&prune_all()).unwrap().removed.is_empty());
    let diff = writer.publish().unwrap();
    assert_eq!(mapped(&open(&t.store, &diff)), [image(&[1])]);
}

#[test]
fn what_others_need_is_not_removed() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let top = child(&t.store, &bottom, 2);
    t.store.set_ref(&name("f"), &top).unwrap();
    assert!(matches!(t.store.remove(&bottom), Err(StoreError::HasChild { .. })));
    assert!(matches!(t.store.remove(&top), Err(StoreError::Referenced { .. })));
    t.store.remove_ref(&name("f")).unwrap();
    t.store.remove(&top).unwrap();
    t.store.remove(&bottom).unwrap();
    assert!(matches!(t.store.remove(&bottom), Err(StoreError::Missing(_))));
}

#[test]
fn only_what_was_not_used_for_long_goes() {
    let t = temp_store();
    let (old, new) = (base(&t.store, &image(&[1])), base(&t.store, &image(&[2])));
    age(&t.store, &old, 3);
    let days = |n: u64| Prune { unused_for: Some(Duration::from_secs(n * 86_400)), max_bytes: None };
    assert!(t.store.prune(&days(4)).unwrap().removed.is_empty());
    assert_eq!(t.store.prune(&days(2)).unwrap().removed, [old]);
    assert!(t.store.contains(&new));
}

#[test]
fn opening_is_a_use_and_listing_is_none() {
    let t = temp_store();
    let digest = base(&t.store, &image(&[1]));
    age(&t.store, &digest, 3);
    let used = || t.store.list().unwrap()[0].last_used.elapsed().unwrap() < Duration::from_secs(3600);
    assert!(!used());
    assert!(!used());
    open(&t.store.clone().without_counting_use(), &digest).verify_layer().unwrap();
    assert!(!used());
    open(&t.store, &digest);
    assert!(used());
}

#[test]
fn removing_a_reference_takes_its_snapshot_if_nothing_else_needs_it() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let top = child(&t.store, &bottom, 2);
    t.store.set_ref(&name("base"), &bottom).unwrap();
    t.store.set_ref(&name("f"), &top).unwrap();
    let removed = t.store.remove_called("base").unwrap();
    assert_eq!(removed.snapshot, None);
    assert!(removed.kept.unwrap().contains("is the parent of"));
    let removed = t.store.remove_called("f").unwrap();
    assert_eq!((removed.snapshot, removed.kept), (Some(top), None));
    assert_eq!(t.store.remove_called(&bottom.to_string()[..20]).unwrap().snapshot, Some(bottom));
    assert!(matches!(t.store.remove_called("f"), Err(StoreError::Unknown(_))));
}

#[test]
fn a_full_store_makes_room_by_what_was_not_used_for_longest() {
    let t = temp_store();
    let memory = vec![1; 100 * PAGE];
    let (older, old) = (base(&t.store, &memory), base(&t.store, &memory));
    let kept = base(&t.store, &memory);
    t.store.set_ref(&name("f"), &kept).unwrap();
    age(&t.store, &kept, 9);
    age(&t.store, &older, 2);
    age(&t.store, &old, 1);
    // Room for three and a half.
    let limited = t.store.clone().with_limit(350 * PAGE as u64);
    let new = base(&limited, &memory);
    let there = |digest| limited.contains(digest);
    assert_eq!([there(&older), there(&old), there(&kept), there(&new)], [false, true, true, true]);
}

#[test]
fn a_store_that_is_full_of_references_refuses_more() {
    let t = temp_store();
    let memory = vec![1; 100 * PAGE];
    t.store.set_ref(&name("f"), &base(&t.store, &memory)).unwrap();
    let limited = t.store.clone().with_limit(150 * PAGE as u64);
    let mut writer = Writer::base(&limited, host()).unwrap();
    writer.memory(&[region(0, &memory)], &Layout::default()).unwrap();
    let error = writer.publish().unwrap_err();
    assert!(matches!(error, WriteError::Store(StoreError::Full { .. })), "{error}");
    // Neither the refused snapshot nor its draft is left.
    assert_eq!(std::fs::read_dir(t.store.root().join("snapshots")).unwrap().count(), 1);
    let mut writer = Writer::base(&t.store.clone().with_limit(1), host()).unwrap();
    writer.memory(&[region(0, &memory)], &Layout::default()).unwrap();
    assert!(writer.publish().is_err());
}

#[test]
fn snapshots_are_found_by_reference_digest_and_prefix() {
    let t = temp_store();
    let digests: Vec<Digest> =
        (0..40).map(|_| Writer::base(&t.store, host()).unwrap().publish().unwrap()).collect();
    t.store.set_ref(&name("hello"), &digests[0]).unwrap();
    let text = digests[0].to_string();
    for way in ["hello", &text, &text[..16]] {
        assert_eq!(t.store.find(way).unwrap(), digests[0]);
    }
    for unknown in ["", &text[..3], "nothing", "../x"] {
        assert!(matches!(t.store.find(unknown), Err(StoreError::Unknown(_))), "{unknown}");
    }
}

#[test]
fn two_digests_that_begin_alike_are_ambiguous() {
    let t = temp_store();
    for last in ["0", "1"] {
        let name = format!("{}{last}.snap", "a".repeat(63));
        std::fs::write(t.store.root().join("snapshots").join(name), b"").unwrap();
    }
    assert!(matches!(t.store.find("aaaa"), Err(StoreError::Ambiguous(_))));
    assert!(t.store.find(&format!("{}0", "a".repeat(63))).is_ok());
}

#[test]
fn a_damaged_snapshot_is_listed_as_such_and_pruned() {
    let t = temp_store();
    let digest = base(&t.store, &image(&[1]));
    let path = t.store.path(&digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"half").unwrap();
    let entries = t.store.list().unwrap();
    assert!(entries[0].damage.as_deref().unwrap().contains("truncated"), "{entries:?}");
    assert!(matches!(Snapshot::open(&t.store, &digest), Err(OpenError::Layer { .. })));
    assert_eq!(t.store.prune(&prune_all()).unwrap().removed, [digest]);
}

#[test]
fn a_snapshot_under_a_wrong_name_is_refused() {
    let t = temp_store();
    let (a, b) = (base(&t.store, &image(&[1])), base(&t.store, &image(&[2])));
    std::fs::rename(t.store.path(&a), t.store.path(&b)).unwrap();
    assert!(matches!(Snapshot::open(&t.store, &b), Err(OpenError::WrongName { .. })));
    assert!(t.store.list().unwrap()[0].damage.is_some());
}

#[test]
fn a_missing_parent_is_named() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let top = child(&t.store, &bottom, 2);
    std::fs::remove_file(t.store.path(&bottom)).unwrap();
    let error = Snapshot::open(&t.store, &top).unwrap_err();
    assert!(matches!(error, OpenError::MissingParent { child, parent } if child == top && parent == bottom));
}

#[test]
fn a_reference_needs_its_snapshot_and_its_digest() {
    let t = temp_store();
    let nothing = Digest::of(b"nothing");
    assert!(matches!(t.store.set_ref(&name("f"), &nothing), Err(StoreError::Missing(_))));
    std::fs::write(t.store.root().join("refs/g"), b"junk").unwrap();
    assert!(matches!(t.store.get_ref(&name("g")), Err(StoreError::DamagedRef(_))));
    t.store.remove_ref(&name("g")).unwrap();
    assert_eq!(t.store.get_ref(&name("g")).unwrap(), None);
}

#[test]
fn many_writers_readers_and_pruners_do_not_hurt_each_other() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    t.store.set_ref(&name("bottom"), &bottom).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let store = &t.store;
            scope.spawn(move || {
                for round in 0..20_u8 {
                    let parent = open(store, &bottom);
                    let mut writer = Writer::diff(store, host(), &parent).unwrap();
                    let memory = image(&[thread, round]);
                    writer.memory(&[region(0x1000, &memory)], &Layout::diff()).unwrap();
                    let mine = name(&format!("thread{thread}"));
                    let digest = writer.publish_as(&mine).unwrap();
                    assert_eq!(mapped(&open(store, &digest)), [memory]);
                }
            });
        }
        scope.spawn(|| (0..30).for_each(|_| drop(t.store.prune(&prune_all()).unwrap())));
    });
    t.store.prune(&prune_all()).unwrap();
    let left = t.store.list().unwrap();
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|entry| entry.reachable && entry.damage.is_none()));
}
