//! What a store holds for its tenant: WASI state, limits and the clock of its time slices.

use std::time::Instant;

use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};

/// A store's data.
pub(super) struct Tenant<W> {
    /// WASI state; `None` until an invocation brings its streams and environment.
    pub(super) wasi: Option<W>,
    pub(super) limits: Limits,
    /// When the run is stopped.
    pub(super) deadline: Instant,
}

/// The deadline passed while the program computed.
#[derive(Debug, thiserror::Error)]
#[error("the deadline passed")]
pub(super) struct DeadlinePassed;

/// What one tenant may hold.
pub(super) struct Limits {
    /// All its linear memories together.
    memory_bytes: usize,
    used_bytes: usize,
    /// A growth was refused for the limit's sake.
    pub(super) refused: bool,
}

impl Limits {
    pub(super) fn new(memory_bytes: u64) -> Self {
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        Self { memory_bytes, used_bytes: 0, refused: false }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes as u64
    }
}

/// Instances, tables and memories of one tenant.
const INSTANCES: usize = 64;
const TABLES: usize = 64;
const MEMORIES: usize = 16;
const TABLE_ELEMENTS: usize = 100_000;

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.used_bytes.saturating_add(desired - current);
        if used > self.memory_bytes {
            self.refused = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.used_bytes = used;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= maximum.unwrap_or(usize::MAX).min(TABLE_ELEMENTS))
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
pub(super) fn store<W: Send + 'static>(
    engine: &Engine,
    memory_bytes: u64,
    deadline: Instant,
) -> Store<Tenant<W>> {
    let mut store = Store::new(engine, Tenant { wasi: None, limits: Limits::new(memory_bytes), deadline });
    store.limiter(|tenant| &mut tenant.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        if Instant::now() >= store.data().deadline {
            return Err(wasmtime::Error::new(DeadlinePassed));
        }
        Ok(UpdateDeadline::Yield(1))
    });
    store
}
