//! Sequences of calls with any arguments, without a VM: no panic, no answer that is none, nothing outside of the share.

use proptest::prelude::*;

use super::*;
use crate::function::Share;
use crate::kvm::layout::{CALL_STUB_GVA, PAGE, USER_END};
use crate::process::files::{Files, FilesConfig};
use crate::process::load::{Start, stack};
use crate::process::memory::{AddressSpace, At, Placement, Prot, Request};
use crate::process::time::Time;

/// Two pages that may be written, then one that may be read, then nothing.
const DATA: u64 = 0x40_0000;
const PATHS: [&str; 6] =
    ["/s/f", "/s/out", "../../outside/secret", "/proc/self/root/s/../..", "/tmp/x", "/proc/self/fd/3"];

fn process(share: &std::path::Path) -> Process {
    let mut memory = AddressSpace::new(16 << 20, Placement::random([7; 16])).unwrap();
    memory.map(Request::anonymous(At::Fixed(DATA), 2 * PAGE, Prot::READ_WRITE)).unwrap();
    memory.map(Request::anonymous(At::Fixed(DATA + 2 * PAGE), PAGE, Prot::READ)).unwrap();
    for (i, path) in PATHS.iter().enumerate() {
        memory.write(DATA + i as u64 * 64, path.as_bytes()).unwrap();
    }
    let share = Share { source: share.to_owned(), target: "/s".into(), read_only: false };
    let files = Files::new(&FilesConfig { shares: vec![share], ..FilesConfig::new() }).unwrap();
    let contents = stack::Contents { args: &[], env: &[], path: b"", random: [0; 16], aux: &[] };
    let stack = stack::build(DATA + 2 * PAGE, &contents, 4096).unwrap();
    Process::new(memory, files, Time::default(), Start { entry: DATA, stack })
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..PATHS.len() as u64).prop_map(|i| DATA + i * 64),
        3 => 0u64..24,
        2 => (0..4 * PAGE).prop_map(|offset| DATA + offset),
        1 => prop::sample::select(vec![
            u64::MAX, u64::MAX - 99, 1 << 47, 1 << 63, i64::MAX as u64, 1 << 31, 0xffff_ffff, 1 << 32, USER_END, CALL_STUB_GVA - 8,
            0xffff_8000_0000_1000, PAGE, 1 << 20, 0x10,
        ]),
        1 => any::<u64>(),
        1 => (0u32..24, 0u32..24).prop_map(|(a, b)| 1 << a | 1 << b),
    ]
}

/// What a call is, what stands in memory before it.
fn step() -> impl Strategy<Value = (u64, Args, Vec<(u64, u64)>)> {
    let served: Vec<u64> = (0..NUMBERS as u64).filter(|number| handler(*number).is_some()).collect();
    // They would write out, or fill, the whole file system of the machine.
    const COSTLY: [i64; 3] = [libc::SYS_sync, libc::SYS_syncfs, libc::SYS_fallocate];
    let served: Vec<u64> = served.into_iter().filter(|number| !COSTLY.contains(&(*number as i64))).collect();
    let words = prop::collection::vec((0u64..96, value()), 0..6);
    (prop::sample::select(served), prop::array::uniform6(value()), words)
}

proptest! {
    #[test]
    fn no_sequence_of_calls_panics_or_gets_out(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (share, outside) = (dir.path().join("share"), dir.path().join("outside"));
        std::fs::create_dir(&share).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(share.join("f"), "inside").unwrap();
        std::fs::write(outside.join("secret"), "SECRET").unwrap();
        std::os::unix::fs::symlink("../outside/secret", share.join("out")).unwrap();
        let mut process = process(&share);
        for (number, args, words) in steps {
            for (at, word) in words {
                // Only where the program has not taken its memory away.
                let _ = process.memory.write(DATA + 512 + at * 8, &word.to_le_bytes());
            }
            if let Ok(Outcome::Value(value)) = process.serve(number, args) {
                prop_assert!((value as i64) >= -133 || (value as i64) < -4095, "{}: {value:#x}", name(number));
            }
            process.set_resumed(None);
        }
        prop_assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"SECRET");
        prop_assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
