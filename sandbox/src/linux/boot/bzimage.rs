//! A bzImage: the compressed kernel is copied as it is, unpacks itself and then starts.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".

use std::fs::File;
use std::path::Path;

use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::GuestAddress;

use super::Loaded;
use crate::linux::error::Error;
use crate::linux::layout::{BZIMAGE, HIGH_MEMORY};
use crate::linux::memory::Memory;

/// `xloadflags`: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry in the protected-mode code.
const ENTRY_64: u64 = 0x200;

/// Loads it at [`BZIMAGE`].
pub(super) fn load(memory: &Memory, mut file: File, path: &Path) -> Result<Loaded, Error> {
    let refuse = |reason: String| Error::Kernel { path: path.to_owned(), reason };
    let result =
        BzImage::load(memory, Some(GuestAddress(BZIMAGE)), &mut file, Some(GuestAddress(HIGH_MEMORY)));
    let result =
        result.map_err(|error| refuse(format!("neither an ELF file nor a bzImage that fits ({error})")))?;
    let header = result.setup_header.ok_or_else(|| refuse("its setup header is missing".into()))?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(refuse("it has no 64-bit entry".into()));
    }
    // It unpacks itself to where it prefers to run, and needs `init_size` bytes there.
    let unpacked = header.pref_address.saturating_add(u64::from(header.init_size));
    let end = result.kernel_end.max(unpacked);
    Ok(Loaded { entry: BZIMAGE + ENTRY_64, pvh: None, end, header: Some(header) })
}
