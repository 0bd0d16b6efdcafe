//! Why a file operation has no result: an error, or it must wait.

use std::time::Instant;

use rustix::io::Errno;

/// Why an operation did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The call fails.
    Errno(Errno),
    /// Nothing was done; the call is to be made again when one of these may have come true.
    Wait(Need),
}

/// What a blocked call waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// A change inside the process: a pipe, a socket pair, an event counter.
    pub inside: bool,
    /// Standard input has bytes or its end.
    pub input: bool,
    /// Standard output has room.
    pub output: bool,
    /// This time.
    pub until: Option<Instant>,
}

impl Need {
    pub(crate) const INSIDE: Self = Self { inside: true, input: false, output: false, until: None };
    pub(crate) const INPUT: Self = Self { inside: false, input: true, output: false, until: None };
    pub(crate) const OUTPUT: Self = Self { inside: false, input: false, output: true, until: None };

    /// Either of two needs.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            inside: self.inside || other.inside,
            input: self.input || other.input,
            output: self.output || other.output,
            until: [self.until, other.until].into_iter().flatten().min(),
        }
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Stop {
    /// `EAGAIN` where the open file does not wait.
    pub(crate) fn unless(need: Need, nonblocking: bool) -> Self {
        if nonblocking { Self::Errno(Errno::AGAIN) } else { Self::Wait(need) }
    }
}
