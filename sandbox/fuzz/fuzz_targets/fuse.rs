//! Serves whatever sequence of FUSE messages the bytes stand for: no panic, no way out of the share.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    novum_sandbox::fuzzing::fuse(bytes, dir.path());
});
