//! The ELF kernel inside a bzImage.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, `payload_offset` and `payload_length` (protocol 2.08 and later).
//!
//! ```text
//! 0        0x1f1         0x202   0x248         (setup_sects + 1) * 512
//! | boot   | setup_sects | "HdrS"| payload_*  | ... protected-mode code ... payload (compressed ELF) ...
//! ```

use std::process::Command;

use crate::{Error, run};

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// One way in which kernels are compressed.
struct Compression {
    magic: &'static [u8],
    command: &'static [&'static str],
    package: &'static str,
    /// Whether the kernel's build appends the size (4 bytes), which is not part of the format.
    size_appended: bool,
}

const COMPRESSIONS: &[Compression] = &[
    Compression { magic: b"\xfd7zXZ\0", command: &["xz", "-dc"], package: "xz-utils", size_appended: true },
    Compression { magic: b"\x1f\x8b", command: &["gzip", "-dc"], package: "gzip", size_appended: false },
    Compression {
        magic: b"\x28\xb5\x2f\xfd",
        command: &["zstd", "-dc"],
        package: "zstd",
        size_appended: true,
    },
    Compression { magic: b"\x02\x21\x4c\x18", command: &["lz4", "-dc"], package: "lz4", size_appended: true },
];

/// The ELF file that `bzimage` unpacks when it boots.
///
/// # Errors
/// [`Error::Format`] where it is not a bzImage or compressed in an unknown way; where the decompressor fails.
pub fn elf_of_bzimage(bzimage: &[u8]) -> Result<Vec<u8>, Error> {
    let payload =
        payload(bzimage).ok_or_else(|| Error::format("bzImage", "its setup header does not hold"))?;
    let way = COMPRESSIONS.iter().find(|way| payload.starts_with(way.magic));
    let way = way.ok_or_else(|| Error::format("bzImage", "compressed in an unknown way"))?;
    let end = payload.len().saturating_sub(if way.size_appended { 4 } else { 0 });
    let elf =
        run::filter(Command::new(way.command[0]).args(&way.command[1..]), way.package, &payload[..end])?;
    if !elf.starts_with(b"\x7fELF") {
        return Err(Error::format("bzImage", "what it holds is not an ELF file"));
    }
    Ok(elf)
}

/// The contents of a kernel module file, unpacked by the ending of its name.
///
/// # Errors
/// Where the decompressor fails.
pub(crate) fn unpacked_module(name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    match name.rsplit_once('.') {
        Some((_, "xz")) => run::filter(Command::new("xz").arg("-dc"), "xz-utils", &bytes),
        Some((_, "zst")) => run::filter(Command::new("zstd").arg("-dc"), "zstd", &bytes),
        Some((_, "gz")) => run::filter(Command::new("gzip").arg("-dc"), "gzip", &bytes),
        _ => Ok(bytes),
    }
}

fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = bzimage.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if bzimage.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    // Boot protocol: 0 means 4, for old boot loaders' sake.
    let setup_sects = match bzimage[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sects + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    bzimage.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR + 16];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_gzip_payload_is_unpacked() {
        let packed = run::filter(Command::new("gzip").arg("-c"), "gzip", b"\x7fELF and more").unwrap();
        assert_eq!(elf_of_bzimage(&bzimage(&packed)).unwrap(), b"\x7fELF and more");
    }

    #[test]
    fn an_xz_payload_with_its_size_behind_it_is_unpacked() {
        let mut packed = run::filter(Command::new("xz").arg("-c"), "xz-utils", b"\x7fELF").unwrap();
        packed.extend_from_slice(&4u32.to_le_bytes());
        assert_eq!(elf_of_bzimage(&bzimage(&packed)).unwrap(), b"\x7fELF");
    }

    #[test]
    fn what_is_no_bzimage_is_refused() {
        assert!(elf_of_bzimage(b"MZ").is_err());
        assert!(elf_of_bzimage(&bzimage(b"plain")).is_err());
        let mut long = bzimage(b"\x1f\x8b");
        long[PAYLOAD_LENGTH + 3] = 0xff;
        assert!(elf_of_bzimage(&long).is_err());
    }
}
