//! Machine code from a file into this process. Unsafe because wasmtime believes such a file: whoever wrote it runs
//! as this process.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use super::load::Code;

/// Maps the code in `file`. The caller has read `code` from it and knows that this program wrote it
/// (see [`cache`](super::cache)).
pub(super) fn load(engine: &Engine, file: &File, code: &[u8]) -> wasmtime::Result<Code> {
    // The same open file, not whatever bears its name now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match Engine::detect_precompiled(code) {
        Some(Precompiled::Module) => {
            // SAFETY: the only caller, `Cache::load`, has verified with this installation's key that wasmtime in
            // this program produced the bytes, and that no other user can change them while they are mapped.
            unsafe { Module::deserialize_file(engine, path) }.map(Code::Module)
        }
        Some(Precompiled::Component) => {
            // SAFETY: as above.
            unsafe { Component::deserialize_file(engine, path) }.map(Code::Component)
        }
        None => Err(wasmtime::Error::msg("it holds neither a module nor a component")),
    }
}

/// Takes over the code that wasmtime has just produced, where it is not kept on disk.
pub(super) fn take(engine: &Engine, code: &[u8]) -> wasmtime::Result<Code> {
    match Engine::detect_precompiled(code) {
        Some(Precompiled::Module) => {
            // SAFETY: the only caller, `load::load`, passes what `Engine::precompile_module` or
            // `precompile_component` returned to it, unchanged.
            unsafe { Module::deserialize(engine, code) }.map(Code::Module)
        }
        Some(Precompiled::Component) => {
            // SAFETY: as above.
            unsafe { Component::deserialize(engine, code) }.map(Code::Component)
        }
        None => Err(wasmtime::Error::msg("it holds neither a module nor a component")),
    }
}
