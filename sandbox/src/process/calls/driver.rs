//! Bytes as a sequence of system calls, served without a VM: no panic, no answer that is none, nothing outside of the
//! share. Both the property test ([`super::tests`]) and the fuzz target (`sandbox/fuzz`) use it.
//!
//! A call is its number (two bytes), six values, a count (one byte) of words and these words, each with its place (one
//! byte); a value is a byte that tells its kind and what this kind needs. Where the bytes end, the sequence ends.

use std::path::Path;

use super::{Args, NUMBERS, Outcome, handler, name};
use crate::function::Share;
use crate::kvm::layout::{CALL_STUB_GVA, PAGE, USER_END};
use crate::process::Process;
use crate::process::files::{Files, FilesConfig};
use crate::process::load::{Start, stack};
use crate::process::memory::{AddressSpace, At, Placement, Prot, Request};
use crate::process::time::Time;

/// Two pages that may be written, then one that may be read, then nothing.
const DATA: u64 = 0x40_0000;
const PATHS: [&str; 6] =
    ["/s/f", "/s/out", "../../outside/secret", "/proc/self/root/s/../..", "/tmp/x", "/proc/self/fd/3"];
/// Values at the limits of what arguments are checked against.
const ODD: [u64; 14] = [
    u64::MAX,
    u64::MAX - 99,
    1 << 47,
    1 << 63,
    i64::MAX as u64,
    1 << 31,
    0xffff_ffff,
    1 << 32,
    USER_END,
    CALL_STUB_GVA - 8,
    0xffff_8000_0000_1000,
    PAGE,
    1 << 20,
    0x10,
];
/// What stands in the file that no call may read or change.
const SECRET: &[u8] = b"novum's secret outside of the share";
/// Most calls of one sequence.
const MOST_CALLS: usize = 60;
const MEMORY: u64 = 16 << 20;
/// Longest file: sparse ones are cheap to make and dear to copy.
const LONGEST_FILE: u64 = 1 << 20;
/// They would fill the whole file system of the machine.
const COSTLY: [i64; 1] = [libc::SYS_fallocate];

/// Serves what `bytes` stand for to a process that shares a folder of `dir`, which must be empty.
///
/// # Panics
/// Where a call panics, answers what no call answers, or gets out of the share.
pub(crate) fn serve(bytes: &[u8], dir: &Path) {
    let (share, outside) = (dir.join("share"), dir.join("outside"));
    std::fs::create_dir(&share).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(share.join("f"), "inside").unwrap();
    std::fs::write(outside.join("secret"), SECRET).unwrap();
    std::os::unix::fs::symlink("../outside/secret", share.join("out")).unwrap();
    let mut process = process(&share);
    let mut bytes = Bytes(bytes);
    for _ in 0..MOST_CALLS {
        let Some((number, args, words)) = bytes.call() else { break };
        for (at, word) in words {
            // Only where the program has not taken its memory away.
            let _ = process.memory.write(DATA + 512 + at * 8, &word.to_le_bytes());
        }
        if let Ok(Outcome::Value(value)) = process.serve(number, args) {
            assert!((value as i64) >= -133 || (value as i64) < -4095, "{}: {value:#x}", name(number));
        }
        process.set_resumed(None);
    }
    assert!(!knows_secret(&process), "a call read what is outside of the share");
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), SECRET);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
}

fn process(share: &Path) -> Process {
    let mut memory = AddressSpace::new(MEMORY, Placement::random([7; 16])).unwrap();
    memory.map(Request::anonymous(At::Fixed(DATA), 2 * PAGE, Prot::READ_WRITE)).unwrap();
    memory
        .map(Request::anonymous(At::Fixed(DATA + 2 * PAGE), PAGE, Prot { write: false, ..Prot::READ_WRITE }))
        .unwrap();
    let share = Share { source: share.to_owned(), target: "/s".into(), read_only: false };
    let files = Files::new(&FilesConfig { shares: vec![share], ..FilesConfig::new() }).unwrap();
    let contents = stack::Contents { args: &[], env: &[], path: b"", random: [0; 16], aux: &[] };
    let stack = stack::build(DATA + 2 * PAGE, &contents, 4096).unwrap();
    let mut process = Process::new(memory, files, Time::default(), Start { entry: DATA, stack });
    // A program never raises a hard limit again.
    for (at, word) in [LONGEST_FILE, LONGEST_FILE].iter().enumerate() {
        process.memory.write(DATA + at as u64 * 8, &word.to_le_bytes()).unwrap();
    }
    let limit = [libc::RLIMIT_FSIZE.into(), DATA, 0, 0, 0, 0];
    process.serve(libc::SYS_setrlimit as u64, limit).unwrap();
    for (i, path) in PATHS.iter().enumerate() {
        let text = [path.as_bytes(), b"\0"].concat();
        process.memory.write(DATA + i as u64 * 64, &text).unwrap();
    }
    process
}

/// Whether the secret stands in the pages that the arguments point into.
fn knows_secret(process: &Process) -> bool {
    (0..3).any(|page| {
        let mut bytes = [0; PAGE as usize];
        let read = process.memory.read(DATA + page * PAGE, &mut bytes);
        read.is_ok() && bytes.windows(SECRET.len()).any(|window| window == SECRET)
    })
}

/// Words in memory, each with its place.
type Words = Vec<(u64, u64)>;

/// What is left to decode.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u64> {
        self.array().map(|[byte]| byte.into())
    }

    /// What a call is, and what stands in memory before it.
    fn call(&mut self) -> Option<(u64, Args, Words)> {
        let number = self.number()?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = self.value()?;
        }
        let words = self.byte()? % 6;
        let words = (0..words).map(|_| Some((self.byte()? % 96, self.value()?))).collect::<Option<_>>()?;
        Some((number, args, words))
    }

    /// The number itself where it is served; any other stands for one that is.
    fn number(&mut self) -> Option<u64> {
        let number = u16::from_le_bytes(self.array()?);
        let allowed = |number: u64| handler(number).is_some() && !COSTLY.contains(&(number as i64));
        if allowed(number.into()) {
            return Some(number.into());
        }
        let served: Vec<u64> = (0..NUMBERS as u64).filter(|number| allowed(*number)).collect();
        Some(served[usize::from(number) % served.len()])
    }

    fn value(&mut self) -> Option<u64> {
        Some(match self.byte()? % 11 {
            0..3 => DATA + self.byte()? % PATHS.len() as u64 * 64,
            3..6 => self.byte()? % 24,
            6..8 => DATA + u64::from(u16::from_le_bytes(self.array()?)) % (4 * PAGE),
            8 => ODD[self.byte()? as usize % ODD.len()],
            9 => u64::from_le_bytes(self.array()?),
            _ => (1 << (self.byte()? % 24)) | (1 << (self.byte()? % 24)),
        })
    }
}
