//! What the fuzz targets in `sandbox/fuzz` call.

use std::path::Path;

/// Serves the system calls that `bytes` stand for to a program of the process engine that shares a folder of `dir`,
/// which must be empty.
///
/// # Panics
/// Where a call panics, answers what no call answers, or gets out of the share.
pub fn calls(bytes: &[u8], dir: &Path) {
    crate::process::calls::driver::serve(bytes, dir);
}

/// Serves the 9P messages that `bytes` stand for to a Linux guest that shares a folder of `dir`, which must be empty.
///
/// # Panics
/// Where a message panics, has a reply that is none, or gets out of the share.
pub fn p9(bytes: &[u8], dir: &Path) {
    crate::linux::fuzzing::p9(bytes, dir);
}

/// Serves the FUSE messages that `bytes` stand for to a Linux guest that shares a folder of `dir`, which must be empty.
///
/// # Panics
/// Where a message panics, has an answer that is none, or gets out of the share.
pub fn fuse(bytes: &[u8], dir: &Path) {
    crate::linux::fuzzing::fuse(bytes, dir);
}

/// Serves the disk requests that `bytes` stand for, with a disk in `dir`, which must be empty.
///
/// # Panics
/// Where a request panics, or changes what it must not.
pub fn block(bytes: &[u8], dir: &Path) {
    crate::linux::fuzzing::block(bytes, dir);
}

/// Takes the vsock packets that `bytes` stand for from a ring, with a host that reads, writes and ends streams.
///
/// # Panics
/// Where a packet panics, or the host is made to keep too much.
pub fn vsock(bytes: &[u8]) {
    crate::linux::fuzzing::vsock(bytes);
}

/// Takes and gives back the chains of a ring that is made of `bytes`.
///
/// # Panics
/// Where that panics.
pub fn rings(bytes: &[u8]) {
    crate::linux::fuzzing::rings(bytes);
}

/// Writes into the registers and rings of a device what `bytes` stand for; the first byte chooses the device.
///
/// # Panics
/// Where the device panics; one that cannot be stopped hangs.
pub fn registers(bytes: &[u8], dir: &Path) {
    crate::linux::fuzzing::registers(bytes, dir);
}
