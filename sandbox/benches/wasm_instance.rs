//! Instance start plus call, in this process: bare wasmtime and the contract in the same run.
//!
//! `bare` is the floor: wasmtime alone, synchronous, no epochs, with a WASI shim of two functions for the echo
//! (`shim`), and with wasmtime-wasi (`library`, `library-async`). `novum` is `Image::start` and
//! `Sandbox::invoke`. `threads` is the throughput of the latter on one and on two threads.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use novum_sandbox::engines::EngineConfig;
use novum_sandbox::wasm::WasmEngine;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine as _, Function, Image, Input, Invocation, LogSink, Manifest, Output,
};
use tokio::runtime::{Builder, Runtime};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

const EMPTY: &str = r#"(module (memory (export "memory") 2) (func (export "_start")))"#;
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

struct Ignore;

impl LogSink for Ignore {
    fn write(&self, bytes: &[u8]) {
        black_box(bytes);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a tokio runtime")
}

/// The best configuration of wasmtime that we know for fresh instances.
fn floor() -> Engine {
    let mut pool = PoolingAllocationConfig::new();
    pool.pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(1 << 20)
        .max_memory_size(256 << 20);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).concurrency_support(false);
    Engine::new(&config).expect("an engine")
}

/// One synchronous instance and call, with the two WASI functions that an echo needs.
mod shim {
    use super::Bytes;
    use wasmtime::{Caller, Engine, Extern, InstancePre, Linker, Module, Store};

    pub(crate) struct Pipe {
        input: Bytes,
        output: Vec<u8>,
    }

    pub(crate) fn pre(engine: &Engine, source: &str) -> InstancePre<Pipe> {
        let mut linker = Linker::<Pipe>::new(engine);
        let wasi = "wasi_snapshot_preview1";
        linker.func_wrap(wasi, "fd_read", read).expect("fd_read");
        linker.func_wrap(wasi, "fd_write", write).expect("fd_write");
        linker.instantiate_pre(&Module::new(engine, source).expect("a module")).expect("links")
    }

    fn word(data: &[u8], at: u32) -> usize {
        let at = at as usize;
        u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes")) as usize
    }

    fn read(mut caller: Caller<'_, Pipe>, _fd: u32, iov: u32, _n: u32, out: u32) -> u32 {
        let Some(Extern::Memory(memory)) = caller.get_export("memory") else { return 8 };
        let (data, pipe) = memory.data_and_store_mut(&mut caller);
        let (at, len) = (word(data, iov), word(data, iov + 4));
        let piece = pipe.input.split_to(len.min(pipe.input.len()));
        data[at..at + piece.len()].copy_from_slice(&piece);
        data[out as usize..out as usize + 4].copy_from_slice(&(piece.len() as u32).to_le_bytes());
        0
    }

    fn write(mut caller: Caller<'_, Pipe>, _fd: u32, iov: u32, _n: u32, out: u32) -> u32 {
        let Some(Extern::Memory(memory)) = caller.get_export("memory") else { return 8 };
        let (data, pipe) = memory.data_and_store_mut(&mut caller);
        let (at, len) = (word(data, iov), word(data, iov + 4));
        pipe.output.extend_from_slice(&data[at..at + len]);
        data[out as usize..out as usize + 4].copy_from_slice(&(len as u32).to_le_bytes());
        0
    }

    pub(crate) fn call(engine: &Engine, pre: &InstancePre<Pipe>, input: &Bytes) -> Vec<u8> {
        let mut store = Store::new(engine, Pipe { input: input.clone(), output: Vec::new() });
        let instance = pre.instantiate(&mut store).expect("an instance");
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start").expect("_start");
        start.call(&mut store, ()).expect("a call");
        store.into_data().output
    }
}

/// Bare wasmtime with wasmtime-wasi, synchronous and asynchronous.
mod library {
    use super::Bytes;
    use wasmtime::{Engine, InstancePre, Linker, Module, Store};
    use wasmtime_wasi::WasiCtxBuilder;
    use wasmtime_wasi::p1::{self, WasiP1Ctx};
    use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};

    pub(crate) fn pre(engine: &Engine, module: &Module, sync: bool) -> InstancePre<WasiP1Ctx> {
        let mut linker = Linker::<WasiP1Ctx>::new(engine);
        if sync {
            p1::add_to_linker_sync(&mut linker, |t| t).expect("links");
        } else {
            p1::add_to_linker_async(&mut linker, |t| t).expect("links");
        }
        linker.instantiate_pre(module).expect("links")
    }

    fn store(engine: &Engine, input: &Bytes) -> (Store<WasiP1Ctx>, MemoryOutputPipe) {
        let output = MemoryOutputPipe::new(1 << 20);
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdin(MemoryInputPipe::new(input.clone())).stdout(output.clone()).arg("echo");
        (Store::new(engine, wasi.build_p1()), output)
    }

    pub(crate) fn call(engine: &Engine, pre: &InstancePre<WasiP1Ctx>, input: &Bytes) -> Bytes {
        let (mut store, output) = store(engine, input);
        let instance = pre.instantiate(&mut store).expect("an instance");
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start").expect("_start");
        let _ = start.call(&mut store, ());
        output.contents()
    }

    pub(crate) async fn call_async(engine: &Engine, pre: &InstancePre<WasiP1Ctx>, input: &Bytes) -> Bytes {
        let (mut store, output) = store(engine, input);
        let instance = pre.instantiate_async(&mut store).await.expect("an instance");
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start").expect("_start");
        let _ = start.call_async(&mut store, ()).await;
        output.contents()
    }
}

/// A module to measure with.
struct Sample {
    name: &'static str,
    path: PathBuf,
    input: Bytes,
}

/// The modules written here and the examples that stand in the repository.
fn samples(dir: &Path) -> Vec<Sample> {
    let hundred = Bytes::from(vec![b'x'; 100]);
    let mut text = String::new();
    for i in 0..500 {
        let _ = write!(text, "word{} ", i % 37);
    }
    let example = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path);
    let mut all = vec![
        Sample { name: "wordcount", path: example("wordcount/wordcount.wasm"), input: text.into() },
        Sample {
            name: "json",
            path: example("json/json.wasm"),
            input: Bytes::from_static(b"{\"a\": [1, 2, {\"b\": null}]}"),
        },
    ];
    for (name, source) in [("empty", EMPTY), ("echo", ECHO)] {
        let path = dir.join(name);
        std::fs::write(&path, source).expect("a module's text");
        all.push(Sample { name, path, input: hundred.clone() });
    }
    all
}

async fn prepare(engine: &WasmEngine, path: &Path) -> Arc<dyn Image> {
    let bytes = std::fs::read(path).expect("the artifact");
    let digest = novum_snapshot::Digest::of(&bytes);
    let artifact = Artifact { format: ArtifactFormat::File, digest, path: path.to_owned() };
    let manifest = Manifest::new("bench".parse().expect("a name"));
    engine.prepare(Arc::new(Function { version: 1, manifest, artifact })).await.expect("an image")
}

async fn invoke(image: &Arc<dyn Image>, log: &Arc<dyn LogSink>, input: &Bytes) -> Bytes {
    let mut sandbox = Arc::clone(image).start().await.expect("a sandbox");
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(input.clone()),
        output: Output::Collect { limit_bytes: 4 << 20 },
        log: Arc::clone(log),
        deadline: Instant::now() + Duration::from_secs(30),
    };
    sandbox.invoke(call).await.expect("a reply").output
}

/// `n` calls one after the other on a runtime of this thread.
fn calls(image: &Arc<dyn Image>, input: &Bytes, n: u64) -> Duration {
    let log: Arc<dyn LogSink> = Arc::new(Ignore);
    runtime().block_on(async {
        let begin = Instant::now();
        for _ in 0..n {
            black_box(invoke(image, &log, input).await);
        }
        begin.elapsed()
    })
}

fn bare(c: &mut Criterion, samples: &[Sample]) {
    let engine = floor();
    let mut group = c.benchmark_group("bare");
    for (name, source) in [("empty", EMPTY), ("echo", ECHO)] {
        let pre = shim::pre(&engine, source);
        let input = Bytes::from(vec![b'x'; 100]);
        group.bench_function(format!("{name}/shim"), |b| {
            b.iter(|| black_box(shim::call(&engine, &pre, &input)));
        });
    }
    for Sample { name, path, input } in samples {
        let module = wasmtime::Module::from_file(&engine, path).expect("a module");
        let pre = library::pre(&engine, &module, true);
        group.bench_function(format!("{name}/library"), |b| {
            b.iter(|| black_box(library::call(&engine, &pre, input)));
        });
        let pre = library::pre(&engine, &module, false);
        let run = |n| {
            runtime().block_on(async {
                let begin = Instant::now();
                for _ in 0..n {
                    black_box(library::call_async(&engine, &pre, input).await);
                }
                begin.elapsed()
            })
        };
        group.bench_function(format!("{name}/library-async"), |b| b.iter_custom(run));
    }
    group.finish();
}

fn novum(c: &mut Criterion, engine: &WasmEngine, samples: &[Sample]) {
    let mut group = c.benchmark_group("novum");
    for Sample { name, path, input } in samples {
        let image = runtime().block_on(prepare(engine, path));
        group.bench_function(*name, |b| b.iter_custom(|n| calls(&image, input, n)));
    }
    group.finish();
}

fn threads(c: &mut Criterion, engine: &WasmEngine, samples: &[Sample]) {
    let mut group = c.benchmark_group("threads");
    group.throughput(Throughput::Elements(1));
    for Sample { name, path, input } in samples {
        let image = runtime().block_on(prepare(engine, path));
        for threads in [1, 2] {
            let run = |n: u64| {
                let begin = Instant::now();
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| calls(&image, input, n.div_ceil(threads)));
                    }
                });
                begin.elapsed()
            };
            group.bench_function(format!("{name}/{threads}"), |b| b.iter_custom(run));
        }
    }
    group.finish();
}

fn bench(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = EngineConfig {
        cache: dir.path().join("cache"),
        kernels: dir.path().into(),
        max_sandboxes: 1000,
        max_memory_bytes: 256 << 20,
        snapshots: None,
    };
    let ours = WasmEngine::new(&config).expect("the engine");
    let samples = samples(dir.path());
    bare(c, &samples);
    novum(c, &ours, &samples);
    threads(c, &ours, &samples);
}

criterion_group!(benches, bench);
criterion_main!(benches);
