//! One sandbox as the gateway knows it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use novum_sandbox::session::{Session, SessionError};
use novum_sandbox::{EngineKind, FunctionName};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Reason;
use crate::error::Error;
use crate::functions::Deployment;

/// See the module.
pub struct Entry {
    /// Its name.
    pub name: FunctionName,
    /// Its engine.
    pub engine: EngineKind,
    /// What it was made from, for people.
    pub source: String,
    /// Its memory's limit.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// When it was made.
    pub created: SystemTime,
    /// How long nobody may use it.
    pub idle: Duration,
    /// How long it may live.
    pub lifetime: Duration,
    /// How long making it took.
    pub start_time: Duration,
    /// `None` once it is gone: events and callers that still hold the entry must not keep the sandbox.
    session: Mutex<Option<Arc<dyn Session>>>,
    /// Its function's artifact must stay on the disk.
    pub(super) keeps: Option<Arc<Deployment>>,
    pub(super) born: Instant,
    pub(super) inner: Mutex<Inner>,
    /// Pausing, resuming, snapshots and forks come one after the other.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) measured: AtomicU64,
    gone: CancellationToken,
    reason: OnceLock<Reason>,
}

pub(super) struct Inner {
    pub(super) paused: bool,
    pub(super) commands: u32,
    /// Calls under way, commands included.
    pub(super) calls: u32,
    pub(super) last_used: Instant,
}

/// What an entry is made of, beside its session.
pub(super) struct Parts {
    pub(super) name: FunctionName,
    pub(super) engine: EngineKind,
    pub(super) source: String,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) idle: Duration,
    pub(super) lifetime: Duration,
    pub(super) keeps: Option<Arc<Deployment>>,
}

impl Entry {
    pub(super) fn new(parts: Parts, session: Arc<dyn Session>, start_time: Duration) -> Arc<Self> {
        let now = Instant::now();
        let Parts { name, engine, source, memory_bytes, cpus, idle, lifetime, keeps } = parts;
        Arc::new(Self {
            name,
            engine,
            source,
            memory_bytes,
            cpus,
            created: SystemTime::now(),
            idle,
            lifetime,
            start_time,
            session: Mutex::new(Some(session)),
            keeps,
            born: now,
            inner: Mutex::new(Inner { paused: false, commands: 0, calls: 0, last_used: now }),
            turn: tokio::sync::Mutex::default(),
            measured: AtomicU64::new(0),
            gone: CancellationToken::new(),
            reason: OnceLock::new(),
        })
    }

    /// Whether it is paused.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.inner.lock().paused
    }

    /// Commands under way.
    #[must_use]
    pub fn commands(&self) -> u32 {
        self.inner.lock().commands
    }

    /// Memory that only it holds, as last measured.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        self.measured.load(Ordering::Relaxed)
    }

    /// What does its work.
    ///
    /// # Errors
    /// Where it is gone.
    pub(super) fn session(&self) -> Result<Arc<dyn Session>, Error> {
        self.session.lock().clone().ok_or_else(|| self.gone_error())
    }

    pub(super) fn measure(&self) -> u64 {
        let bytes = self.session().map_or(0, |session| session.private_bytes());
        self.measured.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// Counts a call until the guard's drop: a sandbox in use is not idle.
    #[must_use]
    pub fn used(self: &Arc<Self>) -> Used {
        let mut inner = self.inner.lock();
        inner.calls += 1;
        Used(Arc::clone(self))
    }

    /// Whether it is out of the table.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// The session, for the caller to drop where nobody waits for that.
    pub(super) fn end(&self, reason: &Reason) -> Option<Arc<dyn Session>> {
        let _ = self.reason.set(reason.clone());
        self.gone.cancel();
        self.session.lock().take()
    }

    /// Returns when it is out of the table, with what to tell whoever still wants something of it.
    pub async fn gone(&self) -> Error {
        self.gone.cancelled().await;
        self.gone_error()
    }

    fn gone_error(&self) -> Error {
        let why = match self.reason.get() {
            Some(Reason::Deleted) | None => "it was deleted".to_owned(),
            Some(Reason::Idle) => "nobody used it for its idle time".to_owned(),
            Some(Reason::Lifetime) => "its lifetime was over".to_owned(),
            Some(Reason::Shutdown) => return Error::Draining,
            Some(Reason::Ended(how)) => how.clone(),
        };
        Error::Session(SessionError::Ended(why))
    }

    /// Why it is to go now, if it is.
    pub(super) fn expired(&self, now: Instant) -> Option<Reason> {
        if now.saturating_duration_since(self.born) >= self.lifetime {
            return Some(Reason::Lifetime);
        }
        let inner = self.inner.lock();
        let idle = inner.calls == 0 && now.saturating_duration_since(inner.last_used) >= self.idle;
        idle.then_some(Reason::Idle)
    }

    /// Does something with the session, until it is gone.
    pub(super) async fn with<T>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, Error> {
        let _used = self.used();
        tokio::select! {
            biased;
            gone = self.gone() => Err(gone),
            done = work => done.map_err(Error::Session),
        }
    }
}

/// A call under way.
pub struct Used(Arc<Entry>);

impl Drop for Used {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.calls -= 1;
        inner.last_used = Instant::now();
    }
}
