//! The wasm engine through the contract.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::wasm::WasmEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, Error, ExitStatus, Function, Input, Invocation, LogSink, Manifest,
    Output, Reply,
};

struct Ignore;

impl LogSink for Ignore {
    fn write(&self, _bytes: &[u8]) {}
}

const ECHO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8)) (then
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $again))))))"#;

async fn call(source: &str, input: &[u8]) -> Result<Reply, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.wat");
    std::fs::write(&path, source).unwrap();
    let config =
        EngineConfig { cache: dir.path().join("cache"), max_sandboxes: 10, max_memory_bytes: 64 << 20 };
    let digest = novum_snapshot::Digest::of(source.as_bytes());
    let artifact = Artifact { format: ArtifactFormat::File, digest, path };
    let manifest = Manifest::new("f".parse().unwrap());
    let engine = WasmEngine::new(&config)?;
    let image = engine.prepare(Arc::new(Function { version: 1, manifest, artifact })).await?;
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::copy_from_slice(input)),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: Arc::new(Ignore),
        deadline: Instant::now() + Duration::from_secs(5),
    };
    image.start().await?.invoke(call).await
}

#[tokio::test]
async fn a_command_echoes_its_input() {
    let input = vec![7; 200_000];
    let reply = call(ECHO, &input).await.unwrap();
    assert_eq!(reply.exit, ExitStatus::Code(0));
    assert_eq!(reply.output, input);
}
