//! Bytes at rest.
//!
//! This crate owns how novum writes things down: [`Digest`] names content, [`publish`] makes a file appear
//! whole or not at all. It knows neither KVM nor Wasm.

pub mod digest;
pub mod publish;

pub use digest::Digest;
