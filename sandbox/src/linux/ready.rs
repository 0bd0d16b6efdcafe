//! A guest of an image made ahead: what a start does not have to wait for, and the pages that it will touch.
//!
//! ```text
//! start   take the ready guest, or make one ── wake it as somebody
//! answer  the first one's pages are learnt ── another is made ready, with those pages at hand
//! ```
//! One for each image that was started: it has run no instruction, is nobody, and costs about as much memory as its pages
//! that are copied ahead; as it is no sandbox yet, that memory is not counted as one's. It is made when a sandbox has answered,
//! not on a start's path.

use std::sync::{Arc, OnceLock};

use novum_snapshot::Snapshot;
use parking_lot::Mutex;

use super::guest::{BootError, Guest, Identity, Standing};
use super::snapshot::WorkingSet;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ready {
    learnt: OnceLock<Arc<WorkingSet>>,
    standing: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Missing,
    Coming,
    Here(Box<Standing>),
}

impl Ready {
    /// A guest of `snapshot`, which becomes itself while it is already given work.
    pub(super) async fn wake(&self, snapshot: &Snapshot, identity: &Identity) -> Result<Guest, BootError> {
        let standing = match self.take() {
            Some(standing) => *standing,
            None => {
                let set = self.learnt.get();
                Standing::make(snapshot, identity, set).await?
            }
        };
        standing.wake(identity).await
    }

    fn take(&self) -> Option<Box<Standing>> {
        let mut state = self.standing.lock();
        match std::mem::take(&mut *state) {
            State::Here(standing) => Some(standing),
            other => {
                *state = other;
                None
            }
        }
    }

    /// `guest` has answered its first call: the pages that it has touched are learnt, once. It came from no ready one then.
    pub(super) fn learn(&self, guest: &Guest) {
        if self.learnt.get().is_none()
            && let Some(set) = guest.working_set()
        {
            // Another may have been quicker.
            let _ = self.learnt.set(Arc::new(set));
        }
    }

    /// Makes one where there is none and none is coming.
    pub(super) async fn refill(&self, snapshot: &Snapshot, identity: &Identity) {
        match &mut *self.standing.lock() {
            state @ State::Missing => *state = State::Coming,
            State::Coming | State::Here(_) => return,
        }
        let coming = Coming(self);
        let set = self.learnt.get();
        match Standing::make(snapshot, identity, set).await {
            Ok(standing) => *self.standing.lock() = State::Here(Box::new(standing)),
            // The next start makes its own, and says what is wrong.
            Err(error) => tracing::debug!(%error, "no guest was made ready"),
        }
        drop(coming);
    }
}

/// Where making one failed or was given up, none is coming any more.
struct Coming<'a>(&'a Ready);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut state = self.0.standing.lock();
        if matches!(*state, State::Coming) {
            *state = State::Missing;
        }
    }
}
