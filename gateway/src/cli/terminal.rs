//! The caller's terminal, handed to a program elsewhere that has one of its own.

use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::error::Error;

/// The terminal in raw mode: every key goes to the program, whose own terminal gives it its meaning. Its drop brings the
/// usual mode back.
pub(super) struct Terminal {
    before: Termios,
    /// Rows and columns.
    pub(super) size: (u16, u16),
}

impl Terminal {
    /// `None` where standard input or output is none.
    pub(super) fn of_caller() -> Option<Self> {
        let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        if !termios::isatty(input) || !termios::isatty(output) {
            return None;
        }
        let before = termios::tcgetattr(input).ok()?;
        let size = Self::current_size()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(input, OptionalActions::Now, &raw).ok()?;
        Some(Self { before, size })
    }

    fn current_size() -> Option<(u16, u16)> {
        let size = termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
        // One that does not know its size says 0.
        Some((size.ws_row.max(1), size.ws_col.max(1)))
    }

    /// Tells when the size changes.
    pub(super) fn follow<T: Send + 'static>(
        &self,
        told: impl Fn((u16, u16)) -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>, Error> {
        let mut changes = signal(SignalKind::window_change())
            .map_err(|source| Error::Io { doing: "watch the terminal's size", source })?;
        let (to, control) = mpsc::channel(1);
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let Some(size) = Self::current_size() else { continue };
                if to.send(told(size)).await.is_err() {
                    return;
                }
            }
        });
        Ok(control)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
