//! The process engine through the contract, with programs built here by gcc and programs of the system.

mod contained;
mod cpython;
mod files;
mod gathered;
mod hostile;
mod images;
mod onset;
mod programs;
mod ready;
mod static_programs;
mod stored;
mod table;
mod unique;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::process::ProcessEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, Error, Function, Image, Input, Invocation, LogSink, Manifest, Output,
    Reply, Share,
};
use novum_snapshot::Store;

/// Keeps the log.
#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Whether the tests of this file can run here.
fn has_kvm(test: &str) -> bool {
    match novum_sandbox::process::probe() {
        Ok(()) => true,
        Err(reason) => {
            assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
            skipped(test, &reason);
            false
        }
    }
}

/// Says so past the harness, which shows what a test prints only where it fails.
fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// Whether a test can run here that needs a program of the system.
fn has_program(test: &str, program: &str) -> bool {
    if !has_kvm(test) {
        return false;
    }
    let there = Path::new(program).exists();
    if !there {
        skipped(test, &format!("{program} is not installed"));
    }
    there
}

/// Whether the machine is an emulated one, ten to fifty times slower.
fn in_rig() -> bool {
    std::env::var_os("NOVUM_RIG").is_some()
}

/// What is run and how.
struct Run {
    manifest: Manifest,
    input: Input,
    output: Output,
    deadline: Duration,
    log: Arc<Log>,
}

impl Run {
    fn new() -> Self {
        let mut manifest = Manifest::new("f".parse().unwrap());
        manifest.memory_bytes = 512 << 20;
        let output = Output::Collect { limit_bytes: 16 << 20 };
        let input = Input::Bytes(Bytes::new());
        let deadline = Duration::from_secs(if in_rig() { 200 } else { 20 });
        // In which a program says that it is ready, too.
        manifest.timeout = deadline;
        Self { manifest, input, output, deadline, log: Arc::default() }
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.manifest.args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    fn input(mut self, bytes: impl Into<Bytes>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Lends the program the host's libraries.
    fn with_libraries(mut self) -> Self {
        for dir in ["/usr", "/lib", "/lib64", "/bin", "/etc"] {
            let share = Share { source: dir.into(), target: dir.into(), read_only: true };
            self.manifest.shares.push(share);
        }
        self
    }

    async fn prepare(&self, program: &Path) -> Result<Arc<dyn Image>, Error> {
        self.prepare_with(program, None).await
    }

    /// As a gateway with this store does.
    async fn prepare_with(&self, program: &Path, snapshots: Option<Store>) -> Result<Arc<dyn Image>, Error> {
        let cache = std::env::temp_dir();
        let config = EngineConfig {
            kernels: cache.clone(),
            cache,
            max_sandboxes: 10,
            max_memory_bytes: 8 << 30,
            snapshots,
        };
        let engine = ProcessEngine::new(&config)?;
        let mut manifest = self.manifest.clone();
        manifest.entry = program.file_name().unwrap().to_str().unwrap().to_owned();
        let digest = novum_snapshot::Digest::of(b"not looked at");
        let artifact = Artifact { format: ArtifactFormat::File, digest, path: program.to_owned() };
        engine.prepare(Arc::new(Function { version: 1, manifest, artifact })).await
    }

    async fn run(self, program: &Path) -> Result<Reply, Error> {
        let image = self.prepare(program).await?;
        let call = Invocation {
            env: Vec::new(),
            input: self.input,
            output: self.output,
            log: self.log,
            deadline: Instant::now() + self.deadline,
        };
        image.start().await?.invoke(call).await
    }
}

/// Compiles a C program.
fn compile(dir: &Path, source: &str, flags: &[&str]) -> std::path::PathBuf {
    let file = dir.join("program.c");
    let program = dir.join("program");
    std::fs::write(&file, source).unwrap();
    let done = Command::new("gcc").args(["-O1", "-w", "-o"]).arg(&program).arg(&file).args(flags).status();
    assert!(done.expect("gcc runs").success(), "gcc refuses the program");
    program
}
