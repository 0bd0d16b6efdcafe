//! The initramfs: archives one behind the other, at the end of the memory below the hole.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use vm_memory::{Bytes, GuestAddress};

use super::Initramfs;
use crate::linux::error::Error;
use crate::linux::layout::PAGE;
use crate::linux::memory::{self, Memory};

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
    match archive {
        Initramfs::Bytes(bytes) => {
            memory.write_slice(bytes, GuestAddress(at)).map_err(|e| host("writing the initramfs", e))
        }
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
    fn an_initramfs_over_the_kernel_is_refused() {
        let bytes = 32 << 20;
        let memory = memory::allocate(bytes).unwrap();
        let archives = [Initramfs::Bytes(vec![1; 10].into())];
        assert!(load(&memory, bytes, bytes - 5, &archives).is_err());
    }
}
