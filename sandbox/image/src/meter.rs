//! Counts what an image holds, across all its layers, and stops it at the limits.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use crate::{Error, Limits};

/// What is left of the limits.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    limits: Limits,
    bytes_left: Rc<Cell<u64>>,
    entries_left: u64,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, bytes_left: Rc::new(Cell::new(limits.bytes)), entries_left: limits.entries }
    }

    /// The same limits, with nothing counted yet.
    pub(crate) fn afresh(&self) -> Self {
        Self::new(self.limits)
    }

    /// One more entry.
    pub(crate) fn entry(&mut self) -> Result<(), Error> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left =
            left.ok_or_else(|| Error::TooLarge(format!("{} entries", self.limits.entries)))?;
        Ok(())
    }

    /// Lets at most the rest of the bytes through, then fails with `FileTooLarge`.
    pub(crate) fn reader<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, left: self.bytes_left.clone() }
    }

    /// What that failure means.
    pub(crate) fn explain(&self, error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
        match error.kind() {
            io::ErrorKind::FileTooLarge => Error::TooLarge(format!("{} bytes", self.limits.bytes)),
            _ => otherwise(error),
        }
    }
}

/// See [`Meter::reader`].
pub(crate) struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(got as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.left.set(left);
        Ok(got)
    }
}
