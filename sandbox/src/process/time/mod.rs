//! Time as the program sees it: its clocks, the vDSO that reads them without a call, its timers.

pub(crate) mod clock;
mod sys;
pub(crate) mod timers;
pub(crate) mod vdso;

pub(crate) use sys::counter;
