//! The memory of a function's living sandboxes, for whoever watches over the gateway's memory. Nothing here is on a
//! request's way but one push per new sandbox.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::kvm::sys::Region;

/// What the kernel holds for one VM with one vCPU and its thread, small memslots included (measured: 356 KiB after a
/// run, of which 70 are private pages that are counted by themselves, and 20 for a thread).
const KERNEL_BYTES: u64 = 300 << 10;

/// The regions of all sandboxes of one function.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Vec<Weak<Region>>>);

impl Live {
    /// Counts a region for as long as it lives.
    pub(super) fn add(&self, region: &Arc<Region>) {
        let mut regions = self.0.lock();
        // Amortised: only where the list would grow are those left out that are gone.
        if regions.len() == regions.capacity() {
            regions.retain(|region| region.strong_count() > 0);
        }
        regions.push(Arc::downgrade(region));
    }

    /// Private pages and kernel memory of all of them. Where the kernel cannot tell which pages are private (before
    /// Linux 6.7), a sandbox counts as all that it may use.
    pub(super) fn private_bytes(&self, limit_bytes: u64) -> u64 {
        let regions: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        let of = |region: Arc<Region>| region.private_bytes().unwrap_or(limit_bytes) + KERNEL_BYTES;
        regions.into_iter().map(of).sum()
    }
}
