//! The unsafe part of kvm/: host mappings, the shared run page, signals and timers of a vCPU thread.
//!
//! Everything here is a call into the kernel or an access to memory that the kernel or a guest also changes, which
//! no safe wrapper we know covers; each function checks its bounds, so that its callers stay safe code.
#![allow(unsafe_code)]

mod io;
mod pagemap;
mod picture;
mod region;
mod vcpu;

pub(crate) use io::{HostRange, read_into, write_from};
pub(crate) use pagemap::Pages;
pub(crate) use picture::{Picture, PictureWriter};
pub(crate) use region::{Advice, Backing, Protection, Region};
pub(crate) use vcpu::{
    KickSlot, KickTarget, KickTimer, XsaveArea, internal_error, memory_fault_address, set_slot,
};
