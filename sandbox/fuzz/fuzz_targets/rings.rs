//! Takes chains from a ring of whatever bytes: no panic, no chain without an end.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    novum_sandbox::fuzzing::rings(bytes);
});
