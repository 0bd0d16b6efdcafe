//! What becomes of images in the store of snapshots: a deployed version's stays, a removed one's goes, and what nothing
//! refers to goes when nobody has used it for some time. Snapshots of sandbox sessions go with their gateway; what a killed
//! one left, the next one removes.

use std::sync::Weak;
use std::time::Duration;

use novum_sandbox::kept;
use novum_snapshot::collect::Prune;
use novum_snapshot::{Store, StoreError};

use crate::core::Core;
use crate::engines::with_causes;
use crate::functions::{Entry, Table};
use crate::registry::Record;

/// How often the store is looked at.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// The gateway's store of snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    store: Store,
    keep: Duration,
}

impl Snapshots {
    /// Of this store, in which what nothing refers to stays for `keep` after its last use.
    #[must_use]
    pub fn new(store: Store, keep: Duration) -> Self {
        Self { store, keep }
    }

    /// The version is gone: its image may go.
    pub fn release(&self, record: &Record) {
        let (name, version) = (&record.manifest.name, record.version);
        if let Err(error) = kept::release(&self.store, record.engine, name, version) {
            tracing::warn!(function = %name, version, error = with_causes(&error), "its image stays in the store");
        }
    }

    /// Releases the images of versions that are not in `table`, and all snapshots of sandboxes: a gateway that was killed may
    /// have left them. No other gateway has this store, and this one must not have taken a snapshot yet.
    pub fn release_others(&self, table: &Table) {
        if let Err(error) = self.try_release_others(table) {
            tracing::warn!(error = with_causes(&error), "the store of snapshots was not tidied up");
        }
    }

    fn try_release_others(&self, table: &Table) -> Result<(), StoreError> {
        for (reference, _) in self.store.refs_to_digests()? {
            if kept::is_sandbox(&reference) {
                kept::release_called(&self.store, &reference)?;
            }
            let Some((engine, name, version)) = kept::parse(&reference) else { continue };
            let mut versions = table.get(&name).map(Entry::versions).unwrap_or_default().iter();
            if !versions.any(|d| d.record.version == version && d.record.engine == engine) {
                kept::release(&self.store, engine, &name, version)?;
            }
        }
        Ok(())
    }

    /// Removes what nothing refers to and nobody has used for a while, now and then, as long as the gateway lives.
    pub async fn keep(self, core: Weak<Core>) {
        let mut tick = tokio::time::interval(PRUNE_EVERY);
        loop {
            tick.tick().await;
            if core.strong_count() == 0 {
                return;
            }
            let snapshots = self.clone();
            let _ = tokio::task::spawn_blocking(move || snapshots.prune()).await;
        }
    }

    fn prune(&self) {
        match self.store.prune(&Prune { unused_for: Some(self.keep), max_bytes: None }) {
            Ok(pruned) if pruned.removed.is_empty() => {}
            Ok(pruned) => {
                let (removed, freed_bytes) = (pruned.removed.len(), pruned.freed_bytes);
                tracing::info!(removed, freed_bytes, "removed snapshots that nothing needs");
            }
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "the store of snapshots was not pruned")
            }
        }
    }
}
