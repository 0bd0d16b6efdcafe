//! The wasm engine: modules and components in this process, isolated by wasmtime.
//!
//! A function is compiled and linked once; every invocation gets a new instance from a pooling allocator, which
//! is the clean state ([`Renewal::Restart`](crate::Renewal::Restart)).

mod command;
mod outcome;
mod settings;
mod stdio;
mod tenant;

use std::sync::Arc;

use async_trait::async_trait;
use wasmtime::Module;

use self::command::CommandImage;
use crate::engine::{Engine, Image};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{EngineKind, Function};

/// Whether an artifact is a Wasm binary (`\0asm`, core spec §5.5.16) or a text module (`(module`, `(component`).
#[must_use]
pub fn recognises(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    head.starts_with(b"\0asm")
        || text.starts_with(b"(module")
        || text.starts_with(b"(component")
        || text.starts_with(b";;")
}

/// The wasm engine.
pub struct WasmEngine {
    engine: wasmtime::Engine,
}

impl WasmEngine {
    /// Makes the engine and starts its epoch ticker.
    ///
    /// # Errors
    /// [`Error::Host`] where wasmtime cannot reserve its address space or the ticker cannot start.
    pub fn new(config: &EngineConfig) -> Result<Self, Error> {
        Ok(Self { engine: settings::engine(config)? })
    }
}

#[async_trait]
impl Engine for WasmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        let engine = self.engine.clone();
        let compile = move || -> Result<Arc<dyn Image>, Error> {
            let module = Module::from_file(&engine, &function.artifact.path)
                .map_err(|e| Error::Artifact { engine: EngineKind::Wasm, reason: format!("{e:#}") })?;
            Ok(Arc::new(CommandImage::new(&engine, function, &module)?))
        };
        tokio::task::spawn_blocking(compile).await.map_err(|e| Error::host("compiling the artifact", e))?
    }
}
