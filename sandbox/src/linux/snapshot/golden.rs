//! `guest-v1.bin`: the sections of a guest that was saved by the novum of 2026-11-21, without its memory. Whoever changes a
//! section's type raises its version, and reads the old one or lets it be refused: these tests fail otherwise.
//!
//! It was written by `the_golden_file_is_written` of `sandbox/tests/linux_snapshot.rs`.

use novum_snapshot::{MigrateError, State};

use super::serial::Uart;
use super::vcpu::VcpuState;
use super::vm::VmState;
use super::{MachineState, vcpu_owner};

const FILE: &[u8] = include_bytes!("guest-v1.bin");

/// The section of `S` as it was written: its version, and its bytes.
pub(crate) fn section<S: State>(owner: &str) -> (u32, Vec<u8>) {
    let sections: Vec<(String, String, u32, Vec<u8>)> = postcard::from_bytes(FILE).unwrap();
    let found = sections.into_iter().find(|(kind, its_owner, ..)| kind == S::KIND && its_owner == owner);
    let (.., version, bytes) = found.unwrap_or_else(|| panic!("no section {} of {owner:?}", S::KIND));
    (version, bytes)
}

/// The section is read as it was written, or refused by its version.
pub(crate) fn check<S: State>(owner: &str) -> Option<S> {
    let (version, bytes) = section::<S>(owner);
    if version != S::VERSION {
        return match S::migrate(version, &bytes) {
            Ok(state) => Some(state),
            Err(MigrateError::Unsupported) => None,
            Err(error) => panic!("{} {version}: {error}", S::KIND),
        };
    }
    let advice = format!("{} is another type now: raise its version", S::KIND);
    let state: S = postcard::from_bytes(&bytes).expect(&advice);
    assert!(postcard::to_stdvec(&state).unwrap() == bytes, "{advice}");
    Some(state)
}

#[test]
fn the_sections_of_an_older_machine_are_read_or_refused_by_their_version() {
    let machine = check::<MachineState>("").unwrap();
    assert_eq!((machine.memory_bytes, machine.vcpus, machine.devices), (64 << 20, 1, 3));
    check::<VmState>("");
    check::<Uart>(super::SERIAL_OWNER);
    let vcpu = check::<VcpuState>(&vcpu_owner(0));
    assert!(vcpu.is_none_or(|vcpu| vcpu.cpuid.len() > 10));
}
