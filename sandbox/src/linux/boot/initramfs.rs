//! The initramfs: archives one behind the other, at the end of the memory below the hole.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::Initramfs;
use crate::linux::error::Error;
use crate::linux::layout::PAGE;
use crate::linux::memory::{self, Memory};
use crate::linux::sys;

/// Where the initramfs is: (address, length).
pub(super) type Place = Option<(u64, u64)>;

/// Archives begin at multiples of this (the kernel's unpacker demands 4).
const ALIGN: u64 = 512;

/// Loads `archives` behind `kernel_end`.
pub(super) fn load(
    memory: &Memory,
    memory_bytes: u64,
    kernel_end: u64,
    archives: &[Initramfs],
) -> Result<Place, Error> {
    if archives.is_empty() {
        return Ok(None);
    }
    let does_not_fit = || Error::DoesNotFit { what: "the kernel with its initramfs", memory_bytes };
    let lengths = archives.iter().map(length).collect::<Result<Vec<u64>, Error>>()?;
    let total: u64 = lengths.iter().map(|length| length.next_multiple_of(ALIGN)).sum();
    let start = memory::low_end(memory_bytes).checked_sub(total).map(|start| start - start % PAGE);
    let start = start.filter(|start| *start >= kernel_end).ok_or_else(does_not_fit)?;
    let mut at = start;
    for (archive, length) in archives.iter().zip(&lengths) {
        copy(memory, at, archive, *length)?;
        at += length.next_multiple_of(ALIGN);
    }
    Ok(Some((start, total)))
}

fn length(archive: &Initramfs) -> Result<u64, Error> {
    match archive {
        Initramfs::Bytes(bytes) => Ok(bytes.len() as u64),
        Initramfs::Program(bytes) => Ok(bytes.len() as u64),
        Initramfs::File(path) => match std::fs::metadata(path) {
            Ok(data) => Ok(data.size()),
            Err(source) => Err(Error::File { doing: "reading the initramfs", path: path.clone(), source }),
        },
    }
}

fn copy(memory: &Memory, at: u64, archive: &Initramfs, length: u64) -> Result<(), Error> {
    let host = |doing, error: vm_memory::GuestMemoryError| Error::Host {
        doing,
        source: std::io::Error::other(error),
    };
    let write = |bytes: &[u8]| {
        memory.write_slice(bytes, GuestAddress(at)).map_err(|e| host("writing the initramfs", e))
    };
    match archive {
        Initramfs::Bytes(bytes) => write(bytes),
        Initramfs::Program(bytes) => match map_own_file(memory, at, bytes) {
            Some(()) => Ok(()),
            None => write(bytes),
        },
        Initramfs::File(path) => {
            let file = File::open(path);
            let mut file = file.map_err(|source| Error::File {
                doing: "reading the initramfs",
                path: path.clone(),
                source,
            })?;
            let result = memory.read_exact_volatile_from(GuestAddress(at), &mut file, length as usize);
            result.map_err(|error| host("reading the initramfs", error))
        }
    }
}

/// Maps `bytes` of this program from its file; `None` where that cannot be.
fn map_own_file(memory: &Memory, at: u64, bytes: &'static [u8]) -> Option<()> {
    let length = bytes.len() as u64;
    let found = own_file(bytes)?;
    let (file, offset) = &*found;
    at.is_multiple_of(PAGE).then_some(())?;
    sys::map_file(memory, GuestAddress(at), file.as_fd(), *offset, length).ok()?.then_some(())
}

/// A file, and where in it something begins; `None` where it is in none.
type InFile = Option<Arc<(File, u64)>>;

/// This program's file, and where in it `bytes` are: whole pages. Looked for once, as that takes longer than mapping them.
fn own_file(bytes: &'static [u8]) -> InFile {
    // By address and length.
    static FOUND: Mutex<BTreeMap<(usize, usize), InFile>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock();
    let place = found.entry((bytes.as_ptr().addr(), bytes.len()));
    place.or_insert_with(|| find_own_file(bytes).map(Arc::new)).clone()
}

fn find_own_file(bytes: &[u8]) -> Option<(File, u64)> {
    let address = bytes.as_ptr().addr() as u64;
    let length = bytes.len() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let offset = maps.lines().find_map(|line| file_offset(line, address, length))?;
    if length == 0 || ![offset, length].iter().all(|value| value.is_multiple_of(PAGE)) {
        return None;
    }
    let file = File::open("/proc/self/exe").ok()?;
    // The mapping may be a library's, or the file's offset another than it says: then the bytes differ.
    for page in [0, length - PAGE] {
        let mut found = [0; PAGE as usize];
        file.read_exact_at(&mut found, offset + page).ok()?;
        (bytes[page as usize..][..PAGE as usize] == found).then_some(())?;
    }
    Some((file, offset))
}

/// Where in its file the mapping that `line` of /proc/PID/maps describes has `length` bytes at `address`.
fn file_offset(line: &str, address: u64, length: u64) -> Option<u64> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (number(start)?, number(end)?, number(words.nth(1)?)?);
    let inside = start <= address && address.checked_add(length)? <= end;
    inside.then(|| address - start + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_lie_one_behind_the_other_below_the_end_of_memory() {
        let bytes = 32 << 20;
        let memory = memory::allocate(bytes).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [2; 700]).unwrap();
        let archives = [Initramfs::Bytes(vec![1; 10].into()), Initramfs::File(file.path().to_owned())];
        let (at, length) = load(&memory, bytes, 0, &archives).unwrap().unwrap();
        assert_eq!((at % PAGE, length), (0, 512 + 1024));
        assert!(at + length <= bytes);
        let mut read = [0; 1];
        memory.read_slice(&mut read, GuestAddress(at + 512 + 699)).unwrap();
        assert_eq!(read, [2]);
    }

    #[test]
    fn the_programs_own_pages_are_mapped() {
        let memory = memory::allocate(32 << 20).unwrap();
        let archive = novum_agent_image::initramfs();
        assert!(map_own_file(&memory, 16 << 20, archive).is_some());
        let mut found = vec![0; archive.len()];
        memory.read_slice(&mut found, GuestAddress(16 << 20)).unwrap();
        assert!(found == archive);
        assert!(
            map_own_file(&memory, 16 << 20, Box::leak(vec![1; 4096].into_boxed_slice())).is_none(),
            "no file"
        );
        assert!(map_own_file(&memory, 16 << 20, &archive[512..]).is_none(), "no whole pages");
    }

    #[test]
    fn a_line_of_maps_tells_the_offset() {
        let line = "55d0c8a00000-55d0c8c00000 r--p 00100000 00:1f 12345   /usr/bin/a program";
        assert_eq!(file_offset(line, 0x55d0_c8a0_3000, 0x1000), Some(0x10_3000));
        assert_eq!(file_offset(line, 0x55d0_c8bf_f000, 0x1001), None, "it ends earlier");
        assert_eq!(file_offset("7fff-junk", 0, 0), None);
    }

    #[test]
    fn an_initramfs_over_the_kernel_is_refused() {
        let bytes = 32 << 20;
        let memory = memory::allocate(bytes).unwrap();
        let archives = [Initramfs::Bytes(vec![1; 10].into())];
        assert!(load(&memory, bytes, bytes - 5, &archives).is_err());
    }
}
