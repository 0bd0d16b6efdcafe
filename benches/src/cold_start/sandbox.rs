//! The same programs in sandboxes, through the engines' contract.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use novum_sandbox::engines::{self, EngineConfig};
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, EngineKind, Function, Image, Input, Invocation, LogSink, Manifest,
    Output, Renewal, Reply, Sandbox, Share, process,
};
use novum_snapshot::Digest;
use tokio::runtime::Runtime;

use super::programs::Built;
use super::sample::{Sampler, Took};

const MEMORY: u64 = 512 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);
/// More than are ever alive at once here.
const MAX_SANDBOXES: u32 = 1200;

struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _bytes: &[u8]) {}
}

/// An engine and one program for it.
pub(super) struct Deployed {
    engine: Arc<dyn Engine>,
    program: Built,
    scratch: PathBuf,
}

/// A runtime of the calling thread, as a worker of the gateway has.
pub(super) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

impl Deployed {
    /// Its engine, made now. What it keeps goes below `scratch`.
    pub(super) fn new(kind: EngineKind, program: Built, scratch: &Path) -> Result<Self> {
        let row = engines::row(kind).ok_or_else(|| anyhow!(engines::absence(kind)))?;
        (row.probe)().map_err(anyhow::Error::msg)?;
        let cache = scratch.join(format!("cache-{}", kind.as_str()));
        std::fs::create_dir_all(&cache)?;
        let config = EngineConfig {
            kernels: cache.join("kernels"),
            cache,
            max_sandboxes: MAX_SANDBOXES,
            max_memory_bytes: MEMORY,
            snapshots: None,
        };
        Ok(Self { engine: (row.make)(&config)?, program, scratch: scratch.to_owned() })
    }

    fn function(&self, artifact: PathBuf, digest: Digest) -> Result<Arc<Function>> {
        let mut manifest = Manifest::new("bench".parse()?);
        manifest.args.clone_from(&self.program.args);
        manifest.memory_bytes = MEMORY;
        let name = self.program.path.file_name().context("a program has a name")?;
        manifest.entry = name.to_string_lossy().into_owned();
        let share = |dir: &PathBuf| Share {
            source: dir.clone(),
            target: dir.to_string_lossy().into_owned(),
            read_only: true,
        };
        manifest.shares = self.program.shares.iter().map(share).collect();
        let artifact = Artifact { format: ArtifactFormat::File, digest, path: artifact };
        Ok(Arc::new(Function { version: 1, manifest, artifact }))
    }

    /// The program's image.
    pub(super) fn image(&self, runtime: &Runtime) -> Result<Arc<dyn Image>> {
        let digest = Digest::of(&std::fs::read(&self.program.path)?);
        let function = self.function(self.program.path.clone(), digest)?;
        Ok(runtime.block_on(self.engine.prepare(function))?)
    }

    /// Everything: the image made of an artifact that the engine has never seen, a sandbox of it, one call.
    pub(super) fn full(self: &Arc<Self>) -> Result<Sampler> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (this, runtime) = (Arc::clone(self), runtime()?);
        let bytes = std::fs::read(&this.program.path)?;
        Ok(Box::new(move || {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let artifact = this.unseen(&bytes, number)?;
            let began = Instant::now();
            let took = runtime.block_on(async {
                let image = this.engine.prepare(artifact.1).await?;
                let sandbox = image.start().await?;
                finish(sandbox, began).await
            });
            std::fs::remove_file(artifact.0)?;
            took.map(|(took, _)| took)
        }))
    }

    /// The same program with a mark at its end that no engine looks at.
    fn unseen(&self, bytes: &[u8], number: u64) -> Result<(PathBuf, Arc<Function>)> {
        let mut bytes = bytes.to_vec();
        if bytes.starts_with(b"\0asm") {
            // A custom section of ten bytes, its name `n` (WebAssembly core specification, binary format, custom section).
            bytes.extend([0, 10, 1, b'n']);
        }
        bytes.extend(number.to_le_bytes());
        let path = self.scratch.join(format!("unseen-{number}"));
        std::fs::write(&path, &bytes)?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, permissions)?;
        let function = self.function(path.clone(), Digest::of(&bytes))?;
        Ok((path, function))
    }
}

/// Before a sample that others' clean-up must not disturb: closing a VM takes up to a millisecond, on a thread of its own.
pub(super) const QUIET: Duration = Duration::from_millis(1);

/// A new sandbox of the image and one call. `shells`: first it is quiet, and so many VM shells are ready, so that each of
/// that many threads finds one.
pub(super) fn restore(image: Arc<dyn Image>, shells: Option<usize>) -> Result<Sampler> {
    let runtime = runtime()?;
    Ok(Box::new(move || {
        shells.map_or(Ok(()), wait_for_shells)?;
        let began = Instant::now();
        let done = runtime.block_on(async { finish(Arc::clone(&image).start().await?, began).await });
        // The sandbox's end is not counted: it is off the path.
        done.map(|(took, _sandbox)| took)
    }))
}

fn wait_for_shells(count: usize) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_micros(100);
    std::thread::sleep(QUIET);
    let began = Instant::now();
    while process::ready_shells() < count {
        ensure!(began.elapsed() < PATIENCE, "no VM shell is ready");
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// A new sandbox of the image, without a call, after a pause.
pub(super) fn start(image: Arc<dyn Image>, pause: Duration) -> Result<Sampler> {
    let runtime = runtime()?;
    Ok(Box::new(move || {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let began = Instant::now();
        let sandbox = runtime.block_on(Arc::clone(&image).start())?;
        let took = Took::whole(began.elapsed());
        drop(sandbox);
        Ok(took)
    }))
}

/// A sandbox that has served a call: reset, then the next call.
pub(super) fn reset(image: Arc<dyn Image>) -> Result<Sampler> {
    let (runtime, mut sandbox) = used(&image)?;
    Ok(Box::new(move || {
        let began = Instant::now();
        runtime.block_on(async {
            sandbox.reset().await?;
            clocked(sandbox.as_mut(), began).await
        })
    }))
}

/// A call of a sandbox that was reset after its last one, or, where the engine does not reset, made for this one; it has
/// waited since.
pub(super) fn clean_call(image: Arc<dyn Image>) -> Result<Sampler> {
    if image.renewal() == Renewal::Restart {
        let runtime = runtime()?;
        return Ok(Box::new(move || {
            let mut sandbox = runtime.block_on(Arc::clone(&image).start_ahead())?;
            let began = Instant::now();
            runtime.block_on(clocked(sandbox.as_mut(), began))
        }));
    }
    let (runtime, mut sandbox) = used(&image)?;
    Ok(Box::new(move || {
        runtime.block_on(sandbox.reset())?;
        // The engine cleans by itself, and has told nobody when that is over.
        std::thread::sleep(QUIET);
        let began = Instant::now();
        runtime.block_on(clocked(sandbox.as_mut(), began))
    }))
}

/// A sandbox that has served a call.
fn used(image: &Arc<dyn Image>) -> Result<(Runtime, Box<dyn Sandbox>)> {
    ensure!(image.renewal() == Renewal::Reset, "a new sandbox is as cheap here: see restore");
    let runtime = runtime()?;
    let mut sandbox = runtime.block_on(Arc::clone(image).start())?;
    runtime.block_on(call(sandbox.as_mut()))?;
    Ok((runtime, sandbox))
}

async fn finish(mut sandbox: Box<dyn Sandbox>, began: Instant) -> Result<(Took, Box<dyn Sandbox>)> {
    let took = clocked(sandbox.as_mut(), began).await?;
    Ok((took, sandbox))
}

async fn clocked(sandbox: &mut dyn Sandbox, began: Instant) -> Result<Took> {
    let ready = began.elapsed();
    let reply = call(sandbox).await?;
    let whole = began.elapsed();
    let first_byte = reply.timings.first_byte.context("it wrote something")?;
    Ok(Took { whole, clocks: Some([ready, ready + reply.timings.resumed, ready + first_byte]) })
}

/// One empty request.
pub(super) async fn call(sandbox: &mut dyn Sandbox) -> Result<Reply> {
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::new()),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: Arc::new(Nowhere),
        deadline: Instant::now() + TIMEOUT,
    };
    let reply = sandbox.invoke(call).await?;
    ensure!(reply.exit.success() && !reply.output.is_empty(), "it ended with {:?}", reply.exit);
    Ok(reply)
}
