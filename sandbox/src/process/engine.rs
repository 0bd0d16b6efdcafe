//! The engine contract on top of the run loop: a function becomes an image, an image a sandbox on its own thread.

use std::sync::Arc;

use async_trait::async_trait;

use super::sandbox::ProcessSandbox;
use super::setup::Setup;
use crate::engine::{Engine, Image, Renewal, Sandbox};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{EngineKind, Function};

/// The process engine.
#[derive(Debug)]
pub struct ProcessEngine {
    max_memory_bytes: u64,
}

impl ProcessEngine {
    /// Makes the engine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where `/dev/kvm` cannot be used.
    pub fn new(config: &EngineConfig) -> Result<Self, Error> {
        super::probe().map_err(|reason| Error::Unavailable { engine: EngineKind::Process, reason })?;
        Ok(Self { max_memory_bytes: config.max_memory_bytes })
    }
}

#[async_trait]
impl Engine for ProcessEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Process
    }

    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        let memory = function.manifest.memory_bytes;
        if memory > self.max_memory_bytes {
            let reason =
                format!("{memory} bytes are more than this gateway's limit of {}", self.max_memory_bytes);
            return Err(Error::Manifest { field: "memory".into(), reason });
        }
        let setup = Arc::new(Setup::new(&function)?);
        // A trial run of the loader: what cannot be loaded is refused now and not at the first request.
        let trial = setup.clone();
        tokio::task::spawn_blocking(move || trial.load().map(drop))
            .await
            .map_err(|error| Error::host("load the program", error))??;
        Ok(Arc::new(ProcessImage { setup }))
    }
}

/// A program that can be started.
#[derive(Debug)]
struct ProcessImage {
    setup: Arc<Setup>,
}

#[async_trait]
impl Image for ProcessImage {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        Ok(Box::new(ProcessSandbox::start(self.setup.clone()).await?))
    }

    fn renewal(&self) -> Renewal {
        Renewal::Restart
    }

    fn private_bytes(&self) -> u64 {
        self.setup.live.private_bytes(self.setup.memory_bytes)
    }
}
