//! Kept states, and what stops and starts a sandbox.

use std::sync::Arc;
use std::time::SystemTime;

use novum_sandbox::session::SessionSnapshot;
use novum_sandbox::{EngineKind, FunctionName};

use super::room::Takes;
use super::{Entry, Happening, Sandboxes, name_or_new};
use crate::core::Core;
use crate::error::Error;
use crate::functions::Deployment;

/// A snapshot of a sandbox.
pub struct Kept {
    /// Its name.
    pub name: FunctionName,
    /// Its engine.
    pub engine: EngineKind,
    /// The sandbox that it was taken of.
    pub sandbox: FunctionName,
    /// When.
    pub created: SystemTime,
    /// The state.
    pub snapshot: Arc<dyn SessionSnapshot>,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) keeps: Option<Arc<Deployment>>,
}

impl Sandboxes {
    /// The snapshot `name`.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    pub fn find_snapshot(&self, name: &str) -> Result<Arc<Kept>, Error> {
        let found = self.state.lock().snapshots.get(name).cloned().flatten();
        found.ok_or_else(|| no_snapshot(name))
    }

    /// Removes a snapshot; sandboxes made from it live on.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    pub fn delete_snapshot(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state.lock();
        if !state.snapshots.get(name).is_some_and(Option::is_some) {
            return Err(no_snapshot(name));
        }
        let kept = state.snapshots.remove(name);
        drop(state);
        // Giving its memory back takes a while, and nobody waits for the lock meanwhile.
        drop(kept);
        Ok(())
    }
}

fn no_snapshot(name: &str) -> Error {
    Error::NoSandbox { what: "snapshot", name: name.chars().take(80).collect() }
}

impl Core {
    /// Keeps the state of the sandbox `name` as `snapshot`.
    ///
    /// # Errors
    /// Names, limits, and what the engine cannot or not now.
    pub async fn snapshot_sandbox(self: &Arc<Self>, name: &str, snapshot: &str) -> Result<Arc<Kept>, Error> {
        let _admitted = self.admit()?;
        let entry = self.sandboxes.find(name)?;
        let reserved = self.sandboxes.reserve_snapshot(name_or_new("snapshot", snapshot)?)?;
        let _room = self.take_room(&entry.name, Takes::snapshot(&entry)).await?;
        let taken = self.take_snapshot(&entry).await?;
        let kept = Arc::new(Kept {
            name: reserved.name().clone(),
            engine: entry.engine,
            sandbox: entry.name.clone(),
            created: SystemTime::now(),
            snapshot: taken,
            memory_bytes: entry.memory_bytes,
            cpus: entry.cpus,
            keeps: entry.keeps.clone(),
        });
        reserved.fill(&kept);
        self.sandboxes.tell(&entry, Happening::Snapshotted { snapshot: kept.name.to_string() });
        Ok(kept)
    }

    /// The present state of a sandbox, taken on the control runtime: a caller that leaves breaks nothing off.
    pub(super) async fn take_snapshot(&self, entry: &Arc<Entry>) -> Result<Arc<dyn SessionSnapshot>, Error> {
        let entry = Arc::clone(entry);
        self.on_control(async move {
            let _turn = entry.turn.lock().await;
            let session = entry.session()?;
            entry.with(async move { session.snapshot().await }).await
        })
        .await
    }

    /// Takes memory from a running sandbox or gives it back; how much it has then.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], and what the engine cannot.
    pub async fn resize_sandbox(
        self: &Arc<Self>,
        name: &str,
        memory_bytes: u64,
    ) -> Result<(Arc<Entry>, u64), Error> {
        let _admitted = self.admit()?;
        let entry = self.sandboxes.find(name)?;
        self.on_control(async move {
            let turn = entry.turn.lock().await;
            let session = entry.session()?;
            let now = entry.with(async move { session.resize(memory_bytes).await }).await?;
            drop(turn);
            Ok((entry, now))
        })
        .await
    }

    /// Stops a sandbox, or lets it go on; one that is so already stays so.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], and what the engine cannot.
    pub async fn set_sandbox_paused(self: &Arc<Self>, name: &str, paused: bool) -> Result<Arc<Entry>, Error> {
        let _admitted = self.admit()?;
        let core = Arc::clone(self);
        let entry = self.sandboxes.find(name)?;
        self.on_control(async move {
            let turn = entry.turn.lock().await;
            if entry.paused() != paused {
                let session = entry.session()?;
                let change =
                    async move { if paused { session.pause().await } else { session.resume().await } };
                entry.with(change).await?;
                entry.inner.lock().paused = paused;
                let happening = if paused { Happening::Paused } else { Happening::Resumed };
                core.sandboxes.tell(&entry, happening);
            }
            drop(turn);
            Ok(entry)
        })
        .await
    }
}
