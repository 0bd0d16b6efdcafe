//! A vmlinux without its holes: same memory contents, half the file.
//!
//! The linker aligns the kernel's segments to 2 MiB in the file and fills text up to 2 MiB too. Guest memory is zero to
//! begin with, so runs of zero pages need not be in the file; what remains is aligned to pages, which is all that
//! mapping needs.
//!
//! ```text
//! ELF header | program headers | notes | 0 .. | pages of run 1 | pages of run 2 | ...
//! 0                                        4096
//! ```

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_EXEC, EV_CURRENT, FileHeader64, PT_LOAD, PT_NOTE,
    ProgramHeader64,
};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, pod};

use crate::Error;

const PAGE: u64 = 4096;
/// Zero pages between two runs that are not worth another segment.
const SMALL_HOLE: u64 = 16;
/// Most segments: headers and notes share the first page.
const MOST_SEGMENTS: usize = 56;
const HEADER_SIZE: u64 = 64;
const SEGMENT_SIZE: u64 = 56;

/// A part of a segment that becomes a segment.
struct Run {
    flags: u32,
    vaddr: u64,
    paddr: u64,
    /// In the old file.
    offset: u64,
    in_file: u64,
    in_memory: u64,
}

/// Rewrites `elf`. Loading the result leaves in memory what loading `elf` leaves.
///
/// # Errors
/// [`Error::Format`] where it is no x86-64 ELF executable whose segments lie in the file.
pub fn compact(elf: &[u8]) -> Result<Vec<u8>, Error> {
    let bad = |reason: &str| Error::format("vmlinux", reason);
    let header = FileHeader64::<LittleEndian>::parse(elf).map_err(|error| bad(&error.to_string()))?;
    if header.e_machine(LittleEndian) != EM_X86_64 {
        return Err(bad("it is not for x86-64"));
    }
    let segments = header.program_headers(LittleEndian, elf).map_err(|error| bad(&error.to_string()))?;
    let (mut runs, mut notes) = (Vec::new(), Vec::new());
    for segment in segments {
        let data = segment.data(LittleEndian, elf).map_err(|()| bad("a segment lies outside of the file"))?;
        match segment.p_type(LittleEndian) {
            PT_LOAD => runs.extend(split(segment, data)),
            PT_NOTE => notes.push((segment.p_vaddr(LittleEndian), segment.p_paddr(LittleEndian), data)),
            _ => {}
        }
    }
    if runs.is_empty() || runs.len() + notes.len() > MOST_SEGMENTS {
        return Err(bad("it has no segments, or far too many"));
    }
    write(elf, header.e_entry(LittleEndian), &runs, &notes).ok_or_else(|| bad("its notes are too long"))
}

/// Runs of pages of `segment` that are not zero. The last one keeps the segment's end in memory.
fn split(segment: &ProgramHeader64<LittleEndian>, data: &[u8]) -> Vec<Run> {
    let end = segment.p_memsz(LittleEndian).max(data.len() as u64);
    let run = |from: u64, to: u64| Run {
        flags: segment.p_flags(LittleEndian),
        vaddr: segment.p_vaddr(LittleEndian).wrapping_add(from),
        paddr: segment.p_paddr(LittleEndian).wrapping_add(from),
        offset: segment.p_offset(LittleEndian) + from,
        in_file: to - from,
        in_memory: to - from,
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (index, page) in data.chunks(PAGE as usize).enumerate() {
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        let from = index as u64 * PAGE;
        let to = from + page.len() as u64;
        match runs.last_mut() {
            Some(last) if from - last.1 <= SMALL_HOLE * PAGE => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    if runs.is_empty() {
        runs.push((0, 0));
    }
    let mut runs: Vec<Run> = runs.into_iter().map(|(from, to)| run(from, to)).collect();
    if let Some(last) = runs.last_mut() {
        last.in_memory = segment.p_paddr(LittleEndian).wrapping_add(end).wrapping_sub(last.paddr);
    }
    runs
}

fn write(elf: &[u8], entry: u64, runs: &[Run], notes: &[(u64, u64, &[u8])]) -> Option<Vec<u8>> {
    let count = runs.len() + notes.len();
    let mut headers = Vec::new();
    let mut note_bytes = Vec::new();
    let notes_at = HEADER_SIZE + count as u64 * SEGMENT_SIZE;
    let mut at = PAGE;
    for run in runs {
        let place = (at, run.vaddr, run.paddr);
        headers.push(segment(PT_LOAD, run.flags, place, run.in_file, run.in_memory, PAGE));
        at = (at + run.in_file).next_multiple_of(PAGE);
    }
    for (vaddr, paddr, data) in notes {
        let place = (notes_at + note_bytes.len() as u64, *vaddr, *paddr);
        let length = data.len() as u64;
        headers.push(segment(PT_NOTE, 4, place, length, length, 4));
        note_bytes.extend_from_slice(data);
        note_bytes.resize(note_bytes.len().next_multiple_of(4), 0);
    }
    let mut file = file_header(entry, count);
    file.extend_from_slice(pod::bytes_of_slice(&headers));
    file.extend_from_slice(&note_bytes);
    if file.len() as u64 > PAGE {
        return None;
    }
    for run in runs {
        file.resize(file.len().next_multiple_of(PAGE as usize), 0);
        file.extend_from_slice(&elf[run.offset as usize..(run.offset + run.in_file) as usize]);
    }
    Some(file)
}

fn segment(
    kind: u32,
    flags: u32,
    (offset, vaddr, paddr): (u64, u64, u64),
    in_file: u64,
    in_memory: u64,
    align: u64,
) -> ProgramHeader64<LittleEndian> {
    let word = |value| object::U64::new(LittleEndian, value);
    ProgramHeader64 {
        p_type: object::U32::new(LittleEndian, kind),
        p_flags: object::U32::new(LittleEndian, flags),
        p_offset: word(offset),
        p_vaddr: word(vaddr),
        p_paddr: word(paddr),
        p_filesz: word(in_file),
        p_memsz: word(in_memory),
        p_align: word(align),
    }
}

fn file_header(entry: u64, segments: usize) -> Vec<u8> {
    let half = |value| object::U16::new(LittleEndian, value);
    let word = |value| object::U64::new(LittleEndian, value);
    let header = FileHeader64 {
        e_ident: object::elf::Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: 0,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: half(ET_EXEC),
        e_machine: half(EM_X86_64),
        e_version: object::U32::new(LittleEndian, EV_CURRENT.into()),
        e_entry: word(entry),
        e_phoff: word(HEADER_SIZE),
        e_shoff: word(0),
        e_flags: object::U32::new(LittleEndian, 0),
        e_ehsize: half(HEADER_SIZE as u16),
        e_phentsize: half(SEGMENT_SIZE as u16),
        e_phnum: half(segments as u16),
        e_shentsize: half(0),
        e_shnum: half(0),
        e_shstrndx: half(0),
    };
    pod::bytes_of(&header).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What memory holds after loading: (address, byte) of all that is not zero, and the highest end.
    fn loaded(elf: &[u8]) -> (Vec<(u64, u8)>, u64) {
        let header = FileHeader64::<LittleEndian>::parse(elf).unwrap();
        let (mut bytes, mut end) = (Vec::new(), 0);
        for segment in header.program_headers(LittleEndian, elf).unwrap() {
            if segment.p_type(LittleEndian) == PT_LOAD {
                let at = segment.p_paddr(LittleEndian);
                let data = segment.data(LittleEndian, elf).unwrap();
                let filled = data.iter().enumerate().filter(|(_, byte)| **byte != 0);
                bytes.extend(filled.map(|(index, byte)| (at + index as u64, *byte)));
                end = end.max(at + segment.p_memsz(LittleEndian));
            }
        }
        (bytes, end)
    }

    fn sample() -> Vec<u8> {
        let mut text = vec![0; 300 * PAGE as usize + 10];
        (text[0], text[200 * 4096 + 5], text[300 * 4096 + 9]) = (1, 2, 3);
        let place = (0x20_0000, 0xffff_ffff_8100_0000, 0x100_0000);
        let length = text.len() as u64;
        let headers = [
            segment(PT_LOAD, 5, place, length, length + 0x5000, 0x20_0000),
            segment(PT_NOTE, 4, (0x20_0000, 0, 0), 8, 8, 4),
        ];
        let mut elf = file_header(0x100_0000, headers.len());
        elf.extend_from_slice(pod::bytes_of_slice(&headers));
        elf.resize(0x20_0000, 0);
        elf.extend(text);
        elf
    }

    #[test]
    fn memory_is_the_same_and_the_file_is_smaller() {
        let elf = sample();
        let small = compact(&elf).unwrap();
        assert_eq!(loaded(&small), loaded(&elf));
        assert!(small.len() < 6 * PAGE as usize, "{}", small.len());
        let header = FileHeader64::<LittleEndian>::parse(small.as_slice()).unwrap();
        assert_eq!(header.e_entry(LittleEndian), 0x100_0000);
        let segments = header.program_headers(LittleEndian, small.as_slice()).unwrap();
        assert!(
            segments
                .iter()
                .all(|s| s.p_type(LittleEndian) != PT_LOAD || s.p_offset(LittleEndian) % PAGE == 0)
        );
        let note = segments.iter().find(|s| s.p_type(LittleEndian) == PT_NOTE).unwrap();
        assert_eq!(note.data(LittleEndian, small.as_slice()).unwrap(), [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(compact(b"MZ").is_err());
        let mut cut = sample();
        cut.truncate(0x20_1000);
        assert!(compact(&cut).is_err());
    }
}
