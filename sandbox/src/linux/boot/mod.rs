//! From a kernel file to a vCPU's first instruction, without BIOS or boot loader.
//!
//! Three ways in, each with what it expects in memory:
//!
//! | kernel | entry | state | hands over |
//! |---|---|---|---|
//! | vmlinux | ELF entry, 64-bit boot protocol | long mode, identity map | zero page in RSI |
//! | bzImage | load address + 0x200, the same | the same | the same |
//! | vmlinux with a PVH note | the note's address | 32-bit protected mode, no paging | start info in EBX |
//!
//! Sources: Linux Documentation/arch/x86/boot.rst; xen/include/public/arch-x86/hvm/start_info.h.

mod acpi;
mod bzimage;
mod command_line;
mod elf;
mod entry;
mod initramfs;
mod mp_table;
mod pvh;
mod zero_page;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::error::Error;
use super::layout::{self, Slot};
use super::memory::{self, Memory};
use super::sys;

pub(crate) use entry::set_boot_state;

const HUGE_PAGE: u64 = 2 << 20;

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootSource {
    /// A vmlinux (ELF) or bzImage.
    pub kernel: PathBuf,
    /// Archives (cpio) that make up the initramfs, one behind the other.
    pub initramfs: Vec<Initramfs>,
    /// The command line, without the virtio devices, which are appended.
    pub command_line: String,
    /// By which entry.
    pub entry: EntryKind,
}

/// One archive of an initramfs.
#[derive(Clone, Debug)]
pub enum Initramfs {
    /// A file.
    File(PathBuf),
    /// Made in memory.
    Bytes(bytes::Bytes),
    /// Part of this program, whole pages of its file, which are mapped instead of copied where they can be found.
    Program(&'static [u8]),
}

/// Which way into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryKind {
    /// The 64-bit boot protocol: fewest instructions, every kernel.
    #[default]
    Linux64,
    /// PVH, for a vmlinux that has the note.
    Pvh,
}

/// The boot processor's first state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// Instruction pointer.
    pub(crate) address: u64,
}

/// A kernel that was put into memory.
#[derive(Clone, Debug)]
struct Loaded {
    /// The 64-bit entry.
    entry: u64,
    /// The PVH entry, where it has one.
    pvh: Option<u64>,
    /// First address behind everything that it uses before it knows its memory.
    end: u64,
    /// A bzImage's own header, which goes into the zero page.
    header: Option<linux_loader::loader::bootparam::setup_header>,
}

/// Puts kernel, initramfs, tables and command line into `memory`. `devices` are the virtio-mmio devices in use.
pub(crate) fn load(
    memory: &Memory,
    memory_bytes: u64,
    source: &BootSource,
    vcpus: u8,
    devices: &[Slot],
) -> Result<Entry, Error> {
    let kernel = load_kernel(memory, &source.kernel)?;
    // What a booting kernel uses down here is strewn: filling it in huge pages costs more than it saves.
    sys::keep_small(memory, kernel.end.next_multiple_of(HUGE_PAGE).min(memory::low_end(memory_bytes)));
    let initramfs = initramfs::load(memory, memory_bytes, kernel.end, &source.initramfs)?;
    command_line::write(memory, &source.command_line, devices)?;
    mp_table::write(memory, vcpus)?;
    acpi::write(memory, vcpus, devices)?;
    let map = memory::map_of(memory_bytes)?;
    match (source.entry, kernel.pvh) {
        (EntryKind::Linux64, _) => {
            zero_page::write(memory, &map, initramfs, kernel.header)?;
            entry::write_page_tables(memory)?;
            Ok(Entry { kind: EntryKind::Linux64, address: kernel.entry })
        }
        (EntryKind::Pvh, Some(address)) => {
            pvh::write(memory, &map, initramfs)?;
            Ok(Entry { kind: EntryKind::Pvh, address })
        }
        (EntryKind::Pvh, None) => {
            let reason = "it has no PVH entry (an ELF note); use the 64-bit entry".to_owned();
            Err(Error::Kernel { path: source.kernel.clone(), reason })
        }
    }
}

fn load_kernel(memory: &Memory, path: &Path) -> Result<Loaded, Error> {
    let read = |source| Error::File { doing: "reading the kernel", path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).map_err(read)?;
    if &magic == b"\x7fELF" { elf::load(memory, &file, path) } else { bzimage::load(memory, file, path) }
}

/// Writes `bytes` for the boot; the places of the layout are always memory.
fn put(memory: &Memory, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let result = memory.write_slice(bytes, GuestAddress(at));
    result.map_err(|_| Error::DoesNotFit { what: "what the boot needs", memory_bytes: layout::HIGH_MEMORY })
}
