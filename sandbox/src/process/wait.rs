//! What a blocked thread waits for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

/// A thread's reason to be blocked. Its call is made again, with the same arguments, when any of the parts comes
/// true; the call itself then decides whether it is done, so waking too often is harmless.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wait {
    /// Host descriptors and the events on them.
    pub(crate) host: Vec<(Arc<OwnedFd>, PollFlags)>,
    /// A change inside of the process: bytes in a pipe, room in it, an eventfd. The change calls
    /// [`Process::changed`](super::Process::changed).
    pub(crate) inside: bool,
    /// The contract's standard input has bytes or its end.
    pub(crate) input: bool,
    /// The contract's standard output has room.
    pub(crate) output: bool,
    /// When to try again at the latest.
    pub(crate) until: Option<Instant>,
    /// When the call's own time limit ends, counted from its first attempt: for the call itself to see again.
    pub(crate) deadline: Option<Instant>,
    /// Bytes of a write that are written already. A signal ends it with this number.
    pub(crate) done: u64,
}

impl Wait {
    /// Whether its time has come.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Whether something outside of the process may end it.
    pub(crate) fn is_for_host(&self) -> bool {
        !self.host.is_empty() || self.input || self.output
    }
}
