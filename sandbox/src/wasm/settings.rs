//! How wasmtime is configured, and the ticker that drives its epochs.
//!
//! One `wasmtime::Engine` serves every tenant. Its pooling allocator reserves the address space of all instances
//! once; an instance slot is cleaned by asking the kernel which pages were written (`PAGEMAP_SCAN`, Linux 6.7)
//! and copying only those back, so a slot stays mapped from one tenant to the next without a TLB shoot-down.

use std::thread;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
};

use super::tenant::INSTANCES;
use crate::engines::EngineConfig;
use crate::error::Error;

/// Time between two epochs: the longest that one tenant holds its thread before others get a turn.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Most elements of one table.
pub(super) const TABLE_ELEMENTS: usize = 100_000;
/// Most resources (open files, streams, requests) that one tenant holds.
pub(super) const RESOURCES: usize = 1000;
/// Tables of one tenant on average: a component has several, a module one.
const TABLES: u32 = 4;
const TABLES_PER_MODULE: u32 = 16;
const MEMORIES_PER_MODULE: u32 = 4;
/// More instances than the kernel's limit on mappings (`vm.max_map_count`) has room for.
const MAX_SANDBOXES: u32 = 8192;
/// What a cleaned slot keeps in memory instead of giving it back to the host.
const MEMORY_KEEP_RESIDENT: usize = 1 << 20;
const TABLE_KEEP_RESIDENT: usize = 64 << 10;
/// The stack of one call, and the part of it that the program's own frames may use. The rest is for host calls.
const STACK: usize = 1 << 20;
const WASM_STACK: usize = 512 << 10;
/// wasm32 addresses no more.
const WASM32_MAX: u64 = 4 << 30;

/// The engine that all tenants share, with its ticker running.
pub(super) fn engine(config: &EngineConfig) -> Result<Engine, Error> {
    let engine = Engine::new(&wasmtime_config(config)).map_err(|e| host("configuring wasmtime", e))?;
    tick(&engine)?;
    Ok(engine)
}

/// A wasmtime error as a host failure.
pub(super) fn host(doing: impl Into<String>, error: wasmtime::Error) -> Error {
    Error::host(doing, error.into_boxed_dyn_error())
}

fn wasmtime_config(config: &EngineConfig) -> Config {
    let mut wasm = Config::new();
    wasm.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(config)))
        .epoch_interruption(true)
        .consume_fuel(false)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(STACK)
        .memory_init_cow(true)
        .concurrency_support(false)
        .wasm_backtrace_details(WasmBacktraceDetails::Enable);
    wasm
}

fn pooling(config: &EngineConfig) -> PoolingAllocationConfig {
    let sandboxes = config.max_sandboxes.clamp(1, MAX_SANDBOXES);
    let memory = usize::try_from(config.max_memory_bytes.min(WASM32_MAX)).unwrap_or(usize::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.pagemap_scan(Enabled::Auto)
        .total_core_instances(sandboxes.saturating_mul(INSTANCES as u32))
        .total_component_instances(sandboxes)
        .total_memories(sandboxes)
        .total_tables(sandboxes.saturating_mul(TABLES))
        .total_stacks(sandboxes)
        .total_gc_heaps(sandboxes)
        .max_memory_size(memory)
        .max_tables_per_module(TABLES_PER_MODULE)
        .max_memories_per_module(MEMORIES_PER_MODULE)
        .table_elements(TABLE_ELEMENTS)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT);
    pool
}

/// Starts the thread that counts epochs. It holds the engine weakly and ends with it.
fn tick(engine: &Engine) -> Result<(), Error> {
    let engine = engine.weak();
    let run = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    };
    thread::Builder::new()
        .name("wasm-epochs".into())
        .spawn(run)
        .map_err(|e| Error::host("starting the epoch ticker", e))?;
    Ok(())
}
