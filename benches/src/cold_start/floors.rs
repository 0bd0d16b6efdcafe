//! What the engines stand on, without them: bare KVM, and wasmtime with its own WASI and the same program.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use kvm_ioctls::Kvm;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, Linker, Module, PoolingAllocationConfig, Store,
};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;

use super::sample::{Sampler, Took};
use super::sandbox::QUIET;
use crate::process::floor;

const KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// A VM with one vCPU and one memslot, made and left once. Its end is not counted, as in a sandbox's samples.
pub(super) fn kvm() -> Result<Sampler> {
    let kvm = Kvm::new()?;
    // Measured: with another VM alive, making one is a third cheaper, and an engine always has one.
    let keeper = kvm.create_vm()?;
    Ok(Box::new(move || {
        let _keeper = &keeper;
        std::thread::sleep(QUIET);
        floor::first_exit(&kvm).map(Took::whole)
    }))
}

/// Out of a guest and back into it.
pub(super) fn exit() -> Result<Sampler> {
    let mut exits = floor::exits(&Kvm::new()?)?;
    Ok(Box::new(move || exits().map(Took::whole)))
}

/// A fresh instance with wasmtime-wasi and one call; no limits, no deadline.
pub(super) fn wasmtime(path: &Path) -> Result<Sampler> {
    let mut pool = PoolingAllocationConfig::new();
    pool.pagemap_scan(Enabled::Auto).linear_memory_keep_resident(KEEP_RESIDENT_BYTES);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).memory_init_cow(true);
    let engine = Engine::new(&config).map_err(any)?;
    let module = Module::from_file(&engine, path).map_err(any)?;
    let mut linker: Linker<WasiP1Ctx> = Linker::new(&engine);
    p1::add_to_linker_sync(&mut linker, |wasi| wasi).map_err(any)?;
    let instance = linker.instantiate_pre(&module).map_err(any)?;
    let call = move || -> wasmtime::Result<usize> {
        let stdout = MemoryOutputPipe::new(1 << 20);
        let wasi = WasiCtxBuilder::new().arg("program").stdout(stdout.clone()).build_p1();
        let mut store = Store::new(&engine, wasi);
        let start = instance.instantiate(&mut store)?.get_typed_func::<(), ()>(&mut store, "_start")?;
        // A program that ends by exit(0) unwinds; what it wrote says whether it worked.
        if let Err(error) = start.call(&mut store, ())
            && error.downcast_ref::<wasmtime_wasi::I32Exit>().is_none_or(|exit| exit.0 != 0)
        {
            return Err(error);
        }
        Ok(stdout.contents().len())
    };
    Ok(Box::new(move || {
        let began = Instant::now();
        let written = call().map_err(any)?;
        let took = Took::whole(began.elapsed());
        ensure!(written > 0, "it wrote nothing");
        Ok(took)
    }))
}

fn any(error: wasmtime::Error) -> anyhow::Error {
    anyhow::Error::from_boxed(error.into_boxed_dyn_error())
}
