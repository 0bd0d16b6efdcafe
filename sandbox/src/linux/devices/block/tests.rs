//! A disk against a model of it, and requests as a hostile driver makes them.

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::linux::virtio::testing::{Driver, Piece};

const DISK: u64 = 300 * SECTOR;

pub(super) fn disk(access: DiskAccess) -> (tempfile::NamedTempFile, Block) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..DISK).map(|at| (at / 7) as u8).collect();
    fs::write(file.path(), content).unwrap();
    let block = Block::open(file.path(), access, "serial-number-that-is-too-long").unwrap();
    (file, block)
}

pub(super) fn driver(block: &Block) -> Driver {
    Driver::start(Box::new(BlockDevice::new(block.clone())), FLUSH)
}

fn header(kind: u32, sector: u64) -> Piece {
    Piece::Out([&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat())
}

/// The status and the data of a request.
pub(super) fn ask(driver: &mut Driver, kind: u32, sector: u64, out: &[u8], room: usize) -> (u8, Vec<u8>) {
    let mut pieces = vec![header(kind, sector)];
    if !out.is_empty() {
        pieces.push(Piece::Out(out.to_vec()));
    }
    if room > 0 {
        pieces.push(Piece::In(room));
    }
    pieces.push(Piece::In(1));
    let mut answer = driver.ask(&pieces);
    (answer.pop().unwrap(), answer)
}

pub(super) fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_is_written_is_read_and_a_private_disk_leaves_its_file_alone() {
    for access in [DiskAccess::ReadWrite, DiskAccess::Private { folder: None }] {
        let private = access != DiskAccess::ReadWrite;
        let (file, block) = disk(access);
        let before = fs::read(file.path()).unwrap();
        let mut driver = driver(&block);
        assert_eq!(ask(&mut driver, 1, 3, &[7; 1024], 0).0, 0);
        let (status, data) = ask(&mut driver, 0, 2, &[], 2048);
        assert_eq!(status, 0);
        let expected = [&before[1024..1536], &[7; 1024], &before[2560..3072]].concat();
        assert_eq!(data, expected);
        assert_eq!(ask(&mut driver, 4, 0, &[], 0).0, 0, "flush");
        assert_eq!(fs::read(file.path()).unwrap() == before, private);
        assert_eq!(ask(&mut driver, 8, 0, &[], 20), (0, b"serial-number-that-i".to_vec()));
    }
}

#[test]
fn a_read_only_disk_takes_nothing() {
    let (file, block) = disk(DiskAccess::ReadOnly);
    let before = fs::read(file.path()).unwrap();
    let mut driver = driver(&block);
    assert_eq!(ask(&mut driver, 1, 0, &[7; 512], 0).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 13, 0, &range(0, 8, 0), 0).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 0, 0, &[], 512).1, before[..512]);
    assert_eq!(block.resize(DISK * 2).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn what_does_not_fit_is_refused() {
    let (_file, block) = disk(DiskAccess::ReadWrite);
    let mut driver = driver(&block);
    for (kind, sector, out, room, status) in [
        (0, 299, 0, 1024, IO_ERROR),
        (0, u64::MAX, 0, 512, IO_ERROR),
        (0, u64::MAX / 512, 0, 512, IO_ERROR),
        (0, 0, 0, 100, IO_ERROR),
        (1, 300, 512, 0, IO_ERROR),
        (1, 0, 100, 0, IO_ERROR),
        (77, 0, 0, 0, UNSUPPORTED),
        (13, 0, 15, 0, IO_ERROR),
        (13, 0, 16 * 17, 0, IO_ERROR),
    ] {
        assert_eq!(ask(&mut driver, kind, sector, &vec![0; out], room).0, status, "{kind} at {sector}");
    }
    assert_eq!(ask(&mut driver, 11, 0, &range(0, 8, 1), 0).0, UNSUPPORTED);
    assert_eq!(ask(&mut driver, 13, 0, &range(0, 8, 2), 0).0, UNSUPPORTED);
    assert_eq!(ask(&mut driver, 13, 0, &range(299, 2, 0), 0).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 13, 0, &range(0, u32::MAX, 0), 0).0, IO_ERROR);
    // Without a status byte, without a header, with nothing: it goes on.
    driver.ask(&[header(0, 0)]);
    driver.ask(&[Piece::Out(vec![0; 3]), Piece::In(1)]);
    driver.ask(&[Piece::In(0)]);
    assert_eq!(ask(&mut driver, 4, 0, &[], 0).0, 0);
}

#[test]
fn a_new_size_is_told_by_an_interrupt() {
    let (file, block) = disk(DiskAccess::ReadWrite);
    let mut driver = driver(&block);
    let sectors = |driver: &mut Driver| driver.config(0, 8);
    assert_eq!(sectors(&mut driver), 300u64.to_le_bytes());
    let generation = driver.generation();
    block.resize(DISK * 2).unwrap();
    assert!(driver.saw_config_change());
    assert_ne!(driver.generation(), generation);
    assert_eq!(sectors(&mut driver), 600u64.to_le_bytes());
    assert_eq!(fs::metadata(file.path()).unwrap().len(), DISK * 2);
    assert_eq!(ask(&mut driver, 1, 599, &[1; 512], 0).0, 0);
    block.resize(512).unwrap();
    assert_eq!(ask(&mut driver, 0, 1, &[], 512).0, IO_ERROR);
    assert!(block.resize(0).is_err() && block.resize(513).is_err() && block.resize(1 << 60).is_err());
}

#[test]
fn a_paused_disk_goes_on_where_it_was() {
    let (_file, block) = disk(DiskAccess::Private { folder: Some(std::env::temp_dir()) });
    let mut driver = driver(&block);
    assert_eq!(ask(&mut driver, 1, 0, &[9; 512], 0).0, 0);
    driver.pause_and_resume();
    assert_eq!(ask(&mut driver, 0, 0, &[], 512), (0, vec![9; 512]));
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [folder.path(), empty.path(), std::path::Path::new("/dev/null")] {
        assert!(Block::open(path, DiskAccess::ReadOnly, "").is_err(), "{path:?}");
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Resize(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let sectors = 0u64..600;
    prop_oneof![
        (sectors.clone(), any::<u8>(), 1usize..300)
            .prop_map(|(at, byte, n)| Change::Write(at, vec![byte; n * 512])),
        (sectors.clone(), 1u64..300, any::<bool>()).prop_map(|(at, n, free)| Change::Zero(at, n, free)),
        (sectors, 1u64..300).prop_map(|(at, n)| Change::Discard(at, n)),
        (1u64..600).prop_map(Change::Resize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_private_disk_is_what_an_array_would_be(changes in proptest::collection::vec(change(), 1..24)) {
        let (file, _) = disk(DiskAccess::ReadOnly);
        let mut model = fs::read(file.path()).unwrap();
        let before = model.clone();
        let mut disk = Disk::open(file.path(), &DiskAccess::Private { folder: None }).unwrap();
        for change in changes {
            let place = |at: u64, length: u64| (at * SECTOR) as usize..(at * SECTOR + length) as usize;
            match change {
                Change::Write(at, data) if disk.holds(at * SECTOR, data.len() as u64) => {
                    disk.write(&data, at * SECTOR).unwrap();
                    model[place(at, data.len() as u64)].copy_from_slice(&data);
                }
                Change::Zero(at, n, free) if disk.holds(at * SECTOR, n * SECTOR) => {
                    disk.zero(at * SECTOR, n * SECTOR, free).unwrap();
                    model[place(at, n * SECTOR)].fill(0);
                }
                Change::Discard(at, n) if disk.holds(at * SECTOR, n * SECTOR) => {
                    disk.discard(at * SECTOR, n * SECTOR).unwrap();
                    model[place(at, n * SECTOR)].fill(0);
                }
                Change::Resize(n) => {
                    disk.resize(n * SECTOR).unwrap();
                    model.resize((n * SECTOR) as usize, 0);
                }
                _ => {}
            }
            let mut seen = vec![1; model.len()];
            disk.read(&mut seen, 0).unwrap();
            prop_assert!(seen == model);
        }
        prop_assert!(fs::read(file.path()).unwrap() == before);
    }

    #[test]
    fn random_chains_do_no_harm(
        chains in proptest::collection::vec(crate::linux::virtio::testing::pieces(), 1..20)
    ) {
        let (file, block) = disk(DiskAccess::ReadWrite);
        let mut driver = driver(&block);
        for chain in &chains {
            driver.ask(chain);
        }
        prop_assert_eq!(fs::metadata(file.path()).unwrap().len(), DISK);
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, DISK - 1).unwrap();
        prop_assert_eq!(ask(&mut driver, 4, 0, &[], 0).0, 0);
    }

    #[test]
    fn no_requests_panic_or_change_what_they_must_not(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
        super::driver::serve(&bytes, tempfile::tempdir().unwrap().path());
    }
}
