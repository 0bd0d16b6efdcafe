//! Every guest-physical address, I/O port and interrupt of a Linux guest, and why it is where it is.
//!
//! ```text
//! 0x0000_0500  GDT of the boot processor                       (first page above the real-mode vectors)
//! 0x0000_6000  PVH start info, module list, memory map
//! 0x0000_7000  zero page (struct boot_params)
//! 0x0000_9000  page tables: PML4, PDPT, 4 page directories     (identity map of the first 4 GiB)
//! 0x0002_0000  command line
//! 0x0009_fc00  MP table                                        (last KiB of base memory: where Linux looks)
//! 0x000a_0000  ── end of base memory ──
//! 0x000e_0000  ACPI: RSDP, then the tables                     (where Linux looks for the RSDP)
//! 0x000f_f000  generation id                                   (a page that the guest's kernel leaves alone)
//! 0x0010_0000  kernel (a vmlinux where it is linked: 16 MiB); initramfs at the end of low memory
//! 0xc000_0000  ── hole: no memory ──
//! 0xd000_0000  virtio-mmio devices, a page each
//! 0xfec0_0000  I/O APIC      0xfee0_0000  local APIC      0xfffb_c000  KVM's own pages (Intel)
//! 0x1_0000_0000  the rest of the memory
//! ```

/// Bytes of a page.
pub const PAGE: u64 = 4096;

pub(crate) const GDT: u64 = 0x500;
pub(crate) const PVH_START_INFO: u64 = 0x6000;
pub(crate) const PVH_MODULES: u64 = 0x6080;
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6100;
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const PML4: u64 = 0x9000;
pub(crate) const PDPT: u64 = 0xa000;
pub(crate) const PAGE_DIRECTORIES: u64 = 0xb000;
/// Where the boot processor's stack begins, should an entry want one; it grows down.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Linux's COMMAND_LINE_SIZE on x86, with the NUL.
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;
/// The MP floating pointer and table.
pub(crate) const MP_TABLE: u64 = 0x9_fc00;
/// Most bytes of it.
pub(crate) const MP_TABLE_SIZE: u64 = 0x400;
/// End of base memory.
pub(crate) const BASE_MEMORY_END: u64 = 0xa_0000;
pub(crate) const RSDP: u64 = 0xe_0000;
/// The other ACPI tables.
pub(crate) const ACPI_TABLES: u64 = 0xe_0040;
/// The machine's generation id, in a page of its own.
pub(crate) const GENERATION_ID: u64 = 0xf_f000;
/// Where memory above the first MiB begins.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
/// Where a bzImage is put.
pub(crate) const BZIMAGE: u64 = 0x20_0000;
/// Memory ends here, and goes on at [`HOLE_END`].
pub(crate) const HOLE_START: u64 = 0xc000_0000;
/// First address above the hole.
pub(crate) const HOLE_END: u64 = 0x1_0000_0000;
/// The first virtio-mmio device; the others follow.
pub(crate) const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio device's registers.
pub(crate) const VIRTIO_MMIO_SIZE: u64 = PAGE;
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM uses on Intel for the identity map, and three behind it for the TSS.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
pub(crate) const KVM_TSS: usize = 0xfffb_d000;

/// COM1.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// Interrupt of ACPI's event device: the generation id is another one. With hardware-reduced ACPI no SCI has this number.
pub(crate) const EVENT_GSI: u32 = 9;
/// The keyboard controller: 0xfe written to the command port resets the machine.
pub(crate) const I8042_COMMAND_PORT: u16 = 0x64;
/// ACPI sleep control (DSDT `_S5`): powering off.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status.
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub(crate) const RESET_PORT: u16 = 0x602;
/// A byte written here ends the machine with that exit code: [`End::Exit`](super::End::Exit).
pub const EXIT_PORT: u16 = 0x604;

/// Interrupts of the virtio-mmio devices, in the order of the devices: GSIs of the I/O APIC that no legacy device has.
pub(crate) const VIRTIO_GSIS: [u32; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// Pins of KVM's I/O APIC.
pub(crate) const IO_APIC_PINS: u32 = 24;
/// Most vCPUs: what the kernel of `novum kernel build` supports, and what fits the MP table.
pub const MAX_VCPUS: u8 = 32;

/// Registers and interrupt of virtio-mmio device number `index`; `None` where there are no more.
pub(crate) fn virtio_slot(index: usize) -> Option<Slot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    Some(Slot { address: VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE, gsi })
}

/// Where a virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// GPA of its registers.
    pub(crate) address: u64,
    /// Its interrupt.
    pub(crate) gsi: u32,
}
