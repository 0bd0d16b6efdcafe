//! The machine's generation id: 16 random bytes in guest memory, others in every machine that is made of a snapshot. A
//! guest's kernel with the driver (Linux: `vmgenid`, with ACPI) draws them into its random number generator when it boots,
//! and, told by an interrupt, begins the generator anew when they are others.
//!
//! ```text
//! restore: memory mapped ── renew: new bytes ── processors, controllers written ── tell: the interrupt waits for the guest
//! ```
//! Source: Microsoft's "Virtual Machine Generation ID"; the tables are in `boot/acpi.rs`.

use kvm_ioctls::VmFd;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use super::error::Error;
use super::layout::{EVENT_GSI, GENERATION_ID};
use super::memory::Memory;

const BYTES: usize = 16;

/// Writes a new one, before the guest runs.
pub(super) fn renew(memory: &Memory) -> Result<(), Error> {
    let mut id = [0u8; BYTES];
    // So few bytes are never cut short.
    getrandom(&mut id[..], GetRandomFlags::empty())
        .map_err(|errno| Error::Host { doing: "drawing random bytes", source: errno.into() })?;
    let written = memory.write_slice(&id, GuestAddress(GENERATION_ID));
    written.map_err(|error| Error::Host {
        doing: "writing the generation id",
        source: std::io::Error::other(error),
    })
}

/// Raises the interrupt that says so. A guest without the driver has it masked.
pub(super) fn tell(vm: &VmFd) -> Result<(), Error> {
    for level in [true, false] {
        vm.set_irq_line(EVENT_GSI, level).map_err(Error::kvm("raising an interrupt"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::memory;

    #[test]
    fn every_id_is_another() {
        let memory = memory::allocate(32 << 20).unwrap();
        let read = || {
            let mut id = [0u8; BYTES];
            memory.read_slice(&mut id, GuestAddress(GENERATION_ID)).unwrap();
            id
        };
        let mut seen = vec![read()];
        for _ in 0..3 {
            renew(&memory).unwrap();
            assert!(!seen.contains(&read()));
            seen.push(read());
        }
    }
}
