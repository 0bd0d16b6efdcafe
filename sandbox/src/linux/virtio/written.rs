//! Which pages of guest memory devices write to, while somebody wants to know: KVM's dirty log has only what the guest
//! itself writes.
//!
//! A device writes into the buffers that a driver made available, which are noted when the device takes them, and into the
//! used rings, which are few and are always counted in by the transport.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::ring::Chain;
use crate::linux::layout::PAGE;

/// See the module. One device's.
#[derive(Debug, Default)]
pub(crate) struct WriteLog {
    on: AtomicBool,
    /// Numbers of pages.
    pages: Mutex<BTreeSet<u64>>,
}

impl WriteLog {
    /// From now on buffers are noted, or not any more. While no device has any.
    pub(super) fn set(&self, on: bool) {
        self.pages.lock().clear();
        self.on.store(on, Ordering::SeqCst);
    }

    /// A device has this chain from now on.
    pub(super) fn note(&self, chain: &Chain) {
        if !self.on.load(Ordering::SeqCst) {
            return;
        }
        let mut pages = self.pages.lock();
        for buffer in chain.clone().writable() {
            let (start, length) = (buffer.addr().0, u64::from(buffer.len()));
            if length > 0 {
                pages.extend(start / PAGE..=start.saturating_add(length - 1) / PAGE);
            }
        }
    }

    /// The pages that were noted.
    pub(super) fn pages(&self) -> BTreeSet<u64> {
        self.pages.lock().clone()
    }
}
