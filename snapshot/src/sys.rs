//! Memory mapped from snapshots: the only unsafe code of this crate.

#![allow(
    unsafe_code,
    reason = "mmap, madvise and munmap are unsafe by nature; everything else stays outside"
)]

mod fill;
mod map;
mod zero;

pub use map::{Access, MapError, MapOptions, MappedRegion, Mapping};
pub(crate) use zero::is_zero;
