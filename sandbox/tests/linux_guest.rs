//! Commands in a Linux guest whose root is this machine's `/`, read-only: streams, ends, users, limits, terminals,
//! shared directories. These need a KVM with hardware virtualization: `cargo xtask rig test --test linux_guest`.
#![cfg(feature = "vm")]

mod guest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use guest::{Log, PATIENCE, debian_kernel, our_kernel, with_agent};
use novum_sandbox::linux::End;
use novum_sandbox::linux::guest::{
    Command, CommandEnd, CommandError, Control, Directory, Done, Guest, GuestConfig, Kernel, Limit, Root,
    Streams, TerminalSize, User,
};
use novum_sandbox::{Input, Output};
use tokio::sync::mpsc;

/// As Linux numbers it.
const RLIMIT_NOFILE: u32 = 7;

async fn ours(test: &str) -> Option<Guest> {
    let kernel = Kernel { image: our_kernel(test)?.vmlinux(), modules: None };
    Some(Guest::boot(with_agent(kernel, "guest")).await.unwrap_or_else(|error| panic!("{error}")))
}

fn command(args: &[&str]) -> Command {
    let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    Command { args: args.iter().map(|arg| (*arg).to_owned()).collect(), env, ..Command::default() }
}

fn sh(script: &str) -> Command {
    command(&["sh", "-c", script])
}

/// Output, standard error, how it ended.
async fn run(guest: &mut Guest, command: &Command, input: &'static [u8]) -> (String, String, CommandEnd) {
    let log = Arc::new(Log::default());
    let done = guest.run(command, streams(Input::Bytes(Bytes::from_static(input)), log.clone())).await;
    let Done { end, output, .. } = done.unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
    let errors = log.text();
    (String::from_utf8_lossy(&output).into_owned(), errors, end)
}

fn streams(input: Input, log: Arc<Log>) -> Streams {
    let output = Output::Collect { limit_bytes: 8 << 20 };
    Streams { input, output, log, control: None, deadline: Instant::now() + PATIENCE }
}

#[tokio::test]
async fn a_command_reads_writes_and_ends_in_every_way() {
    let Some(mut guest) = ours("a_command_reads_writes_and_ends_in_every_way").await else { return };
    let (output, errors, end) = run(&mut guest, &sh("tr a-z A-Z; echo sorry >&2; exit 7"), b"hello").await;
    assert_eq!((output.as_str(), errors.as_str(), end), ("HELLO", "sorry\n", CommandEnd::Code(7)));
    let (.., end) = run(&mut guest, &sh("kill -9 $$"), b"").await;
    assert_eq!(end, CommandEnd::Signal(9));
    let error = guest.run(&command(&["no-such"]), streams(Input::Bytes(Bytes::new()), Arc::default())).await;
    assert!(matches!(error, Err(CommandError::NotStarted { errno: 2, .. })), "{error:?}");
    let script = "cd /; mkdir -p new && echo x > /new/file && cat /new/file; ls /proc/1/exe; hostname; id -u";
    let (output, errors, _) = run(&mut guest, &sh(script), b"").await;
    assert_eq!(output.lines().collect::<Vec<_>>(), ["x", "/proc/1/exe", "guest", "0"], "{errors}");
    assert!(!std::path::Path::new("/new").exists(), "what the guest wrote is the guest's");
    let user = User { uid: 1234, gid: 99, groups: vec![7] };
    let limits = vec![Limit { resource: RLIMIT_NOFILE, soft: 77, hard: 78 }];
    let named =
        Command { user, limits, working_directory: "/usr".into(), ..sh("id -u; id -G; ulimit -n; pwd") };
    let (output, ..) = run(&mut guest, &named, b"").await;
    assert_eq!(output.lines().collect::<Vec<_>>(), ["1234", "99 7", "77", "/usr"]);
    let python =
        command(&["python3", "-c", "import json, time; print(json.dumps([1, time.time() > 1.7e9]))"]);
    let (output, errors, _) = run(&mut guest, &python, b"").await;
    assert_eq!(output, "[1, true]\n", "{errors}");
    assert_eq!(guest.power_off().await, End::PowerOff);
}

#[tokio::test]
async fn streams_hold_back_and_nothing_is_lost() {
    let Some(mut guest) = ours("streams_hold_back_and_nothing_is_lost").await else { return };
    // Input and output far beyond all credit, through a pipe in the guest.
    let (to, input) = mpsc::channel::<Bytes>(2);
    let (output_to, mut output) = mpsc::channel::<Bytes>(1);
    const PIECES: usize = 300;
    let feed = async move {
        for index in 0..PIECES {
            to.send(Bytes::from(vec![index as u8; 10_000])).await.unwrap();
        }
    };
    let drain = async move {
        let mut all = Vec::new();
        while let Some(piece) = output.recv().await {
            all.extend_from_slice(&piece);
        }
        all
    };
    let copy = sh("cat | cat");
    let streams_ =
        Streams { output: Output::Stream(output_to), ..streams(Input::Stream(input), Arc::default()) };
    let (done, (), all) = tokio::join!(guest.run(&copy, streams_), feed, drain);
    assert_eq!(done.unwrap().end, CommandEnd::Code(0));
    let expected: Vec<u8> = (0..PIECES).flat_map(|index| vec![index as u8; 10_000]).collect();
    assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
    // A command that never reads gets no more than its credit, and ends when it wants to.
    let (to, input) = mpsc::channel::<Bytes>(1);
    let feed = tokio::spawn(async move {
        let mut sent = 0;
        while to.send(Bytes::from(vec![0; 100_000])).await.is_ok() {
            sent += 100_000;
        }
        sent
    });
    let done = guest.run(&sh("sleep 1"), streams(Input::Stream(input), Arc::default())).await;
    assert_eq!(done.unwrap().end, CommandEnd::Code(0));
    let sent = feed.await.unwrap();
    assert!(sent < 1 << 20, "{sent}");
    // Output beyond the limit ends the run, and so does the deadline.
    let little = Streams {
        output: Output::Collect { limit_bytes: 1000 },
        ..streams(Input::Bytes(Bytes::new()), Arc::default())
    };
    let error = guest.run(&command(&["yes"]), little).await;
    assert!(matches!(error, Err(CommandError::OutputLimit { limit_bytes: 1000 })), "{error:?}");
    let soon = Streams {
        deadline: Instant::now() + Duration::from_secs(1),
        ..streams(Input::Bytes(Bytes::new()), Arc::default())
    };
    let error = guest.run(&command(&["sleep", "100"]), soon).await;
    assert!(matches!(error, Err(CommandError::Deadline { .. })), "{error:?}");
}

#[tokio::test]
async fn a_terminal_has_a_size_and_takes_signals() {
    let Some(mut guest) = ours("a_terminal_has_a_size_and_takes_signals").await else { return };
    let (control, controls) = mpsc::channel(4);
    let (to, input) = mpsc::channel::<Bytes>(4);
    let (output_to, mut output) = mpsc::channel::<Bytes>(16);
    let size = TerminalSize { rows: 33, columns: 111 };
    let script = "trap 'stty size' WINCH; trap 'exit 5' INT; stty size
        read line; echo got $line; while :; do sleep 1; done";
    let shell = Command { terminal: Some(size), ..sh(script) };
    let streams = Streams {
        output: Output::Stream(output_to),
        control: Some(controls),
        ..streams(Input::Stream(input), Arc::default())
    };
    let talk = async move {
        let mut seen = String::new();
        let mut until = async |text: &str| {
            while !seen.contains(text) {
                let piece = output.recv().await.unwrap_or_else(|| panic!("{text} never came: {seen}"));
                seen.push_str(&String::from_utf8_lossy(&piece));
            }
        };
        until("33 111").await;
        control.send(Control::Resize(TerminalSize { rows: 20, columns: 50 })).await.unwrap();
        to.send(Bytes::from_static(b"word\r")).await.unwrap();
        until("got word").await;
        until("20 50").await;
        // Control-C, as a terminal sends it.
        to.send(Bytes::from_static(b"\x03")).await.unwrap();
        while output.recv().await.is_some() {}
    };
    let (done, ()) = tokio::join!(guest.run(&shell, streams), talk);
    assert_eq!(done.unwrap().end, CommandEnd::Code(5));
}

#[tokio::test]
async fn directories_are_layered_and_mounted_and_only_what_may_be_is_written() {
    let test = "directories_are_layered_and_mounted_and_only_what_may_be_is_written";
    let Some(kernel) = our_kernel(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("top/etc/one", "top"), ("read/file", "read"), ("write/file", "write")] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let directory = |name: &str, read_only| Directory {
        source: folder.path().join(name),
        target: format!("/data/{name}"),
        read_only,
    };
    let kernel = Kernel { image: kernel.vmlinux(), modules: None };
    let mut guest = Guest::boot(GuestConfig {
        root: Root::Layers(vec![folder.path().join("top"), "/".into()]),
        directories: vec![directory("read", true), directory("write", false)],
        ..with_agent(kernel, "guest")
    })
    .await
    .unwrap();
    let script = "cat /etc/one /data/read/file /data/write/file; echo; echo new > /data/write/new
        echo no > /data/read/new || echo refused; mv /etc/one /etc/two && cat /etc/two";
    let (output, errors, _) = run(&mut guest, &sh(script), b"").await;
    assert_eq!(output, "topreadwrite\nrefused\ntop", "{errors}");
    let written = std::fs::read_to_string(folder.path().join("write/new")).unwrap();
    assert_eq!(written, "new\n");
    assert!(folder.path().join("top/etc/one").exists(), "the layers do not change");
}

#[tokio::test]
async fn a_guest_that_resets_itself_is_told() {
    let test = "a_guest_that_resets_itself_is_told";
    let Some(mut guest) = ours(test).await else { return };
    let reset = sh("python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'; sleep 100");
    let end = guest.run(&reset, streams(Input::Bytes(Bytes::new()), Arc::default())).await;
    assert!(matches!(end, Err(CommandError::Ended(End::Reset))), "{end:?}");
}

#[tokio::test]
async fn debians_kernel_runs_a_command_too() {
    let Some(kernel) = debian_kernel("debians_kernel_runs_a_command_too") else { return };
    let kernel = Kernel { image: kernel.vmlinux(), modules: Some(kernel.modules()) };
    let mut guest = Guest::boot(with_agent(kernel, "guest")).await.unwrap_or_else(|error| panic!("{error}"));
    let (output, errors, end) = run(&mut guest, &sh("cat; uname -s"), b"hello ").await;
    assert_eq!((output.as_str(), end), ("hello Linux\n", CommandEnd::Code(0)), "{errors}");
    assert!(guest.kernel_release().ends_with("amd64"), "{}", guest.kernel_release());
}
