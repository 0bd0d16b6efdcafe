//! Guest kernels at rest: where they come from, what they are cached by, and the initramfs beside them.
//!
//! ```text
//! debian   linux-source-6.1 ──build───> vmlinux + bzImage      (ours: no modules, 9p, virtio-fs, vsock)
//!          linux-image-*    ──import──> vmlinux + initramfs    (theirs: ACPI, modules chosen by name)
//! cpio     writes an initramfs; the linux engine and the rig use it too
//! ```
//!
//! This crate knows files and commands only, neither KVM nor the engines, so that `novum kernel`, the linux
//! engine and `cargo xtask rig` all stand on it.

pub mod build;
pub mod cache;
pub mod compact;
pub mod cpio;
pub mod debian;
pub mod error;
pub mod image;
pub mod import;
pub mod modules;
mod run;

pub use cache::Cache;
pub use error::Error;
