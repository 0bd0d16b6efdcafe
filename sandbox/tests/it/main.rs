//! Behaviour of the engines, one module each.

#[cfg(feature = "wasm")]
mod wasm;
