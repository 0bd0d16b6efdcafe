//! A run in the process engine, on the host's root directory (read-only, under the sandbox's private layer), with the
//! work folder as a writable share at its own path.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::process::ProcessEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, ExitStatus, Function, Input, Invocation, LogSink, Manifest, Output,
    Reply, Share,
};

use super::work::Plan;
use super::{Run, tree};

/// Keeps standard error.
#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        if let Ok(mut kept) = self.0.lock() {
            kept.extend_from_slice(bytes);
        }
    }
}

/// Runs `plan`.
pub(super) async fn run(plan: &Plan, work: &Path) -> Result<Run> {
    let log = Arc::new(Log::default());
    let mut started = Instant::now();
    let (exit, stdout) = match invoke(plan, work, log.clone(), &mut started).await {
        Ok(reply) => (describe(reply.exit), reply.output.to_vec()),
        Err(error) => (format!("{:#}", anyhow::Error::from(error)), Vec::new()),
    };
    let time = started.elapsed();
    let log = std::mem::take(&mut *log.0.lock().map_err(|_| anyhow::anyhow!("a sandbox panicked"))?);
    let (stderr, remarks) = split_remarks(log);
    Ok(Run { exit, stdout, stderr, tree: tree::read(work)?, time, remarks })
}

async fn invoke(
    plan: &Plan,
    work: &Path,
    log: Arc<Log>,
    started: &mut Instant,
) -> Result<Reply, novum_sandbox::Error> {
    let memory_bytes = plan.memory_mib << 20;
    let config = EngineConfig {
        cache: std::env::temp_dir(),
        kernels: std::env::temp_dir(),
        max_sandboxes: 1,
        max_memory_bytes: memory_bytes,
        snapshots: None,
    };
    let engine = ProcessEngine::new(&config)?;
    let image = engine.prepare(Arc::new(function(plan, work, memory_bytes))).await?;
    *started = Instant::now();
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::from(plan.input.clone())),
        output: Output::Collect { limit_bytes: 256 << 20 },
        log,
        deadline: *started + Duration::from_secs(plan.timeout_s.into()),
    };
    image.start().await?.invoke(call).await
}

fn function(plan: &Plan, work: &Path, memory_bytes: u64) -> Function {
    let mut manifest = Manifest::new("program".parse().expect("a name"));
    manifest.entry = plan.program.clone();
    manifest.args = plan.args.clone();
    manifest.env = plan.env.clone();
    manifest.memory_bytes = memory_bytes;
    let target = work.to_string_lossy().into_owned();
    manifest.shares = vec![Share { source: work.to_owned(), target, read_only: false }];
    let digest = novum_snapshot::Digest::of(plan.program.as_bytes());
    let artifact = Artifact { format: ArtifactFormat::Tar, digest, path: PathBuf::from("/") };
    Function { version: 1, manifest, artifact }
}

fn describe(exit: ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => code.to_string(),
        ExitStatus::Fault(fault) => fault.kind,
    }
}

/// The program's own lines, and the lines that the engine added at the end.
fn split_remarks(log: Vec<u8>) -> (Vec<u8>, Vec<String>) {
    const MARK: &[u8] = b"novum: system call ";
    let Some(at) = log.windows(MARK.len()).position(|window| window == MARK) else {
        return (log, Vec::new());
    };
    let remarks = String::from_utf8_lossy(&log[at..]).lines().map(str::to_owned).collect();
    (log[..at].to_vec(), remarks)
}
