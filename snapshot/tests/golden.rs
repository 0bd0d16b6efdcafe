//! Files written once and kept: today's code reads yesterday's snapshots, and refuses damaged ones.
//!
//! `golden/base.snap` and `golden/diff.snap` are what [`golden_files`] writes. When the format changes on
//! purpose: raise FORMAT_VERSION, keep the old files to show what becomes of them, and write new ones with
//! `NOVUM_WRITE_GOLDEN=1 cargo test -p novum-snapshot --test golden`.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use common::reseal::{HEADER_LEN, reseal, tag, word};
use common::*;
use novum_snapshot::sys::Mapping;
use novum_snapshot::*;
use proptest::prelude::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

/// A base of two regions with a working set, and a diff that changes, zeroes and adds pages.
fn golden_files() -> [Vec<u8>; 2] {
    let t = temp_store();
    let mut writer = Writer::base(&t.store, host()).unwrap().with_salt(Salt::fixed([0x5a; 32]));
    writer.put("vcpu0", &Cpu { rip: 0x40_1000, xsave: vec![7; 64] }).unwrap();
    writer.put("", &Name("golden".into())).unwrap();
    let low = image(&[1, 2, 0, 4]);
    let high = image(&[9]);
    let layout = Layout { min_gap_pages: 2, max_runs: 8 };
    let regions = [Region { first: set(&[1]), ..region(0x1000, &low) }, region(1 << 32, &high)];
    writer.memory(&regions, &layout).unwrap();
    let base = writer.publish().unwrap();

    let parent = Snapshot::open(&t.store, &base).unwrap();
    let mut writer = Writer::diff(&t.store, host(), &parent).unwrap().with_salt(Salt::fixed([0xa5; 32]));
    writer.put("", &Name("changed".into())).unwrap();
    let low = image(&[1, 3, 0, 0, 5]);
    writer.memory(&[region(0x1000, &low), region(1 << 32, &high)], &layout).unwrap();
    let diff = writer.publish().unwrap();
    [base, diff].map(|digest| fs::read(t.store.path(&digest)).unwrap())
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Everything that can be done with the bytes of a layer; what matters is that it returns.
fn exercise(bytes: &[u8]) -> Result<(), OpenError> {
    let layers = [file(bytes), file(&golden("base.snap"))];
    let parent_wanted = word(bytes, 32).and_then(|at| bytes.get(at..)).is_some();
    let alone = Snapshot::from_files([file(bytes)]);
    let stacked = if parent_wanted { Some(Snapshot::from_files(layers)) } else { None };
    for snapshot in [Some(&alone), stacked.as_ref()].into_iter().flatten().flatten() {
        let _ = snapshot.take::<Cpu>("vcpu0");
        let _ = snapshot.take::<Name>("");
        let _ = snapshot.read(0x1000, &mut [0; 9000]);
        let _ = snapshot.verify_range(0..u64::MAX);
        if snapshot.mapping_plan().regions.iter().all(|region| region.len < 1 << 30) {
            let _ = Mapping::new(snapshot);
        }
        snapshot.verify()?;
    }
    match (alone, stacked) {
        (Ok(_), _) | (_, Some(Ok(_))) => Ok(()),
        (Err(e), _) => Err(e),
    }
}

#[test]
fn the_golden_files_are_what_is_written_today() {
    let files = golden_files();
    if std::env::var_os("NOVUM_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(path("")).unwrap();
        fs::write(path("base.snap"), &files[0]).unwrap();
        fs::write(path("diff.snap"), &files[1]).unwrap();
    }
    assert!(files[0] == golden("base.snap"), "a base is written differently");
    assert!(files[1] == golden("diff.snap"), "a diff is written differently");
}

#[test]
fn the_golden_files_are_read_as_they_were_meant() {
    let base = Snapshot::from_files([file(&golden("base.snap"))]).unwrap();
    assert_eq!(base.take::<Cpu>("vcpu0").unwrap(), Cpu { rip: 0x40_1000, xsave: vec![7; 64] });
    assert_eq!(mapped(&base), [image(&[1, 2, 0, 4]), image(&[9])]);
    let diff = Snapshot::from_files([file(&golden("diff.snap")), file(&golden("base.snap"))]).unwrap();
    assert_eq!(diff.take::<Name>("").unwrap(), Name("changed".into()));
    assert_eq!(diff.take::<Cpu>("vcpu0").unwrap().rip, 0x40_1000);
    assert_eq!(mapped(&diff), [image(&[1, 3, 0, 0, 5]), image(&[9])]);
    diff.verify().unwrap();
    exercise(&golden("base.snap")).unwrap();
    exercise(&golden("diff.snap")).unwrap();
}

#[test]
fn the_layout_is_the_one_that_is_drawn() {
    let bytes = golden("base.snap");
    assert_eq!(&bytes[..8], b"novumsnp");
    assert_eq!(word(&bytes, 16), Some(bytes.len()));
    assert_eq!(bytes[HEADER_LEN..4096], [0; 4096 - HEADER_LEN]);
    // Page 1 of the first region is the working set.
    assert_eq!(bytes[4096..8192], [2; 4096]);
    let (pages, index) = (word(&bytes, 24).unwrap(), word(&bytes, 32).unwrap());
    let (salt, tags) = (&bytes[40..72], 4096 * (1 + pages));
    assert_eq!(bytes[72..104], tag(salt, 4, 0, &bytes[index..]));
    // The pages that are not zero, then which those are.
    let mut chunk: Vec<u8> = Vec::new();
    let mut present = 0_u64;
    for (i, page) in
        bytes[4096..tags].chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&b| b != 0))
    {
        chunk.extend_from_slice(page);
        present |= 1 << i;
    }
    chunk.extend_from_slice(&present.to_le_bytes());
    assert_eq!(bytes[tags..tags + 32], tag(salt, 2, 0, &chunk));
    // Sections are sorted by kind: cpu, then name.
    let name = postcard::to_stdvec(&Name("golden".into())).unwrap();
    assert_eq!(bytes[index - name.len()..index], name);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = golden("base.snap");
    for len in (0..bytes.len()).filter(|len| len % 61 == 0 || *len < 256 || *len > bytes.len() - 512) {
        let error = exercise(&bytes[..len]).unwrap_err();
        let expected = "truncated";
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(expected), "{len}: {error}: {source}");
    }
    assert!(exercise(&[&bytes[..], b"x"].concat()).is_err());
}

#[test]
fn every_kind_of_damage_has_its_own_error() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = golden("base.snap");
        change(&mut bytes);
        let error = exercise(&bytes).unwrap_err();
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    };
    let index = word(&golden("base.snap"), 32).unwrap();
    assert!(refused(&|b| b[0] = b'N').contains("not a novum snapshot"));
    assert!(refused(&|b| b[8] = 2).contains("format version 2"));
    assert!(refused(&|b| b[index] ^= 1).contains("checksum of the index"));
    assert!(refused(&|b| b[index - 1] ^= 1).contains("checksum of section name"));
    assert!(refused(&|b| b[4096] ^= 1).contains("checksum of data pages 0 to"));
    assert!(refused(&|b| b[200] = 1).contains("behind the header"));
    // A page of 16 KiB: the writer says so, so everything lies elsewhere, but for an empty image it can be.
    let t = temp_store();
    let big = Host { page_size: 16384, ..host() };
    let digest = Writer::base(&t.store, big).unwrap().publish().unwrap();
    let error = Snapshot::open(&t.store, &digest).unwrap_err();
    assert!(matches!(error, OpenError::Host(Incompatible::PageSize { snapshot: 16384, .. })), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_flipped_bit_goes_unnoticed(diff in any::<bool>(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = golden(if diff { "diff.snap" } else { "base.snap" });
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        // The salt is nobody's checksum but the header's, whose checksum is the name.
        let name_changed = at < HEADER_LEN;
        prop_assert!(name_changed || exercise(&bytes).is_err());
        if name_changed {
            let original = golden(if diff { "diff.snap" } else { "base.snap" });
            prop_assert_ne!(Digest::of(&bytes[..HEADER_LEN]), Digest::of(&original[..HEADER_LEN]));
        }
    }

    #[test]
    fn nothing_written_into_the_index_does_harm(
        diff in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = golden(if diff { "diff.snap" } else { "base.snap" });
        let index = word(&bytes, 32).unwrap();
        for (at, value) in edits {
            let at = index + at.index(bytes.len() - index);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(index + cut.index(bytes.len() - index));
        }
        reseal(&mut bytes);
        let _ = exercise(&bytes);
    }

    #[test]
    fn nothing_written_into_the_header_does_harm(
        edits in prop::collection::vec((8..104_usize, prop::sample::select(vec![0_u8, 1, 0x7f, 0x80, 0xff])), 1..6),
        sealed in any::<bool>(),
    ) {
        let mut bytes = golden("base.snap");
        for (at, value) in edits {
            bytes[at] = value;
        }
        if sealed {
            reseal(&mut bytes);
        }
        let _ = exercise(&bytes);
    }
}
