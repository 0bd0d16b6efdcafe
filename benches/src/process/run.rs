//! One program, run natively and through the engine's contract.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::process::{ProcessEngine, exits};
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, Function, Image, Input, Invocation, LogSink, Manifest, Output, Share,
};
use novum_snapshot::Digest;
use tokio::runtime::Runtime;

use super::sys::cpu_time;

/// What is run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Its file.
    pub(super) path: PathBuf,
    /// Its arguments.
    pub(super) args: Vec<String>,
    /// Host directories that it sees at the same paths, read-only.
    pub(super) shares: Vec<PathBuf>,
}

impl Program {
    /// One that needs no other file.
    pub(super) fn alone(path: &Path, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { path: path.to_owned(), args, shares: Vec::new() }
    }

    /// One of the system's, with its libraries.
    pub(super) fn of_system(path: &str, args: &[&str]) -> Self {
        let shares = ["/usr", "/lib", "/lib64", "/etc"].map(PathBuf::from).to_vec();
        Self { shares, ..Self::alone(Path::new(path), args) }
    }
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// From before the start to after the end.
    pub(super) wall: Duration,
    /// Processor time of this process and its children meanwhile.
    pub(super) cpu: Duration,
    /// Of `wall`: the sandbox's start. Zero for a native run.
    pub(super) start: Duration,
    /// How often the program left its VM.
    pub(super) exits: u64,
}

/// Runs it as a child process; `posix_spawn` inside of `Command`.
pub(super) fn native(program: &Program) -> Result<(Took, Vec<u8>)> {
    native_with(program, &[])
}

/// The same with an environment.
pub(super) fn native_with(program: &Program, env: &[(&str, &str)]) -> Result<(Took, Vec<u8>)> {
    let args: Vec<OsString> = program.args.iter().map(OsString::from).collect();
    let mut command = Command::new(&program.path);
    command
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let (cpu, start) = (cpu_time(), Instant::now());
    let output = command.spawn()?.wait_with_output()?;
    let took = Took { wall: start.elapsed(), cpu: cpu_time() - cpu, start: Duration::ZERO, exits: 0 };
    ensure!(output.status.success(), "{}: {}", program.path.display(), output.status);
    Ok((took, output.stdout))
}

/// A program that the engine has prepared.
pub(super) struct Deployed {
    runtime: Runtime,
    image: Arc<dyn Image>,
    name: String,
}

struct ToStderr;

impl LogSink for ToStderr {
    fn write(&self, bytes: &[u8]) {
        eprint!("{}", String::from_utf8_lossy(bytes));
    }
}

/// Longest run.
const TIMEOUT: Duration = Duration::from_secs(120);
const MEMORY: u64 = 512 << 20;

impl Deployed {
    /// Deploys it; what the engine keeps goes below `cache`.
    pub(super) fn new(program: &Program, cache: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = EngineConfig {
            cache: cache.to_owned(),
            kernels: cache.to_owned(),
            max_sandboxes: 16,
            max_memory_bytes: MEMORY,
            snapshots: None,
        };
        let engine = ProcessEngine::new(&config)?;
        let mut manifest = Manifest::new("bench".parse()?);
        manifest.args.clone_from(&program.args);
        manifest.memory_bytes = MEMORY;
        let name = program.path.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        manifest.entry.clone_from(&name);
        manifest.shares = program
            .shares
            .iter()
            .map(|dir| Share {
                source: dir.clone(),
                target: dir.to_string_lossy().into_owned(),
                read_only: true,
            })
            .collect();
        let identity = format!("{} {:?}", program.path.display(), program.args);
        let artifact = Artifact {
            format: ArtifactFormat::File,
            digest: Digest::of(identity.as_bytes()),
            path: program.path.clone(),
        };
        let function = Arc::new(Function { version: 1, manifest, artifact });
        let image = runtime.block_on(engine.prepare(function))?;
        Ok(Self { runtime, image, name })
    }

    /// Starts a sandbox, runs the program in it to its end, and drops the sandbox.
    pub(super) fn run(&self) -> Result<(Took, Vec<u8>)> {
        self.runtime.block_on(async {
            let (cpu, begun, exits) = (cpu_time(), Instant::now(), exits());
            let mut sandbox = self.image.clone().start().await?;
            let start = begun.elapsed();
            let call = Invocation {
                env: Vec::new(),
                input: Input::Bytes(Bytes::new()),
                output: Output::Collect { limit_bytes: 1 << 20 },
                log: Arc::new(ToStderr),
                deadline: Instant::now() + TIMEOUT,
            };
            let reply = sandbox.invoke(call).await?;
            let exits = novum_sandbox::process::exits() - exits;
            let took = Took { wall: begun.elapsed(), cpu: cpu_time() - cpu, start, exits };
            ensure!(reply.exit.success(), "{}: {:?}", self.name, reply.exit);
            Ok((took, reply.output.to_vec()))
        })
    }
}
