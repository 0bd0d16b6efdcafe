//! Names that are taken while what they are for is being made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use novum_sandbox::FunctionName;

use super::{Entry, Happening, Kept, Sandboxes, State};
use crate::error::Error;

/// What there is by its name; `None` while it is being made.
pub(super) type Slots<T> = BTreeMap<FunctionName, Option<Arc<T>>>;

/// Which of the tables.
type Table<T> = fn(&mut State) -> &mut Slots<T>;

/// Names that nobody else gets meanwhile. Dropping it gives them back.
pub(super) struct Reserved<'a, T> {
    sandboxes: &'a Sandboxes,
    table: Table<T>,
    names: Vec<FunctionName>,
}

impl<T> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        let mut state = self.sandboxes.state.lock();
        let table = (self.table)(&mut state);
        for name in &self.names {
            if table.get(name).is_some_and(Option::is_none) {
                table.remove(name);
            }
        }
    }
}

impl Sandboxes {
    /// Names of sandboxes: all of them or none.
    pub(super) fn reserve(&self, names: Vec<FunctionName>) -> Result<Reserved<'_, Entry>, Error> {
        self.reserve_in(|state| &mut state.table, "sandbox", names)
    }

    /// The name of a snapshot.
    pub(super) fn reserve_snapshot(&self, name: FunctionName) -> Result<Reserved<'_, Kept>, Error> {
        self.reserve_in(|state| &mut state.snapshots, "snapshot", vec![name])
    }

    fn reserve_in<T>(
        &self,
        table: Table<T>,
        what: &'static str,
        names: Vec<FunctionName>,
    ) -> Result<Reserved<'_, T>, Error> {
        // Dropped after the lock: it gives back what it has.
        let mut reserved = Reserved { sandboxes: self, table, names: Vec::new() };
        let mut state = self.state.lock();
        let slots = table(&mut state);
        for name in names {
            if slots.len() >= self.limit {
                return Err(Error::TooManySandboxes { limit: self.limit });
            }
            if slots.contains_key(&name) {
                return Err(Error::SandboxExists { what, name: name.to_string() });
            }
            slots.insert(name.clone(), None);
            reserved.names.push(name);
        }
        drop(state);
        Ok(reserved)
    }
}

impl Reserved<'_, Entry> {
    /// Puts the sandboxes into their places, all at once.
    pub(super) fn fill(self, entries: &[Arc<Entry>]) {
        let mut state = self.sandboxes.state.lock();
        for entry in entries {
            state.table.insert(entry.name.clone(), Some(Arc::clone(entry)));
            state.watchers.tell(entry, Happening::Created);
            self.sandboxes.counts.created.fetch_add(1, Ordering::Relaxed);
            tracing::info!(sandbox = %entry.name, engine = %entry.engine, source = entry.source, "a sandbox was made");
        }
        drop(state);
    }
}

impl Reserved<'_, Kept> {
    /// Its name.
    pub(super) fn name(&self) -> &FunctionName {
        &self.names[0]
    }

    /// Puts the snapshot into its place.
    pub(super) fn fill(self, kept: &Arc<Kept>) {
        self.sandboxes.state.lock().snapshots.insert(kept.name.clone(), Some(Arc::clone(kept)));
    }
}
