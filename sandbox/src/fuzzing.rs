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
    crate::linux::serve_p9(bytes, dir);
}
