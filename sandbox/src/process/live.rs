//! The memory of a function's living sandboxes, for whoever watches over the gateway's memory. Nothing here is on a
//! request's way but one push per new sandbox.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::kvm::sys::Region;

/// What the kernel holds for one VM with one vCPU and its thread, before its program has run: measured for hello, a Rust program
/// and Python in control groups of 1, 100 and 1,000 sandboxes (345, 349 and 380 KiB).
const IDLE_BYTES: u64 = 350 << 10;
/// The same once its vCPU has run: the shadow page tables of a software KVM and their caches come to it (702, 706 and 737 KiB).
const RUN_BYTES: u64 = 710 << 10;

/// The regions of all sandboxes of one function.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Vec<Counted>>);

#[derive(Debug)]
struct Counted {
    region: Weak<Region>,
    has_run: Arc<HasRun>,
}

/// Whether a sandbox's vCPU has run: said by the sandbox, once.
#[derive(Debug, Default)]
pub(super) struct HasRun(AtomicBool);

impl HasRun {
    /// It has.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn kernel_bytes(&self) -> u64 {
        if self.0.load(Ordering::Relaxed) { RUN_BYTES } else { IDLE_BYTES }
    }
}

impl Live {
    /// Counts a region for as long as it lives, as one whose vCPU has not run until that is said.
    pub(super) fn add(&self, region: &Arc<Region>) -> Arc<HasRun> {
        let mut regions = self.0.lock();
        // Amortised: only where the list would grow are those left out that are gone.
        if regions.len() == regions.capacity() {
            regions.retain(|counted| counted.region.strong_count() > 0);
        }
        let has_run = Arc::default();
        regions.push(Counted { region: Arc::downgrade(region), has_run: Arc::clone(&has_run) });
        has_run
    }

    /// Private pages and kernel memory of all of them. Where the kernel cannot tell which pages are private (before
    /// Linux 6.7), a sandbox counts as all that it may use.
    pub(super) fn private_bytes(&self, limit_bytes: u64) -> u64 {
        let living = |counted: &Counted| Some((counted.region.upgrade()?, counted.has_run.kernel_bytes()));
        let regions: Vec<_> = self.0.lock().iter().filter_map(living).collect();
        let of =
            |(region, kernel): (Arc<Region>, u64)| region.private_bytes().unwrap_or(limit_bytes) + kernel;
        regions.into_iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::sys::{Backing, Protection};

    #[test]
    fn a_sandbox_counts_with_its_pages_and_what_the_kernel_holds_until_it_is_gone() {
        const PAGE: u64 = 4096;
        let live = Live::default();
        let region = Arc::new(Region::reserve(2 << 20).unwrap());
        if region.private_bytes().is_err() {
            eprintln!("SKIPPED: a_sandbox_counts_with_its_pages...: no PAGEMAP_SCAN before Linux 6.7");
            return;
        }
        region.map(0, 4 * PAGE, Protection::READ_WRITE, Backing::Anonymous).unwrap();
        region.write(0, &[1; 2 * PAGE as usize]);
        let has_run = live.add(&region);
        assert_eq!(live.private_bytes(0), 2 * PAGE + IDLE_BYTES);
        has_run.set();
        assert_eq!(live.private_bytes(0), 2 * PAGE + RUN_BYTES);
        drop(region);
        assert_eq!(live.private_bytes(0), 0);
    }
}
