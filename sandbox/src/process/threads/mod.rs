//! Threads of the program and what they wait for.

pub(crate) mod futex;
pub(crate) mod saved;
