//! Who watches, and what they are told: the present first, then every event, each watcher from a queue of its own. One that
//! reads too slowly is cut off and told so; nobody is told less than happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use novum_sandbox::{ExitStatus, FunctionName};
use tokio::sync::mpsc;

use super::Entry;

/// Events that may wait for a watcher.
const QUEUE: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// To which sandbox; `None` with [`Happening::Present`].
    pub sandbox: Option<View>,
    /// When.
    pub time: SystemTime,
    /// Counts events of the gateway; 0 with what tells the present.
    pub sequence: u64,
    /// What.
    pub happening: Happening,
}

/// A sandbox with what may change in it as it was then.
#[derive(Clone)]
pub struct View {
    /// The sandbox.
    pub entry: Arc<Entry>,
    /// Whether it was paused.
    pub paused: bool,
    /// Commands under way.
    pub commands: u32,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("name", &self.entry.name).finish_non_exhaustive()
    }
}

impl View {
    /// As it is now.
    #[must_use]
    pub fn now(entry: &Arc<Entry>) -> Self {
        let inner = entry.inner.lock();
        Self { entry: Arc::clone(entry), paused: inner.paused, commands: inner.commands }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Happening {
    /// Nothing: it was there when the watch began.
    Existing,
    /// Nothing: all that was there has been told.
    Present,
    /// It was made.
    Created,
    /// It was paused.
    Paused,
    /// It goes on.
    Resumed,
    /// A command began.
    CommandStarted {
        /// Its program.
        program: String,
    },
    /// A command is over.
    CommandEnded {
        /// Its program.
        program: String,
        /// Where it ended by itself.
        exit: Option<ExitStatus>,
    },
    /// A snapshot was taken.
    Snapshotted {
        /// Its name.
        snapshot: String,
    },
    /// It is gone.
    Deleted {
        /// Why.
        reason: String,
    },
}

/// All who watch.
#[derive(Default)]
pub(super) struct Watchers {
    watchers: Vec<Watcher>,
    sequence: u64,
}

struct Watcher {
    to: mpsc::Sender<Event>,
    /// `None`: all sandboxes.
    name: Option<FunctionName>,
    late: Arc<AtomicBool>,
}

impl Watcher {
    fn wants(&self, entry: &Entry) -> bool {
        self.name.as_ref().is_none_or(|name| *name == entry.name)
    }
}

/// One watcher's end.
pub struct Watch {
    /// What it is told. Its end is that of the watch.
    pub events: mpsc::Receiver<Event>,
    late: Arc<AtomicBool>,
}

impl Watch {
    /// Whether it was cut off because it read too slowly.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }
}

impl Watchers {
    pub(super) fn subscribe(&mut self, present: &[Arc<Entry>], name: Option<FunctionName>) -> Watch {
        // Where nothing happens, nobody else finds out that they have left.
        self.watchers.retain(|watcher| !watcher.to.is_closed());
        // Room for the present beside what may wait.
        let (to, events) = mpsc::channel(present.len() + 1 + QUEUE);
        let late = Arc::<AtomicBool>::default();
        let watcher = Watcher { to, name, late: Arc::clone(&late) };
        let time = SystemTime::now();
        let existing = present.iter().filter(|entry| watcher.wants(entry)).map(|entry| Event {
            sandbox: Some(View::now(entry)),
            time,
            sequence: 0,
            happening: Happening::Existing,
        });
        let end = Event { sandbox: None, time, sequence: 0, happening: Happening::Present };
        for event in existing.chain([end]) {
            // There is room for all of it, and nobody has gone yet.
            let _ = watcher.to.try_send(event);
        }
        self.watchers.push(watcher);
        Watch { events, late }
    }

    pub(super) fn tell(&mut self, entry: &Arc<Entry>, happening: Happening) {
        self.sequence += 1;
        let sandbox = Some(View::now(entry));
        let event = Event { sandbox, time: SystemTime::now(), sequence: self.sequence, happening };
        self.watchers.retain(|watcher| {
            if !watcher.wants(entry) {
                return !watcher.to.is_closed();
            }
            match watcher.to.try_send(event.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    watcher.late.store(true, Ordering::Relaxed);
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_that_left_are_forgotten_also_where_nothing_happens() {
        let mut watchers = Watchers::default();
        let stays = watchers.subscribe(&[], None);
        for _ in 0..100 {
            drop(watchers.subscribe(&[], Some("quiet".parse().unwrap())));
        }
        assert_eq!(watchers.watchers.len(), 2, "the last one is found out about later");
        drop(stays);
        let _last = watchers.subscribe(&[], None);
        assert_eq!(watchers.watchers.len(), 1);
    }
}
