//! Sandbox sessions: the table of those that live, their snapshots, and what ends them.
//!
//! ```text
//! create ──reserve name── engine ──> Entry in the table ──> delete | idle | lifetime | its own end | shutdown
//!                                        │                            └─ everything that runs in it ends with it
//!                                        └─ snapshot ──> Kept ──> create, fork
//! ```
//! Every change of the table and the event that tells of it happen under one lock, so a watcher that subscribes under it
//! sees the present and misses nothing after. Lock order: `state`, then an entry's `inner`.

mod create;
mod entry;
mod events;
mod exec;
mod files;
mod reserve;
mod room;
mod snapshots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use novum_sandbox::FunctionName;
use parking_lot::Mutex;

use crate::error::Error;
use crate::id::InvocationId;
use crate::page::{Page, page};

pub use create::{Request, Source};
pub use entry::{Entry, Used};
pub use events::{Event, Happening, View, Watch};
pub use exec::{Command, ExecCount};
pub use files::Target;
use reserve::Slots;
pub use snapshots::Kept;

/// Without a command or call for so long, a sandbox is deleted, unless its creator says otherwise.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(600);
/// Longest idle time.
pub const MAX_IDLE: Duration = Duration::from_secs(24 * 3600);
/// A sandbox is deleted after this time, unless its creator says otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// Longest lifetime.
pub const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// All sandboxes of a gateway.
pub struct Sandboxes {
    state: Mutex<State>,
    limit: usize,
    counts: Counts,
}

#[derive(Default)]
struct State {
    table: Slots<Entry>,
    snapshots: Slots<Kept>,
    watchers: events::Watchers,
}

/// What happened since the gateway's start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sandboxes made.
    pub created: AtomicU64,
    /// Sandboxes that are gone, by why: see [`REASONS`].
    pub ended: [AtomicU64; REASONS.len()],
    /// Commands by how they ended: see [`ExecCount`].
    pub commands: [AtomicU64; ExecCount::ALL.len()],
    /// Bytes read from sandboxes' files.
    pub read_bytes: AtomicU64,
    /// Bytes written into sandboxes' files.
    pub written_bytes: AtomicU64,
}

/// Why a sandbox is gone, as metrics tell it.
pub const REASONS: [&str; 5] = ["deleted", "idle", "lifetime", "shutdown", "ended"];

/// Why a sandbox goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody deleted it.
    Deleted,
    /// Nobody used it for its idle time.
    Idle,
    /// Its lifetime was over.
    Lifetime,
    /// The gateway shuts down.
    Shutdown,
    /// It ended by itself, in this way.
    Ended(String),
}

impl Reason {
    /// As an event tells it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Ended(how) => how,
            other => REASONS[other.index()],
        }
    }

    fn index(&self) -> usize {
        match self {
            Self::Deleted => 0,
            Self::Idle => 1,
            Self::Lifetime => 2,
            Self::Shutdown => 3,
            Self::Ended(_) => 4,
        }
    }
}

impl Sandboxes {
    /// None yet; at most `limit`, and as many snapshots.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit, counts: Counts::default() }
    }

    /// What happened since the gateway's start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many sandboxes and snapshots there are.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.table.len(), state.snapshots.len())
    }

    /// The sandbox `name`.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    pub fn find(&self, name: &str) -> Result<Arc<Entry>, Error> {
        let found = self.state.lock().table.get(name).cloned().flatten();
        found.ok_or_else(|| Error::NoSandbox { what: "sandbox", name: name.chars().take(80).collect() })
    }

    /// At most `size` (0: 100) sandboxes after the name in `token`.
    ///
    /// # Errors
    /// Names `page_size` or `page_token`.
    pub fn page(&self, size: u32, token: &str) -> Result<Page<Arc<Entry>>, Error> {
        page(ready(&self.state.lock().table), size, token)
    }

    /// As [`Self::page`], of snapshots.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub fn snapshots_page(&self, size: u32, token: &str) -> Result<Page<Arc<Kept>>, Error> {
        page(ready(&self.state.lock().snapshots), size, token)
    }

    /// Ends the sandbox `name` and everything in it.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        let entry = self.find(name)?;
        self.remove(&entry, &Reason::Deleted);
        Ok(())
    }

    /// Takes a sandbox out of the table, if it is still there, and ends it.
    pub fn remove(&self, entry: &Arc<Entry>, reason: &Reason) {
        let mut state = self.state.lock();
        let there = state
            .table
            .get(&entry.name)
            .is_some_and(|slot| slot.as_ref().is_some_and(|other| Arc::ptr_eq(other, entry)));
        if !there {
            return;
        }
        state.table.remove(&entry.name);
        let session = entry.end(reason);
        state.watchers.tell(entry, Happening::Deleted { reason: reason.text().to_owned() });
        self.counts.ended[reason.index()].fetch_add(1, Ordering::Relaxed);
        drop(state);
        drop(session);
        tracing::info!(sandbox = %entry.name, reason = reason.text(), "a sandbox is gone");
    }

    /// Deletes what was idle for too long or has lived long enough.
    pub fn expire(&self, now: Instant) {
        let all: Vec<_> = self.state.lock().table.values().flatten().cloned().collect();
        for entry in all {
            if let Some(reason) = entry.expired(now) {
                self.remove(&entry, &reason);
            }
        }
    }

    /// Ends all of them, and their snapshots. It may take a while.
    pub fn end_all(&self) {
        let all: Vec<_> = self.state.lock().table.values().flatten().cloned().collect();
        all.iter().for_each(|entry| self.remove(entry, &Reason::Shutdown));
        let snapshots = std::mem::take(&mut self.state.lock().snapshots);
        // Each gives back memory or changes a store on the disk, and nobody waits for the lock meanwhile.
        drop(snapshots);
    }

    /// Memory that all of them hold, measured now.
    #[must_use]
    pub fn measure(&self) -> u64 {
        let (sandboxes, snapshots): (Vec<_>, Vec<_>) = {
            let state = self.state.lock();
            let snapshots = state.snapshots.values().flatten().cloned().collect();
            (state.table.values().flatten().cloned().collect(), snapshots)
        };
        let kept: u64 = snapshots.iter().map(|kept: &Arc<Kept>| kept.snapshot.memory_bytes()).sum();
        sandboxes.iter().map(|entry: &Arc<Entry>| entry.measure()).sum::<u64>() + kept
    }

    /// What is there, and everything that happens from now on; only about `name` unless it is empty.
    ///
    /// # Errors
    /// Where `name` cannot be one.
    pub fn watch(&self, name: &str) -> Result<Watch, Error> {
        let name = if name.is_empty() { None } else { Some(parse_name("name", name)?) };
        let mut state = self.state.lock();
        let present: Vec<_> = state.table.values().flatten().cloned().collect();
        Ok(state.watchers.subscribe(&present, name))
    }

    /// Tells the watchers, unless the sandbox is gone already.
    fn tell(&self, entry: &Arc<Entry>, happening: Happening) {
        let mut state = self.state.lock();
        if !entry.is_gone() {
            state.watchers.tell(entry, happening);
        }
    }
}

/// What is ready in a table, in the order of the names.
fn ready<T>(table: &Slots<T>) -> impl Iterator<Item = (&FunctionName, Arc<T>)> {
    table.iter().filter_map(|(name, slot)| Some((name, slot.clone()?)))
}

/// The name that a client chose, or one that is made up.
fn name_or_new(field: &str, name: &str) -> Result<FunctionName, Error> {
    if name.is_empty() {
        parse_name(field, &format!("s-{}", InvocationId::next()))
    } else {
        parse_name(field, name)
    }
}

fn parse_name(field: &str, text: &str) -> Result<FunctionName, Error> {
    text.parse().map_err(|e| Error::field(field, format!("{e}").replace("a function's name", "a name")))
}
