//! Writes whatever the bytes stand for into a device's registers and rings: no panic, no hang.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    novum_sandbox::fuzzing::registers(bytes, dir.path());
});
