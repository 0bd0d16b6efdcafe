//! Devices of a Linux guest, one file or folder each.

pub(crate) mod power;
pub(crate) mod serial;
