//! Behaviour of the engines, one module each.

#[cfg(feature = "vm")]
mod process;
#[cfg(feature = "wasm")]
mod wasm;
