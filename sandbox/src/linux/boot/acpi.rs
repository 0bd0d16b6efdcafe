//! ACPI tables, so that a distribution's unmodified kernel finds processors, interrupts and virtio-mmio devices.
//!
//! Hardware-reduced ACPI: no PM timer, no SCI, no legacy interrupt controller. Powering off and resetting are writes to
//! ports of ours. Sources: ACPI 6.5 chapter 5 (§5.6.9: the generic event device); the HID of virtio-mmio is `LNRO0005`;
//! Microsoft's "Virtual Machine Generation ID" (`VM_Gen_Counter`, `ADDR`, notification 0x80).
//!
//! ```text
//! RSDP ── XSDT ─┬─ FADT ── DSDT: \_SB.VRnn (virtio-mmio), \_SB.COM1, \_SB.VGID and \_SB.EVNT (generation id), \_S5_
//!               └─ MADT: local APICs, I/O APIC
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::put;
use crate::linux::devices::power::{RESET_VALUE, S5_TYPE};
use crate::linux::error::Error;
use crate::linux::layout::{
    ACPI_TABLES, EVENT_GSI, GENERATION_ID, IO_APIC, LOCAL_APIC, RESET_PORT, RSDP, SERIAL_GSI, SERIAL_PORT,
    SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, Slot, VIRTIO_MMIO_SIZE,
};
use crate::linux::memory::Memory;

const OEM: [u8; 6] = *b"NOVUM ";
const TABLE: [u8; 8] = *b"NOVUMVM ";
const REVISION: u32 = 1;
/// DSDT revision: 64-bit integers.
const DSDT_REVISION: u8 = 2;
/// The device that has the generation id.
const GENERATION_DEVICE: &str = "VGID";
/// What it is notified of when that changes.
const STATUS_CHANGED: u8 = 0x80;
/// IA-PC boot flags: no VGA, no CMOS clock, no keyboard controller to probe.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Writes all tables.
pub(super) fn write(memory: &Memory, vcpus: u8, devices: &[Slot]) -> Result<(), Error> {
    let mut next = ACPI_TABLES;
    let mut place = |table: &dyn Aml| -> Result<u64, Error> {
        let bytes = bytes(table);
        let at = next;
        put(memory, at, &bytes)?;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        Ok(at)
    };
    let dsdt = place(&dsdt(devices))?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt)?;
    put(memory, RSDP, &bytes(&Rsdp::new(OEM, xsdt)))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    fadt = fadt.flag(Flags::ResetRegSup).flag(Flags::PwrButton).flag(Flags::SlpButton);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IO_APIC, 0));
    madt
}

fn dsdt(devices: &[Slot]) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    for (index, slot) in devices.iter().enumerate() {
        sdt.append_slice(&virtio(index, *slot));
    }
    sdt.append_slice(&serial());
    sdt.append_slice(&generation_id());
    sdt.append_slice(&generation_event());
    // \_S5_: what powering off writes to the sleep control register.
    let sleep = Package::new(vec![&S5_TYPE, &ZERO, &ZERO, &ZERO]);
    sdt.append_slice(&bytes(&Name::new("_S5_".into(), &sleep)));
    sdt
}

fn virtio(index: usize, slot: Slot) -> Vec<u8> {
    let memory = Memory32Fixed::new(true, slot.address as u32, VIRTIO_MMIO_SIZE as u32);
    let interrupt = Interrupt::new(true, true, false, false, slot.gsi);
    let id = index as u64;
    in_scope(&Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &id),
            // Its DMA sees what the processors see.
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory, &interrupt])),
        ],
    ))
}

fn serial() -> Vec<u8> {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_GSI);
    in_scope(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &ports])),
        ],
    ))
}

/// Where the machine's generation id is: low and high half of its address.
fn generation_id() -> Vec<u8> {
    let (low, high) = (GENERATION_ID as u32, (GENERATION_ID >> 32) as u32);
    in_scope(&Device::new(
        GENERATION_DEVICE.into(),
        vec![
            &Name::new("_HID".into(), &"NOVMVGID"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

/// The generic event device: its interrupt says that the generation id is another one.
fn generation_event() -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, EVENT_GSI);
    let device = Path::new(&format!("\\_SB_.{GENERATION_DEVICE}"));
    in_scope(&Device::new(
        "EVNT".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new("_EVT".into(), 1, true, vec![&Notify::new(&device, &STATUS_CHANGED)]),
        ],
    ))
}

fn in_scope(device: &dyn Aml) -> Vec<u8> {
    bytes(&Scope::new("\\_SB_".into(), vec![device]))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::linux::layout::{MAX_VCPUS, virtio_slot};
    use crate::linux::memory;

    fn read(memory: &Memory, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn table(memory: &Memory, at: u64) -> Vec<u8> {
        let length = u32::from_le_bytes(read(memory, at + 4, 4).try_into().unwrap());
        read(memory, at, length as usize)
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let memory = memory::allocate(32 << 20).unwrap();
        let devices: Vec<Slot> = (0..17).map(|index| virtio_slot(index).unwrap()).collect();
        write(&memory, MAX_VCPUS, &devices).unwrap();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let rsdp = read(&memory, RSDP, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp)), (&b"RSD PTR "[..], 0));
        let xsdt = table(&memory, word(&rsdp[24..32]));
        assert_eq!(sum(&xsdt), 0);
        let fadt = table(&memory, word(&xsdt[36..44]));
        let madt = table(&memory, word(&xsdt[44..52]));
        assert_eq!((&fadt[..4], sum(&fadt), &madt[..4], sum(&madt)), (&b"FACP"[..], 0, &b"APIC"[..], 0));
        let at = word(&fadt[140..148]);
        let dsdt = table(&memory, at);
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
        assert!(at + (dsdt.len() as u64) < GENERATION_ID);
        assert!(dsdt.windows(14).any(|window| window == b"VM_Gen_Counter"));
        assert_eq!(dsdt.windows(8).filter(|window| window == b"LNRO0005").count(), 17);
    }
}
