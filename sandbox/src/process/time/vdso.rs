//! The vDSO: the small shared object that the C library finds through `AT_SYSINFO_EHDR` (vdso(7)) and that tells the
//! time without a system call, which here would be an exit from the VM.
//!
//! ```text
//! base          ┌───────────────────────────────┐
//!               │ Vvar: the clocks' parameters  │  read-only for the program, written by the VMM
//! base + 4 KiB  ├───────────────────────────────┤  <- AT_SYSINFO_EHDR
//!               │ ELF header, program headers   │
//!               │ hash, symbols, strings,       │  read-only, executable
//!               │ versions, dynamic section     │
//!               │ code                          │
//! base + 8 KiB  └───────────────────────────────┘
//! ```
//! The code reads the time-stamp counter and scales it: `ns = base + ((tsc - tsc_base) * mult >> 32)`. The sequence
//! number tells a reader that was preempted in between to start again; 0 means that the page is not in force, and
//! then, as for every clock it does not know, the code makes the system call. It hands its own reading of the
//! counter over in r9 (and [`PROOF`] in r8), which lets the VMM see whether the program's counter is the host's.
//!
//! Sources: Linux Documentation/ABI/stable/vdso, tools/testing/selftests/vDSO/parse_vdso.c; the ELF gABI chapters 4 and 5;
//! the Linux Standard Base core specification §10.7 (symbol versioning).

use iced_x86::code_asm::*;
use iced_x86::{IcedError, Instruction, MemoryOperand, Register};

/// The size of each of the two parts.
pub(crate) const PAGE_BYTES: usize = 4096;

/// In r8 at a call that the vDSO makes: r9 then holds the program's reading of the counter.
pub(crate) const PROOF: u64 = 0x6e6f_7675_6d54_5343;

/// Clocks that the page serves, as bits by clock number: REALTIME, MONOTONIC, MONOTONIC_RAW, the two COARSE ones
/// and BOOTTIME.
pub(crate) const SERVED: u32 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;

const CLOCKS: usize = 8;
const SEQUENCE: i32 = 0;
const TSC_BASE: i32 = 8;
const MULT: i32 = 16;
const BASES: i32 = 32;

/// What the data page says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vvar {
    /// Even; changed with every update; 0: not in force.
    pub(crate) sequence: u32,
    /// The counter at the moment of `bases`.
    pub(crate) tsc_base: u64,
    /// Nanoseconds per tick of the counter, times 2^32.
    pub(crate) mult: u64,
    /// Seconds and nanoseconds of each clock, by its number, at `tsc_base`.
    pub(crate) bases: [(u64, u64); CLOCKS],
}

impl Vvar {
    /// The bytes of the page's beginning.
    pub(crate) fn bytes(&self) -> [u8; BASES as usize + CLOCKS * 16] {
        let mut out = [0; BASES as usize + CLOCKS * 16];
        let mut put = |at: usize, value: u64| out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(SEQUENCE as usize, u64::from(self.sequence));
        put(TSC_BASE as usize, self.tsc_base);
        put(MULT as usize, self.mult);
        for (i, (seconds, nanoseconds)) in self.bases.iter().enumerate() {
            put(BASES as usize + i * 16, *seconds);
            put(BASES as usize + i * 16 + 8, *nanoseconds);
        }
        out
    }

    /// What the program reads from clock number `clock` when its counter stands at `tsc`.
    pub(crate) fn read(&self, clock: usize, tsc: u64) -> (u64, u64) {
        let delta = u128::from(tsc.saturating_sub(self.tsc_base));
        let (seconds, nanoseconds) = self.bases[clock];
        let total = ((delta * u128::from(self.mult)) >> 32) as u64 + nanoseconds;
        (seconds + total / 1_000_000_000, total % 1_000_000_000)
    }
}

/// The names in the order of [`Code::offsets`].
const NAMES: [&str; 5] =
    ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_clock_getres", "__vdso_getcpu"];

struct Code {
    bytes: Vec<u8>,
    offsets: [u64; NAMES.len()],
}

/// The code at offset `at` of the object; the data page lies one page before the object.
fn assemble(at: u64) -> Result<Code, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut entries = [a.create_label(); NAMES.len()];
    for entry in &mut entries {
        *entry = a.create_label();
    }
    // Relative to address 0x10000, so that the data page has a positive address while assembling.
    let vvar = 0x10000 - PAGE_BYTES as u64;
    clock_gettime(&mut a, &mut entries[0], vvar)?;
    gettimeofday(&mut a, &mut entries[1], vvar)?;
    time(&mut a, &mut entries[2], vvar)?;
    system_call(&mut a, &mut entries[3], libc::SYS_clock_getres)?;
    getcpu(&mut a, &mut entries[4])?;
    let done =
        a.assemble_options(0x10000 + at, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut offsets = [0; NAMES.len()];
    for (offset, entry) in offsets.iter_mut().zip(&entries) {
        *offset = done.label_ip(entry)? - 0x10000;
    }
    Ok(Code { bytes: done.inner.code_buffer, offsets })
}

/// Leaves seconds in r10 and nanoseconds in rdx of clock rdi; goes to `off` where the page is not in force.
/// Uses rax, rcx, rdx, r8, r9, r10.
fn read_clock(a: &mut CodeAssembler, vvar: u64, off: CodeLabel) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut forward = a.create_label();
    // Relative to the instruction pointer; a bare address would be encoded as it is.
    let page = MemoryOperand::with_base_displ(Register::RIP, vvar as i64);
    a.add_instruction(Instruction::with2(iced_x86::Code::Lea_r64_m, Register::R8, page)?)?;
    a.set_label(&mut again)?;
    a.mov(r9d, dword_ptr(r8 + SEQUENCE))?;
    a.test(r9d, r9d)?;
    a.jz(off)?;
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.sub(rax, qword_ptr(r8 + TSC_BASE))?;
    a.jnc(forward)?;
    a.xor(eax, eax)?;
    a.set_label(&mut forward)?;
    a.mul(qword_ptr(r8 + MULT))?;
    a.shrd(rax, rdx, 32)?;
    a.mov(ecx, edi)?;
    a.shl(ecx, 4)?;
    a.mov(r10, qword_ptr(r8 + rcx + BASES))?;
    a.add(rax, qword_ptr(r8 + rcx + BASES + 8))?;
    a.cmp(r9d, dword_ptr(r8 + SEQUENCE))?;
    a.jne(again)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 1_000_000_000)?;
    a.div(rcx)?;
    a.add(r10, rax)
}

/// `int clock_gettime(clockid_t edi, struct timespec *rsi)`.
fn clock_gettime(a: &mut CodeAssembler, entry: &mut CodeLabel, vvar: u64) -> Result<(), IcedError> {
    let mut call = a.create_label();
    a.set_label(entry)?;
    a.cmp(edi, CLOCKS as i32)?;
    a.jae(call)?;
    a.mov(eax, SERVED)?;
    a.bt(eax, edi)?;
    a.jnc(call)?;
    read_clock(a, vvar, call)?;
    a.mov(qword_ptr(rsi), r10)?;
    a.mov(qword_ptr(rsi + 8), rdx)?;
    a.xor(eax, eax)?;
    a.ret()?;
    system_call(a, &mut call, libc::SYS_clock_gettime)
}

/// `int gettimeofday(struct timeval *rdi, struct timezone *rsi)`.
fn gettimeofday(a: &mut CodeAssembler, entry: &mut CodeLabel, vvar: u64) -> Result<(), IcedError> {
    let (mut call, mut off, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(entry)?;
    a.test(rsi, rsi)?; // a time zone is for the system call
    a.jnz(call)?;
    a.test(rdi, rdi)?;
    a.jz(done)?;
    a.mov(r11, rdi)?;
    a.xor(edi, edi)?;
    read_clock(a, vvar, off)?;
    a.mov(rax, rdx)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 1000)?;
    a.div(rcx)?;
    a.mov(qword_ptr(r11), r10)?;
    a.mov(qword_ptr(r11 + 8), rax)?;
    a.set_label(&mut done)?;
    a.xor(eax, eax)?;
    a.ret()?;
    a.set_label(&mut off)?;
    a.mov(rdi, r11)?;
    system_call(a, &mut call, libc::SYS_gettimeofday)
}

/// `time_t time(time_t *rdi)`.
fn time(a: &mut CodeAssembler, entry: &mut CodeLabel, vvar: u64) -> Result<(), IcedError> {
    let (mut off, mut done) = (a.create_label(), a.create_label());
    a.set_label(entry)?;
    a.mov(r11, rdi)?;
    a.xor(edi, edi)?;
    read_clock(a, vvar, off)?;
    a.mov(rax, r10)?;
    a.test(r11, r11)?;
    a.jz(done)?;
    a.mov(qword_ptr(r11), rax)?;
    a.set_label(&mut done)?;
    a.ret()?;
    let mut call = a.create_label();
    a.set_label(&mut off)?;
    a.mov(rdi, r11)?;
    system_call(a, &mut call, libc::SYS_time)
}

/// `int getcpu(unsigned *rdi, unsigned *rsi, void *)`: there is one CPU and one node, both 0.
fn getcpu(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), IcedError> {
    let (mut node, mut done) = (a.create_label(), a.create_label());
    a.set_label(entry)?;
    a.xor(eax, eax)?;
    a.test(rdi, rdi)?;
    a.jz(node)?;
    a.mov(dword_ptr(rdi), eax)?;
    a.set_label(&mut node)?;
    a.test(rsi, rsi)?;
    a.jz(done)?;
    a.mov(dword_ptr(rsi), eax)?;
    a.set_label(&mut done)?;
    a.ret()
}

/// The system call `number` with the caller's arguments and the proof.
fn system_call(a: &mut CodeAssembler, entry: &mut CodeLabel, number: i64) -> Result<(), IcedError> {
    a.set_label(entry)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(r9, rax)?;
    a.mov(r8, PROOF)?;
    a.mov(eax, number as i32)?;
    a.syscall()?;
    a.ret()
}

/// Builds the second page: the shared object. It holds no addresses of its own, so one copy serves every sandbox.
///
/// # Errors
/// Those of the assembler: a mistake in this file, which the tests would show.
pub(crate) fn build() -> Result<Vec<u8>, IcedError> {
    const CODE: usize = 0x400;
    let code = assemble(CODE as u64)?;
    let mut image = Image { bytes: vec![0; 64 + 2 * 56] };
    let strings = Strings::new();
    let symbols = NAMES.len() + 1;

    let hash = image.append(&hash_table(symbols));
    let dynsym = image.append(&symbol_table(&strings, &code.offsets));
    let dynstr = image.append(&strings.bytes);
    let versym = image.append(&version_indices(symbols));
    let verdef = image.append(&version_definitions(&strings));
    let tags = [
        (DT_SONAME, u64::from(strings.soname)),
        (DT_HASH, hash),
        (DT_STRTAB, dynstr),
        (DT_SYMTAB, dynsym),
        (DT_STRSZ, strings.bytes.len() as u64),
        (DT_SYMENT, 24),
        (DT_VERSYM, versym),
        (DT_VERDEF, verdef),
        (DT_VERDEFNUM, 2),
        (0, 0),
    ];
    let dynamic: Vec<u8> =
        tags.iter().flat_map(|(t, v)| [t.to_le_bytes(), v.to_le_bytes()].concat()).collect();
    let dynamic_at = image.append(&dynamic);
    assert!(image.bytes.len() <= CODE && CODE + code.bytes.len() <= PAGE_BYTES, "the vDSO fits its page");
    image.bytes.resize(CODE, 0xcc);
    image.bytes.extend_from_slice(&code.bytes);
    image.bytes.resize(PAGE_BYTES, 0xcc);
    image.headers(dynamic_at, dynamic.len() as u64);
    Ok(image.bytes)
}

const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_SYMENT: u64 = 11;
const DT_SONAME: u64 = 14;
const DT_VERSYM: u64 = 0x6fff_fff0;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERDEFNUM: u64 = 0x6fff_fffd;

const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";

/// The string table and where its parts stand.
struct Strings {
    bytes: Vec<u8>,
    names: [u32; NAMES.len()],
    soname: u32,
    version: u32,
}

impl Strings {
    fn new() -> Self {
        let mut bytes = vec![0];
        let mut add = |text: &str| {
            let at = bytes.len() as u32;
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
            at
        };
        let names = NAMES.map(&mut add);
        let (soname, version) = (add(SONAME), add(VERSION));
        Self { bytes, names, soname, version }
    }
}

/// `DT_HASH` with a single bucket: the chain visits every symbol.
fn hash_table(symbols: usize) -> Vec<u8> {
    let mut words = vec![1, symbols as u32, 1, 0];
    words.extend((1..symbols as u32).map(|i| if i + 1 < symbols as u32 { i + 1 } else { 0 }));
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// `Elf64_Sym` entries: global functions in section 1 (any that is not SHN_UNDEF).
fn symbol_table(strings: &Strings, offsets: &[u64]) -> Vec<u8> {
    let mut out = vec![0; 24];
    for (name, offset) in strings.names.iter().zip(offsets) {
        out.extend_from_slice(&name.to_le_bytes());
        out.extend_from_slice(&[0x12, 0, 1, 0]); // STB_GLOBAL, STT_FUNC; default visibility; section 1
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&16u64.to_le_bytes());
    }
    out
}

fn version_indices(symbols: usize) -> Vec<u8> {
    (0..symbols).flat_map(|i| if i == 0 { 0u16 } else { 2 }.to_le_bytes()).collect()
}

/// Two `Elf64_Verdef` with one `Elf64_Verdaux` each: the object itself (base) and the version.
fn version_definitions(strings: &Strings) -> Vec<u8> {
    let entries = [(1u16, 1u16, SONAME, strings.soname, 28u32), (0, 2, VERSION, strings.version, 0)];
    let mut out = Vec::new();
    for (flags, index, text, name, next) in entries {
        [1u16, flags, index, 1].iter().for_each(|h| out.extend_from_slice(&h.to_le_bytes()));
        [elf_hash(text), 20, next, name, 0].iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
    }
    out
}

/// The ELF gABI's hash function.
fn elf_hash(text: &str) -> u32 {
    text.bytes().fold(0u32, |h, b| {
        let h = (h << 4).wrapping_add(u32::from(b));
        let high = h & 0xf000_0000;
        (h ^ (high >> 24)) & !high
    })
}

struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends at the next multiple of 8; returns where.
    fn append(&mut self, part: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(part);
        at
    }

    /// Writes `Elf64_Ehdr` and the two `Elf64_Phdr`.
    fn headers(&mut self, dynamic: u64, dynamic_bytes: u64) {
        let mut h = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [3u16, 62].iter().for_each(|v| h.extend_from_slice(&v.to_le_bytes())); // ET_DYN, EM_X86_64
        h.extend_from_slice(&1u32.to_le_bytes());
        [0u64, 64, 0].iter().for_each(|v| h.extend_from_slice(&v.to_le_bytes())); // entry, phoff, shoff
        h.extend_from_slice(&0u32.to_le_bytes());
        [64u16, 56, 2, 64, 0, 0].iter().for_each(|v| h.extend_from_slice(&v.to_le_bytes()));
        let page = PAGE_BYTES as u64;
        for (kind, flags, at, len, align) in [(1u32, 5u32, 0, page, page), (2, 4, dynamic, dynamic_bytes, 8)]
        {
            [kind, flags].iter().for_each(|v| h.extend_from_slice(&v.to_le_bytes()));
            [at, at, at, len, len, align].iter().for_each(|v| h.extend_from_slice(&v.to_le_bytes()));
        }
        self.bytes[..h.len()].copy_from_slice(&h);
    }
}

#[cfg(test)]
mod tests {
    use object::read::elf::{ElfFile64, FileHeader};
    use object::{Object, ObjectSymbol};

    use super::*;

    #[test]
    fn the_object_is_one_that_a_linker_understands() {
        let image = build().unwrap();
        let header = object::elf::FileHeader64::<object::LittleEndian>::parse(&*image).unwrap();
        let endian = object::LittleEndian;
        let segments = header.program_headers(endian, &*image).unwrap();
        assert_eq!(segments.len(), 2);
        // Without section headers the object crate finds symbols through the dynamic segment only by hand; glibc's
        // own view of it is tested by running programs. Here: the file parses and is a shared object.
        let file = ElfFile64::<object::LittleEndian>::parse(&*image).unwrap();
        assert_eq!(file.kind(), object::ObjectKind::Dynamic);
        assert_eq!(file.symbols().filter(|s| s.is_global()).count(), 0);
    }

    #[test]
    fn the_version_hash_is_the_one_that_go_and_musl_expect() {
        assert_eq!(elf_hash(VERSION), 0x03ae_75f6);
    }

    #[test]
    fn the_page_and_the_code_agree_on_time() {
        let mut vvar = Vvar { sequence: 2, tsc_base: 1000, mult: 1 << 31, ..Vvar::default() };
        vvar.bases[1] = (7, 999_999_999);
        assert_eq!(vvar.read(1, 1000), (7, 999_999_999));
        assert_eq!(vvar.read(1, 1002), (8, 0));
        assert_eq!(vvar.read(1, 0), (7, 999_999_999));
    }
}
