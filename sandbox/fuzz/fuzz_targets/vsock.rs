//! Takes whatever vsock packets the bytes stand for: no panic, nothing kept beyond the bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    novum_sandbox::fuzzing::vsock(bytes);
});
