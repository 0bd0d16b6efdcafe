//! The boot processor's registers: long mode or protected mode, written, not reached by instructions.
//!
//! Sources: boot.rst "64-bit Boot Protocol" (CS 0x10, DS 0x18, identity map, RSI = zero page); start_info.h "PVH" (flat
//! segments, paging off, EBX = start info). Segment bits: Intel SDM vol. 3A §3.4.5; control bits §2.5.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::{Entry, EntryKind, put};
use crate::linux::error::Error;
use crate::linux::layout::{BOOT_STACK, GDT, PAGE, PAGE_DIRECTORIES, PDPT, PML4, PVH_START_INFO, ZERO_PAGE};
use crate::linux::memory::Memory;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Execute, read, accessed.
const CODE: u8 = 0xb;
/// Read, write, accessed.
const DATA: u8 = 0x3;
/// A busy 32/64-bit task: what KVM on Intel wants in TR.
const TASK: u8 = 0xb;

/// Identity map of the first 4 GiB in 2 MiB pages.
pub(super) fn write_page_tables(memory: &Memory) -> Result<(), Error> {
    put(memory, PML4, &(PDPT | PRESENT_WRITABLE).to_le_bytes())?;
    let directories = (0..DIRECTORIES).map(|index| (PAGE_DIRECTORIES + index * PAGE) | PRESENT_WRITABLE);
    put(memory, PDPT, &words(directories))?;
    let pages = (0..DIRECTORIES * ENTRIES).map(|index| (index * LARGE_PAGE) | PRESENT_WRITABLE | LARGE);
    put(memory, PAGE_DIRECTORIES, &words(pages))
}

fn words(values: impl Iterator<Item = u64>) -> Vec<u8> {
    values.flat_map(u64::to_le_bytes).collect()
}

/// Writes the GDT and the boot processor's registers.
pub(crate) fn set_boot_state(vcpu: &VcpuFd, memory: &Memory, entry: Entry) -> Result<(), Error> {
    let long = entry.kind == EntryKind::Linux64;
    let segments = [code(long), data(), task()];
    let mut table = vec![0u64; usize::from(CODE_SELECTOR) / 8];
    table.extend(segments.iter().map(descriptor));
    put(memory, GDT, &words(table.iter().copied()))?;

    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("reading a vCPU's registers"))?;
    sregs.gdt = kvm_dtable { base: GDT, limit: (table.len() * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable { base: 0, limit: 0, ..Default::default() };
    sregs.cs = segments[0];
    [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [segments[1]; 5];
    sregs.tr = segments[2];
    sregs.cr0 = CR0_PE | CR0_ET;
    if long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PML4;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs).map_err(Error::kvm("writing a vCPU's control registers"))?;
    vcpu.set_regs(&registers(entry)).map_err(Error::kvm("writing a vCPU's registers"))?;
    // As after FNINIT, and MXCSR as after reset.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(Error::kvm("writing a vCPU's FPU state"))
}

fn registers(entry: Entry) -> kvm_regs {
    let base = kvm_regs { rip: entry.address, rflags: RFLAGS, ..Default::default() };
    match entry.kind {
        EntryKind::Linux64 => kvm_regs { rsi: ZERO_PAGE, rsp: BOOT_STACK, rbp: BOOT_STACK, ..base },
        EntryKind::Pvh => kvm_regs { rbx: PVH_START_INFO, ..base },
    }
}

fn code(long: bool) -> kvm_segment {
    kvm_segment { selector: CODE_SELECTOR, type_: CODE, l: long.into(), db: (!long).into(), ..flat() }
}

fn data() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: DATA, db: 1, ..flat() }
}

fn task() -> kvm_segment {
    kvm_segment { selector: TASK_SELECTOR, type_: TASK, limit: 0x67, s: 0, g: 0, ..flat() }
}

fn flat() -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() }
}

/// The 8 bytes of `segment` in a GDT.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    let base = segment.base;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        // GDT_ENTRY_INIT of the kernel's boot GDT: __BOOT_CS64, __BOOT_CS (32), __BOOT_DS.
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }
}
