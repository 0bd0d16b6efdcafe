//! Linux microVMs: a kernel entered without BIOS or boot loader, devices on virtio-mmio, an agent as PID 1.
//!
//! ```text
//! Machine::boot ── memory ── boot/ (kernel, zero page, tables) ── vCPU threads ─┬─ bus ── devices/
//!                                                                               └─ End: how it ended
//! ```
//! [`layout`] holds every guest-physical address, port and interrupt; docs/linux-engine.md draws them.

pub mod boot;
mod bus;
mod devices;
pub mod end;
mod engine;
pub mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod generation;
pub mod guest;
mod image;
pub mod layout;
pub mod machine;
mod memory;
mod pause;
mod ready;
mod session;
pub mod snapshot;
mod sys;
mod vcpu;
mod virtio;

pub use crate::session::DEFAULT_PATH;
pub use devices::{balloon, block, console, net, vsock};
pub use end::End;
pub use engine::LinuxEngine;
pub use error::Error;
pub use machine::{Device, Machine, MachineConfig, Saved};
pub use snapshot::{SnapshotError, WorkingSet};
pub use virtio::StateError;

/// Whether this machine can run the engine; `Err` says why not and what to do.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), String> {
    let host = crate::kvm::vm::host().map_err(|error| error.to_string())?;
    if host.ring_changes() { Ok(()) } else { Err(SOFTWARE_KVM.to_owned()) }
}

/// Stack of a vCPU's or a device's thread. The usual 2 MiB can fall on a huge page, which the host then clears and keeps for the
/// few KiB that are used.
pub(crate) const STACK_BYTES: usize = 1 << 20;

/// Why a Linux guest gets nowhere on a KVM without hardware virtualization.
const SOFTWARE_KVM: &str = "this KVM has no hardware virtualization: it runs programs (ring 3) at full speed, but \
                            interprets a kernel (ring 0) instruction by instruction, so a Linux guest would hang in its \
                            boot; use a machine with VT-x or AMD-V (in a cloud: nested virtualization), or the process \
                            engine, which needs neither";

/// An error with its direct cause in one line.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
