//! The start info that a PVH kernel is handed.
//!
//! Source: xen/include/public/arch-x86/hvm/start_info.h, version 1.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use super::initramfs::Place;
use super::put;
use crate::linux::error::Error;
use crate::linux::layout::{COMMAND_LINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO, RSDP};
use crate::linux::memory::Memory;
use vm_memory::ByteValued;

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Writes start info, module list (the initramfs) and memory map.
pub(super) fn write(memory: &Memory, map: &[(u64, u64, bool)], initramfs: Place) -> Result<(), Error> {
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: PVH_MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: RSDP,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    put(memory, PVH_START_INFO, info.as_slice())?;
    if let Some((paddr, size)) = initramfs {
        put(memory, PVH_MODULES, hvm_modlist_entry { paddr, size, ..Default::default() }.as_slice())?;
    }
    for (index, (addr, size, usable)) in map.iter().enumerate() {
        let type_ = if *usable { RAM } else { RESERVED };
        let entry = hvm_memmap_table_entry { addr: *addr, size: *size, type_, reserved: 0 };
        put(memory, PVH_MEMORY_MAP + (index * size_of_val(&entry)) as u64, entry.as_slice())?;
    }
    Ok(())
}
