//! The gateway without its listeners: what is deployed, and the parts that the ways of [`crate::deploy`] and
//! [`crate::dispatch`] share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::engines::EngineConfig;
use novum_sandbox::{Artifact, Function, FunctionName};
use novum_snapshot::{Store, StoreError};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::artifacts::{Artifacts, Upload};
use crate::budget::Budget;
use crate::config::ServeConfig;
use crate::engines::Engines;
use crate::error::Error;
use crate::functions::{Deployment, Entry, Functions, Shared, Storage, Table};
use crate::image::{ImageCell, SharePolicy};
use crate::logs::{FunctionLog, Logs};
use crate::metrics::FunctionStats;
use crate::pool::Pool;
use crate::registry::{Record, Registry, RegistryError};
use crate::sessions::Sandboxes;
use crate::snapshots::Snapshots;
use crate::unpack;

/// How long cancelled invocations may take to end.
const CANCEL_TIME: Duration = Duration::from_secs(2);
/// How often idle sandboxes are looked at.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or listed.
    #[error("cannot use the directory {}: {source}", .path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory that may be shared is not there.
    #[error("--allow-share {}: {source}", .path.display())]
    Share {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store of snapshots.
    #[error(transparent)]
    Snapshots(#[from] StoreError),
    /// A thread died.
    #[error("opening the data directory failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A gateway without its listeners.
pub struct Core {
    pub(crate) config: ServeConfig,
    pub(crate) engines: Engines,
    pub(crate) functions: Functions,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) shares: SharePolicy,
    pub(crate) budget: Arc<Budget>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) snapshots: Snapshots,
    /// Where everything runs that is not on an invocation's way.
    pub(crate) control: Handle,
    /// One for each of some names: deploys of one name come one after the other.
    pub(crate) deploying: [tokio::sync::Mutex<()>; 64],
    /// Cancelled when invocations must end at once.
    pub(crate) stop: CancellationToken,
    invocations: TaskTracker,
    draining: CancellationToken,
    started: Instant,
}

impl Core {
    /// Opens the data directory, makes the engines, and begins to prepare what is deployed. Background work goes to
    /// `control`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: ServeConfig, control: Handle) -> Result<Arc<Self>, OpenError> {
        let opening = control.clone();
        let core = control.spawn_blocking(move || Self::open_blocking(config, opening)).await??;
        core.control.spawn(prepare_all(Arc::clone(&core)));
        core.control.spawn(keep_pools(Arc::downgrade(&core)));
        core.control.spawn(Budget::keep(Arc::downgrade(&core.budget)));
        core.control.spawn(core.snapshots.clone().keep(Arc::downgrade(&core)));
        Ok(core)
    }

    fn open_blocking(config: ServeConfig, control: Handle) -> Result<Arc<Self>, OpenError> {
        let directory = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { path, source }
        };
        let data_dir = &config.data_dir;
        make_private(data_dir).map_err(directory(data_dir))?;
        // First of all, because it locks out every other gateway.
        let registry = Arc::new(Registry::open(data_dir)?);
        let limits =
            unpack::Limits { bytes: config.max_artifact_bytes, entries: config.max_artifact_entries };
        let artifacts = Artifacts::open(data_dir, limits).map_err(directory(data_dir))?;
        let cache = data_dir.join("cache");
        make_private(&cache).map_err(directory(&cache))?;
        let shares = SharePolicy::new(&config.allow_shares)
            .map_err(|(path, source)| OpenError::Share { path, source })?;
        let store = Store::open(cache.join("snapshots"))?.with_limit(config.max_snapshot_bytes);
        let engines = Engines::new(&EngineConfig {
            cache,
            snapshots: Some(store.clone()),
            kernels: config.kernel_dir.clone(),
            max_sandboxes: config.max_sandboxes,
            max_memory_bytes: config.max_memory_bytes,
        });
        let sandboxes = Arc::new(Sandboxes::new(config.max_sessions));
        let budget = Budget::new(config.memory_budget_bytes);
        budget.watch_sessions(&sandboxes);
        let core = Arc::new(Self {
            logs: Logs::new(config.log_bytes),
            functions: Functions::default(),
            deploying: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            stop: CancellationToken::new(),
            invocations: TaskTracker::new(),
            draining: CancellationToken::new(),
            started: Instant::now(),
            budget,
            sandboxes,
            snapshots: Snapshots::new(store, config.keep_snapshots),
            config,
            engines,
            artifacts,
            registry,
            shares,
            control,
        });
        core.load()?;
        core.snapshots.release_others(&core.functions.all());
        core.artifacts.remove_unused().map_err(directory(&core.config.data_dir))?;
        Ok(core)
    }

    fn load(&self) -> Result<(), RegistryError> {
        let mut versions: BTreeMap<FunctionName, Vec<Arc<Deployment>>> = BTreeMap::new();
        for record in self.registry.load()? {
            self.artifacts.retain((record.format, record.digest));
            let of_name = versions.entry(record.manifest.name.clone()).or_default();
            let shared = of_name.first().map(|first| Arc::clone(&first.shared));
            let shared = shared.unwrap_or_else(|| self.shared(&record.manifest.name));
            of_name.push(self.deployment(record, shared));
        }
        for older in versions.values().flat_map(|all| all.iter().rev().skip(1)) {
            older.pool.cool();
        }
        let entries = versions.into_iter().filter_map(|(name, all)| Some((name, Entry::new(all)?)));
        self.functions.set(entries.collect::<Table>());
        Ok(())
    }

    pub(crate) fn shared(&self, name: &FunctionName) -> Arc<Shared> {
        Arc::new(Shared {
            stats: FunctionStats::new(self.config.workers),
            log: FunctionLog::new(name.clone(), &self.logs),
        })
    }

    /// A version that is not in the table yet; one user of its artifact must have been counted.
    pub(crate) fn deployment(&self, record: Record, shared: Arc<Shared>) -> Arc<Deployment> {
        let key = (record.format, record.digest);
        let mut manifest = record.manifest.clone();
        manifest.engine = record.engine.into();
        let artifact =
            Artifact { format: record.format, digest: record.digest, path: self.artifacts.path(key) };
        let function = Arc::new(Function { version: record.version, manifest, artifact });
        let image = ImageCell::new(
            Arc::clone(&function),
            self.engines.get(record.engine),
            self.shares.clone(),
            self.control.clone(),
        );
        let pool = Pool::new(record.manifest.pool, image, Arc::clone(&self.budget), self.control.clone());
        let storage = Storage::new(Arc::clone(&self.artifacts), key, self.control.clone());
        Deployment::new(record, function, pool, shared, storage)
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &ServeConfig {
        &self.config
    }

    /// What is deployed.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The engines of this gateway.
    #[must_use]
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// The memory of all sandboxes.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The sandboxes that live between calls.
    #[must_use]
    pub fn sandboxes(&self) -> &Arc<Sandboxes> {
        &self.sandboxes
    }

    /// All log lines.
    #[must_use]
    pub fn logs(&self) -> &Arc<Logs> {
        &self.logs
    }

    /// Since its start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// It takes no new invocations.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Cancelled when draining begins.
    #[must_use]
    pub fn draining_token(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Begins to take an artifact.
    ///
    /// # Errors
    /// The disk's.
    pub fn upload(&self) -> Result<Upload, Error> {
        self.artifacts.upload().map_err(|e| Error::Artifact(e.into()))
    }

    /// Runs a task on the control runtime to its end, also when the caller leaves.
    ///
    /// # Errors
    /// The task's own; [`Error::Internal`] where it died.
    pub async fn on_control<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.control.spawn(task).await.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// Counts an invocation until the token's drop.
    pub(crate) fn admit(&self) -> Result<TaskTrackerToken, Error> {
        // Counted first: whoever drains sees either the count or the refusal.
        let token = self.invocations.token();
        if self.draining.is_cancelled() { Err(Error::Draining) } else { Ok(token) }
    }

    /// Refuses new invocations, waits for those under way up to the drain timeout, then cancels them.
    pub async fn drain(&self) {
        self.draining.cancel();
        self.invocations.close();
        tracing::info!(invocations = self.invocations.len(), "draining");
        if tokio::time::timeout(self.config.drain_timeout, self.invocations.wait()).await.is_err() {
            tracing::warn!(invocations = self.invocations.len(), "the drain timeout passed; cancelling");
            self.stop.cancel();
            let _ = tokio::time::timeout(CANCEL_TIME, self.invocations.wait()).await;
        }
        let sandboxes = Arc::clone(&self.sandboxes);
        // A thread that died has said so, and there is nobody left to tell.
        let _ = self.control.spawn_blocking(move || sandboxes.end_all()).await;
    }
}

/// Compiled code and registries are trusted when they are read again: nobody else may write them.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// After a start: makes every image again, a few at a time, current versions first.
async fn prepare_all(core: Arc<Core>) {
    let table = core.functions.all();
    let current = table.values().map(|entry| Arc::clone(entry.current()));
    let older = table.values().flat_map(|e| e.versions().iter().rev().skip(1).cloned());
    let at_once = Arc::new(tokio::sync::Semaphore::new(core.config.workers));
    for deployment in current.chain(older).collect::<Vec<_>>() {
        let Ok(turn) = Arc::clone(&at_once).acquire_owned().await else { return };
        core.control.spawn(async move {
            if let Err(error) = deployment.pool.image().get().await {
                let name = &deployment.record.manifest.name;
                tracing::warn!(function = %name, version = deployment.record.version, %error, "cannot be prepared");
            } else {
                deployment.pool.fill_later();
            }
            drop(turn);
        });
    }
}

/// Removes idle sandboxes, sessions included, and fills up what a failed start left open.
async fn keep_pools(core: std::sync::Weak<Core>) {
    let mut tick = tokio::time::interval(EXPIRE_EVERY);
    loop {
        tick.tick().await;
        let Some(core) = core.upgrade() else { return };
        let now = Instant::now();
        core.sandboxes.expire(now);
        for version in core.functions.all().values().flat_map(Entry::versions) {
            version.pool.expire(now);
            if version.pool.image().is_ready() {
                version.pool.fill_later();
            }
        }
    }
}
