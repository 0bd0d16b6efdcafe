//! Tells when files below some directories have changed, once for each burst of changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// A compiler writes a file in pieces: wait until nothing has changed for this long.
const QUIET: Duration = Duration::from_millis(100);
/// A file that never rests must not put off a redeploy for ever.
const LONGEST: Duration = Duration::from_secs(2);

/// Watches directories.
pub struct Watch {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
}

impl Watch {
    /// Watches everything below `root`.
    ///
    /// # Errors
    /// The system's limit of watches, most likely.
    pub fn new(root: &Path) -> notify::Result<Self> {
        let (to, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(&event.kind)) {
                // Full means that a change is already reported.
                let _ = to.try_send(());
            }
        })?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(Self { watcher, watched: BTreeSet::new(), changes })
    }

    /// Watches these directories too, and no others besides the root; those that cannot be watched are left out.
    pub fn also(&mut self, directories: BTreeSet<PathBuf>) {
        for old in self.watched.difference(&directories) {
            let _ = self.watcher.unwatch(old);
        }
        for new in directories.difference(&self.watched) {
            let _ = self.watcher.watch(new, RecursiveMode::NonRecursive);
        }
        self.watched = directories;
    }

    /// Waits for a burst of changes and for its end.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher lives as long as this, so the channel cannot be closed.
            std::future::pending::<()>().await;
        }
        let burst =
            async { while let Ok(Some(())) = tokio::time::timeout(QUIET, self.changes.recv()).await {} };
        let _ = tokio::time::timeout(LONGEST, burst).await;
    }
}

/// Reading a file is no change; our own deploys read.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}
