//! The walk that asks for many names at once comes to what the walk name by name comes to.

use std::fs as host;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::process::files::walk::Last;

/// A share with directories, files and links of every kind in it.
fn fill(share: &Path) {
    for path in ["a/b/c", "a/d", "nested"] {
        host::create_dir_all(share.join(path)).unwrap();
    }
    for path in ["a/b/c/file", "a/file", "file"] {
        host::write(share.join(path), path).unwrap();
    }
    let links = [
        ("b/c", "a/down"),
        ("../file", "a/b/up"),
        ("/mnt/a/b", "a/b/c/whole"),
        ("gone", "a/b/dangling"),
        ("file", "a/b/c/near"),
        ("../../..", "a/b/c/top"),
        ("/mnt/file", "to_file"),
        ("/", "a/root"),
    ];
    for (text, at) in links {
        symlink(text, share.join(at)).unwrap();
    }
}

fn paths() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a", "b", "c", "d", "file", "down", "up", "whole", "dangling", "near", "top", "to_file", "root",
        "absent", ".", "..", "", "mnt",
    ]);
    prop::collection::vec(name, 1..7).prop_map(|names| format!("/mnt/{}", names.join("/")))
}

/// What a walk comes to, without the parts that only name the file system's state.
fn outcome(files: &mut Files, path: &str, end: End) -> Result<(Place, Last, bool, Option<Place>), Errno> {
    let root = Place::Tree(NodeId::ROOT);
    let walked = files.walk(&root, path.as_bytes(), end)?;
    if let (Some(place), Some(seen)) = (&walked.found, &walked.seen) {
        assert_eq!(files.attr_seen(place, Some(seen.clone()))?.id, files.attr(place)?.id, "{path}");
    }
    match walked.found {
        // These callers only ask for what is there.
        None if matches!(end, End::Follow | End::Stay) => Err(Errno::NOENT),
        found => Ok((walked.dir, walked.last, walked.slash, found)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_leap_ends_where_single_steps_end(paths in prop::collection::vec(paths(), 40)) {
        let dir = tempfile::tempdir().unwrap();
        let (share, other) = (dir.path().join("share"), dir.path().join("other"));
        host::create_dir_all(&other).unwrap();
        host::create_dir_all(&share).unwrap();
        fill(&share);
        let mut leaping = files_with(None, &[(&share, "/mnt", false)]);
        // What is mounted inside of a share makes every walk in it one of single steps.
        let mut stepping = files_with(None, &[(&share, "/mnt", false), (&other, "/mnt/nested", false)]);
        prop_assert!(!leaping.holds_mounts(0) && stepping.holds_mounts(0));
        for path in &paths {
            for end in [End::Follow, End::Stay, End::Name, End::Create, End::CreateStay] {
                let (a, b) = (outcome(&mut leaping, path, end), outcome(&mut stepping, path, end));
                prop_assert_eq!(a, b, "{} {:?}", path, end);
            }
        }
    }
}
