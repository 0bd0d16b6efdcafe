//! What both microVM engines stand on: the KVM device, a VM with its memory, a vCPU that begins in long mode.
//!
//! [`layout`] has every fixed guest address with its reason, [`entry`] the state in which a vCPU begins, [`sys`] the
//! unsafe code. How a program leaves the VM and comes back is drawn in [`vcpu`].

pub(crate) mod answers;
pub(crate) mod entry;
pub(crate) mod features;
pub(crate) mod layout;
mod measure;
pub(crate) mod sys;
mod trial;
pub(crate) mod vcpu;
pub(crate) mod vm;

pub use measure::{Measured, measure};
