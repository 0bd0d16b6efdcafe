//! The kernel's command line, with one `virtio_mmio.device=` for each device.
//!
//! Kernels that read it (ours) find their devices so; kernels with ACPI find the same devices in the DSDT and ignore
//! these words.

use crate::linux::error::Error;
use crate::linux::layout::{COMMAND_LINE, COMMAND_LINE_SIZE, Slot, VIRTIO_MMIO_SIZE};
use crate::linux::memory::Memory;

/// Writes it, ended by a NUL.
pub(super) fn write(memory: &Memory, words: &str, devices: &[Slot]) -> Result<(), Error> {
    let line = text(words, devices)?;
    super::put(memory, COMMAND_LINE, &[line.as_bytes(), b"\0"].concat())
}

fn text(words: &str, devices: &[Slot]) -> Result<String, Error> {
    let mut line = words.trim().to_owned();
    for Slot { address, gsi } in devices {
        line.push_str(&format!(" virtio_mmio.device={}K@{address:#x}:{gsi}", VIRTIO_MMIO_SIZE / 1024));
    }
    if line.len() >= COMMAND_LINE_SIZE || line.contains('\0') {
        let reason = format!("a kernel command line has at most {} bytes and no NUL", COMMAND_LINE_SIZE - 1);
        return Err(Error::Config(reason));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_the_kernel_reads_them() {
        let line = text(" quiet ", &[Slot { address: 0xd000_1000, gsi: 6 }]).unwrap();
        assert_eq!(line, "quiet virtio_mmio.device=4K@0xd0001000:6");
    }

    #[test]
    fn a_line_that_the_kernel_would_cut_is_refused() {
        assert!(text(&"x".repeat(COMMAND_LINE_SIZE), &[]).is_err());
        assert!(text("a\0b", &[]).is_err());
    }
}
