//! Devices of a Linux guest, one file or folder each.

pub mod balloon;
pub mod block;
pub mod console;
mod files;
pub(crate) mod fs;
#[cfg(any(test, feature = "fuzzing"))]
mod hostile;
mod messages;
pub mod net;
pub(crate) mod p9;
pub(crate) mod power;
pub(crate) mod rng;
pub(crate) mod serial;
pub mod vsock;

#[cfg(test)]
mod pause_tests;
#[cfg(test)]
mod tests;
