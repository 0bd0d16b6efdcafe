//! Serves whatever disk requests the bytes stand for: no panic, no change of what is not the guest's.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    novum_sandbox::fuzzing::block(bytes, dir.path());
});
