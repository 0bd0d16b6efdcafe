//! Floor (b): tonic, and for each request a fresh wasmtime instance that is called once.
//!
//! The best configuration measured on machines like ours: pooling allocator with `PAGEMAP_SCAN` resets, memory
//! images copied on write, imports resolved once. No limits, no deadline, no WASI: what isolates a tenant and serves
//! it is what novum adds.

use anyhow::Result;
use bytes::Bytes;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, Store,
};

use super::Work;

/// The module that a floor and novum's `empty` function run: a page of memory, and a start that does nothing.
pub const EMPTY_WAT: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

const KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// Makes an instance, calls it, drops it; gives the payload back.
pub struct WasmtimeCall {
    instance: InstancePre<()>,
}

impl WasmtimeCall {
    /// Compiles the empty module.
    ///
    /// # Errors
    /// Where wasmtime refuses the configuration on this machine.
    pub fn new() -> Result<Self> {
        let mut pool = PoolingAllocationConfig::new();
        pool.pagemap_scan(Enabled::Auto).linear_memory_keep_resident(KEEP_RESIDENT_BYTES);
        let mut config = Config::new();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).memory_init_cow(true);
        let link = || -> wasmtime::Result<_> {
            let engine = Engine::new(&config)?;
            let module = Module::new(&engine, EMPTY_WAT)?;
            Linker::new(&engine).instantiate_pre(&module)
        };
        Ok(Self { instance: link().map_err(any)? })
    }

    fn run(&self) -> wasmtime::Result<()> {
        let mut store = Store::new(self.instance.module().engine(), ());
        let instance = self.instance.instantiate(&mut store)?;
        instance.get_typed_func::<(), ()>(&mut store, "_start")?.call(&mut store, ())
    }
}

fn any(error: wasmtime::Error) -> anyhow::Error {
    anyhow::Error::from_boxed(error.into_boxed_dyn_error())
}

impl Work for WasmtimeCall {
    fn call(&self, payload: Bytes) -> Result<Bytes> {
        self.run().map_err(any)?;
        Ok(payload)
    }
}
