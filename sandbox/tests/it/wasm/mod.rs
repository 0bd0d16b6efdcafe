//! The wasm engine through the contract.

mod artifacts;
mod authority;
mod cache;
mod components;
mod contract;
mod hot;
mod limits;
mod programs;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::wasm::WasmEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, Error, ExitStatus, Function, Image, Input, Invocation, LogSink,
    Manifest, Output, Reply,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Keeps what it is given.
#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().extend_from_slice(bytes);
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

/// An engine and a place for its files.
struct Bed {
    dir: TempDir,
    engine: WasmEngine,
}

const SANDBOXES: u32 = 16;

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            kernels: dir.path().join("kernels"),
            cache: dir.path().join("cache"),
            max_sandboxes: SANDBOXES,
            max_memory_bytes: 1 << 30,
            snapshots: None,
        };
        let engine = WasmEngine::new(&config).unwrap();
        Self { dir, engine }
    }

    /// A function of these bytes.
    fn function(&self, bytes: impl AsRef<[u8]>, change: impl FnOnce(&mut Manifest)) -> Arc<Function> {
        let digest = novum_snapshot::Digest::of(bytes.as_ref());
        let path = self.dir.path().join(format!("artifact-{digest}"));
        std::fs::write(&path, bytes).unwrap();
        let mut manifest = Manifest::new("f".parse().unwrap());
        change(&mut manifest);
        let artifact = Artifact { format: ArtifactFormat::File, digest, path };
        Arc::new(Function { version: 1, manifest, artifact })
    }

    async fn image(
        &self,
        bytes: impl AsRef<[u8]>,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<Arc<dyn Image>, Error> {
        self.engine.prepare(self.function(bytes, change)).await
    }

    /// Deploys, starts and calls.
    async fn call(&self, bytes: impl AsRef<[u8]>, input: &[u8]) -> Result<Reply, Error> {
        run(&self.image(bytes, |_| {}).await?, input).await
    }
}

/// A call that collects its output and has plenty of time.
fn invocation(input: &[u8]) -> Invocation {
    Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::copy_from_slice(input)),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: Arc::new(Log::default()),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

async fn run_with(image: &Arc<dyn Image>, call: Invocation) -> Result<Reply, Error> {
    Arc::clone(image).start().await?.invoke(call).await
}

async fn run(image: &Arc<dyn Image>, input: &[u8]) -> Result<Reply, Error> {
    run_with(image, invocation(input)).await
}

/// The fault's kind and message.
fn fault(reply: Reply) -> (String, String) {
    match reply.exit {
        ExitStatus::Fault(fault) => (fault.kind, fault.message),
        exit => panic!("it ended with {exit:?}"),
    }
}
