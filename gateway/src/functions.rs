//! The table of deployed functions. Reading it takes no lock; writers make a new table and swap it in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use novum_sandbox::{ArtifactFormat, Function, FunctionName};
use novum_snapshot::Digest;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::artifacts::Artifacts;
use crate::error::Error;
use crate::logs::FunctionLog;
use crate::metrics::FunctionStats;
use crate::page::{Page, page};
use crate::pool::{Occupancy, Pool};
use crate::registry::Record;

/// What all versions of a function share.
#[derive(Debug)]
pub struct Shared {
    /// Its numbers.
    pub stats: FunctionStats,
    /// Its log.
    pub log: Arc<FunctionLog>,
}

/// One deployed version, ready to be invoked.
pub struct Deployment {
    /// As it stands in the registry.
    pub record: Record,
    /// As its engine sees it: the engine chosen, the artifact's path.
    pub function: Arc<Function>,
    /// Its sandboxes.
    pub pool: Arc<Pool>,
    /// What it shares with the other versions.
    pub shared: Arc<Shared>,
    storage: Storage,
}

/// Keeps an artifact on disk while somebody may need it.
pub struct Storage {
    artifacts: Arc<Artifacts>,
    key: (ArtifactFormat, Digest),
    control: Handle,
    /// The registry no longer names it: the last user removes the artifact.
    retired: AtomicBool,
}

impl Storage {
    /// Of an artifact of which one user was counted for this.
    #[must_use]
    pub fn new(artifacts: Arc<Artifacts>, key: (ArtifactFormat, Digest), control: Handle) -> Self {
        Self { artifacts, key, control, retired: AtomicBool::new(false) }
    }

    /// The registry does not name it, or no longer.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Relaxed) {
            let (artifacts, key) = (Arc::clone(&self.artifacts), self.key);
            self.control.spawn_blocking(move || artifacts.release(key));
        }
    }
}

impl Deployment {
    /// Of these parts.
    #[must_use]
    pub fn new(
        record: Record,
        function: Arc<Function>,
        pool: Arc<Pool>,
        shared: Arc<Shared>,
        storage: Storage,
    ) -> Arc<Self> {
        Arc::new(Self { record, function, pool, shared, storage })
    }

    /// It left the registry: nothing is kept for it once its invocations are over.
    pub fn retire(&self) {
        self.storage.retire();
        self.pool.retire();
    }
}

/// One function.
#[derive(Clone)]
pub struct Entry {
    /// Its kept versions, oldest first; never empty.
    versions: Vec<Arc<Deployment>>,
}

impl Entry {
    /// Of these versions, oldest first; `None` of none.
    #[must_use]
    pub fn new(versions: Vec<Arc<Deployment>>) -> Option<Self> {
        (!versions.is_empty()).then_some(Self { versions })
    }

    /// The version that serves when none is named.
    #[must_use]
    pub fn current(&self) -> &Arc<Deployment> {
        &self.versions[self.versions.len() - 1]
    }

    /// All kept versions, oldest first.
    #[must_use]
    pub fn versions(&self) -> &[Arc<Deployment>] {
        &self.versions
    }

    /// What all its versions do now.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let mut sum = Occupancy::default();
        self.versions.iter().for_each(|version| sum += version.pool.occupancy());
        sum
    }

    /// A number of its pools, added up.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Pool) -> u64) -> u64 {
        self.versions.iter().map(|version| of(&version.pool)).sum()
    }

    /// The version asked for; 0 is the current one.
    ///
    /// # Errors
    /// [`Error::NoVersion`].
    pub fn find(&self, version: u64) -> Result<&Arc<Deployment>, Error> {
        if version == 0 {
            return Ok(self.current());
        }
        self.versions.iter().find(|v| v.record.version == version).ok_or_else(|| Error::NoVersion {
            name: self.current().record.manifest.name.to_string(),
            version,
            kept: self.versions.iter().map(|v| v.record.version).collect(),
        })
    }
}

/// All functions at one moment.
pub type Table = HashMap<FunctionName, Entry>;

/// The table.
#[derive(Default)]
pub struct Functions {
    table: ArcSwap<Table>,
    writing: Mutex<()>,
}

impl Functions {
    /// All functions now.
    #[must_use]
    pub fn all(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// A version of a function; version 0 is the current one.
    ///
    /// # Errors
    /// [`Error::NoFunction`] with the nearest name, [`Error::NoVersion`].
    pub fn find(&self, name: &str, version: u64) -> Result<Arc<Deployment>, Error> {
        let table = self.table.load();
        match table.get(name) {
            Some(entry) => entry.find(version).cloned(),
            None => Err(no_function(&table, name)),
        }
    }

    /// The current versions in the order of their names: at most `size` (0: 100) that come after the name in `token`.
    ///
    /// # Errors
    /// Names `page_size` or `page_token`.
    pub fn page(&self, size: u32, token: &str) -> Result<Page<Arc<Deployment>>, Error> {
        let table = self.all();
        let mut entries: Vec<_> =
            table.iter().map(|(name, entry)| (name, Arc::clone(entry.current()))).collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        page(entries.into_iter(), size, token)
    }

    /// Puts `entry` in the place of what is called `name`; `None` removes it. Returns what was there.
    pub fn replace(&self, name: &FunctionName, entry: Option<Entry>) -> Option<Entry> {
        let _writing = self.writing.lock();
        let mut table = Table::clone(&self.table.load());
        let old = match entry {
            Some(entry) => table.insert(name.clone(), entry),
            None => table.remove(name),
        };
        self.table.store(Arc::new(table));
        old
    }

    /// Makes this the whole table.
    pub fn set(&self, table: Table) {
        let _writing = self.writing.lock();
        self.table.store(Arc::new(table));
    }
}

/// That there is no such function, with a name that looks like it.
#[must_use]
pub fn no_function(table: &Table, name: &str) -> Error {
    let close = |other: &FunctionName| {
        let distance = edit_distance(name, other.as_str());
        (distance <= 1 + name.len() / 4).then(|| (distance, other.to_string()))
    };
    // Quadratic in the names' lengths: not for names that cannot be close.
    let nearest = if name.len() > 64 { None } else { table.keys().filter_map(close).min() };
    Error::NoFunction { name: name.chars().take(80).collect(), nearest: nearest.map(|(_, name)| name) }
}

/// Insertions, deletions and replacements between two names (Levenshtein's distance).
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_changes() {
        for (a, b, distance) in [
            ("", "", 0),
            ("echo", "echo", 0),
            ("ecko", "echo", 1),
            ("eco", "echo", 1),
            ("abc", "", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
