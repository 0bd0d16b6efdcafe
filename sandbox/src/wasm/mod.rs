//! The wasm engine: modules and components in this process, isolated by wasmtime.

use std::sync::Arc;

use async_trait::async_trait;

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
#[derive(Debug)]
pub struct WasmEngine;

impl WasmEngine {
    /// Makes the engine.
    ///
    /// # Errors
    /// None yet.
    pub fn new(_config: &EngineConfig) -> Result<Self, Error> {
        Ok(Self)
    }
}

#[async_trait]
impl Engine for WasmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    async fn prepare(&self, _function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        Err(Error::Unavailable { engine: EngineKind::Wasm, reason: "not built yet".into() })
    }
}
