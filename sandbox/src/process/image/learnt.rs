//! What an image's first run has stored into: learnt once, kept with the image, and copied in bulk at later starts.
//!
//! It is kept as a layer over the image: a snapshot whose parent is the image and that holds one section. The image itself is
//! written when the function is deployed, before anything has run, and never changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use novum_snapshot::{Digest, OpenError, RefName, Snapshot, Store, StoreError, WriteError, Writer};

use super::Image;
use super::stored::host;
use crate::process::memory::WorkingSet;
use crate::process::run::{AtReply, Machine};

/// Where an image is kept.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) store: Store,
    /// What refers to it.
    pub(super) reference: RefName,
    /// Its name.
    pub(super) digest: Digest,
}

/// Why a working set stays in memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotKept {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is not readable any more.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store does not take it.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A program that stores into no more than this after its reply is at its end then.
const LITTLE: u64 = 64 << 10;

static USED: AtomicBool = AtomicBool::new(true);

/// Whether sandboxes that start from now on have their working set ready, in the whole process.
pub(in crate::process) fn use_working_sets(used: bool) {
    USED.store(used, Ordering::Relaxed);
}

impl Image {
    /// Copies the pages into which `machine`'s first run will store, as far as that is known; whether it is. What it stores into
    /// after its reply follows when that has begun.
    pub(in crate::process) fn populate(&self, machine: &mut Machine) -> bool {
        let Some(set) = self.working_set.get() else { return false };
        machine.process.set_ends_with_reply(set.rest.bytes() <= LITTLE);
        if USED.load(Ordering::Relaxed) {
            machine.process.memory.populate_set(&set.first);
            if set.rest.bytes() > 0 {
                machine.at_reply(AtReply::Populate(set.clone()));
            }
        }
        true
    }

    /// Takes what `machine`'s first run, without population, has stored into as what later sandboxes have ready.
    pub(in crate::process) fn learn(self: &Arc<Self>, machine: &mut Machine) {
        let Ok(all) = machine.process.memory.stored_pages() else { return };
        // A run that never replied: all of it.
        let first = machine.take_noted().unwrap_or_else(|| all.clone());
        let set = WorkingSet::new(first, &all);
        machine.process.set_ends_with_reply(set.rest.bytes() <= LITTLE);
        tracing::debug!(first = set.first.bytes(), rest = set.rest.bytes(), "learnt a working set (bytes)");
        // Another one of the first sandboxes may have been faster.
        if self.working_set.set(Arc::new(set)).is_ok() && self.home.get().is_some() {
            let image = self.clone();
            let keep = move || {
                if let Err(error) = image.keep_working_set() {
                    tracing::warn!(%error, "the working set is learnt again after a restart");
                }
            };
            // It takes milliseconds of a disk's time, and the thread has callers. Without it the set is learnt again.
            let _ = std::thread::Builder::new().name("working-set".into()).spawn(keep);
        }
    }

    /// Writes the working set over the image in the store.
    pub(super) fn keep_working_set(&self) -> Result<(), NotKept> {
        let (Some(home), Some(set)) = (self.home.get(), self.working_set.get()) else { return Ok(()) };
        let image = Snapshot::open(&home.store, &home.digest)?;
        let mut writer = Writer::diff(&home.store, host(), &image)?;
        writer.put("", &**set)?;
        let layer = writer.publish()?;
        if home.store.replace_ref(&home.reference, &home.digest, &layer)? {
            tracing::debug!(%layer, "stored a working set");
        } else {
            // The version was deleted meanwhile, or its image taken anew.
            home.store.remove(&layer)?;
        }
        Ok(())
    }
}
