//! Changes held back for a while: a program that is only run up to its first wait for input must not leave anything
//! in a shared directory, because it will be run on from there any number of times.

use std::sync::Arc;

use parking_lot::RwLock;

/// Called at the first attempt.
type Tell = Arc<dyn Fn() + Send + Sync>;

/// Whether changes are held back, and who is told of an attempt.
#[derive(Default)]
pub(super) struct Hold(RwLock<Option<Tell>>);

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.is_on()).finish()
    }
}

impl Hold {
    /// Whether changes are refused now.
    pub(super) fn is_on(&self) -> bool {
        self.0.read().is_some()
    }

    /// Somebody wants to change something: whether that is refused.
    pub(super) fn refuses(&self) -> bool {
        let tell = self.0.read().clone();
        tell.inspect(|tell| tell()).is_some()
    }

    pub(super) fn set(&self, tell: Option<Tell>) {
        *self.0.write() = tell;
    }
}
