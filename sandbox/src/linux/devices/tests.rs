//! What holds for every device: garbage in its registers and rings harms nobody, and nothing keeps it from pausing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::block::{Block, DiskAccess};
use super::console::Console;
use super::vsock::Vsock;
use crate::linux::Device;
use crate::linux::virtio::testing::{Driver, Piece, pieces};
use crate::share::{Access, Share};

/// Every device that needs no rights, and what keeps its files.
fn devices() -> (tempfile::TempDir, Vec<Device>) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![1; 64 << 10]).unwrap();
    let share = Arc::new(Share::open_dir(folder.path(), Access::ReadWrite).unwrap());
    let devices = vec![
        Device::Rng,
        Device::P9 { tag: "p9".into(), share: share.clone() },
        Device::Fs { tag: "fs".into(), share },
        Device::Block(Block::open(&disk, DiskAccess::Private { folder: None }, "disk").unwrap()),
        Device::Balloon(Balloon::new().unwrap()),
        Device::Console(Console::new(Box::new(std::io::sink())).unwrap()),
        Device::Vsock(Vsock::new(3).unwrap()),
    ];
    (folder, devices)
}

/// Runs `work`, which must come to an end.
fn ends(what: &str, work: impl FnOnce() + Send + 'static) {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = tell.send(());
    });
    let end = told.recv_timeout(Duration::from_secs(60));
    assert!(end.is_ok() || thread.is_finished(), "{what} hangs");
    thread.join().unwrap();
}

#[derive(Clone, Debug)]
enum Garbage {
    Register(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
    Kick(usize),
    /// As a good driver begins, with these features.
    Initialise(u64),
    Chain(usize, Vec<Piece>),
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let bytes = || proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..9);
    let features = prop_oneof![Just(0u64), Just(1 << 28 | 1 << 29), any::<u64>()];
    prop_oneof![
        4 => (0u64..0x140, bytes()).prop_map(|(at, data)| Garbage::Register(at, data)),
        4 => (0u64..0x50, any::<u32>(), 0u32..4).prop_map(|(at, value, kind)| {
            let value = [value, value % 4, value % 257, 0x10_0000 + value % 0x4_0000][kind as usize];
            Garbage::Register(at * 4, value.to_le_bytes().to_vec())
        }),
        // Where the rings of a good driver are.
        4 => (0u64..0x4_0000, bytes()).prop_map(|(at, data)| Garbage::Memory(0x10_0000 + at, data)),
        4 => (0usize..4).prop_map(Garbage::Kick),
        2 => features.prop_map(Garbage::Initialise),
        3 => (0usize..4, pieces()).prop_map(|(queue, chain)| Garbage::Chain(queue, chain)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn garbage_in_registers_and_rings_neither_crashes_nor_hangs(
        kind in 0usize..7,
        steps in proptest::collection::vec(garbage(), 1..60),
    ) {
        ends("a device", move || {
            let (_folder, devices) = devices();
            let mut driver = Driver::connect(devices[kind].make());
            for step in steps {
                match step {
                    Garbage::Register(at, data) => {
                        driver.poke(at, &data);
                        driver.peek(at, &mut vec![0; data.len()]);
                    }
                    Garbage::Memory(at, data) => driver.memory.write_slice(&data, GuestAddress(at)).unwrap(),
                    Garbage::Kick(queue) => driver.kick(queue),
                    Garbage::Initialise(features) => {
                        driver.poke(0x70, &0u32.to_le_bytes());
                        driver.initialise(features | 1 << 32);
                    }
                    Garbage::Chain(queue, chain) => drop(driver.offer(queue % driver.queues(), &chain)),
                }
            }
        });
    }
}

/// Another processor of the guest makes the same chain available again and again, while this one resets the device.
#[test]
fn a_guest_that_never_stops_asking_cannot_keep_a_device_from_pausing() {
    for kind in 0..devices().1.len() {
        ends("a device", move || {
            let (_folder, devices) = devices();
            let mut driver = Driver::start(devices[kind].make(), 0);
            for queue in 0..driver.queues() {
                let chain = [Piece::Out(vec![0; 16]), Piece::In(64)];
                driver.offer(queue, &chain);
            }
            let over = Arc::new(AtomicBool::new(false));
            let (memory, stop, queues) = (driver.memory.clone(), over.clone(), driver.queues());
            let other = std::thread::spawn(move || {
                let mut index = 1u16;
                while !stop.load(Ordering::SeqCst) {
                    index = index.wrapping_add(1);
                    (0..queues)
                        .for_each(|queue| memory.write_obj(index, Driver::available_index(queue)).unwrap());
                }
            });
            for _ in 0..20 {
                (0..queues).for_each(|queue| driver.kick(queue));
                driver.pause_and_resume();
            }
            drop(driver);
            over.store(true, Ordering::SeqCst);
            other.join().unwrap();
        });
    }
}
