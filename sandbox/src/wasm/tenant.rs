//! What a store holds for its tenant: WASI state, limits, and the clock of its time slices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};

use super::settings::TABLE_ELEMENTS;

/// A store's data.
pub(super) struct Tenant<W> {
    /// WASI state.
    pub(super) wasi: W,
    pub(super) limits: Limits,
    /// When the run is stopped.
    pub(super) deadline: Instant,
    /// Time slices used so far.
    pub(super) slices: Slices,
}

/// Counts the time slices of one run; shared with whoever drives it.
#[derive(Clone, Default)]
pub(super) struct Slices(Arc<AtomicU32>);

impl Slices {
    /// How many slices the run has used up.
    pub(super) fn used(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes that the living tenants of one image hold.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<AtomicU64>);

impl Held {
    /// Now.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a tenant holds more than last time is made known in steps of this size: small instances, of which there are
/// hundreds of thousands a second, then share no counter.
const HELD_STEP: usize = 256 << 10;

/// The deadline passed while the program computed.
#[derive(Debug, thiserror::Error)]
#[error("the deadline passed")]
pub(super) struct DeadlinePassed;

/// What one tenant may hold.
pub(super) struct Limits {
    /// All its linear memories, tables and garbage-collected heaps together.
    memory_bytes: usize,
    used_bytes: usize,
    /// As much of `used_bytes` as `held` counts.
    published_bytes: usize,
    held: Held,
    /// A growth was refused for the limit's sake.
    refused: bool,
}

/// Instances, tables and memories of one tenant: enough for a component that bundles an interpreter.
pub(super) const INSTANCES: usize = 64;
const TABLES: usize = 64;
const MEMORIES: usize = 16;
/// Bytes that the host spends on one table element.
const ELEMENT_BYTES: usize = 8;

impl Limits {
    fn new(memory_bytes: u64, held: Held) -> Self {
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        Self { memory_bytes, used_bytes: 0, published_bytes: 0, held, refused: false }
    }

    /// The limit, if a growth was refused for its sake.
    pub(super) fn met(&self) -> Option<u64> {
        self.refused.then_some(self.memory_bytes as u64)
    }

    /// Whether `more` bytes still fit; they then count as used.
    fn charge(&mut self, more: usize) -> bool {
        let used = self.used_bytes.saturating_add(more);
        if used > self.memory_bytes {
            self.refused = true;
            return false;
        }
        self.used_bytes = used;
        if used - self.published_bytes >= HELD_STEP {
            self.held.0.fetch_add((used - self.published_bytes) as u64, Ordering::Relaxed);
            self.published_bytes = used;
        }
        true
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        if self.published_bytes > 0 {
            self.held.0.fetch_sub(self.published_bytes as u64, Ordering::Relaxed);
        }
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let possible = maximum.is_none_or(|maximum| desired <= maximum);
        Ok(possible && self.charge(desired.saturating_sub(current)))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let possible = desired <= maximum.unwrap_or(usize::MAX).min(TABLE_ELEMENTS);
        Ok(possible && self.charge(desired.saturating_sub(current).saturating_mul(ELEMENT_BYTES)))
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

/// A store with its limits and its time slices: every tick the program gives way to its neighbours, and past its
/// deadline it stops.
pub(super) fn store<W: Default + Send + 'static>(
    engine: &Engine,
    memory_bytes: u64,
    held: &Held,
    deadline: Instant,
) -> Store<Tenant<W>> {
    let limits = Limits::new(memory_bytes, held.clone());
    let tenant = Tenant { wasi: W::default(), limits, deadline, slices: Slices::default() };
    let mut store = Store::new(engine, tenant);
    store.limiter(|tenant| &mut tenant.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        let tenant = store.data();
        if Instant::now() >= tenant.deadline {
            return Err(wasmtime::Error::new(DeadlinePassed));
        }
        tenant.slices.count();
        Ok(UpdateDeadline::Yield(1))
    });
    store
}
