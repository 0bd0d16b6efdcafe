//! The invocation contract's standard streams, as the process engine's core provides them.

use bytes::Bytes;

use super::table::Stream;

/// What reading standard input gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleRead {
    /// Some bytes, at least one.
    Data(Bytes),
    /// The end.
    End,
    /// Nothing yet.
    Empty,
}

/// What writing gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleWrite {
    /// So many bytes were taken, at least one of those offered.
    Taken(usize),
    /// No room now.
    Full,
    /// Nobody reads any more (`EPIPE`).
    Closed,
}

/// Standard input, output and error of one invocation. Nothing here waits.
pub trait Console: Send {
    /// Takes at most `max` bytes of standard input; `max` is not 0.
    fn read(&mut self, max: usize) -> ConsoleRead;

    /// Bytes that could be read now; `None` at the end.
    fn pending(&mut self) -> Option<usize>;

    /// Whether nothing will come after what is [pending](Self::pending): the other end has hung up.
    fn is_complete(&mut self) -> bool {
        self.pending().is_none()
    }

    /// Gives bytes to standard output or to the log.
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> ConsoleWrite;

    /// Whether every write to `stream` is taken whole and at once, and nobody looks at it before the program's next exit: then
    /// short ones are gathered. Unless it says so, none is.
    fn gathers(&self, _stream: Stream) -> bool {
        false
    }

    /// Whether a write to `stream` would be taken, or fail at once.
    fn writable(&mut self, stream: Stream) -> bool;
}

/// No input, and output that goes nowhere: what a process has between invocations.
#[derive(Debug, Default)]
pub struct NoConsole;

impl Console for NoConsole {
    fn read(&mut self, _: usize) -> ConsoleRead {
        ConsoleRead::End
    }

    fn pending(&mut self) -> Option<usize> {
        None
    }

    fn write(&mut self, _: Stream, bytes: &[u8]) -> ConsoleWrite {
        ConsoleWrite::Taken(bytes.len())
    }

    fn writable(&mut self, _: Stream) -> bool {
        true
    }
}
