//! The wasm engine: modules and components in this process, isolated by wasmtime.
//!
//! ```text
//! artifact ── load ──> code (compiled once, kept on disk) ── link ──> image ── start ──> instance ── invoke
//! ```
//!
//! A function is compiled and linked once; every invocation gets a new instance from a pooling allocator, which
//! is the clean state ([`Renewal::Restart`](crate::Renewal::Restart)). Three kinds of program are functions:
//!
//! | kind | what it exports | contract |
//! |---|---|---|
//! | WASI preview 1 command (core module) | `_start` | standard input and output |
//! | WASI preview 2 command (component) | `wasi:cli/run` | standard input and output |
//! | HTTP handler (component) | `wasi:http/incoming-handler` | request and response body |

mod cache;
mod call;
mod drive;
mod hot;
mod http;
mod image;
mod load;
mod outcome;
mod preview1;
mod preview2;
mod settings;
mod stdin;
mod stdout;
mod sys;
mod tenant;

use std::sync::Arc;

use async_trait::async_trait;
use wasmtime::component::Component;

use self::cache::Cache;
use self::drive::LongRuns;
use self::image::WasmImage;
use self::load::Code;
use self::preview1::Preview1;
use self::preview2::Preview2;
use self::tenant::Tenant;
use crate::engine::{Engine, Image};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{EngineKind, Function};

pub use self::load::recognises;

/// The wasm engine.
pub struct WasmEngine {
    engine: wasmtime::Engine,
    modules: wasmtime::Linker<Tenant<Preview1>>,
    components: wasmtime::component::Linker<Tenant<Preview2>>,
    cache: Option<Arc<Cache>>,
    long: Arc<LongRuns>,
}

impl WasmEngine {
    /// Makes the engine and starts its epoch ticker.
    ///
    /// # Errors
    /// [`Error::Host`] where wasmtime cannot reserve its address space or the ticker cannot start.
    pub fn new(config: &EngineConfig) -> Result<Self, Error> {
        let engine = settings::engine(config)?;
        let cache = Cache::open(&config.cache, &engine).map(Arc::new);
        let cache = cache.inspect_err(|doubt| tracing::warn!(%doubt, "compiled code is not kept"));
        let linking = |error| settings::host("linking WASI", error);
        Ok(Self {
            modules: preview1::linker(&engine).map_err(linking)?,
            components: preview2::linker(&engine).map_err(linking)?,
            engine,
            cache: cache.ok(),
            long: Arc::default(),
        })
    }

    async fn component(
        &self,
        component: &Component,
        function: Arc<Function>,
    ) -> Result<Arc<dyn Image>, Error> {
        let pre = preview2::link(&self.components, component).map_err(outcome::artifact)?;
        let exports = |interface: &str| {
            let exports = component.component_type();
            exports.exports(&self.engine).any(|(name, _)| name.starts_with(interface))
        };
        let long = Arc::clone(&self.long);
        if exports("wasi:http/incoming-handler@0.2.") {
            let kind = http::Handler::new(pre).map_err(outcome::artifact)?;
            return Ok(Arc::new(WasmImage::prepare(kind, function, long).await?));
        }
        if exports("wasi:cli/run@0.2.") {
            let kind = preview2::Command::new(pre).map_err(outcome::artifact)?;
            return Ok(Arc::new(WasmImage::prepare(kind, function, long).await?));
        }
        Err(outcome::artifact(
            "the component exports neither `wasi:cli/run` nor `wasi:http/incoming-handler` of WASI 0.2; \
             build it for one of these worlds",
        ))
    }
}

#[async_trait]
impl Engine for WasmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        let (engine, cache) = (self.engine.clone(), self.cache.clone());
        let wanted = Arc::clone(&function);
        let compile = move || {
            call::check_shares(&wanted)?;
            load::load(&engine, cache.as_deref(), &wanted)
        };
        let code = tokio::task::spawn_blocking(compile).await;
        match code.map_err(|error| Error::host("compiling the artifact", error))?? {
            Code::Component(component) => self.component(&component, function).await,
            Code::Module(module) => {
                let kind = preview1::Command::new(&self.modules, &module).map_err(outcome::artifact)?;
                Ok(Arc::new(WasmImage::prepare(kind, function, Arc::clone(&self.long)).await?))
            }
        }
    }
}
