//! What a fault was: which access the memory refused, and the report for the user when nothing handles it.
//!
//! Where KVM does not tell the address of a refused access, the instruction says it: its operands' addresses are
//! computed from the registers and compared with the program's mappings.

use std::fmt::Write;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, Register, UsedMemory,
};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::Process;
use super::calls;
use super::memory::{Access, AddressSpace, Refusal};
use super::signal::Signal;

/// Why the program cannot go on at this instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An address that it may not use so.
    Memory {
        /// The address.
        address: u64,
        /// Why not.
        refusal: Refusal,
    },
    /// A page that the mappings allow and the host cannot give: a mapped file was cut short.
    Bus {
        /// An address in it.
        address: u64,
    },
    /// Another exception of the CPU.
    Exception {
        /// Which.
        vector: u64,
        /// Its error code.
        error: u64,
    },
    /// A port or a device.
    Privileged,
}

impl Cause {
    /// The signal that Linux raises for it.
    pub(crate) fn signal(self) -> i32 {
        match self {
            Self::Memory { .. } | Self::Privileged => libc::SIGSEGV,
            Self::Bus { .. } => libc::SIGBUS,
            Self::Exception { vector: 0 | 16 | 19, .. } => libc::SIGFPE,
            Self::Exception { vector: 1 | 3, .. } => libc::SIGTRAP,
            Self::Exception { vector: 6, .. } => libc::SIGILL,
            Self::Exception { vector: 11 | 12 | 17, .. } => libc::SIGBUS,
            Self::Exception { .. } => libc::SIGSEGV,
        }
    }
}

/// What the user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The signal's name.
    pub(crate) kind: String,
    /// Where and why.
    pub(crate) message: String,
}

impl Report {
    /// For a program that stops at `regs`.
    pub(crate) fn new(process: &Process, regs: &kvm_regs, cause: Cause) -> Self {
        let mut message = match cause {
            Cause::Memory { address, refusal: Refusal::Unmapped } => {
                format!("address {address:#x} is not mapped")
            }
            Cause::Memory { address, refusal: Refusal::Forbidden } => {
                format!("address {address:#x}{} may not be used so", place(process, address))
            }
            Cause::Bus { address } => {
                format!("address {address:#x}{} lies behind the end of its file", place(process, address))
            }
            Cause::Exception { vector, error } => format!("{} (error code {error:#x})", exception(vector)),
            Cause::Privileged => "the program used a port or a device".into(),
        };
        describe_place(&mut message, process, regs);
        Self { kind: signal_name(cause.signal()).to_owned(), message }
    }
}

/// Where the program stands, what it did last, what it missed.
fn describe_place(message: &mut String, process: &Process, regs: &kvm_regs) {
    let rip = regs.rip;
    // Writing to a String cannot fail.
    let _ = write!(message, "; rip {rip:#x}{}, rsp {:#x}", place(process, rip), regs.rsp);
    if !process.recent.is_empty() {
        message.push_str("; last calls:");
        for call in &process.recent {
            let [a, b, c, ..] = call.args;
            let _ = write!(message, " {}({a:#x}, {b:#x}, {c:#x})", calls::name(call.number));
        }
    }
    for (number, times) in &process.unserved {
        let _ = write!(message, "; {} is not served ({times} times)", calls::name(*number));
    }
}

impl Report {
    /// For a program that a signal ends.
    pub(crate) fn killed(process: &Process, regs: &kvm_regs, signal: Signal) -> Self {
        let mut message = format!("ended by {}", signal.name());
        describe_place(&mut message, process, regs);
        Self { kind: signal.name(), message }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGFPE => "SIGFPE",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGILL => "SIGILL",
        libc::SIGBUS => "SIGBUS",
        _ => "SIGSEGV",
    }
}

fn exception(vector: u64) -> &'static str {
    match vector {
        0 => "division error",
        1 | 3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid instruction",
        7 => "no such processor extension",
        12 => "stack segment fault",
        13 => "general protection fault (a non-canonical address or a privileged instruction)",
        16 => "x87 floating-point error",
        17 => "unaligned access",
        19 => "SIMD floating-point error",
        _ => "processor exception",
    }
}

/// ` (in NAME+OFFSET)` for an address in a mapping.
fn place(process: &Process, address: u64) -> String {
    let Some((start, vma)) = process.memory.vmas().at(address) else { return " (not mapped)".into() };
    let name = vma.file.as_ref().map_or(vma.label, |part| part.file.name.as_str());
    let offset = address - start + vma.file.as_ref().map_or(0, |part| part.offset);
    if name.is_empty() { " (in anonymous memory)".into() } else { format!(" (in {name}+{offset:#x})") }
}

/// What a page fault's error code says was tried (Intel SDM vol. 3A §4.7).
pub(crate) fn access_of(error: u64) -> Access {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    if error & FETCH != 0 {
        Access::Fetch
    } else if error & WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// What the host's memory refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// An access that the mappings do not allow either (or not yet).
    Access(u64, Access),
    /// The mappings allow everything; the host has no page here.
    Absent(u64),
}

/// Which access of the instruction at RIP was refused. `gpa` is what KVM told of it, if anything.
pub(crate) fn find_refused(
    memory: &AddressSpace,
    regs: &kvm_regs,
    special: &kvm_sregs,
    gpa: Option<u64>,
) -> Refused {
    const LONGEST: u64 = 15;
    let len = memory.reachable(regs.rip, LONGEST, Access::Fetch);
    if len == 0 {
        return Refused::Access(regs.rip, Access::Fetch);
    }
    let Ok(bytes) = memory.read_vec(regs.rip, len as usize) else { return Refused::Absent(regs.rip) };
    let mut decoder = Decoder::with_ip(64, &bytes, regs.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Refused::Access(regs.rip + len, Access::Fetch);
    }
    let operands = operands(&instruction, regs, special);
    let refused = operands.iter().filter_map(|&(address, size, access)| {
        let good = memory.reachable(address, size, access);
        (good < size).then_some((address.wrapping_add(good), access))
    });
    let candidates: Vec<(u64, Access)> = refused.collect();
    let told =
        gpa.and_then(|gpa| candidates.iter().find(|(at, _)| memory.gpa_page(*at) == Some(gpa & !4095)));
    if let Some(&(address, access)) = told.or(candidates.first()) {
        return Refused::Access(address, access);
    }
    let absent = operands.iter().find(|(address, ..)| memory.read(*address, &mut [0]).is_err());
    Refused::Absent(absent.or(operands.first()).map_or(regs.rip, |(address, ..)| *address))
}

/// The instruction's accesses to memory: address, bytes, kind.
fn operands(instruction: &Instruction, regs: &kvm_regs, special: &kvm_sregs) -> Vec<(u64, u64, Access)> {
    let mut factory = InstructionInfoFactory::new();
    let value = |register, _, _| register_value(register, regs, special);
    let mut found = Vec::new();
    for used in factory.info(instruction).used_memory() {
        let size = (used.memory_size().size() as u64).max(1);
        let address = used.virtual_address(0, value);
        found.extend(accesses(used).iter().filter_map(|&access| Some((address?, size, access))));
    }
    found
}

fn accesses(used: &UsedMemory) -> &'static [Access] {
    match used.access() {
        OpAccess::Read | OpAccess::CondRead => &[Access::Read],
        OpAccess::Write | OpAccess::CondWrite => &[Access::Write],
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => &[Access::Read, Access::Write],
        _ => &[],
    }
}

fn register_value(register: Register, regs: &kvm_regs, special: &kvm_sregs) -> Option<u64> {
    let full = match register.full_register() {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RSP => regs.rsp,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        Register::RIP => regs.rip,
        Register::FS => special.fs.base,
        Register::GS => special.gs.base,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    };
    Some(match register.size() {
        1 => full & 0xff,
        2 if !matches!(register, Register::FS | Register::GS) => full & 0xffff,
        4 => full & 0xffff_ffff,
        _ => full,
    })
}
