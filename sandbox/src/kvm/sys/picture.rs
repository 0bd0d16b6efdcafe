//! Memory that many sandboxes map privately: a sealed memory file or a file of the store of snapshots, and our own
//! read-only view of it.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::Region;

/// The file while it is filled.
#[derive(Debug)]
pub(crate) struct PictureWriter {
    fd: OwnedFd,
    len: u64,
}

impl PictureWriter {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = memfd_create(c"novum-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        Ok(Self { fd, len: 0 })
    }

    /// Room for `len` bytes, zero until written; where they stand.
    pub(crate) fn grow(&mut self, len: u64) -> io::Result<u64> {
        let at = self.len;
        self.len += len;
        ftruncate(&self.fd, self.len)?;
        Ok(at)
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            done += rustix::io::pwrite(&self.fd, &bytes[done..], offset + done as u64)?;
        }
        Ok(())
    }

    /// Seals it: from here on nobody can change it.
    pub(crate) fn finish(self) -> io::Result<Picture> {
        fcntl_add_seals(&self.fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        Picture::new(self.fd, self.len)
    }
}

/// The finished file.
#[derive(Debug)]
pub(crate) struct Picture {
    fd: OwnedFd,
    view: NonNull<c_void>,
    len: u64,
}

// SAFETY: the view is read-only memory of a file that is sealed, or that the store of snapshots never writes again; the
// value owns the mapping.
unsafe impl Send for Picture {}
// SAFETY: as above: there are only loads.
unsafe impl Sync for Picture {}

impl Picture {
    /// A file of the store of snapshots, `len` bytes long. Nobody changes such a file, and while it is open nobody
    /// removes it.
    pub(crate) fn of_snapshot(fd: OwnedFd, len: u64) -> io::Result<Self> {
        Self::new(fd, len)
    }

    fn new(fd: OwnedFd, len: u64) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let view = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len.max(1) as usize,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if view == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let view = NonNull::new(view).expect("mmap does not return 0 without MAP_FIXED");
        Ok(Self { fd, view, len })
    }

    /// The file, for mapping it.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`; the seals forbid every change, or the store's
        // promise does: its files have the mode 0400 and no code writes to them.
        unsafe { std::slice::from_raw_parts(self.view.as_ptr().cast(), self.len as usize) }
    }

    /// Copies `len` bytes from `at` over the region's at `gpa`. The caller has found those pages present, private and
    /// writable, and no vCPU runs on them.
    ///
    /// # Panics
    /// Where either range leaves its memory.
    pub(crate) fn copy_to(&self, at: u64, region: &Region, gpa: u64, len: u64) {
        let from = &self.bytes()[at as usize..][..len as usize];
        let to = region.host_address(gpa, len) as *mut u8;
        // SAFETY: `to` lies in the region, is mapped writable (the caller has looked) and no Rust reference points there.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, len as usize) };
    }
}

impl Region {
    /// Zeroes `len` bytes at `gpa`; the same conditions as [`Picture::copy_to`].
    ///
    /// # Panics
    /// Where the range leaves the region.
    pub(crate) fn zero(&self, gpa: u64, len: u64) {
        let to = self.host_address(gpa, len) as *mut u8;
        // SAFETY: as in `Picture::copy_to`.
        unsafe { ptr::write_bytes(to, 0, len as usize) };
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and no slice of it lives longer.
        unsafe { libc::munmap(self.view.as_ptr(), self.len.max(1) as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backing, Protection};
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_sandbox_that_writes_changes_neither_the_picture_nor_another_sandbox() {
        let mut writer = PictureWriter::new().unwrap();
        let at = writer.grow(2 * PAGE).unwrap();
        writer.write(b"image", at).unwrap();
        let picture = writer.finish().unwrap();
        let regions = [Region::reserve(2 << 20).unwrap(), Region::reserve(2 << 20).unwrap()];
        for region in &regions {
            region.map(0, 2 * PAGE, Protection::READ_WRITE, Backing::Private(picture.fd(), 0)).unwrap();
        }
        assert_eq!(regions[0].write(0, b"other"), 5);
        let mut bytes = [0; 5];
        regions[1].read(0, &mut bytes);
        assert_eq!((&bytes, &picture.bytes()[..5]), (b"image", &b"image"[..]));
        picture.copy_to(0, &regions[0], 0, PAGE);
        regions[0].read(0, &mut bytes);
        assert_eq!(&bytes, b"image");
    }
}
