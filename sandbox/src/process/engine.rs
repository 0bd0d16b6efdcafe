//! The engine contract on top of the run loop: a function becomes an image, an image a sandbox on its own thread.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::image::{self, Refused};
use super::sandbox::{ProcessSandbox, Template};
use super::setup::Setup;
use super::shells;
use crate::engine::{Engine, Image, Renewal, Sandbox};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{EngineKind, Function};
use crate::session::Sessions;

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
        let setup = Setup::new(&function)?;
        let timeout = function.manifest.timeout;
        // What cannot be loaded is refused now and not at the first request.
        let template = tokio::task::spawn_blocking(move || template(setup, timeout))
            .await
            .map_err(|error| Error::host("load the program", error))??;
        Ok(Arc::new(ProcessImage { template: Arc::new(template) }))
    }

    fn sessions(&self) -> Option<&dyn Sessions> {
        Some(self)
    }
}

/// Runs the program to its first wait for input on a thread of its own, which its VM needs.
fn template(setup: Setup, timeout: Duration) -> Result<Template, Error> {
    let name = format!("image-{}", setup.name);
    let run = move || match image::prepare(&setup, timeout) {
        Ok(image) => {
            shells::keep();
            tracing::debug!(function = setup.name, bytes = image.shared_bytes(), "took an image");
            Ok(Template { setup, image: Some(Arc::new(image)) })
        }
        Err(Refused::Load(error)) => Err(error),
        Err(Refused::Run(error)) => Err(Error::host("run the program to its input", error)),
        Err(reason) => {
            tracing::debug!(function = setup.name, %reason, "no image");
            Ok(Template { setup, image: None })
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(run);
    let thread = thread.map_err(|error| Error::host("start a vCPU thread", error))?;
    thread.join().map_err(|_| Error::host("run the program to its input", "the thread has panicked"))?
}

/// A program that can be started.
#[derive(Debug)]
struct ProcessImage {
    template: Arc<Template>,
}

#[async_trait]
impl Image for ProcessImage {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        Ok(Box::new(ProcessSandbox::start(self.template.clone()).await?))
    }

    fn renewal(&self) -> Renewal {
        if self.template.image.is_some() { Renewal::Reset } else { Renewal::Restart }
    }

    fn private_bytes(&self) -> u64 {
        let setup = &self.template.setup;
        setup.live.private_bytes(setup.memory_bytes)
    }
}
