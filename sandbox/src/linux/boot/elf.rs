//! A vmlinux: its segments are mapped from the file where they are aligned, so that a cold boot copies next to
//! nothing and guests share the pages that none of them writes.
//!
//! Source: ELF-64; the PVH note is `XEN_ELFNOTE_PHYS32_ENTRY` of xen/include/public/elfnote.h.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use object::elf::{EM_X86_64, FileHeader64, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, pod};
use vm_memory::{Bytes, GuestAddress};

use super::Loaded;
use crate::linux::error::Error;
use crate::linux::layout::{HIGH_MEMORY, PAGE};
use crate::linux::memory::Memory;
use crate::linux::sys;

/// Type of the note with the PVH entry.
const PHYS32_ENTRY: u32 = 18;
/// More program headers than any kernel has.
const MOST_HEADERS: usize = 64;
/// More bytes of notes than any kernel has.
const MOST_NOTE_BYTES: u64 = 1 << 16;

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;

/// Loads it where it is linked (physically).
pub(super) fn load(memory: &Memory, file: &File, path: &Path) -> Result<Loaded, Error> {
    let loader = Loader { memory, file, path };
    let (entry, segments) = loader.headers()?;
    let mut loaded = Loaded { entry, pvh: None, end: HIGH_MEMORY, header: None };
    for segment in &segments {
        match segment.p_type(LittleEndian) {
            PT_LOAD => loaded.end = loaded.end.max(loader.segment(segment)?),
            PT_NOTE => loaded.pvh = loaded.pvh.or(loader.pvh_entry(segment)?),
            _ => {}
        }
    }
    Ok(loaded)
}

struct Loader<'a> {
    memory: &'a Memory,
    file: &'a File,
    path: &'a Path,
}

impl Loader<'_> {
    fn refuse(&self, reason: &str) -> Error {
        Error::Kernel { path: self.path.to_owned(), reason: reason.to_owned() }
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let result = self.file.read_exact_at(&mut bytes, at);
        result.map_err(|source| Error::File {
            doing: "reading the kernel",
            path: self.path.to_owned(),
            source,
        })?;
        Ok(bytes)
    }

    fn headers(&self) -> Result<(u64, Vec<Segment>), Error> {
        let bytes = self.read(0, size_of::<Header>())?;
        let header = Header::parse(bytes.as_slice()).map_err(|_| self.refuse("its ELF header is broken"))?;
        let little = header.endian().is_ok_and(|endian: LittleEndian| endian == LittleEndian);
        if !little || header.e_machine(LittleEndian) != EM_X86_64 {
            return Err(self.refuse("it is not for x86-64"));
        }
        let count = usize::from(header.e_phnum(LittleEndian));
        if count > MOST_HEADERS || usize::from(header.e_phentsize(LittleEndian)) != size_of::<Segment>() {
            return Err(self.refuse("its program headers are broken"));
        }
        let table = self.read(header.e_phoff(LittleEndian), count * size_of::<Segment>())?;
        let segments =
            pod::slice_from_bytes::<Segment>(&table, count).map_err(|()| self.refuse("it is broken"))?;
        Ok((header.e_entry(LittleEndian), segments.0.to_vec()))
    }

    /// Returns the first address behind the segment. What is not in the file is zero already.
    fn segment(&self, segment: &Segment) -> Result<u64, Error> {
        let (at, offset) = (segment.p_paddr(LittleEndian), segment.p_offset(LittleEndian));
        let (in_file, in_memory) = (segment.p_filesz(LittleEndian), segment.p_memsz(LittleEndian));
        let end = at.checked_add(in_memory.max(in_file)).filter(|_| at >= HIGH_MEMORY);
        let end = end.ok_or_else(|| self.refuse("a segment lies where none may lie"))?;
        let pages = in_file - in_file % PAGE;
        let aligned = at.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE);
        let mapped = if aligned && pages > 0 { self.map(at, offset, pages)? } else { 0 };
        self.copy(at + mapped, offset + mapped, in_file - mapped)?;
        Ok(end)
    }

    /// Maps whole pages; returns how many bytes were mapped.
    fn map(&self, at: u64, offset: u64, length: u64) -> Result<u64, Error> {
        let file_length = self.file.metadata().map(|data| data.len()).unwrap_or(0);
        if offset.checked_add(length).is_none_or(|end| end > file_length) {
            return Err(self.refuse("it is cut short"));
        }
        let mapped = sys::map_file(self.memory, GuestAddress(at), self.file.as_fd(), offset, length);
        let mapped = mapped.map_err(Error::host("mapping the kernel"))?;
        Ok(if mapped { length } else { 0 })
    }

    fn copy(&self, at: u64, offset: u64, length: u64) -> Result<(), Error> {
        // Not more than the file holds, whatever its headers say.
        let bytes = self.read(offset, usize::try_from(length).map_err(|_| self.refuse("it is broken"))?)?;
        let result = self.memory.write_slice(&bytes, GuestAddress(at));
        result.map_err(|_| self.refuse("it does not fit into the guest's memory; give it more"))
    }

    fn pvh_entry(&self, segment: &Segment) -> Result<Option<u64>, Error> {
        let length = segment.p_filesz(LittleEndian).min(MOST_NOTE_BYTES);
        Ok(pvh_note(&self.read(segment.p_offset(LittleEndian), length as usize)?))
    }
}

/// The entry in `notes`: name size, description size, type, then both, each padded to 4.
fn pvh_note(mut notes: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
    while notes.len() >= 12 {
        let name_size = word(&notes[0..4])? as usize;
        let size = word(&notes[4..8])? as usize;
        let kind = word(&notes[8..12])?;
        let at = 12usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let end = at.checked_add(size)?;
        let description = notes.get(at..end)?;
        if kind == PHYS32_ENTRY && notes[12..].starts_with(b"Xen\0") {
            // 4 or 8 bytes, by the kernel's word size.
            return word(description.get(..4)?).map(u64::from);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((description.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(description);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_pvh_entry_is_found_behind_other_notes() {
        let notes = [note(b"Linux\0", 1, b"x"), note(b"Xen\0", 18, &0x100_0370u64.to_le_bytes())].concat();
        assert_eq!(pvh_note(&notes), Some(0x100_0370));
        assert_eq!(pvh_note(&note(b"GNU\0", 18, &[1; 8])), None);
    }

    proptest! {
        #[test]
        fn broken_notes_are_no_notes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = pvh_note(&bytes);
        }
    }

    #[test]
    fn an_elf_file_that_is_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        std::fs::write(&path, b"\x7fELF\x02\x01\x01").unwrap();
        let memory = crate::linux::memory::allocate(32 << 20).unwrap();
        assert!(load(&memory, &File::open(&path).unwrap(), &path).is_err());
    }
}
