//! Calls that are answered without leaving the VM, where `syscall` stays in ring 3.
//!
//! An exit costs 25 us on such a KVM, and many calls ask what the VMM could have told before: a signal's action, the
//! attributes of the file that was opened just now, its position, whether it is a terminal. The VMM writes these
//! [answers](write) before it lets the program go on; the code behind LSTAR looks there first and leaves the VM only for what it does
//! not find. On hardware `syscall` leads to ring 0, where an exit is cheap and where nothing may store to addresses of a program's
//! choice: there the code goes straight to the stub that leaves.
//!
//! ```text
//! scratch, ring 3 may write: registers that the code uses, the time of the last exit, a stack of a few words, gathered [output]
//! answers, ring 3 may read:  0x000 descriptor  0x008 what is known of it  0x010 position  0x018 lifetime in ticks
//!                            0x040 its struct stat  0x100 64 x struct sigaction  0x900 paths with results and struct stat
//!                            0x1d08 the working directory
//! ```
//! What an answer says was so at the program's last exit, and is given at most [`LIFETIME`] after it. Nothing from outside can have
//! reached the program in between, because it made no call that could bring it: nobody can tell such an answer from that of a call
//! that was served a little earlier. An exit for another reason, too, ends all answers about files.
//!
//! The code changes no register before it has stored it. A fault in it (a bad pointer, a page that is not there yet) and
//! everything else that stops it midway ends in the call being made in full: [`full_call`]. None of what it reads
//! or writes is trusted by the VMM; all that a program can do by changing its scratch is give its call other registers.
//!
//! Source: AMD64 APM vol. 2 §6.1 (SYSCALL), vol. 3 (POPF); Linux arch/x86/entry/entry_64.S for what a call preserves.

mod output;

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};
use kvm_bindings::kvm_regs;

use super::entry::{CALL_STUB, USER_FLAGS};
use super::layout::{ANSWERS_GPA, ANSWERS_GVA, ANSWERS_SIZE, PAGE, SCRATCH_GPA, SCRATCH_GVA};
use super::sys::Region;

pub(crate) use output::{gather, take_gathered};

/// Where the code begins on the stub's page.
pub(crate) const ENTRY: u64 = 16;
/// Bytes of its first instructions, which store four registers and change none.
const STORES: u64 = 28;
/// After this much an answer about files is none any more, whatever the program did.
pub(crate) const LIFETIME: Duration = Duration::from_millis(10);

/// `struct stat`.
pub(crate) const STAT_BYTES: usize = 144;
/// Paths that can be answered, and the longest of them with its NUL byte.
pub(crate) const PATHS: usize = 16;
pub(crate) const PATH_BYTES: usize = 168;

/// Scratch.
const RAX: u64 = SCRATCH_GVA;
const RDX: u64 = SCRATCH_GVA + 8;
const RDI: u64 = SCRATCH_GVA + 16;
const RSI: u64 = SCRATCH_GVA + 24;
const RSP: u64 = SCRATCH_GVA + 32;
/// The counter at the last exit.
const LEFT: u64 = SCRATCH_GVA + 40;
/// Not 0: the program has closed the descriptor that it was told of.
const CLOSED: u64 = SCRATCH_GVA + 48;
const STACK: u64 = SCRATCH_GVA + 0x100;

/// Answers.
const FD: u64 = 0;
const KNOWN: u64 = 0x08;
const POSITION: u64 = 0x10;
const TICKS: u64 = 0x18;
const DIRECTORY_BYTES: u64 = 0x20;
const STAT: u64 = 0x40;
const ACTIONS: u64 = 0x100;
const ACTION_BYTES: u64 = 32;
const ENTRIES: u64 = 0x900;
const RESULT: u64 = PATH_BYTES as u64;
const PATH_STAT: u64 = RESULT + 8;
const ENTRY_BYTES: u64 = PATH_STAT + STAT_BYTES as u64;
/// The working directory, behind the paths and the byte that ends them.
const DIRECTORY: u64 = ENTRIES + PATHS as u64 * ENTRY_BYTES + 8;
/// Most bytes of a working directory that can be answered, with its NUL byte.
pub(crate) const MOST_DIRECTORY: usize = 256;

/// What is known of the descriptor: bits.
const HAS_STAT: i32 = 1;
const NO_TERMINAL: i32 = 2;
const HAS_POSITION: i32 = 4;
const AT_END: i32 = 8;
const ALL_LISTED: i32 = 16;
const MAY_CLOSE: i32 = 32;

/// A descriptor of the program, and what calls about it would answer now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Which.
    pub(crate) fd: u32,
    /// `fstat`.
    pub(crate) stat: Option<[u8; STAT_BYTES]>,
    /// `ioctl(TCGETS)`: `ENOTTY`.
    pub(crate) no_terminal: bool,
    /// `lseek(0, SEEK_CUR)`; a negative error's number as the call returns it.
    pub(crate) position: Option<u64>,
    /// `read`: nothing more.
    pub(crate) at_end: bool,
    /// `getdents64`: nothing more.
    pub(crate) all_listed: bool,
    /// `close`: nobody but the program can notice, so that it may happen at the next exit ([`take_closed`]).
    pub(crate) may_close: bool,
}

/// What is told at one exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) fd: Option<Known>,
    pub(crate) paths: Vec<KnownPath>,
    /// `getcwd`.
    pub(crate) directory: Option<Vec<u8>>,
}

impl Told {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A path, and what `stat` of it would answer now: the structure, or an error's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownPath {
    pub(crate) path: Vec<u8>,
    pub(crate) result: Result<[u8; STAT_BYTES], i32>,
}

impl KnownPath {
    /// Whether there is room for it.
    pub(crate) fn fits(path: &[u8]) -> bool {
        path.first() == Some(&b'/') && path.len() < PATH_BYTES && !path.contains(&0)
    }
}

/// A page that is as it should be is not written: it may be shared with an image.
fn set_changed(region: &Region, at: u64, word: u64) {
    if region.word(at) != word {
        region.set_word(at, word);
    }
}

fn put(region: &Region, at: u64, bytes: &[u8]) {
    for (i, word) in bytes.chunks(8).enumerate() {
        let mut full = [0; 8];
        full[..word.len()].copy_from_slice(word);
        set_changed(region, ANSWERS_GPA + at + i as u64 * 8, u64::from_le_bytes(full));
    }
}

/// Answers nothing about files any more.
pub(crate) fn forget(region: &Region) {
    set_changed(region, ANSWERS_GPA + KNOWN, 0);
    set_changed(region, ANSWERS_GPA + ENTRIES, 0);
    set_changed(region, ANSWERS_GPA + DIRECTORY_BYTES, 0);
}

/// Leaves nothing to read of what was answered, but for signals' actions: the next one who can read the pages is somebody else.
pub(crate) fn clear(region: &Region) {
    let told = (0..ACTIONS).chain(ENTRIES..ANSWERS_SIZE);
    for at in told.step_by(8) {
        set_changed(region, ANSWERS_GPA + at, 0);
    }
}

/// Whether the program closed the descriptor that it was told of. Says so once.
pub(crate) fn take_closed(region: &Region) -> bool {
    let at = SCRATCH_GPA + (CLOSED - SCRATCH_GVA);
    let closed = region.word(at) != 0;
    set_changed(region, at, 0);
    closed
}

/// Answers calls until the program's next exit, for `ticks` of its counter at most.
pub(crate) fn write(region: &Region, told: &Told, ticks: u64) {
    forget(region);
    set_changed(region, ANSWERS_GPA + TICKS, ticks);
    for (i, known) in told.paths.iter().take(PATHS).enumerate() {
        let at = ENTRIES + i as u64 * ENTRY_BYTES;
        let (result, stat) = match &known.result {
            Ok(stat) => (0, stat.as_slice()),
            Err(errno) => (-i64::from(*errno), [].as_slice()),
        };
        put(region, at + RESULT, &result.to_le_bytes());
        put(region, at + PATH_STAT, stat);
        let mut path = known.path.clone();
        path.push(0);
        put(region, at, &path);
        region.set_word(ANSWERS_GPA + at + ENTRY_BYTES, 0);
    }
    if let Some(directory) = told.directory.as_ref().filter(|path| path.len() < MOST_DIRECTORY) {
        let mut path = directory.clone();
        path.push(0);
        put(region, DIRECTORY, &path);
        region.set_word(ANSWERS_GPA + DIRECTORY_BYTES, path.len() as u64);
    }
    let Some(known) = &told.fd else { return };
    let bit = |condition, bit: i32| if condition { bit as u64 } else { 0 };
    let bits = bit(known.stat.is_some(), HAS_STAT)
        | bit(known.no_terminal, NO_TERMINAL)
        | bit(known.position.is_some(), HAS_POSITION)
        | bit(known.at_end, AT_END)
        | bit(known.all_listed, ALL_LISTED)
        | bit(known.may_close, MAY_CLOSE);
    region.set_word(ANSWERS_GPA + FD, u64::from(known.fd));
    region.set_word(ANSWERS_GPA + POSITION, known.position.unwrap_or(0));
    if let Some(stat) = &known.stat {
        put(region, STAT, stat);
    }
    region.set_word(ANSWERS_GPA + KNOWN, bits);
}

/// Says what the action of signal `number` (1 to 64) is.
pub(crate) fn write_action(region: &Region, number: u32, action: &[u8; ACTION_BYTES as usize]) {
    put(region, ACTIONS + u64::from(number - 1) * ACTION_BYTES, action);
}

/// What a program may have left in the scratch is no business of the next one.
pub(crate) fn clear_scratch(region: &Region) {
    for at in (SCRATCH_GPA..SCRATCH_GPA + PAGE).step_by(8) {
        set_changed(region, at, 0);
    }
}

/// Whether the code stands at `rip`.
pub(crate) fn is_code(rip: u64) -> bool {
    (CALL_STUB + ENTRY..CALL_STUB + ENTRY + code().len() as u64).contains(&rip)
}

/// Whether the code stands where this call has closed the descriptor, and not said so yet.
fn has_just_closed(rip: u64) -> bool {
    is_code(rip) && rip >= assembled().closed
}

/// Registers of a program that was stopped in the code in ring 3, so that it leaves the VM with its call next.
pub(crate) fn full_call(region: &Region, stopped: &kvm_regs) -> kvm_regs {
    let saved = |at: u64| region.word(SCRATCH_GPA + (at - SCRATCH_GVA));
    let on_scratch = (SCRATCH_GVA..SCRATCH_GVA + PAGE).contains(&stopped.rsp);
    if stopped.rip < CALL_STUB + ENTRY + STORES {
        return kvm_regs { rip: CALL_STUB, ..*stopped };
    }
    if has_just_closed(stopped.rip) {
        take_closed(region);
    }
    if assembled().written.contains(&stopped.rip) {
        output::take_back(region);
    }
    kvm_regs {
        rax: saved(RAX),
        rdx: saved(RDX),
        rdi: saved(RDI),
        rsi: saved(RSI),
        rsp: if on_scratch { saved(RSP) } else { stopped.rsp },
        rip: CALL_STUB,
        rflags: USER_FLAGS,
        ..*stopped
    }
}

/// The code for [`CALL_STUB`] + [`ENTRY`].
pub(crate) fn code() -> &'static [u8] {
    &assembled().bytes
}

struct Assembled {
    bytes: Vec<u8>,
    /// Here `write` has gathered its bytes.
    written: Range<u64>,
    /// From here on `close` has said that it closed.
    closed: u64,
}

fn assembled() -> &'static Assembled {
    static CODE: OnceLock<Assembled> = OnceLock::new();
    CODE.get_or_init(|| assemble().expect("fixed code can be encoded"))
}

/// An operand relative to the instruction pointer; a bare address would be encoded as it is.
fn at(address: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RIP, address as i64)
}

fn load(a: &mut CodeAssembler, register: Register, address: u64) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with2(Code::Mov_r64_rm64, register, at(address))?)
}

fn store(a: &mut CodeAssembler, address: u64, register: Register) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with2(Code::Mov_rm64_r64, at(address), register)?)
}

fn address_of(a: &mut CodeAssembler, register: Register, address: u64) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with2(Code::Lea_r64_m, register, at(address))?)
}

fn answer(offset: u64) -> u64 {
    ANSWERS_GVA + offset
}

/// Where the parts of the code meet.
#[derive(Clone, Copy)]
struct Labels {
    /// The call is made in full.
    leave: CodeLabel,
    /// Copies a `struct stat` from rdi to rdx and answers 0.
    copy_stat: CodeLabel,
    /// Answers rax.
    done: CodeLabel,
}

fn assemble() -> Result<Assembled, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut labels = Labels { leave: a.create_label(), copy_stat: a.create_label(), done: a.create_label() };
    let [mut out, mut action, mut stat_at, mut getcwd, mut close, mut closed, mut write, mut written] =
        std::array::from_fn(|_| a.create_label());
    let mut about: [CodeLabel; 5] = std::array::from_fn(|_| a.create_label());
    let [fstat, ioctl, lseek, read, getdents] = about;
    store(&mut a, RAX, Register::RAX)?;
    store(&mut a, RDX, Register::RDX)?;
    store(&mut a, RDI, Register::RDI)?;
    store(&mut a, RSI, Register::RSI)?;
    a.mov(edx, cs)?;
    a.test(dl, 3)?;
    a.jz(out)?;
    load(&mut a, Register::RDX, RDX)?;
    for (number, part) in [
        (libc::SYS_newfstatat, stat_at),
        (libc::SYS_rt_sigaction, action),
        (libc::SYS_lseek, lseek),
        (libc::SYS_read, read),
        (libc::SYS_ioctl, ioctl),
        (libc::SYS_fstat, fstat),
        (libc::SYS_close, close),
        (libc::SYS_write, write),
        (libc::SYS_getdents64, getdents),
        (libc::SYS_getcwd, getcwd),
    ] {
        a.cmp(rax, number as i32)?;
        a.je(part)?;
    }
    a.set_label(&mut labels.leave)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    store(&mut a, LEFT, Register::RAX)?;
    a.set_label(&mut out)?;
    load(&mut a, Register::RAX, RAX)?;
    load(&mut a, Register::RDX, RDX)?;
    load(&mut a, Register::RDI, RDI)?;
    load(&mut a, Register::RSI, RSI)?;
    a.jmp(CALL_STUB)?;
    sigaction(&mut a, &mut action, labels)?;
    newfstatat(&mut a, &mut stat_at, labels)?;
    descriptor(&mut a, &mut about, labels)?;
    working_directory(&mut a, &mut getcwd, labels)?;
    a.set_label(&mut labels.copy_stat)?;
    copy(&mut a, STAT_BYTES as u64)?;
    a.xor(eax, eax)?;
    a.set_label(&mut labels.done)?;
    finish(&mut a)?;
    // The last of all, so that it can be told where the program was stopped.
    output::write(&mut a, [&mut write, &mut written], labels)?;
    a.set_label(&mut close)?;
    self::about(&mut a, MAY_CLOSE, labels)?;
    a.add_instruction(Instruction::with2(Code::Mov_rm64_imm32, at(CLOSED), 1)?)?;
    a.set_label(&mut closed)?;
    a.xor(eax, eax)?;
    finish(&mut a)?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(CALL_STUB + ENTRY, options)?;
    let [written, close, closed] = [written, close, closed].map(|label| done.label_ip(&label));
    Ok(Assembled { bytes: done.inner.code_buffer, written: written?..close?, closed: closed? })
}

/// `rt_sigaction(edi, NULL, rdx, 8)`.
fn sigaction(a: &mut CodeAssembler, entry: &mut CodeLabel, to: Labels) -> Result<(), IcedError> {
    a.set_label(entry)?;
    a.test(rsi, rsi)?;
    a.jnz(to.leave)?;
    a.cmp(r10, 8)?;
    a.jne(to.leave)?;
    a.test(rdx, rdx)?;
    a.jz(to.leave)?;
    // Numbers are looked at whole, as the VMM does.
    a.lea(rax, ptr(rdi - 1))?;
    a.cmp(rax, 64)?;
    a.jae(to.leave)?;
    a.shl(eax, 5)?;
    address_of(a, Register::RDI, answer(ACTIONS))?;
    a.add(rdi, rax)?;
    copy(a, ACTION_BYTES)?;
    a.xor(eax, eax)?;
    a.jmp(to.done)
}

/// Bytes from rdi to rdx, by rax.
fn copy(a: &mut CodeAssembler, bytes: u64) -> Result<(), IcedError> {
    for offset in (0..bytes as i32).step_by(8) {
        a.mov(rax, qword_ptr(rdi + offset))?;
        a.mov(qword_ptr(rdx + offset), rax)?;
    }
    Ok(())
}

/// Leaves where the last exit was too long ago. Uses rax and rdx.
fn fresh(a: &mut CodeAssembler, to: Labels) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.add_instruction(Instruction::with2(Code::Sub_r64_rm64, Register::RAX, at(LEFT))?)?;
    a.add_instruction(Instruction::with2(Code::Cmp_r64_rm64, Register::RAX, at(answer(TICKS)))?)?;
    a.jae(to.leave)
}

/// Leaves where edi is not the descriptor of which `bit` is known, or no longer.
fn about(a: &mut CodeAssembler, bit: i32, to: Labels) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with2(Code::Cmp_r32_rm32, Register::EDI, at(answer(FD)))?)?;
    a.jne(to.leave)?;
    a.add_instruction(Instruction::with2(Code::Test_rm8_imm8, at(answer(KNOWN)), bit)?)?;
    a.jz(to.leave)?;
    a.add_instruction(Instruction::with2(Code::Cmp_rm64_imm8, at(CLOSED), 0)?)?;
    a.jne(to.leave)?;
    fresh(a, to)
}

/// `newfstatat(edi, "", rdx, AT_EMPTY_PATH)`, and `newfstatat(_, path, rdx, 0)` of an absolute path.
fn newfstatat(a: &mut CodeAssembler, entry: &mut CodeLabel, to: Labels) -> Result<(), IcedError> {
    let (mut by_path, mut next, mut compare, mut other) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(entry)?;
    a.test(r10d, r10d)?;
    a.jz(by_path)?;
    a.cmp(r10d, libc::AT_EMPTY_PATH)?;
    a.jne(to.leave)?;
    a.cmp(byte_ptr(rsi), 0)?;
    a.jne(to.leave)?;
    about(a, HAS_STAT, to)?;
    load(a, Register::RDX, RDX)?;
    address_of(a, Register::RDI, answer(STAT))?;
    a.jmp(to.copy_stat)?;
    a.set_label(&mut by_path)?;
    fresh(a, to)?;
    address_of(a, Register::RDI, answer(ENTRIES))?;
    a.set_label(&mut next)?;
    a.cmp(byte_ptr(rdi), 0)?;
    a.je(to.leave)?;
    a.xor(edx, edx)?;
    a.set_label(&mut compare)?;
    a.mov(al, byte_ptr(rsi + rdx))?;
    a.cmp(al, byte_ptr(rdi + rdx))?;
    a.jne(other)?;
    a.inc(edx)?;
    a.test(al, al)?;
    a.jnz(compare)?;
    a.mov(rax, qword_ptr(rdi + RESULT as i32))?;
    a.test(rax, rax)?;
    a.js(to.done)?;
    load(a, Register::RDX, RDX)?;
    a.add(rdi, PATH_STAT as i32)?;
    a.jmp(to.copy_stat)?;
    a.set_label(&mut other)?;
    a.add(rdi, ENTRY_BYTES as i32)?;
    a.jmp(next)
}

/// `getcwd(rdi, rsi)`.
fn working_directory(a: &mut CodeAssembler, entry: &mut CodeLabel, to: Labels) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.set_label(entry)?;
    fresh(a, to)?;
    load(a, Register::RDX, answer(DIRECTORY_BYTES))?;
    a.test(rdx, rdx)?;
    a.jz(to.leave)?;
    a.cmp(rsi, rdx)?;
    a.jb(to.leave)?;
    address_of(a, Register::RSI, answer(DIRECTORY))?;
    a.set_label(&mut next)?;
    a.mov(al, byte_ptr(rsi + rdx - 1))?;
    a.mov(byte_ptr(rdi + rdx - 1), al)?;
    a.dec(rdx)?;
    a.jnz(next)?;
    load(a, Register::RAX, answer(DIRECTORY_BYTES))?;
    a.jmp(to.done)
}

/// Calls about an open file: `fstat(edi, rsi)`, `ioctl(edi, TCGETS, _)`, `lseek(edi, 0, SEEK_CUR)`, `read(edi, rsi, rdx)`,
/// `getdents64(edi, rsi, rdx)`.
fn descriptor(
    a: &mut CodeAssembler,
    [fstat, ioctl, lseek, read, getdents]: &mut [CodeLabel; 5],
    to: Labels,
) -> Result<(), IcedError> {
    let mut nothing = a.create_label();
    a.set_label(fstat)?;
    about(a, HAS_STAT, to)?;
    a.mov(rdx, rsi)?;
    address_of(a, Register::RDI, answer(STAT))?;
    a.jmp(to.copy_stat)?;
    a.set_label(ioctl)?;
    a.cmp(esi, libc::TCGETS as i32)?;
    a.jne(to.leave)?;
    about(a, NO_TERMINAL, to)?;
    a.mov(rax, i64::from(-libc::ENOTTY))?;
    a.jmp(to.done)?;
    a.set_label(lseek)?;
    a.test(rsi, rsi)?;
    a.jnz(to.leave)?;
    a.cmp(edx, libc::SEEK_CUR)?;
    a.jne(to.leave)?;
    about(a, HAS_POSITION, to)?;
    load(a, Register::RAX, answer(POSITION))?;
    a.jmp(to.done)?;
    a.set_label(getdents)?;
    about(a, ALL_LISTED, to)?;
    a.jmp(nothing)?;
    a.set_label(read)?;
    about(a, AT_END, to)?;
    a.set_label(&mut nothing)?;
    // A buffer outside of what a program can have is for the VMM to refuse.
    const END: i32 = 0x7fff;
    load(a, Register::RAX, RDX)?;
    a.shr(rax, 31)?;
    a.jnz(to.leave)?;
    load(a, Register::RAX, RDX)?;
    a.add(rax, rsi)?;
    a.shr(rax, 32)?;
    a.cmp(rax, END)?;
    a.jae(to.leave)?;
    a.xor(eax, eax)?;
    a.jmp(to.done)
}

/// Answers rax, and leaves everything else as a call does.
fn finish(a: &mut CodeAssembler) -> Result<(), IcedError> {
    store(a, RSP, Register::RSP)?;
    address_of(a, Register::RSP, STACK)?;
    a.push(r11)?;
    a.popfq()?;
    load(a, Register::RSP, RSP)?;
    load(a, Register::RDX, RDX)?;
    load(a, Register::RDI, RDI)?;
    load(a, Register::RSI, RSI)?;
    a.jmp(rcx)
}

const _: () = assert!(STAT + STAT_BYTES as u64 <= ACTIONS && ACTIONS + 64 * ACTION_BYTES <= ENTRIES);
const _: () = assert!(DIRECTORY + MOST_DIRECTORY as u64 <= ANSWERS_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_stores_registers_first() {
        let mut decoder = iced_x86::Decoder::with_ip(64, code(), CALL_STUB + ENTRY, 0);
        let first: Vec<Instruction> = decoder.iter().take(5).collect();
        let stores =
            first[..4].iter().all(|i| i.code() == Code::Mov_rm64_r64 && i.is_ip_rel_memory_operand());
        assert!(stores && first[4].ip() == CALL_STUB + ENTRY + STORES);
    }

    #[test]
    fn a_path_that_does_not_fit_is_not_answered() {
        assert!(KnownPath::fits(b"/usr/lib"));
        assert!(!KnownPath::fits(b"relative"));
        assert!(!KnownPath::fits(&[b'/'; PATH_BYTES]));
        assert!(KnownPath::fits(&[b'/'; PATH_BYTES - 1]));
    }
}
