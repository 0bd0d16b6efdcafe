//! The zero page: what the 64-bit boot protocol hands over.
//!
//! Source: Linux Documentation/arch/x86/zero-page.rst and boot.rst.

use linux_loader::loader::bootparam::{boot_params, setup_header};
use vm_memory::ByteValued;

use super::initramfs::Place;
use crate::linux::error::Error;
use crate::linux::layout::{COMMAND_LINE, COMMAND_LINE_SIZE, RSDP, ZERO_PAGE};
use crate::linux::memory::Memory;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Protocol 2.15, for a vmlinux, which brings no header of its own.
const VERSION: u16 = 0x020f;

/// Writes it. `header` is a bzImage's.
pub(super) fn write(
    memory: &Memory,
    map: &[(u64, u64, bool)],
    initramfs: Place,
    header: Option<setup_header>,
) -> Result<(), Error> {
    super::put(memory, ZERO_PAGE, zero_page(map, initramfs, header).as_slice())
}

fn zero_page(map: &[(u64, u64, bool)], initramfs: Place, header: Option<setup_header>) -> boot_params {
    let mut page = boot_params::default();
    let own = setup_header { version: VERSION, kernel_alignment: 0x100_0000, ..Default::default() };
    page.hdr = header.unwrap_or(own);
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.header = HEADER_MAGIC;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    page.hdr.cmdline_size = COMMAND_LINE_SIZE as u32;
    if let Some((at, length)) = initramfs {
        // Both below 4 GiB: the initramfs lies under the hole.
        page.hdr.ramdisk_image = at as u32;
        page.hdr.ramdisk_size = length as u32;
    }
    page.acpi_rsdp_addr = RSDP;
    for (entry, (at, length, usable)) in page.e820_table.iter_mut().zip(map) {
        entry.addr = *at;
        entry.size = *length;
        entry.r#type = if *usable { E820_RAM } else { E820_RESERVED };
    }
    page.e820_entries = map.len() as u8;
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_the_offsets_of_the_protocol() {
        let page = zero_page(&[(0, 0x1000, true), (0x1000, 0x2000, false)], Some((0x30_0000, 0x4000)), None);
        let bytes = page.as_slice();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(bytes[0x1e8], 2, "e820_entries");
        assert_eq!(&bytes[0x1fe..0x206], b"\x55\xaa\0\0HdrS", "boot_flag, jump, header");
        assert_eq!((word(0x218), word(0x21c)), (0x30_0000, 0x4000), "ramdisk");
        assert_eq!(word(0x228), COMMAND_LINE as u32, "cmd_line_ptr");
        assert_eq!(word(0x70), RSDP as u32, "acpi_rsdp_addr");
        assert_eq!((word(0x2d0 + 20), word(0x2d0 + 36)), (0x1000, E820_RESERVED), "second e820 entry");
    }
}
