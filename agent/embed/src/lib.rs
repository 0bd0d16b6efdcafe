//! The agent's executable, static, as it goes into the initramfs of every Linux guest.
//!
//! build.rs builds it with the cargo and the toolchain that build this crate, so that `cargo build` of novum is all
//! that is needed and the two never differ in version.

/// An ELF executable without an interpreter.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/novum-agent"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_small_executable() {
        assert!(AGENT.starts_with(b"\x7fELF"));
        assert!(AGENT.len() < 3 << 20, "{} bytes", AGENT.len());
    }
}
