//! Disks come back with what was changed, or are refused.

use std::fs;

use super::super::tests::{ask, disk, driver, range};
use super::super::{Block, BlockDevice, DiskAccess};
use super::*;
use crate::linux::virtio::testing::{Driver, golden};
use proptest::prelude::*;

const PRIVATE: DiskAccess = DiskAccess::Private { folder: None };

/// Goes on with the disk opened anew.
fn again(driver: &mut Driver, file: &tempfile::NamedTempFile, access: DiskAccess) -> Result<Block, String> {
    let saved = driver.save();
    let block = Block::open(file.path(), access, "disk").unwrap();
    let error = |error: StateError| error.to_string();
    driver.restore(Box::new(BlockDevice::new(block.clone())), &saved).map_err(error)?;
    Ok(block)
}

#[test]
fn a_private_disk_comes_back_with_its_changes_and_its_size() {
    let (file, block) = disk(PRIVATE);
    let mut driver = driver(&block);
    assert_eq!(ask(&mut driver, 1, 3, &[7; 1024], 0).0, 0);
    assert_eq!(ask(&mut driver, 13, 0, &range(128, 100, 1), 0).0, 0);
    block.resize(400 * SECTOR).unwrap();
    assert_eq!(ask(&mut driver, 1, 399, &[9; 512], 0).0, 0);
    let (_, before) = ask(&mut driver, 0, 0, &[], 400 * 512);
    let block = again(&mut driver, &file, PRIVATE).unwrap();
    assert_eq!(block.size_bytes(), 400 * SECTOR);
    assert!(ask(&mut driver, 0, 0, &[], 400 * 512) == (0, before));
    assert_eq!(ask(&mut driver, 1, 3, &[8; 512], 0).0, 0);
    assert_eq!(ask(&mut driver, 0, 3, &[], 512).1, [8; 512]);
    // What was cut off does not come back from the file.
    block.resize(100 * SECTOR).unwrap();
    let block = again(&mut driver, &file, PRIVATE).unwrap();
    block.resize(300 * SECTOR).unwrap();
    assert_eq!(ask(&mut driver, 0, 200, &[], 512).1, [0; 512]);
}

#[test]
fn a_disk_whose_file_is_not_as_it_was_is_refused() {
    let (file, block) = disk(DiskAccess::ReadOnly);
    let mut driver = driver(&block);
    again(&mut driver, &file, DiskAccess::ReadOnly).unwrap();
    let error = again(&mut driver, &file, PRIVATE).unwrap_err();
    assert!(error.contains("private"), "{error}");
    let (_, block) = disk(DiskAccess::ReadOnly);
    let mut driver = super::super::tests::driver(&block);
    let saved = driver.save();
    let (longer, _) = disk(DiskAccess::ReadOnly);
    longer.as_file().set_len(512 * 1000).unwrap();
    let block = Block::open(longer.path(), DiskAccess::ReadOnly, "disk").unwrap();
    let error = driver.restore(Box::new(BlockDevice::new(block)), &saved).unwrap_err();
    assert!(error.to_string().contains("512000"), "{error}");
    let (file, block) = disk(DiskAccess::ReadOnly);
    let mut driver = super::super::tests::driver(&block);
    let saved = driver.save();
    let long_ago = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    file.as_file().set_times(long_ago).unwrap();
    let block = Block::open(file.path(), DiskAccess::ReadOnly, "disk").unwrap();
    let error = driver.restore(Box::new(BlockDevice::new(block)), &saved).unwrap_err();
    assert!(error.to_string().contains("changed since"), "{error}");
}

#[test]
fn more_than_a_disk_can_have_is_refused() {
    let (file, block) = disk(PRIVATE);
    let mut driver = driver(&block);
    ask(&mut driver, 1, 3, &[7; 512], 0);
    let saved = driver.save();
    let good: DiskState = take(&saved.snapshot, "virtio0").unwrap();
    let with = |change: &dyn Fn(&mut DiskState)| {
        let mut state: DiskState = take(&saved.snapshot, "virtio0").unwrap();
        change(&mut state);
        let bytes = crate::linux::virtio::testing::Saved::new(|to| put(to, "", &state)).unwrap();
        let mut disk = Disk::open(file.path(), &PRIVATE).unwrap();
        restore(&mut disk, "", &bytes.snapshot).map_err(|error| error.to_string())
    };
    assert_eq!(with(&|_| ()), Ok(()));
    assert_eq!(good.clusters.as_ref().unwrap().len(), 1);
    for bad in [
        &(|s: &mut DiskState| s.size_bytes = u64::MAX) as &dyn Fn(&mut DiskState),
        &|s| s.size_bytes = 0,
        &|s| s.size_bytes += 1,
        &|s| s.base_bytes = u64::MAX,
        &|s| s.clusters = None,
        &|s| s.clusters = Some(vec![(u64::MAX, None)]),
        &|s| s.clusters = Some(vec![(2, Some(Bytes(vec![1; CLUSTER as usize])))]),
        &|s| s.clusters = Some(vec![(0, Some(Bytes(vec![1; 5])))]),
    ] {
        assert!(with(bad).unwrap_err().contains("does not fit"));
    }
}

#[test]
fn disks_are_written_as_they_always_were() {
    let file = FileState { bytes: 1024, dev: 1, ino: 2, changed: Some((3, 4)) };
    let clusters = Some(vec![(0, Some(Bytes(b"abc".to_vec()))), (9, None)]);
    golden(
        &DiskState { file, size_bytes: 1024, base_bytes: 512, clusters },
        "virtio-blk 1 800801020106088008800401020001036162630900",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn damaged_disks_are_refused_or_harmless(
        changes in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..8)
    ) {
        let (file, block) = disk(PRIVATE);
        let mut driver = driver(&block);
        ask(&mut driver, 13, 0, &range(0, 100, 1), 0);
        let saved = driver.save().changed::<DiskState>(|bytes| {
            for (at, value) in &changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
        });
        let block = Block::open(file.path(), PRIVATE, "disk").unwrap();
        if driver.restore(Box::new(BlockDevice::new(block.clone())), &saved).is_ok() {
            ask(&mut driver, 0, 0, &[], 512);
            ask(&mut driver, 1, block.size_bytes() / SECTOR - 1, &[1; 512], 0);
        }
    }
}
