//! Devices of a Linux guest, one file or folder each.

pub(crate) mod p9;
pub(crate) mod power;
pub(crate) mod rng;
pub(crate) mod serial;
pub mod vsock;
