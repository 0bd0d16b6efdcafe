//! The MP table: how many processors there are and that interrupts go to the I/O APIC one to one, for kernels
//! without ACPI.
//!
//! Source: Intel MultiProcessor Specification 1.4, chapter 4.
//!
//! ```text
//! floating pointer (16) | header (44) | processors (20 each) | bus (8) | I/O APIC (8) | interrupts (8 each) | local (2 x 8)
//! ```

use crate::linux::error::Error;
use crate::linux::layout::{IO_APIC, IO_APIC_PINS, LOCAL_APIC, MP_TABLE, MP_TABLE_SIZE};
use crate::linux::memory::Memory;

const POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const SPECIFICATION: u8 = 4;
const APIC_VERSION: u8 = 0x14;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6, and the features APIC and FPU: Linux only prints them.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;
/// Interrupt types.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// Writes it for `vcpus` processors.
pub(super) fn write(memory: &Memory, vcpus: u8) -> Result<(), Error> {
    let table = table(vcpus);
    assert!(table.len() as u64 <= MP_TABLE_SIZE, "MAX_VCPUS processors fit");
    super::put(memory, MP_TABLE, &table)
}

fn table(vcpus: u8) -> Vec<u8> {
    // The I/O APIC's id follows the processors'.
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        entries.extend([PROCESSOR, id, APIC_VERSION, flags]);
        entries.extend(SIGNATURE.to_le_bytes());
        entries.extend(FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([BUS, 0]);
    entries.extend(b"ISA   ");
    entries.extend([IO_APIC_ENTRY, io_apic_id, APIC_VERSION, ENABLED]);
    entries.extend(IO_APIC.to_le_bytes());
    for pin in 0..IO_APIC_PINS as u8 {
        entries.extend([INTERRUPT, VECTORED, 0, 0, 0, pin, io_apic_id, pin]);
    }
    entries.extend([LOCAL_INTERRUPT, EXTERNAL, 0, 0, 0, 0, 0, 0]);
    entries.extend([LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);
    let count = u16::from(vcpus) + 2 + IO_APIC_PINS as u16 + 2;
    [floating_pointer(), header(&entries, count), entries].concat()
}

fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((MP_TABLE as u32 + POINTER_SIZE as u32).to_le_bytes());
    // Length in 16 bytes, revision, checksum, features.
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&[&bytes]);
    bytes
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(((HEADER_SIZE + entries.len()) as u16).to_le_bytes());
    bytes.extend([SPECIFICATION, 0]);
    bytes.extend(b"NOVUM   ");
    bytes.extend(b"novum       ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]);
    bytes[7] = checksum(&[&bytes, entries]);
    bytes
}

/// What makes the sum of all bytes 0.
fn checksum(parts: &[&[u8]]) -> u8 {
    parts.iter().flat_map(|part| part.iter()).fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::layout::MAX_VCPUS;

    #[test]
    fn sums_are_zero_and_lengths_hold_for_every_number_of_processors() {
        for vcpus in 1..=MAX_VCPUS {
            let bytes = table(vcpus);
            assert!(bytes.len() as u64 <= MP_TABLE_SIZE, "{vcpus}");
            let (pointer, rest) = bytes.split_at(POINTER_SIZE);
            let sum = |part: &[u8]| part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(pointer), sum(rest)), (0, 0), "{vcpus}");
            assert_eq!(usize::from(u16::from_le_bytes([rest[4], rest[5]])), rest.len());
            assert_eq!(rest.len(), HEADER_SIZE + 20 * usize::from(vcpus) + 8 * (2 + 24 + 2));
        }
    }
}
