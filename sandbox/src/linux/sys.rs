//! The unsafe part of the linux engine: memslots, and files mapped into guest memory.
//!
//! Each is a call into the kernel that no safe wrapper we know covers; the checks are made here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::error::Error;
use super::layout::PAGE;
use super::memory::Memory;

/// Gives every region of `memory` to `vm` as a memslot, once more to change whether KVM logs which pages the guest writes to:
/// [`dirty_pages`]. `memory` must live as long as the VM: [`Machine`] drops the VM first.
///
/// [`Machine`]: super::Machine
pub(crate) fn set_memslots(vm: &VmFd, memory: &Memory, log: bool) -> Result<(), Error> {
    let flags = if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    for (slot, region) in memory.iter().enumerate() {
        let address = region.get_host_address(vm_memory::MemoryRegionAddress(0));
        let address = address.map_err(|error| Error::Config(format!("guest memory: {error}")))?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
            flags,
        };
        // SAFETY: the range is a mapping that belongs to `memory`; regions of one GuestMemoryMmap do not overlap, and
        // the caller keeps it alive for as long as the VM (see above).
        unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("giving memory to the VM"))?;
    }
    Ok(())
}

/// Maps `length` bytes of `file` from `offset` over guest memory at `at`: the guest reads the file's pages, and its
/// writes go to private copies. All three are multiples of a page. False where the range is not memory of one
/// region.
pub(crate) fn map_file(
    memory: &Memory,
    at: GuestAddress,
    file: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> io::Result<bool> {
    assert!([at.0, offset, length].iter().all(|value| value.is_multiple_of(PAGE)), "whole pages are mapped");
    let Ok(slice) = memory.get_slice(at, length as usize) else {
        return Ok(false);
    };
    let address = slice.ptr_guard_mut().as_ptr();
    // SAFETY: `get_slice` has shown that the range lies in one mapping of `memory`, which is only reached through
    // volatile accesses, so nobody holds a Rust reference into what is replaced; dropping `memory` unmaps the range as
    // a whole.
    let got = unsafe {
        libc::mmap(
            address.cast(),
            length as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if got == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(true) }
}

/// Keeps the host from filling `memory` below `end` in huge pages.
pub(crate) fn keep_small(memory: &Memory, end: u64) {
    let Ok(slice) = memory.get_slice(GuestAddress(0), usize::try_from(end).unwrap_or(usize::MAX)) else {
        return;
    };
    // SAFETY: `get_slice` has shown that the range lies in one mapping of `memory`; how large its pages are changes no
    // byte. A kernel without huge pages refuses, and needs no advice.
    unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_NOHUGEPAGE) };
}

/// What memory is made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The file's pages are at hand; the first write to one still copies it.
    Reading = libc::MADV_POPULATE_READ as isize,
    /// Each page is this process's own.
    Writing = libc::MADV_POPULATE_WRITE as isize,
}

/// Makes `length` bytes of a region of ours present ahead of their use. Where the kernel cannot, they become so when they are
/// used.
pub(crate) fn populate(region: &vm_memory::GuestRegionMmap<()>, offset: u64, length: u64, purpose: For) {
    let within = offset.checked_add(length).is_some_and(|end| end <= region.len());
    assert!(within && offset.is_multiple_of(PAGE), "whole pages of the region");
    // SAFETY: the range lies in the region's mapping, as was checked; populating changes no byte of it.
    unsafe {
        let at = region.as_ptr().add(offset as usize);
        libc::madvise(at.cast(), length as usize, purpose as libc::c_int);
    }
}

/// Gives the memory of `length` bytes at `at`, whole pages of one region, back to the host: what the guest finds there
/// afterwards is what was there at the start, zeroes where nothing was. False where there is no such range.
pub(crate) fn discard(memory: &Memory, at: GuestAddress, length: u64) -> bool {
    let whole = at.0.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && length > 0;
    let Ok(slice) = memory.get_slice(at, usize::try_from(length).unwrap_or(usize::MAX)) else { return false };
    // SAFETY: `get_slice` has shown that the range lies in one mapping of `memory`, which is only reached through
    // volatile accesses; the mapping stays, only its pages go.
    whole
        && unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) }
            == 0
}

/// Opens the tap `name`, making it where it is not there; each read and each write is one frame.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: a zeroed ifreq is a valid one: bytes and integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%' | b':'));
    // One byte is left for the NUL.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !plain {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot be a tap's name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as std::ffi::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one ifreq, which lives across the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tap.into()) }
}

/// How much of `memory` the host has filled.
pub(crate) fn resident_bytes(memory: &Memory) -> u64 {
    let resident = |region: &vm_memory::GuestRegionMmap<()>| {
        let mut pages = vec![0u8; region.len().div_ceil(PAGE) as usize];
        let Ok(at) = region.get_host_address(vm_memory::MemoryRegionAddress(0)) else { return 0 };
        // SAFETY: the range is a mapping of `memory`, which lives as long as this call; the vector has a byte for each page.
        unsafe { libc::mincore(at.cast(), region.len() as usize, pages.as_mut_ptr()) };
        pages.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE
    };
    memory.iter().map(resident).sum()
}

/// The descriptor of an eventfd for as long as the eventfd lives; its type has no `AsFd`.
pub(crate) fn borrow_eventfd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` lives, which the lifetime of the result is bound to.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
