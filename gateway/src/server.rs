//! The gateway's life: open the data, bind, serve, drain, stop.
//!
//! ```text
//! start ──> ready (port file) ──shutdown──> draining: health NOT_SERVING, new invocations UNAVAILABLE
//!                                              │ nothing runs, or the drain timeout passed
//!                                              └──> cancelled ──> connections closed ──> end
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::config::{ConfigError, Listen, ServeConfig};
use crate::core::{Core, OpenError};
use crate::descriptors;
use crate::front::{self, Front};
use crate::listen::{self, ListenError};
use crate::worker;

/// Why a gateway did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An impossible configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An address cannot be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The port file cannot be written.
    #[error("cannot write the port file {path}: {source}", path = path.display())]
    PortFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A worker could not be started or failed.
    #[error("a worker thread failed: {0}")]
    Worker(#[source] io::Error),
}

/// A gateway that answers.
pub struct Server {
    core: Arc<Core>,
    health: HealthReporter,
    /// Dropped last: it runs what the others left behind.
    _control: Control,
    addresses: Vec<Listen>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    stop: CancellationToken,
}

/// Serves until `shutdown` is cancelled, then drains and returns.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(config: ServeConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    Server::start(config).await?.run(shutdown).await
}

impl Server {
    /// Opens the data directory, binds, and starts the workers. When it returns, the gateway answers and the port
    /// file is written. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn start(config: ServeConfig) -> Result<Self, ServeError> {
        config.check()?;
        descriptors::raise_limit();
        let (listeners, addresses) = listen::bind(&config.listen, config.workers)?;
        let control = Control(Some(control_runtime().map_err(ServeError::Worker)?));
        let core = Core::open(config.clone(), control.handle()).await?;
        let (front, health) = Front::new(&core).await.map_err(|e| ServeError::Worker(io::Error::other(e)))?;
        let stop = CancellationToken::new();
        let mut server = Self { core, health, _control: control, addresses, workers: Vec::new(), stop };
        for (index, listeners) in listeners.into_iter().enumerate() {
            let worker = worker::spawn(index, listeners, front.clone(), server.stop.clone());
            server.workers.push(worker.map_err(ServeError::Worker)?);
        }
        if let Some(path) = &config.port_file {
            write_port_file(path, &server.addresses)
                .map_err(|source| ServeError::PortFile { path: path.clone(), source })?;
        }
        Ok(server)
    }

    /// The bound addresses, with real ports.
    #[must_use]
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// What answers.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Serves until `shutdown` is cancelled, then drains and returns.
    ///
    /// # Errors
    /// A worker's failure.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), ServeError> {
        shutdown.cancelled().await;
        front::set_serving(&self.health, false).await;
        self.core.drain().await;
        self.stop.cancel();
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().map(JoinHandle::join).collect());
        let results: Vec<_> = joined.await.map_err(|e| ServeError::Worker(io::Error::other(e)))?;
        for result in results {
            let panicked = |_| Err(io::Error::other("it panicked"));
            result.unwrap_or_else(panicked).map_err(ServeError::Worker)?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        listen::unlink(&self.addresses);
    }
}

/// The runtime of everything that is not on an invocation's way. Its drop does not wait, so that it may happen in
/// another runtime.
struct Control(Option<Runtime>);

fn control_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("novum-control")
        .enable_all()
        .build()
}

impl Control {
    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A reader that finds the file finds all of it.
fn write_port_file(path: &Path, addresses: &[Listen]) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = novum_snapshot::publish::Draft::create(directory)?;
    for address in addresses {
        writeln!(draft, "{address}")?;
    }
    draft.publish(path)
}
