//! The two places where Debian's interpreter runs: natively, and in the process engine on the host's root directory
//! (read-only, under the sandbox's private layer) with the work folder as a writable share at its own path.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::process::ProcessEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, ExitStatus, Function, Input, Invocation, LogSink, Manifest, Output,
    Share,
};

/// Debian's interpreter, whose tests these are.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the host.
    Native,
    /// In a sandbox.
    Inside,
}

/// One run of the interpreter.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// Writable, and where it begins.
    pub(super) work: &'a Path,
    pub(super) args: Vec<String>,
    pub(super) limit: Duration,
}

/// How it ended, with the last lines of its standard error.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) exit: String,
    pub(super) stderr: String,
}

/// A test module that needs more is skipped by the tests themselves.
const MEMORY_BYTES: u64 = 2 << 30;
const LOG_BYTES: usize = 1 << 20;

impl Place {
    /// Runs the interpreter to its end or to the limit.
    pub(super) async fn run(self, job: &Job<'_>) -> Result<Ended> {
        match self {
            Self::Native => native(job),
            Self::Inside => inside(job).await,
        }
    }
}

/// The whole environment, in both places.
fn environment(work: &Path) -> BTreeMap<String, String> {
    let home = work.to_string_lossy().into_owned();
    [("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("TZ", "UTC"), ("HOME", &home)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn native(job: &Job<'_>) -> Result<Ended> {
    let mut child = Command::new(PYTHON)
        .args(&job.args)
        .env_clear()
        .envs(environment(job.work))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {PYTHON}"))?;
    let mut stderr = child.stderr.take().context("no standard error")?;
    let log = Arc::new(Log::default());
    let sink = log.clone();
    // Not joined: a process that a test left behind may hold the pipe's other end.
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stderr.read(&mut piece) {
            sink.write(&piece[..n]);
        }
    });
    let deadline = Instant::now() + job.limit;
    let exit = loop {
        match child.try_wait()? {
            Some(status) => {
                break status
                    .code()
                    .map_or_else(|| format!("signal {:?}", status.signal()), |c| format!("exit {c}"));
            }
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                break "time limit".to_owned();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    Ok(Ended { exit, stderr: log.text() })
}

async fn inside(job: &Job<'_>) -> Result<Ended> {
    let log = Arc::new(Log::default());
    let config = EngineConfig {
        cache: std::env::temp_dir(),
        kernels: std::env::temp_dir(),
        max_sandboxes: 1,
        max_memory_bytes: MEMORY_BYTES,
        snapshots: None,
    };
    let image = ProcessEngine::new(&config)?.prepare(Arc::new(function(job))).await?;
    // Nobody reads what tests print.
    let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
    let drain = tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::new()),
        output: Output::Stream(sender),
        log: log.clone(),
        deadline: Instant::now() + job.limit,
    };
    let exit = match image.start().await?.invoke(call).await {
        Ok(reply) => describe(reply.exit),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    };
    drain.abort();
    Ok(Ended { exit, stderr: log.text() })
}

fn function(job: &Job<'_>) -> Function {
    let mut manifest = Manifest::new("cpython".parse().expect("a name"));
    manifest.entry = PYTHON.to_owned();
    manifest.args = job.args.clone();
    manifest.env = environment(job.work);
    manifest.memory_bytes = MEMORY_BYTES;
    let target = job.work.to_string_lossy().into_owned();
    manifest.shares = vec![Share { source: job.work.to_owned(), target, read_only: false }];
    let digest = novum_snapshot::Digest::of(PYTHON.as_bytes());
    let artifact = Artifact { format: ArtifactFormat::Tar, digest, path: PathBuf::from("/") };
    Function { version: 1, manifest, artifact }
}

fn describe(exit: ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => format!("exit {code}"),
        ExitStatus::Fault(fault) => format!("{}: {}", fault.kind, fault.message),
    }
}

/// Keeps the end of standard error.
#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        if let Ok(mut kept) = self.0.lock() {
            kept.extend_from_slice(bytes);
            let surplus = kept.len().saturating_sub(LOG_BYTES);
            kept.drain(..surplus);
        }
    }
}

impl Log {
    fn text(&self) -> String {
        self.0.lock().map(|kept| String::from_utf8_lossy(&kept).into_owned()).unwrap_or_default()
    }
}
