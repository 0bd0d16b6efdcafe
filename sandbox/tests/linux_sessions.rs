//! Sandboxes of the linux engine that live between calls: commands side by side, terminals, files, pauses, copies. In the
//! rig: `cargo xtask rig test --test linux_sessions`.
#![cfg(feature = "vm")]

mod guest;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use guest::{kernels, our_kernel};
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::linux::LinuxEngine;
use novum_sandbox::session::{
    Exec, ExecControl, ExecStreams, FileFailure, FileWrite, Session, SessionError, SessionSpec, WritePlace,
};
use novum_sandbox::{Engine, ExitStatus};
use novum_snapshot::Store;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Far above what anything here takes in the rig.
const PATIENCE: Duration = Duration::from_secs(120);

/// A session of this machine's root with a writable share, and the directory in which everything lies.
async fn session(test: &str, folder: &Path) -> Option<Arc<dyn Session>> {
    our_kernel(test)?;
    let share = folder.join("share");
    std::fs::create_dir(&share).unwrap();
    let config = EngineConfig {
        cache: folder.join("cache"),
        kernels: kernels(test)?.root().to_owned(),
        max_sandboxes: 8,
        max_memory_bytes: 1 << 30,
        snapshots: Some(Store::open(folder.join("store")).unwrap()),
    };
    let engine = LinuxEngine::new(&config).unwrap();
    let spec = SessionSpec {
        name: "work".into(),
        layers: vec!["/".into()],
        upper: None,
        program: None,
        shares: Vec::new(),
        env: vec![("COLOUR".into(), "blue".into())],
        memory_bytes: 256 << 20,
        cpus: 1,
    };
    let made = engine.sessions().unwrap().create(spec).await;
    Some(made.unwrap_or_else(|error| panic!("{error}")))
}

/// A command under way.
struct Running {
    input: mpsc::Sender<Bytes>,
    control: mpsc::Sender<ExecControl>,
    output: mpsc::Receiver<Bytes>,
    error: mpsc::Receiver<Bytes>,
    end: JoinHandle<Result<ExitStatus, SessionError>>,
}

fn start(session: &Arc<dyn Session>, command: Exec) -> Running {
    let (to_input, input) = mpsc::channel(4);
    let (to_output, output) = mpsc::channel(4);
    let (to_error, error) = mpsc::channel(4);
    let (orders, control) = mpsc::channel(4);
    let session = Arc::clone(session);
    let end = tokio::spawn(async move {
        let streams = ExecStreams { input, output: to_output, error: to_error, control };
        session.exec(command, streams, oneshot::channel().0).await
    });
    Running { input: to_input, control: orders, output, error, end }
}

impl Running {
    /// Output until it holds `text`.
    async fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let next = tokio::time::timeout(PATIENCE, self.output.recv()).await.expect("output in time");
            seen +=
                &String::from_utf8_lossy(&next.unwrap_or_else(|| panic!("{text:?} is missing in {seen:?}")));
        }
    }

    /// Ends its input and collects what it says: output, errors, end.
    async fn finish(mut self) -> (String, String, Result<ExitStatus, SessionError>) {
        drop(self.input);
        let collect = async |from: &mut mpsc::Receiver<Bytes>| {
            let mut all = Vec::new();
            while let Some(bytes) = from.recv().await {
                all.extend_from_slice(&bytes);
            }
            String::from_utf8_lossy(&all).into_owned()
        };
        let (output, error) = tokio::join!(collect(&mut self.output), collect(&mut self.error));
        (output, error, self.end.await.unwrap())
    }
}

fn sh(script: &str) -> Exec {
    Exec { args: ["sh", "-c", script].map(str::to_owned).into(), ..Exec::default() }
}

async fn says(session: &Arc<dyn Session>, script: &str) -> String {
    let (output, error, end) = start(session, sh(script)).finish().await;
    assert!(matches!(end, Ok(ExitStatus::Code(0))), "{script}: {end:?} {error}");
    output
}

async fn read(session: &Arc<dyn Session>, path: &str) -> Result<Vec<u8>, SessionError> {
    let mut all = Vec::new();
    loop {
        let piece = session.read_file(path, all.len() as u64, 64 << 10).await?.data;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

async fn write(session: &Arc<dyn Session>, path: &str, data: &[u8]) -> Result<u64, SessionError> {
    let anew = WritePlace::Anew { mode: 0o640, make_directories: true };
    let piece =
        |place, data: &[u8]| FileWrite { path: path.into(), place, data: Bytes::copy_from_slice(data) };
    let mut end = session.write_file(piece(anew, b"")).await?;
    for data in data.chunks(64 << 10) {
        end = session.write_file(piece(WritePlace::At(end), data)).await?;
    }
    Ok(end)
}

fn failure<T: std::fmt::Debug>(result: Result<T, SessionError>) -> FileFailure {
    match result {
        Err(SessionError::File { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn memory_is_taken_from_a_running_guest_and_its_copies_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let test = "memory_is_taken_from_a_running_guest_and_its_copies_and_given_back";
    let Some(session) = session(test, folder.path()).await else { return };
    for size in [32 << 20, 257 << 20] {
        let refused = session.resize(size).await;
        assert!(
            matches!(&refused, Err(SessionError::Engine(error)) if error.to_string().contains("64MiB")),
            "{refused:?}"
        );
    }
    let free =
        "while read name count unit; do [ $name = MemFree: ] && echo $count; done < /proc/meminfo; true";
    let before: u64 = says(&session, free).await.trim().parse().unwrap();
    let (all, half) = (256 << 20, 128 << 20);
    assert_eq!(session.resize(half).await.unwrap(), half);
    let taken: u64 = says(&session, free).await.trim().parse().unwrap();
    assert!(taken + (100 << 10) < before, "{before} KiB, then {taken} KiB");
    let copy = session.snapshot().await.unwrap().create("copy").await.unwrap();
    for session in [&session, &copy] {
        assert_eq!(session.resize(all).await.unwrap(), all);
        let back: u64 = says(session, free).await.trim().parse().unwrap();
        assert!(back > taken + (100 << 10), "{taken} KiB, then {back} KiB");
    }
    session.pause().await.unwrap();
    assert!(matches!(session.resize(half).await, Err(SessionError::Busy(_))));
}

#[tokio::test]
async fn commands_files_and_pauses_of_one_guest() {
    let folder = tempfile::tempdir().unwrap();
    let Some(session) = session("commands_files_and_pauses_of_one_guest", folder.path()).await else {
        return;
    };
    // Side by side, each with its own streams.
    let mut first = start(&session, sh("echo up; cat; echo bad >&2; exit 3"));
    first.until("up").await;
    assert_eq!(says(&session, "echo $COLOUR; hostname").await, "blue\nwork\n");
    first.input.send("through".into()).await.unwrap();
    let (output, error, end) = first.finish().await;
    assert_eq!((output.as_str(), error.as_str()), ("through", "bad\n"));
    assert!(matches!(end, Ok(ExitStatus::Code(3))), "{end:?}");
    // One that nobody reads holds up no other, and goes with its caller.
    let stuck = start(&session, sh("echo $$ > /tmp/stuck; yes; echo over"));
    let flood = start(&session, sh("head -c 3000000 /dev/zero | tr '\\0' x")).finish().await;
    assert_eq!(flood.0.len(), 3_000_000);
    stuck.end.abort();
    assert_eq!(
        says(&session, "while kill -0 $(cat /tmp/stuck) 2>/dev/null; do sleep 0.1; done; echo gone").await,
        "gone\n"
    );
    // A signal, a terminal.
    let mut waits = start(&session, sh("echo up; exec sleep 1000"));
    waits.until("up").await;
    waits.control.send(ExecControl::Signal(15)).await.unwrap();
    let end = waits.finish().await.2;
    assert!(matches!(&end, Ok(ExitStatus::Fault(fault)) if fault.kind == "SIGTERM"), "{end:?}");
    let mut terminal =
        start(&session, Exec { terminal: Some((24, 80)), ..sh("stty size; read x; stty size") });
    terminal.until("24 80").await;
    terminal.control.send(ExecControl::Resize(50, 132)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    terminal.input.send("\n".into()).await.unwrap();
    terminal.until("50 132").await;
    let none =
        start(&session, Exec { args: vec!["nothing-here".into()], ..Exec::default() }).finish().await.2;
    assert!(
        matches!(&none, Err(SessionError::Command { program, .. }) if program == "nothing-here"),
        "{none:?}"
    );
    files(&session).await;
    // Nothing moves while it is paused.
    let mut ticks = start(&session, sh("while echo tick; do sleep 0.2; done"));
    ticks.until("tick").await;
    session.pause().await.unwrap();
    while tokio::time::timeout(Duration::from_millis(500), ticks.output.recv()).await.is_ok() {}
    assert!(matches!(read(&session, "/etc/hostname").await, Err(SessionError::Busy(_))));
    session.resume().await.unwrap();
    ticks.until("tick").await;
    ticks.end.abort();
    // The guest ends: everybody is told.
    let waits = start(&session, sh("exec sleep 1000"));
    let reset = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'; exec sleep 1000";
    let ends = start(&session, sh(reset));
    let how = tokio::time::timeout(PATIENCE, session.ended()).await.expect("the guest ends");
    assert!(!how.is_empty());
    for running in [waits, ends] {
        let end = running.finish().await.2;
        assert!(matches!(end, Err(SessionError::Ended(_))), "{end:?}");
    }
    assert!(matches!(read(&session, "/etc/hostname").await, Err(SessionError::Ended(_))));
}

async fn files(session: &Arc<dyn Session>) {
    let data: Vec<u8> = (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert_eq!(write(session, "/opt/deep/er/big", &data).await.unwrap(), data.len() as u64);
    assert!(read(session, "/opt/deep/er/big").await.unwrap() == data);
    assert_eq!(says(session, "stat -c '%a %s' /opt/deep/er/big").await, "640 2000000\n");
    let append = WritePlace::Append { mode: 0o600, make_directories: false };
    let more = FileWrite { path: "/opt/deep/er/big".into(), place: append, data: "end".into() };
    assert_eq!(session.write_file(more).await.unwrap(), 2_000_003);
    says(session, "mkfifo /tmp/fifo; ln -s /tmp/target /tmp/link").await;
    write(session, "/tmp/link", b"by a link").await.unwrap();
    assert_eq!(read(session, "/tmp/target").await.unwrap(), b"by a link");
    assert!(read(session, "/proc/version").await.unwrap().starts_with(b"Linux"));
    assert_eq!(failure(read(session, "/missing").await), FileFailure::NotFound);
    for path in ["/tmp", "/tmp/fifo", "/dev/zero"] {
        assert_eq!(failure(read(session, path).await), FileFailure::Invalid, "{path}");
    }
}

#[tokio::test]
async fn copies_go_on_apart_with_their_running_commands() {
    let folder = tempfile::tempdir().unwrap();
    let Some(session) = session("copies_go_on_apart", folder.path()).await else { return };
    // A nonce that is in the guest's memory only, and a command that runs.
    says(&session, "head -c 16 /dev/urandom | od -An -tx1 > /tmp/nonce").await;
    let nonce = says(&session, "cat /tmp/nonce").await;
    let mut ticks = start(&session, sh("while sleep 0.1; do echo tick; echo tick >> /tmp/ticks; done"));
    ticks.until("tick").await;
    let snapshot = session.snapshot().await.unwrap();
    assert!(snapshot.bytes() > 0);
    ticks.until("tick").await;
    let one = snapshot.create("one").await.unwrap_or_else(|error| panic!("{error}"));
    drop(snapshot);
    assert_eq!(says(&one, "cat /tmp/nonce; hostname").await, format!("{nonce}one\n"));
    // Its copy of the command runs on without a caller, and is told that there is no more input.
    says(&one, "n=$(wc -l < /tmp/ticks); while [ $(wc -l < /tmp/ticks) -lt $((n + 5)) ]; do sleep 0.1; done")
        .await;
    write(&one, "/tmp/mine", b"mine").await.unwrap();
    assert_eq!(failure(read(&session, "/tmp/mine").await), FileFailure::NotFound);
    // A paused sandbox can be copied, and stays paused.
    session.pause().await.unwrap();
    let second = session.snapshot().await.unwrap();
    assert!(matches!(read(&session, "/tmp/nonce").await, Err(SessionError::Busy(_))));
    session.resume().await.unwrap();
    ticks.until("tick").await;
    ticks.end.abort();
    drop((one, second));
    assert_eq!(says(&session, "cat /tmp/nonce").await, nonce);
}
