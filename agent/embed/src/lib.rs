//! The initramfs of every Linux guest: the agent's executable as `/init`, and what it needs before it has mounted anything.
//!
//! build.rs builds the agent with the cargo and the toolchain that build this crate, so that `cargo build` of novum is
//! all that is needed and the two never differ in version.

/// Begins at a page, so that the program's own file can be mapped into guests.
#[repr(C, align(4096))]
struct Pages<T: ?Sized>(T);

static PAGES: &Pages<[u8]> = &Pages(*include_bytes!(concat!(env!("OUT_DIR"), "/initramfs")));

/// The archive (cpio): whole pages, at the start of one. Who does not read it does not have it in memory.
#[must_use]
pub fn initramfs() -> &'static [u8] {
    &PAGES.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_small_archive_of_whole_pages() {
        let archive = initramfs();
        assert!(archive.starts_with(b"070701"));
        assert!(archive.len() < 3 << 20, "{} bytes", archive.len());
        assert_eq!((archive.as_ptr().addr() % 4096, archive.len() % 4096), (0, 0));
    }

    #[test]
    fn it_holds_an_executable() {
        assert!(initramfs().windows(4).any(|bytes| bytes == b"\x7fELF"));
    }
}
