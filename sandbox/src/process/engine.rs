//! The engine contract on top of the run loop: a function becomes an image, an image a sandbox on its own thread.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novum_snapshot::Store;

use super::image::{self, Image, Refused};
use super::onset::Onset;
use super::sandbox::{ProcessSandbox, Template};
use super::setup::Setup;
use super::shells;
use crate::engine::{self, Engine, Renewal, Sandbox};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{EngineKind, Function};
use crate::kept::{self, Origin};
use crate::session::Sessions;

/// The process engine.
#[derive(Debug)]
pub struct ProcessEngine {
    max_memory_bytes: u64,
    snapshots: Option<Store>,
}

impl ProcessEngine {
    /// Makes the engine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where `/dev/kvm` cannot be used.
    pub fn new(config: &EngineConfig) -> Result<Self, Error> {
        super::probe().map_err(|reason| Error::Unavailable { engine: EngineKind::Process, reason })?;
        Ok(Self { max_memory_bytes: config.max_memory_bytes, snapshots: config.snapshots.clone() })
    }
}

#[async_trait]
impl Engine for ProcessEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Process
    }

    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn engine::Image>, Error> {
        let memory = function.manifest.memory_bytes;
        if memory > self.max_memory_bytes {
            let reason =
                format!("{memory} bytes are more than this gateway's limit of {}", self.max_memory_bytes);
            return Err(Error::Manifest { field: "memory".into(), reason });
        }
        let setup = Setup::new(&function)?;
        let timeout = function.manifest.timeout;
        // What cannot be loaded is refused now and not at the first request.
        let kept = self.snapshots.clone().map(|store| {
            let origin = Origin::new(EngineKind::Process, &function, setup.key());
            Kept { store, origin }
        });
        let template = tokio::task::spawn_blocking(move || template(setup, timeout, kept))
            .await
            .map_err(|error| Error::host("load the program", error))??;
        Ok(Arc::new(ProcessImage { template: Arc::new(template) }))
    }

    fn sessions(&self) -> Option<&dyn Sessions> {
        Some(self)
    }
}

/// Where an image is kept over restarts, and under which name.
struct Kept {
    store: Store,
    origin: Origin,
}

impl Kept {
    /// The image that is kept, if it is one of this program and can be used here and now.
    fn load(&self, setup: &Setup) -> Option<Image> {
        match Image::load(&self.store, &self.origin, setup) {
            Ok(image) => {
                let found = image.is_some();
                tracing::debug!(function = setup.name, found, "looked for an image in the store");
                image
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(
                    function = setup.name,
                    reason,
                    "the stored image cannot be used and is taken anew"
                );
                None
            }
        }
    }

    /// Keeps an image that was just taken. What is used then is the store's file, by the one way that there is.
    fn store(&self, setup: &Setup, image: Image) -> Image {
        let stored = image.store(&self.store, &self.origin).map_err(|error| chain(&error));
        let loaded = stored.and_then(|digest| {
            tracing::debug!(function = setup.name, %digest, "stored an image");
            let loaded = Image::load(&self.store, &self.origin, setup).map_err(|error| chain(&error))?;
            loaded.ok_or_else(|| "it is not in the store".to_owned())
        });
        loaded.unwrap_or_else(|reason| {
            tracing::warn!(
                function = setup.name,
                reason,
                "the image stays in memory and is lost at a restart"
            );
            self.forget();
            image
        })
    }

    /// Nothing that is kept under this name is of use any more.
    fn forget(&self) {
        let Origin { engine, function, version, .. } = &self.origin;
        if let Err(error) = kept::release(&self.store, *engine, function, *version) {
            tracing::warn!(%function, reason = chain(&error), "a useless image stays in the store");
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The image that is kept, or else the program is run to its first wait for input, on a thread of its own, which its VM
/// needs.
fn template(setup: Setup, timeout: Duration, kept: Option<Kept>) -> Result<Template, Error> {
    let name = format!("image-{}", setup.name);
    if let Some(image) = kept.as_ref().and_then(|kept| kept.load(&setup)) {
        shells::keep();
        // There is no run to learn from.
        setup.foresight.finish();
        return Ok(Template { setup, image: Some(Arc::new(image)), onset: None });
    }
    let run = move || {
        let prepared = image::prepare(&setup, timeout);
        let template = template_of(setup, prepared, kept.as_ref());
        template.inspect(|template| template.setup.foresight.finish())
    };
    let thread = std::thread::Builder::new().name(name).spawn(run);
    let thread = thread.map_err(|error| Error::host("start a vCPU thread", error))?;
    thread.join().map_err(|_| Error::host("run the program to its input", "the thread has panicked"))?
}

fn template_of(
    setup: Setup,
    prepared: Result<Image, Refused>,
    kept: Option<&Kept>,
) -> Result<Template, Error> {
    match prepared {
        Ok(image) => {
            shells::keep();
            tracing::debug!(function = setup.name, bytes = image.shared_bytes(), "took an image");
            let image = match kept {
                Some(kept) => kept.store(&setup, image),
                None => image,
            };
            Ok(Template { setup, image: Some(Arc::new(image)), onset: None })
        }
        Err(Refused::Load(error)) => Err(error),
        Err(error @ Refused::NotReady { .. }) => {
            Err(Error::Manifest { field: "ready".into(), reason: error.to_string() })
        }
        Err(Refused::Run(error)) => Err(Error::host("run the program to its input", error)),
        Err(reason) => {
            if let Some(kept) = kept {
                kept.forget();
            }
            tracing::debug!(function = setup.name, %reason, "no image");
            let onset = onset(&setup);
            Ok(Template { setup, image: None, onset })
        }
    }
}

/// What every start of a program without an image begins with, where that can be kept.
fn onset(setup: &Setup) -> Option<Onset> {
    match Onset::prepare(setup) {
        Ok(onset) => {
            tracing::debug!(
                function = setup.name,
                kept = onset.is_some(),
                "followed the program to its entry point"
            );
            onset.inspect(|_| shells::keep())
        }
        Err(reason) => {
            tracing::debug!(function = setup.name, %reason, "the program's onset is not kept");
            None
        }
    }
}

/// A program that can be started.
#[derive(Debug)]
struct ProcessImage {
    template: Arc<Template>,
}

#[async_trait]
impl engine::Image for ProcessImage {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        Ok(Box::new(ProcessSandbox::start(self.template.clone()).await?))
    }

    async fn start_ahead(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        Ok(Box::new(ProcessSandbox::start_alone(self.template.clone()).await?))
    }

    fn renewal(&self) -> Renewal {
        if self.template.image.is_some() { Renewal::Reset } else { Renewal::Restart }
    }

    fn private_bytes(&self) -> u64 {
        let setup = &self.template.setup;
        setup.live.private_bytes(setup.memory_bytes)
    }
}
