//! Raw parts of a vCPU: its run page, its extended state, its memslots, and the signal that interrupts it.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MEMORY_FAULT, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// Sets a memslot. The memory is that of a [`Region`](super::Region), which the VM keeps.
pub(crate) fn set_slot(vm: &VmFd, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the addresses come from `Region::host_address`, which checks them, and the owner of `vm` keeps the region
    // alive for as long as the VM; nothing else lives in it.
    unsafe { vm.set_user_memory_region(slot) }
}

/// The address of a memory-fault exit that came with an error.
pub(crate) fn memory_fault_address(vcpu: &mut VcpuFd) -> Option<u64> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_MEMORY_FAULT {
        return None;
    }
    // SAFETY: the exit reason says that this member of the union was written.
    Some(unsafe { run.__bindgen_anon_1.memory_fault.gpa })
}

/// Suberror and data of an internal error.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> (u32, Vec<u64>) {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return (0, Vec::new());
    }
    // SAFETY: the exit reason says that this member of the union was written.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let data = internal.data.iter().take(internal.ndata as usize).copied().collect();
    (internal.suberror, data)
}

/// x87, SSE and AVX registers in the XSAVE layout (Intel SDM vol. 1 §13.4).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub(crate) struct XsaveArea(Box<[u32; 1024]>);

impl From<XsaveArea> for Vec<u8> {
    /// Without the zeroes at the end.
    fn from(area: XsaveArea) -> Self {
        let words = area.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        area.0[..words].iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

impl TryFrom<Vec<u8>> for XsaveArea {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        let mut area = Box::new([0; 1024]);
        if bytes.len() > 4 * area.len() || !bytes.len().is_multiple_of(4) {
            return Err("vector registers take at most 4096 bytes, in words");
        }
        for (word, bytes) in area.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        }
        Ok(Self(area))
    }
}

impl XsaveArea {
    /// Reads them.
    pub(crate) fn get(vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        vcpu.get_xsave().map(|area| Self(Box::new(area.region)))
    }

    /// As a program finds them at its start: x87 and SSE control words at their defaults, everything else in its initial
    /// state because its bit in XSTATE_BV is not set.
    pub(crate) fn initial() -> Self {
        let mut area = Box::new([0; 1024]);
        area[0] = 0x037f;
        area[6] = 0x1f80;
        Self(area)
    }

    /// The first `len` bytes.
    pub(crate) fn bytes(&self, len: usize) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect()
    }

    /// Replaces the first bytes.
    pub(crate) fn set_bytes(&mut self, bytes: &[u8]) {
        for (word, bytes) in self.0.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(std::array::from_fn(|i| bytes[i]));
        }
    }

    /// Writes them.
    pub(crate) fn set(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        /// The word of MXCSR, and the bits that every processor takes. An emulated one may have let a program set others.
        const MXCSR: (usize, u32) = (6, 0xffff);
        let mut region = *self.0;
        region[MXCSR.0] &= MXCSR.1;
        let area = kvm_xsave { region, ..kvm_xsave::default() };
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says, which is `kvm_xsave`'s 4096 unless the process asked the
        // kernel for AMX, which we never do.
        unsafe { vcpu.set_xsave(&area) }
    }
}

thread_local! {
    /// The `immediate_exit` byte of the vCPU that runs on this thread.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// Connects a vCPU's run page with the signal of its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KickSlot(*const AtomicU8);

impl KickSlot {
    /// Of this vCPU.
    pub(crate) fn of(vcpu: &mut VcpuFd) -> Self {
        Self((&raw mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>())
    }

    /// From now on the kick signal interrupts this vCPU on this thread. The vCPU must be detached before it is dropped.
    pub(crate) fn attach(self) {
        IMMEDIATE_EXIT.with(|slot| slot.set(self.0));
    }

    /// No vCPU on this thread any more.
    pub(crate) fn detach() {
        IMMEDIATE_EXIT.with(|slot| slot.set(ptr::null()));
    }

    /// Lets the vCPU run again after a kick was seen.
    pub(crate) fn clear(self) {
        // SAFETY: only called by the owner of the vCPU, whose run page is mapped until it is dropped.
        unsafe { (*self.0).store(0, Ordering::Relaxed) };
    }
}

/// The signal that interrupts a vCPU.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    IMMEDIATE_EXIT.with(|slot| {
        let at = slot.get();
        if !at.is_null() {
            // SAFETY: set by `attach` to a byte of a mapped run page, unset by `detach` before that is unmapped; the
            // handler runs on the same thread. A store to an atomic is safe in a handler.
            unsafe { (*at).store(1, Ordering::Relaxed) };
        }
    });
}

/// Installs the handler, once per process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `on_kick` only stores to an atomic; the struct is zeroed, which is a valid empty mask and no flags (no
        // SA_RESTART: a blocked host call must return).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(kick_signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// A vCPU thread as others see it: something that can be interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KickTarget {
    process: i32,
    thread: i32,
}

impl KickTarget {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        install();
        // SAFETY: no arguments, no effects.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
        Self { process: rustix::process::getpid().as_raw_nonzero().get(), thread }
    }

    /// Interrupts it. Nothing happens where the thread is gone.
    pub(crate) fn kick(self) {
        // SAFETY: sends a signal whose handler is installed.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, kick_signal()) };
    }
}

/// A timer that interrupts the thread that made it.
#[derive(Debug)]
pub(crate) struct KickTimer(libc::timer_t);

// SAFETY: a POSIX timer's id may be used from any thread of the process.
unsafe impl Send for KickTimer {}

impl KickTimer {
    /// For the calling thread; not armed.
    pub(crate) fn new() -> io::Result<Self> {
        let target = KickTarget::current();
        let mut timer = ptr::null_mut();
        // SAFETY: `event` is fully initialised (zeroed, then the three fields that SIGEV_THREAD_ID reads); `timer` is written.
        let result = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = kick_signal();
            event.sigev_notify_thread_id = target.thread;
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        if result == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }

    /// Interrupts after `first`, then every `every`; zero disarms or does not repeat.
    pub(crate) fn arm(&self, first: std::time::Duration, every: std::time::Duration) -> io::Result<()> {
        let spec = |d: std::time::Duration| libc::timespec {
            tv_sec: d.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(d.subsec_nanos()),
        };
        let value = libc::itimerspec { it_value: spec(first), it_interval: spec(every) };
        // SAFETY: the timer exists until drop; `value` is initialised.
        let result = unsafe { libc::timer_settime(self.0, 0, &raw const value, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: the timer exists and is not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}
