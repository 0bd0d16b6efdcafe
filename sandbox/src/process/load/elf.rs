//! Reading an ELF program: what to map where, and why not.
//!
//! Every field is hostile: a number is only used after it was compared with what it is a number of. Sources: the
//! System V gABI chapters 4 and 5, the x86-64 psABI §4 and §5, Linux fs/binfmt_elf.c for what Linux makes of odd files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::pod;
use rustix::io::Errno;

const PAGE: u64 = 4096;
/// Linux' own limit: the program headers fit 64 KiB.
const MAX_HEADERS_BYTES: usize = 64 << 10;
const PATH_MAX: u64 = 4096;
/// The end of the lower canonical half.
const USER_END: u64 = 1 << 47;

/// Why a file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("reading it failed")]
    Read(#[source] io::Error),
    #[error("it is not an ELF program: it begins with {0:02x?}")]
    NotElf(Vec<u8>),
    #[error("it is for {0}; this engine runs x86-64 programs")]
    Architecture(String),
    #[error("it is an ELF {0}, not a program; deploy the linked executable")]
    Kind(&'static str),
    #[error("it is a 32-bit or big-endian ELF file; this engine runs 64-bit x86-64 programs")]
    Class,
    #[error("its ELF headers are broken: {0}")]
    Broken(&'static str),
}

/// Loadable segments may be placed anywhere, or only where they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// `ET_EXEC`.
    Fixed,
    /// `ET_DYN`: a position-independent program or an interpreter.
    Anywhere,
}

/// What a segment lets the program do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// One `PT_LOAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) file_offset: u64,
    pub(crate) file_bytes: u64,
    pub(crate) access: Access,
}

/// A program or interpreter that can be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) placement: Placement,
    /// Before the bias is added.
    pub(crate) entry: u64,
    /// Address of the program headers in memory before the bias is added, for `AT_PHDR`; 0 if they are not loaded.
    pub(crate) headers_address: u64,
    pub(crate) headers: u16,
    /// The path in `PT_INTERP`.
    pub(crate) interpreter: Option<Vec<u8>>,
    /// Sorted by address, not overlapping, at least one.
    pub(crate) segments: Vec<Segment>,
    /// The largest alignment a segment asks for, at least a page, a power of two.
    pub(crate) alignment: u64,
    /// `PT_GNU_STACK` asks for an executable stack.
    pub(crate) executable_stack: bool,
}

/// The size of one program header, for `AT_PHENT`.
pub(crate) const HEADER_BYTES: u64 = size_of::<ProgramHeader64<LE>>() as u64;

impl Program {
    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// A [`Refusal`] that says what the file is instead.
    pub(crate) fn read(file: impl AsFd) -> Result<Self, Refusal> {
        let file = file.as_fd();
        let mut first = [0; size_of::<FileHeader64<LE>>()];
        let got = read_at(file, &mut first, 0)?;
        let header = check_header(&first[..got])?;
        let raw = read_headers(file, header)?;
        let headers = headers_of(&raw, header.e_phnum.get(LE))?;
        let stat = rustix::fs::fstat(file).map_err(|errno| Refusal::Read(errno.into()))?;
        let file_bytes = stat.st_size as u64;
        let segments = segments(headers, file_bytes)?;
        let placement = match header.e_type.get(LE) {
            elf::ET_EXEC => Placement::Fixed,
            _ => Placement::Anywhere,
        };
        Ok(Self {
            placement,
            entry: header.e_entry.get(LE),
            headers_address: headers_address(&segments, headers, header),
            headers: header.e_phnum.get(LE),
            interpreter: interpreter(file, headers)?,
            alignment: alignment(headers),
            executable_stack: headers
                .iter()
                .any(|h| h.p_type.get(LE) == elf::PT_GNU_STACK && h.p_flags.get(LE) & elf::PF_X != 0),
            segments,
        })
    }

    /// First page of the first segment and first page after the last one, before the bias is added.
    pub(crate) fn span(&self) -> (u64, u64) {
        let first = self.segments.first().map_or(0, |s| s.address & !(PAGE - 1));
        let end = self.segments.last().map_or(0, |s| (s.address + s.memory_bytes).next_multiple_of(PAGE));
        (first, end)
    }

    /// What to map, in order, when `bias` is added to every address. A later mapping may replace a page of an earlier
    /// one, as on Linux.
    pub(crate) fn mappings(&self, bias: u64) -> Vec<Mapping> {
        self.segments.iter().flat_map(|s| s.mappings(bias)).collect()
    }
}

/// One mapping that loading makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// A multiple of the page size.
    pub(crate) address: u64,
    /// A multiple of the page size, not 0.
    pub(crate) bytes: u64,
    /// Offset in the file, a multiple of the page size; `None`: zeroes.
    pub(crate) file_offset: Option<u64>,
    pub(crate) access: Access,
    /// From this address to the end of its page the file's bytes must be replaced by zeroes (.bss begins there).
    pub(crate) zero_from: Option<u64>,
}

impl Segment {
    fn mappings(&self, bias: u64) -> impl Iterator<Item = Mapping> {
        let start = self.address + bias;
        let page = start & !(PAGE - 1);
        let file_end = start + self.file_bytes;
        let file_pages = if self.file_bytes == 0 { page } else { file_end.next_multiple_of(PAGE) };
        let end = (start + self.memory_bytes).next_multiple_of(PAGE);
        let zero_from = (self.memory_bytes > self.file_bytes && file_end < file_pages && self.access.write)
            .then_some(file_end);
        let file = (file_pages > page).then_some(Mapping {
            address: page,
            bytes: file_pages - page,
            file_offset: Some(self.file_offset - (start - page)),
            access: self.access,
            zero_from,
        });
        let zeroes = (end > file_pages).then_some(Mapping {
            address: file_pages,
            bytes: end.saturating_sub(file_pages),
            file_offset: None,
            access: self.access,
            zero_from: None,
        });
        file.into_iter().chain(zeroes)
    }
}

fn read_at(file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> Result<usize, Refusal> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(file, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(Refusal::Read(e.into())),
        }
    }
    Ok(done)
}

fn check_header(first: &[u8]) -> Result<&FileHeader64<LE>, Refusal> {
    if !first.starts_with(&elf::ELFMAG) {
        return Err(Refusal::NotElf(first[..first.len().min(4)].to_vec()));
    }
    let (header, _) = pod::from_bytes::<FileHeader64<LE>>(first)
        .map_err(|()| Refusal::Broken("the file ends inside of the ELF header"))?;
    if header.e_ident.class != elf::ELFCLASS64 || header.e_ident.data != elf::ELFDATA2LSB {
        return Err(Refusal::Class);
    }
    match header.e_machine.get(LE) {
        elf::EM_X86_64 => {}
        machine => return Err(Refusal::Architecture(architecture(machine))),
    }
    match header.e_type.get(LE) {
        elf::ET_EXEC | elf::ET_DYN => {}
        elf::ET_REL => return Err(Refusal::Kind("object file")),
        elf::ET_CORE => return Err(Refusal::Kind("core dump")),
        _ => return Err(Refusal::Kind("file of an unknown type")),
    }
    if usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
        return Err(Refusal::Broken("the size of a program header is not 56 bytes"));
    }
    Ok(header)
}

fn architecture(machine: u16) -> String {
    match machine {
        elf::EM_AARCH64 => "64-bit Arm".into(),
        elf::EM_ARM => "32-bit Arm".into(),
        elf::EM_386 => "32-bit x86".into(),
        elf::EM_RISCV => "RISC-V".into(),
        elf::EM_PPC64 => "64-bit POWER".into(),
        elf::EM_S390 => "IBM Z".into(),
        other => format!("ELF machine number {other}"),
    }
}

fn read_headers(file: BorrowedFd<'_>, header: &FileHeader64<LE>) -> Result<Vec<u8>, Refusal> {
    let bytes = usize::from(header.e_phnum.get(LE)) * size_of::<ProgramHeader64<LE>>();
    if bytes == 0 || bytes > MAX_HEADERS_BYTES {
        return Err(Refusal::Broken("it has no program headers, or more than 64 KiB of them"));
    }
    let offset = header.e_phoff.get(LE);
    if offset > i64::MAX as u64 - bytes as u64 {
        return Err(Refusal::Broken("the program headers lie beyond any file"));
    }
    let mut raw = vec![0; bytes];
    if read_at(file, &mut raw, offset)? != bytes {
        return Err(Refusal::Broken("the file ends inside of the program headers"));
    }
    Ok(raw)
}

fn headers_of(raw: &[u8], count: u16) -> Result<&[ProgramHeader64<LE>], Refusal> {
    pod::slice_from_bytes(raw, usize::from(count))
        .map(|(headers, _)| headers)
        .map_err(|()| Refusal::Broken("the program headers"))
}

fn segments(headers: &[ProgramHeader64<LE>], file_bytes: u64) -> Result<Vec<Segment>, Refusal> {
    let mut out: Vec<Segment> = Vec::new();
    for header in headers.iter().filter(|h| h.p_type.get(LE) == elf::PT_LOAD && h.p_memsz.get(LE) > 0) {
        let segment = segment(header, file_bytes)?;
        if out.last().is_some_and(|last| last.address + last.memory_bytes > segment.address) {
            return Err(Refusal::Broken("its segments overlap or are not in the order of their addresses"));
        }
        out.push(segment);
    }
    if out.is_empty() { Err(Refusal::Broken("it has nothing to load")) } else { Ok(out) }
}

fn segment(header: &ProgramHeader64<LE>, file_bytes: u64) -> Result<Segment, Refusal> {
    let flags = header.p_flags.get(LE);
    let segment = Segment {
        address: header.p_vaddr.get(LE),
        memory_bytes: header.p_memsz.get(LE),
        file_offset: header.p_offset.get(LE),
        file_bytes: header.p_filesz.get(LE),
        access: Access {
            read: flags & elf::PF_R != 0,
            write: flags & elf::PF_W != 0,
            execute: flags & elf::PF_X != 0,
        },
    };
    if segment.file_bytes > segment.memory_bytes {
        return Err(Refusal::Broken("a segment is larger in the file than in memory"));
    }
    if segment.address >= USER_END || segment.memory_bytes > USER_END - segment.address {
        return Err(Refusal::Broken("a segment lies outside of a program's addresses"));
    }
    if segment.file_bytes > 0 {
        let end = segment.file_offset.checked_add(segment.file_bytes);
        if end.is_none_or(|end| end > file_bytes) {
            return Err(Refusal::Broken("a segment lies beyond the end of the file: it is cut short"));
        }
        if segment.file_offset % PAGE != segment.address % PAGE {
            return Err(Refusal::Broken("a segment's offset in the file does not fit its address"));
        }
    }
    Ok(segment)
}

fn headers_address(segments: &[Segment], headers: &[ProgramHeader64<LE>], header: &FileHeader64<LE>) -> u64 {
    if let Some(own) = headers.iter().find(|h| h.p_type.get(LE) == elf::PT_PHDR) {
        return own.p_vaddr.get(LE);
    }
    let offset = header.e_phoff.get(LE);
    segments
        .iter()
        .find(|s| s.file_offset <= offset && offset - s.file_offset < s.file_bytes)
        .map_or(0, |s| s.address + (offset - s.file_offset))
}

fn interpreter(file: BorrowedFd<'_>, headers: &[ProgramHeader64<LE>]) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(header) = headers.iter().find(|h| h.p_type.get(LE) == elf::PT_INTERP) else { return Ok(None) };
    let bytes = header.p_filesz.get(LE);
    if !(2..=PATH_MAX).contains(&bytes) || header.p_offset.get(LE) > i64::MAX as u64 - PATH_MAX {
        return Err(Refusal::Broken("the path of its interpreter is empty or too long"));
    }
    let mut path = vec![0; bytes as usize];
    if read_at(file, &mut path, header.p_offset.get(LE))? != path.len() || path.pop() != Some(0) {
        return Err(Refusal::Broken("the path of its interpreter is not a string"));
    }
    Ok(Some(path))
}

fn alignment(headers: &[ProgramHeader64<LE>]) -> u64 {
    headers
        .iter()
        .filter(|h| h.p_type.get(LE) == elf::PT_LOAD)
        .map(|h| h.p_align.get(LE))
        .filter(|align| align.is_power_of_two() && *align <= 1 << 30)
        .fold(PAGE, u64::max)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read(bytes: &[u8]) -> Result<Program, Refusal> {
        Program::read(file(bytes))
    }

    fn this_test() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_real_program_is_read() {
        let program = read(&this_test()).unwrap();
        assert_eq!(program.placement, Placement::Anywhere);
        assert_eq!(program.interpreter.as_deref(), Some(b"/lib64/ld-linux-x86-64.so.2".as_slice()));
        assert!(program.segments.iter().any(|s| s.access.execute && !s.access.write));
        assert!(program.headers_address > 0 && !program.executable_stack);
        let text = program.segments.iter().find(|s| s.access.execute).unwrap();
        assert!((text.address..text.address + text.memory_bytes).contains(&program.entry));
    }

    #[test]
    fn what_is_not_a_program_is_named() {
        assert!(matches!(read(b""), Err(Refusal::NotElf(_))));
        assert!(matches!(read(b"#!/bin/sh\n"), Err(Refusal::NotElf(_))));
        assert!(matches!(read(b"\x7fELF\x02\x01"), Err(Refusal::Broken(_))));
        let mut arm = this_test()[..4096].to_vec();
        arm[18] = 183;
        assert_eq!(
            read(&arm).unwrap_err().to_string(),
            "it is for 64-bit Arm; this engine runs x86-64 programs"
        );
        let mut narrow = this_test()[..4096].to_vec();
        narrow[4] = 1;
        assert!(matches!(read(&narrow), Err(Refusal::Class)));
        assert!(matches!(read(&this_test()[..8192]), Err(Refusal::Broken(_))), "cut short");
    }

    #[test]
    fn bss_begins_in_the_last_page_of_the_file() {
        let segment = Segment {
            address: 0x1f00,
            memory_bytes: 0x2200,
            file_offset: 0xf00,
            file_bytes: 0x180,
            access: Access { read: true, write: true, execute: false },
        };
        let made: Vec<_> = segment.mappings(0x10000).collect();
        assert_eq!(made.len(), 2);
        assert_eq!((made[0].address, made[0].bytes, made[0].file_offset), (0x11000, 0x2000, Some(0)));
        assert_eq!(made[0].zero_from, Some(0x12080));
        assert_eq!((made[1].address, made[1].bytes, made[1].file_offset), (0x13000, 0x2000, None));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(damage in prop::collection::vec((0usize..1024, any::<u8>()), 1..40), bias in 0u64..1 << 40) {
            let mut bytes = this_test()[..65536].to_vec();
            for (at, value) in damage {
                bytes[at] = value;
            }
            if let Ok(program) = read(&bytes) {
                for mapping in program.mappings(bias & !4095) {
                    prop_assert_eq!(mapping.address % PAGE, 0);
                    prop_assert!(mapping.bytes > 0 && mapping.bytes % PAGE == 0);
                    prop_assert!(mapping.address + mapping.bytes <= 2 * USER_END);
                }
            }
        }
    }
}
