//! The host's time-stamp counter.
#![allow(unsafe_code)] // the intrinsic is an unsafe function

/// The counter, read after everything before it.
pub(crate) fn counter() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC and LFENCE, and Linux lets ring 3 use them.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}
