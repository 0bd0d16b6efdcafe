//! The state in which a vCPU begins: long mode, ring 3, by state alone.
//!
//! ```text
//! GDT  0x00 null │ 0x08 code, ring 0 │ 0x10 data, ring 0 │ 0x18 null │ 0x20 data, ring 3 │ 0x28 code, ring 3 │ 0x30 TSS (16 bytes)
//! STAR [47:32] = 0x08: syscall loads CS 0x08, SS 0x10;  [63:48] = 0x1b: sysretq loads SS 0x23, CS 0x2b
//! ```
//! The user selectors are those of Linux's ABI (`__USER_DS` 0x2b and `__USER_CS` 0x33 differ by one slot; a program
//! sees them only if it reads its segment registers).
//!
//! The stubs (LSTAR points behind the one of system calls, at the code of [`answers`](super::answers), which goes on to it):
//! ```text
//! system call (user page)                         fault n, without error code      fault n, with one
//!   e7 80      out 0x80, eax                        e7 90   out 0x90, eax            e7 90         out 0x90, eax
//!   48 0f 07   sysretq                              48 cf   iretq                    48 83 c4 08   add rsp, 8
//!                                                                                    48 cf         iretq
//! ```
//! Source: AMD64 APM vol. 2 §§4.8, 6.1, 8.9, 12.2; Intel SDM vol. 3A §§3.4.5, 7.7, 6.14.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::answers;
use super::layout::{
    CALL_PORT, CALL_STUB_GPA, CALL_STUB_GVA, DESCRIPTORS_GPA, FAULT_PORT, FAULT_STUB_SIZE, FAULT_STUBS_GPA,
    IDT_OFFSET, PAGE, RING0_STACK_GPA, SYSTEM_GVA, TABLES_GPA, TSS_OFFSET,
};

/// Ring 0 code.
pub(crate) const KERNEL_CS: u16 = 0x08;
const KERNEL_SS: u16 = 0x10;
/// Ring 3 data.
pub(crate) const USER_SS: u16 = 0x23;
/// Ring 3 code.
pub(crate) const USER_CS: u16 = 0x2b;
const TSS: u16 = 0x30;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// `rdfsbase` and its like in every ring.
pub(crate) const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// RFLAGS bit 1 is always set, and interrupts are on as every program sees them.
pub(crate) const USER_FLAGS: u64 = 0x202;
/// CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC, ID: what a program may set.
pub(crate) const PROGRAM_FLAGS: u64 = 0x0025_0dd5 | 1 << 16;

/// RFLAGS as a program may have it: no I/O privilege, no virtual-8086 mode, no reserved bits.
pub(crate) fn program_flags(wanted: u64) -> u64 {
    wanted & PROGRAM_FLAGS | USER_FLAGS
}

/// What `syscall` clears in RFLAGS, as Linux sets SFMASK.
const SYSCALL_MASK: u64 = 0x0025_7fd5;

/// Vectors with a stub.
pub(crate) const VECTORS: u64 = 32;
/// Those for which the CPU pushes an error code.
const WITH_ERROR_CODE: [u64; 9] = [8, 10, 11, 12, 13, 14, 17, 21, 29];
const BREAKPOINT: u64 = 3;
const OVERFLOW: u64 = 4;

/// Whether the frame of `vector` begins with an error code.
pub(crate) fn has_error_code(vector: u64) -> bool {
    WITH_ERROR_CODE.contains(&vector)
}

/// The instruction pointer of the system-call stub.
pub(crate) const CALL_STUB: u64 = CALL_STUB_GVA;
/// That of the first fault stub.
pub(crate) const FAULT_STUBS: u64 = SYSTEM_GVA + FAULT_STUBS_GPA;
const RING0_STACK: u64 = SYSTEM_GVA + RING0_STACK_GPA + PAGE;

fn segment(selector: u16, type_: u8, ring: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: ring,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

/// Code or data of ring 3 or 0 as the GDT has them: read, written and accessed are preset.
pub(crate) fn code(ring: u8) -> kvm_segment {
    segment(if ring == 0 { KERNEL_CS } else { USER_CS }, 0xb, ring, true)
}

fn data(ring: u8) -> kvm_segment {
    segment(if ring == 0 { KERNEL_SS } else { USER_SS }, 0x3, ring, false)
}

/// Puts the segments of ring 3 into `sregs`; FS and GS keep their bases.
pub(crate) fn enter_ring3(sregs: &mut kvm_sregs) {
    sregs.cs = code(3);
    for register in [&mut sregs.ss, &mut sregs.ds, &mut sregs.es] {
        *register = data(3);
    }
    let (fs, gs) = (sregs.fs.base, sregs.gs.base);
    (sregs.fs, sregs.gs) = (data(3), data(3));
    (sregs.fs.base, sregs.gs.base) = (fs, gs);
}

/// Puts code and stack of ring 0 into `sregs`.
pub(crate) fn enter_ring0(sregs: &mut kvm_sregs) {
    (sregs.cs, sregs.ss) = (code(0), data(0));
}

/// The special registers of a fresh vCPU, with the instructions for the bases of FS and GS where those are to be had.
pub(crate) fn special_registers(mut sregs: kvm_sregs, base_instructions: bool) -> kvm_sregs {
    enter_ring3(&mut sregs);
    (sregs.fs.base, sregs.gs.base) = (0, 0);
    sregs.tr = kvm_segment {
        base: SYSTEM_GVA + DESCRIPTORS_GPA + TSS_OFFSET,
        limit: TSS_LIMIT,
        selector: TSS,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
    sregs.gdt.base = SYSTEM_GVA + DESCRIPTORS_GPA;
    sregs.gdt.limit = u16::try_from(gdt().len() - 1).expect("the GDT is small");
    sregs.idt.base = SYSTEM_GVA + DESCRIPTORS_GPA + IDT_OFFSET;
    sregs.idt.limit = (VECTORS * 16 - 1) as u16;
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.cr3 = TABLES_GPA;
    sregs.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    if base_instructions {
        sregs.cr4 |= CR4_FSGSBASE;
    }
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    sregs
}

/// The general registers of a program's first instruction.
pub(crate) fn registers(rip: u64, rsp: u64) -> kvm_regs {
    kvm_regs { rip, rsp, rflags: USER_FLAGS, ..kvm_regs::default() }
}

/// The model-specific registers: number and value.
pub(crate) const MSRS: [(u32, u64); 4] = [
    (0xc000_0081, (0x1b << 48) | ((KERNEL_CS as u64) << 32)),
    (0xc000_0082, CALL_STUB + answers::ENTRY),
    (0xc000_0083, CALL_STUB),
    (0xc000_0084, SYSCALL_MASK),
];

fn gdt() -> Vec<u8> {
    let entries: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss_descriptor()[0],
        tss_descriptor()[1],
    ];
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

fn tss_descriptor() -> [u64; 2] {
    let base = SYSTEM_GVA + DESCRIPTORS_GPA + TSS_OFFSET;
    let low =
        u64::from(TSS_LIMIT) | ((base & 0xff_ffff) << 16) | (0x8b << 40) | (((base >> 24) & 0xff) << 56);
    [low, base >> 32]
}

const TSS_SIZE: usize = 104;
/// The map covers the ports up to the one of calls, and ends with the byte of ones that the CPU wants there.
const IO_MAP_SIZE: usize = CALL_PORT as usize / 8 + 2;
const TSS_LIMIT: u32 = (TSS_SIZE + IO_MAP_SIZE - 1) as u32;

/// Only RSP0 and the I/O permission map matter: a software KVM runs the call stub's `out` in ring 3, and the map allows it
/// that port without giving it I/O privilege.
fn tss() -> Vec<u8> {
    let mut bytes = vec![0; TSS_SIZE];
    bytes[4..12].copy_from_slice(&RING0_STACK.to_le_bytes());
    bytes[102..104].copy_from_slice(&(TSS_SIZE as u16).to_le_bytes());
    let mut map = [0xff; IO_MAP_SIZE];
    map[CALL_PORT as usize / 8] = 0xf0;
    bytes.extend(map);
    bytes
}

fn idt() -> Vec<u8> {
    (0..VECTORS).flat_map(|vector| gate(FAULT_STUBS + vector * FAULT_STUB_SIZE, vector)).collect()
}

/// A 64-bit interrupt gate. Programs may raise `int3` and `into` by themselves, nothing else.
fn gate(target: u64, vector: u64) -> [u8; 16] {
    let ring = if matches!(vector, BREAKPOINT | OVERFLOW) { 3 } else { 0 };
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&(target as u16).to_le_bytes());
    bytes[2..4].copy_from_slice(&KERNEL_CS.to_le_bytes());
    bytes[5] = 0x8e | (ring << 5);
    bytes[6..8].copy_from_slice(&((target >> 16) as u16).to_le_bytes());
    bytes[8..12].copy_from_slice(&((target >> 32) as u32).to_le_bytes());
    bytes
}

fn fault_stubs() -> Vec<u8> {
    let mut bytes = Vec::new();
    for vector in 0..VECTORS {
        let mut stub = vec![0xe7, FAULT_PORT as u8];
        if has_error_code(vector) {
            stub.extend([0x48, 0x83, 0xc4, 0x08]);
        }
        stub.extend([0x48, 0xcf]);
        stub.resize(FAULT_STUB_SIZE as usize, 0xf4);
        bytes.extend(stub);
    }
    bytes
}

/// What stands in the system area in front of the tables: guest-physical address and bytes.
pub(crate) fn system_pages() -> [(u64, Vec<u8>); 5] {
    [
        (DESCRIPTORS_GPA, gdt()),
        (DESCRIPTORS_GPA + TSS_OFFSET, tss()),
        (DESCRIPTORS_GPA + IDT_OFFSET, idt()),
        (FAULT_STUBS_GPA, fault_stubs()),
        (CALL_STUB_GPA, call_stub()),
    ]
}

fn call_stub() -> Vec<u8> {
    let mut bytes = vec![0xe7, CALL_PORT as u8, 0x48, 0x0f, 0x07];
    bytes.resize(answers::ENTRY as usize, 0xf4);
    bytes.extend_from_slice(answers::code());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_fit_into_their_page() {
        assert!(gdt().len() as u64 <= TSS_OFFSET);
        assert!(TSS_OFFSET + tss().len() as u64 <= IDT_OFFSET);
        assert!(IDT_OFFSET + idt().len() as u64 <= PAGE);
        assert!(fault_stubs().len() as u64 <= PAGE);
        assert!(call_stub().len() as u64 <= PAGE);
    }

    #[test]
    fn sysret_and_the_gdt_agree() {
        let star = MSRS[0].1;
        assert_eq!((star >> 48) + 16, u64::from(USER_CS) & !3 | 3);
        assert_eq!((star >> 48) + 8, u64::from(USER_SS));
    }
}
