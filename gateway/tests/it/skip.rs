//! How a test says that it could not run here.

use std::io::Write;

/// Writes the line that `cargo xtask test` counts, past the capture of the test's output.
pub(crate) fn skipped(test: &str, reason: &str) {
    // Without a standard error nobody would read it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}
