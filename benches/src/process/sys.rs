//! What the floor needs of the host below Rust's types: guest memory for bare KVM, and the processor time of this
//! process and its children.
#![allow(unsafe_code)] // mmap, a memslot, getrusage.

use std::io;
use std::ptr::{self, NonNull};
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// Zeroed pages of our own.
#[derive(Debug)]
pub(super) struct Pages {
    at: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// `len` bytes, a multiple of a page.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, rights, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: NonNull::new(at.cast()).expect("mmap does not return 0"), len })
    }

    /// Copies `bytes` to `offset`. Not while a vCPU runs.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: in bounds; nobody holds a reference into the pages.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().add(offset), bytes.len()) }
    }

    /// Makes them the memory of `vm` from guest-physical address 0 on. The caller drops the VM first.
    pub(super) fn lend(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: self.len as u64,
            userspace_addr: self.at.as_ptr() as u64,
        };
        // SAFETY: the pages are ours and stay mapped for as long as the VM, as the caller promises.
        unsafe { vm.set_user_memory_region(slot) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Processor time of this process with all its threads, and of its children that were waited for.
pub(super) fn cpu_time() -> Duration {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].into_iter().map(used).sum()
}

fn used(who: libc::c_int) -> Duration {
    // SAFETY: all zeroes is a valid rusage, which the call then fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
