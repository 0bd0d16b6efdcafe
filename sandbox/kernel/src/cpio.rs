//! An initramfs: a cpio archive of the `newc` kind, which the kernel unpacks into its first root file system.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow each other in one
//! file; each is padded to 512 bytes here, so that they can be joined as they are.

/// What a kernel reads an entry's name and data up to.
const ALIGN: usize = 4;
/// Padding of a whole archive.
const BLOCK: usize = 512;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder. `path` has no leading slash; its parents must have been added.
    pub fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(path, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.entry(path, REGULAR | mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device, such as the `/dev/console` that the first program's output goes to.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.entry(path, CHARACTER | mode, (major, minor), &[])
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut self.bytes, BLOCK);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> &mut Self {
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // A file of 4 GiB does not belong into an initramfs; the format cannot hold it.
        let size = u32::try_from(data.len()).expect("a file in an initramfs is under 4 GiB");
        let name_size = path.len() as u32 + 1;
        // magic, then: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes, ALIGN);
        self.bytes.extend_from_slice(data);
        pad(&mut self.bytes, ALIGN);
        self.inode += 1;
        self
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut cpio = Cpio::new();
        cpio.folder("bin", 0o755).file("bin/a", 0o755, b"hello").link("bin/b", "a");
        cpio.device("console", 0o600, 5, 1).file("empty", 0o644, b"");
        cpio.finish()
    }

    #[test]
    fn an_entry_has_the_kernels_layout() {
        let mut cpio = Cpio::new();
        cpio.file("ab", 0o644, b"xyz");
        let bytes = cpio.finish();
        assert_eq!(&bytes[..14], b"07070100000000");
        assert_eq!(&bytes[14..22], b"000081a4", "mode 0100644");
        assert_eq!(&bytes[54..62], b"00000003", "file size");
        assert_eq!(
            &bytes[110..119],
            b"ab\0\0\0\0xyz",
            "the name is padded so that the data begin at a multiple of 4"
        );
        assert_eq!(bytes.len() % BLOCK, 0);
    }

    #[test]
    fn busybox_lists_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.cpio");
        std::fs::write(&path, sample()).unwrap();
        let list = Command::new("busybox").args(["cpio", "-t", "-F"]).arg(&path).output();
        let Ok(list) = list else {
            eprintln!("SKIPPED: busybox_lists_what_was_written: busybox is not installed");
            return;
        };
        assert_eq!(String::from_utf8(list.stdout).unwrap(), "bin\nbin/a\nbin/b\nconsole\nempty\n");
    }
}
