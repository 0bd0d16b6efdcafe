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
pub mod error;
pub mod guest;
pub mod layout;
pub mod machine;
mod memory;
mod sys;
mod vcpu;
mod virtio;

pub use devices::{balloon, block, console, net, vsock};
pub use end::End;
pub use error::Error;
pub use machine::{Device, Machine, MachineConfig};
