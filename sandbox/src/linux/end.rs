//! How a machine ended. The first reason counts.

use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Why a guest runs no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It wrote this code to [`EXIT_PORT`](super::layout::EXIT_PORT).
    Exit(u8),
    /// It powered off (ACPI S5).
    PowerOff,
    /// It asked for a reset, by the keyboard controller or ACPI.
    Reset,
    /// Its kernel panicked; what it said on the console.
    Panic(String),
    /// A fault while handling a fault while handling a fault: most often a kernel without its memory. (Where it
    /// happened cannot be said: AMD's KVM resets the registers before it tells us.)
    TripleFault {
        /// On which vCPU.
        vcpu: u8,
    },
    /// The host cannot go on with it; what KVM said.
    Host(String),
    /// [`Machine::stop`](super::Machine::stop) was called.
    Stopped,
}

impl End {
    /// Its kind in one word, for a fault's report.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Panic(_) => "panic",
            Self::TripleFault { .. } => "triple-fault",
            Self::Host(_) => "host",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "the guest exited with code {code}"),
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest asked for a reset"),
            Self::Panic(message) => write!(f, "the guest's kernel panicked: {message}"),
            Self::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Self::Host(reason) => write!(f, "the host cannot go on with the guest: {reason}"),
            Self::Stopped => write!(f, "the guest was stopped"),
        }
    }
}

/// Where the end is noted and waited for.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    end: Mutex<Option<End>>,
    panic: Mutex<Option<String>>,
    noted: Condvar,
    /// Taken after `end`.
    wakers: Mutex<Vec<Waker>>,
}

impl Ending {
    /// Notes `end` unless another was first. A reset after a panic is that panic.
    pub(crate) fn note(&self, end: End) {
        let panic = self.panic.lock().take();
        let end = match (end, panic) {
            (End::Reset | End::TripleFault { .. } | End::PowerOff, Some(message)) => End::Panic(message),
            (end, _) => end,
        };
        self.end.lock().get_or_insert(end);
        self.noted.notify_all();
        self.wakers.lock().drain(..).for_each(Waker::wake);
    }

    /// The kernel said this when it panicked; what it does next is told by [`Self::note`].
    pub(crate) fn note_panic(&self, message: String) {
        self.panic.lock().get_or_insert(message);
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.end.lock().is_some()
    }

    /// The end, for a task that is woken when it comes.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<End> {
        let end = self.end.lock();
        if let Some(end) = &*end {
            return Poll::Ready(end.clone());
        }
        let mut wakers = self.wakers.lock();
        wakers.retain(|waker| !waker.will_wake(context.waker()));
        wakers.push(context.waker().clone());
        Poll::Pending
    }

    /// The end, once it is there; `None` when `deadline` passed first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        let mut end = self.end.lock();
        while end.is_none() {
            match deadline {
                None => self.noted.wait(&mut end),
                Some(deadline) => {
                    if self.noted.wait_until(&mut end, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        end.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let ending = Ending::default();
        ending.note(End::Exit(3));
        ending.note(End::Stopped);
        assert_eq!(ending.wait(None), Some(End::Exit(3)));
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panic_but_an_exit_code_is_not() {
        let ending = Ending::default();
        ending.note_panic("no init".into());
        ending.note(End::Reset);
        assert_eq!(ending.wait(None), Some(End::Panic("no init".into())));
        let ending = Ending::default();
        ending.note_panic("late".into());
        ending.note(End::Exit(1));
        assert_eq!(ending.wait(None), Some(End::Exit(1)));
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        assert_eq!(Ending::default().wait(Some(Instant::now())), None);
    }
}
