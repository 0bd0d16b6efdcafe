//! Programs that attack: every system call with every class of bad argument, odd instructions, ruined stacks and maps.
//! What must hold is the same for all: the VMM goes on, the host keeps its files, a neighbour notices nothing.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use novum_sandbox::{Error, ExitStatus, Input, Output, Reply, Share};

use super::{Run, compile, has_kvm, in_rig};

/// Folders of the host that a program gets, and what it must not touch.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["share", "share/d", "ro", "outside"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("share/f"), "inside").unwrap();
        std::fs::write(dir.path().join("ro/f"), "read only").unwrap();
        std::fs::write(dir.path().join("outside/secret"), "TOPSECRET").unwrap();
        std::os::unix::fs::symlink("../outside/secret", dir.path().join("share/out")).unwrap();
        Self(dir)
    }

    fn lend(&self, mut run: Run) -> Run {
        for (name, read_only) in [("share", false), ("ro", true)] {
            let target = format!("/mnt/{name}");
            run.manifest.shares.push(Share { source: self.0.path().join(name), target, read_only });
        }
        run
    }

    fn is_unharmed(&self) -> bool {
        let read = |name: &str| std::fs::read(self.0.path().join(name)).ok();
        let entries = |name: &str| std::fs::read_dir(self.0.path().join(name)).unwrap().count();
        read("outside/secret").as_deref() == Some(b"TOPSECRET")
            && read("ro/f").as_deref() == Some(b"read only")
            && (entries("outside"), entries("ro"), entries(".")) == (1, 1, 3)
    }
}

/// What a hostile program may come to: its own end, or a limit.
fn is_contained(outcome: &Result<Reply, Error>) -> bool {
    match outcome {
        Ok(reply) => !matches!(reply.exit, ExitStatus::Code(77 | 78)),
        Err(Error::Deadline { .. } | Error::MemoryLimit { .. } | Error::OutputLimit { .. }) => true,
        Err(_) => false,
    }
}

/// A program that answers each piece of input as long as nobody disturbs it.
struct Neighbour {
    to: tokio::sync::mpsc::Sender<Bytes>,
    from: tokio::sync::mpsc::Receiver<Bytes>,
    running: tokio::task::JoinHandle<Result<Reply, Error>>,
}

impl Neighbour {
    fn new(dir: &Path) -> Self {
        let source = "#include <unistd.h>\nint main(void) { char c; while (read(0, &c, 1) == 1) write(1, &c, 1); return 5; }";
        let program = compile(dir, source, &["-static"]);
        let own = dir.join("neighbour");
        std::fs::rename(program, &own).unwrap();
        let (to, input) = tokio::sync::mpsc::channel(1);
        let (output, from) = tokio::sync::mpsc::channel(1);
        let mut run = Run::new();
        run.deadline = Duration::from_secs(1000);
        (run.input, run.output) = (Input::Stream(input), Output::Stream(output));
        Self { to, from, running: tokio::spawn(async move { run.run(&own).await }) }
    }

    async fn answers(&mut self, byte: u8) -> bool {
        self.to.send(Bytes::from(vec![byte])).await.is_ok()
            && self.from.recv().await == Some(vec![byte].into())
    }

    async fn ends_well(self) -> bool {
        drop(self.to);
        self.running.await.unwrap().unwrap().exit == ExitStatus::Code(5)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_with_any_arguments_harms_the_host_or_a_neighbour() {
    const LAST_CALL: u64 = 460;
    if !has_kvm("no_call_with_any_arguments_harms_the_host_or_a_neighbour") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut neighbour = Neighbour::new(dir.path());
    let program = compile(
        dir.path(),
        include_str!("hostile_calls.c"),
        &["-static", "-nostdlib", "-fno-stack-protector"],
    );
    // The end of the program is no attack; pause and sync have no arguments.
    let numbers = (0..=LAST_CALL).filter(|number| ![60, 231, 34, 162].contains(number));
    const SIGSUSPEND: u64 = 130;
    let step = if in_rig() { 7 } else { 1 };
    // All values at all places take minutes on a busy machine.
    let all = std::env::var_os("NOVUM_HOSTILE_ALL").is_some();
    let (random, every) = if all { ("1000", "1") } else { ("30", "5") };
    let mut finished = 0;
    for number in numbers.step_by(step) {
        let host = Host::new();
        let mut run = host.lend(Run::new().args(&[&number.to_string(), "1", random, every]));
        run.manifest.memory_bytes = 64 << 20;
        // It may wait for ever.
        if number == SIGSUSPEND {
            run.deadline = Duration::from_secs(1);
        }
        let log = run.log.clone();
        let patience = 2 * run.deadline;
        let outcome = tokio::time::timeout(patience, run.run(&program)).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("call {number} hangs"));
        assert!(is_contained(&outcome), "call {number}: {outcome:?} {}", log.text());
        assert!(host.is_unharmed(), "call {number}");
        assert!(neighbour.answers(number as u8).await, "call {number}");
        finished += usize::from(outcome.is_ok_and(|reply| matches!(reply.exit, ExitStatus::Code(42 | 43))));
    }
    let most = LAST_CALL as usize / step * 8 / 10;
    assert!(finished > most, "most programs survive what they do: {finished}");
    assert!(neighbour.ends_well().await);
}

/// Standard output, and exit code or signal, of a native run.
fn native(program: &Path, args: &[&str]) -> (String, ExitStatus) {
    let done = Command::new(program).args(args).env_clear().stdin(Stdio::null()).output().unwrap();
    let end = match done.status.signal() {
        None => ExitStatus::Code(done.status.code().unwrap()),
        Some(signal) => fault(match signal {
            4 => "SIGILL",
            5 => "SIGTRAP",
            7 => "SIGBUS",
            8 => "SIGFPE",
            _ => "SIGSEGV",
        }),
    };
    (String::from_utf8(done.stdout).unwrap(), end)
}

fn fault(kind: &str) -> ExitStatus {
    ExitStatus::Fault(novum_sandbox::Fault { kind: kind.to_owned(), message: String::new() })
}

/// The end without its story.
fn bare(exit: ExitStatus) -> ExitStatus {
    if let ExitStatus::Fault(told) = &exit { fault(&told.kind) } else { exit }
}

#[tokio::test]
async fn odd_instructions_raise_what_they_raise_natively() {
    if !has_kvm("odd_instructions_raise_what_they_raise_natively") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("hostile_cpu.c"), &["-static"]);
    let (expected, _) = native(&program, &[]);
    let run = Run::new();
    let log = run.log.clone();
    let reply = run.run(&program).await.unwrap();
    let got = String::from_utf8_lossy(&reply.output).into_owned();
    let without_number = |line: &str| line.rsplit_once(':').map_or("", |(name, _)| name).to_owned();
    let same = |(expected, got): &(&str, &str)| match expected.chars().next() {
        Some('?') => without_number(expected) == without_number(got),
        Some('~') => expected == got || expected.replace("11", "4") == **got,
        _ => expected == got,
    };
    let pairs = expected.lines().zip(got.lines());
    let different: Vec<String> =
        pairs.filter(|pair| !same(pair)).map(|(a, b)| format!("{a}   here: {b}")).collect();
    assert!(
        different.is_empty() && got.lines().count() == expected.lines().count(),
        "{got} {:?} {}\n{}",
        reply.exit,
        log.text(),
        different.join("\n")
    );
    assert_eq!((got.lines().count(), reply.exit), (expected.lines().count(), ExitStatus::Code(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_ruin_themselves_end_as_they_do_natively() {
    if !has_kvm("programs_that_ruin_themselves_end_as_they_do_natively") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut neighbour = Neighbour::new(dir.path());
    let program = compile(dir.path(), include_str!("hostile_ends.c"), &["-static"]);
    let (cases, _) = native(&program, &[]);
    assert!(cases.lines().count() > 20);
    let mut different = Vec::new();
    for case in cases.lines() {
        let expected = native(&program, &[case]);
        let outcome = Run::new().args(&[case]).run(&program).await;
        let got = outcome.map(|reply| {
            (String::from_utf8_lossy(&reply.output).into_owned(), bare(reply.exit.clone()), reply.exit)
        });
        if !got.as_ref().is_ok_and(|(output, end, _)| (output, end) == (&expected.0, &expected.1)) {
            different.push(format!("{case}: {expected:?}\n   here: {got:?}"));
        }
        assert!(neighbour.answers(b'n').await, "{case}");
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(neighbour.ends_well().await);
}
