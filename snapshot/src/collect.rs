//! What is in a store, and what may go.
//!
//! Reachable is what a reference names and every layer below it. The rest may be removed, a child always
//! before its parent and the longest unused first; what some process has open stays for this time.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::Digest;
use crate::layer::Layer;
use crate::publish;
use crate::refs::RefName;
use crate::store::{Store, StoreError, failed};

/// One snapshot of a store.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub digest: Digest,
    /// What it takes on the disk; holes take nothing.
    pub disk_bytes: u64,
    /// When it was opened last, to the minute.
    pub last_used: SystemTime,
    /// The layer below.
    pub parent: Option<Digest>,
    /// Its references, sorted.
    pub refs: Vec<RefName>,
    /// Whether a reference keeps it, its own or a child's.
    pub reachable: bool,
    /// Why it cannot be read, if it cannot.
    pub damage: Option<String>,
}

/// What [`Store::prune`] removes of the snapshots that no reference keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prune {
    /// Those that were not used for that long.
    pub unused_for: Option<Duration>,
    /// The longest unused, until the store takes no more than this.
    pub max_bytes: Option<u64>,
}

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Pruned {
    /// The snapshots that are gone.
    pub removed: Vec<Digest>,
    /// What they took on the disk.
    pub freed_bytes: u64,
    /// What the others take.
    pub kept_bytes: u64,
    /// How many stayed only because some process has them open.
    pub in_use: usize,
}

/// What [`Store::remove_called`] removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Removed {
    /// The reference that is gone.
    pub reference: Option<String>,
    /// The snapshot that is gone.
    pub snapshot: Option<Digest>,
    /// Why the reference's snapshot stays.
    pub kept: Option<String>,
}

impl Store {
    /// All snapshots, sorted by name. Listing is no use of a snapshot.
    ///
    /// # Errors
    /// Those of reading the store; a damaged snapshot is no error but an entry that says so.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        for digest in self.digests()? {
            entries.extend(self.entry(digest)?);
        }
        let mut refs: HashMap<Digest, Vec<RefName>> = HashMap::new();
        for (name, digest) in self.refs_to_digests()? {
            refs.entry(digest).or_default().push(name);
        }
        let parents: HashMap<_, _> = entries.iter().map(|e| (e.digest, e.parent)).collect();
        let reachable = mark(refs.keys().copied(), &parents);
        for entry in &mut entries {
            entry.refs = refs.remove(&entry.digest).unwrap_or_default();
            entry.reachable = reachable.contains(&entry.digest);
        }
        Ok(entries)
    }

    /// `None` if it was removed since it was listed.
    fn entry(&self, digest: Digest) -> Result<Option<Entry>, StoreError> {
        let path = self.path(&digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", &path)(e)),
        };
        let metadata = file.metadata().map_err(failed("read", &path))?;
        let (parent, damage) = match Layer::read(file) {
            Ok(layer) if layer.digest == digest => (layer.index.parent, None),
            Ok(layer) => (None, Some(format!("holds the content of {}", layer.digest))),
            Err(e) => (None, Some(e.to_string())),
        };
        Ok(Some(Entry {
            digest,
            disk_bytes: metadata.blocks() * 512,
            last_used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            parent,
            refs: Vec::new(),
            reachable: false,
            damage,
        }))
    }

    /// Removes snapshots that no reference keeps.
    ///
    /// # Errors
    /// Those of reading and changing the store.
    pub fn prune(&self, prune: &Prune) -> Result<Pruned, StoreError> {
        let _guard = self.lock(FlockOperation::LockExclusive)?;
        self.prune_locked(prune)
    }

    /// Before a snapshot of `needed` bytes is added. The caller holds the lock alone.
    pub(crate) fn make_room(&self, needed: u64, limit: u64) -> Result<(), StoreError> {
        let room = limit.checked_sub(needed);
        let prune = Prune { unused_for: None, max_bytes: room };
        let kept = self.prune_locked(&prune)?.kept_bytes;
        if room.is_some_and(|room| kept <= room) {
            Ok(())
        } else {
            Err(StoreError::Full { needed, limit, kept })
        }
    }

    fn prune_locked(&self, prune: &Prune) -> Result<Pruned, StoreError> {
        let mut entries = self.list()?;
        let mut pruned =
            Pruned { kept_bytes: entries.iter().map(|e| e.disk_bytes).sum(), ..Pruned::default() };
        let now = SystemTime::now();
        while let Some(entry) = longest_unused(&mut entries) {
            let age = now.duration_since(entry.last_used).unwrap_or_default();
            let old = prune.unused_for.is_some_and(|limit| age >= limit);
            if !old && prune.max_bytes.is_none_or(|max| pruned.kept_bytes <= max) {
                break;
            }
            if self.unlink(&entry.digest)? {
                pruned.removed.push(entry.digest);
                pruned.freed_bytes += entry.disk_bytes;
                pruned.kept_bytes -= entry.disk_bytes;
            } else {
                pruned.in_use += 1;
                keep(&mut entries, entry);
            }
        }
        if !pruned.removed.is_empty() {
            let directory = self.snapshots();
            publish::sync_directory(&directory).map_err(failed("write", &directory))?;
        }
        Ok(pruned)
    }

    /// Removes one snapshot.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Referenced`], [`StoreError::HasChild`], [`StoreError::InUse`];
    /// those of reading and changing the store.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let _guard = self.lock(FlockOperation::LockExclusive)?;
        let entries = self.list()?;
        let entry = entries.iter().find(|e| e.digest == *digest).ok_or(StoreError::Missing(*digest))?;
        if let Some(name) = entry.refs.first() {
            return Err(StoreError::Referenced { digest: *digest, name: name.clone() });
        }
        if let Some(child) = entries.iter().find(|e| e.parent == Some(*digest)) {
            return Err(StoreError::HasChild { digest: *digest, child: child.digest });
        }
        if !self.unlink(digest)? {
            return Err(StoreError::InUse(*digest));
        }
        let directory = self.snapshots();
        publish::sync_directory(&directory).map_err(failed("write", &directory))
    }

    /// Removes what a person means by `text`: a reference, and its snapshot if nothing else needs that; or a
    /// snapshot, if `text` is its digest or the beginning of it.
    ///
    /// # Errors
    /// Those of [`Store::find`] and [`Store::remove`]; that a reference's snapshot has to stay is none.
    pub fn remove_called(&self, text: &str) -> Result<Removed, StoreError> {
        let Some(name) = text.parse::<RefName>().ok().filter(|name| !matches!(self.get_ref(name), Ok(None)))
        else {
            let digest = self.find(text)?;
            self.remove(&digest)?;
            return Ok(Removed { snapshot: Some(digest), ..Removed::default() });
        };
        let mut removed = Removed { reference: Some(name.to_string()), ..Removed::default() };
        let Some(digest) = self.remove_ref(&name)? else { return Ok(removed) };
        match self.remove(&digest) {
            Ok(()) => removed.snapshot = Some(digest),
            Err(e @ (StoreError::Referenced { .. } | StoreError::HasChild { .. } | StoreError::InUse(_))) => {
                removed.kept = Some(e.to_string());
            }
            Err(StoreError::Missing(_)) => {}
            Err(e) => return Err(e),
        }
        Ok(removed)
    }

    /// Whether it was removed; not if some process has it open. The caller holds the lock alone.
    fn unlink(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.path(digest);
        let remove = || {
            let file = File::open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => fs::remove_file(&path).map(|()| true),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
                Err(e) => Err(e.into()),
            }
        };
        remove().map_err(failed("remove", &path))
    }
}

/// Everything on the way from the roots down.
fn mark(roots: impl Iterator<Item = Digest>, parents: &HashMap<Digest, Option<Digest>>) -> HashSet<Digest> {
    let mut reachable = HashSet::new();
    for root in roots {
        let mut next = Some(root);
        while let Some(digest) = next.filter(|digest| reachable.insert(*digest)) {
            next = parents.get(&digest).copied().flatten();
        }
    }
    reachable
}

/// Takes out the entry to remove next: of those that nothing keeps and nothing stands on, the longest unused.
fn longest_unused(entries: &mut Vec<Entry>) -> Option<Entry> {
    let parents: HashSet<Digest> = entries.iter().filter_map(|e| e.parent).collect();
    let free = |e: &&Entry| !e.reachable && !parents.contains(&e.digest);
    let next = entries.iter().filter(free).min_by_key(|e| (e.last_used, e.digest))?.digest;
    let at = entries.iter().position(|e| e.digest == next)?;
    Some(entries.swap_remove(at))
}

/// Puts an entry back, with all below it, as one that stays.
fn keep(entries: &mut Vec<Entry>, entry: Entry) {
    entries.push(entry);
    let parents: HashMap<_, _> = entries.iter().map(|e| (e.digest, e.parent)).collect();
    let kept = mark(entries.last().map(|e| e.digest).into_iter(), &parents);
    for entry in entries.iter_mut().filter(|e| kept.contains(&e.digest)) {
        entry.reachable = true;
    }
}
