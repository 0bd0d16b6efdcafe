//! What all sandboxes of the gateway may hold together, and who makes room when that is reached.
//!
//! ```text
//! cold start ──take──> measured + promised + this one <= limit ── yes ──> starts
//!                                 │ no
//!                                 └─> waits ──> keeper: measures, removes the idle sandbox used longest ago, whose
//!                                       │              ever it is, until there is room
//!                                       └─ no room within PATIENCE ──> refused
//! ```
//!
//! What sandboxes hold is measured by their engines ([`Image::private_bytes`](novum_sandbox::Image::private_bytes)), several
//! times a second, on a thread that serves no request. What was started since the last measurement counts with what
//! a sandbox of its function usually holds (a promise), so that a burst does not outrun the measuring. Engines whose
//! sandboxes live for one request only make no promises: thousands of theirs come and go between two measurements.
//! A session may take seconds to come up, and is measured only then: it counts with its promise until it is there
//! ([`Making`]).
//!
//! Lock order: `pools`, then a pool's idle list.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::pool::Pool;
use crate::sessions::Sandboxes;

/// Between two measurements, unless measuring takes long.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
/// Measuring takes at most one part in so many of the time.
const MEASURE_SHARE: u32 = 50;
/// A removed sandbox is gone by then (closing a VM takes some milliseconds), and a measurement shows it.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a cold start waits for room, if its deadline is not sooner.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a sandbox that is kept from request to request counts for at least.
const LEAST_BYTES: u64 = 512 << 10;
/// One part in so many of the budget is left to callers: nothing is started ahead of them with it.
const LEFT_TO_CALLERS: u64 = 16;

/// No room, and none came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// What all sandboxes hold.
    pub held_bytes: u64,
    /// What they may hold.
    pub limit_bytes: u64,
}

/// The memory of all sandboxes.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: u64,
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Sandboxes that live between calls: they count, and are never removed to make room.
    sessions: OnceLock<Weak<Sandboxes>>,
    measured: AtomicU64,
    /// Since the last measurement, and between the two last ones: a sandbox that was being made during a measurement
    /// may not be in it.
    promised: AtomicU64,
    promised_before: AtomicU64,
    /// For what is being made and not measured before it is there.
    making: AtomicU64,
    /// What those who wait need together.
    wanted: AtomicU64,
    /// Wakes the keeper.
    ask: Notify,
    /// Wakes who waits.
    room: Notify,
}

impl Budget {
    /// Of so many bytes.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            pools: Mutex::default(),
            sessions: OnceLock::new(),
            measured: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            promised_before: AtomicU64::new(0),
            making: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            ask: Notify::new(),
            room: Notify::new(),
        })
    }

    /// What all sandboxes may hold together.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What they hold, as last measured.
    #[must_use]
    pub fn measured_bytes(&self) -> u64 {
        self.measured.load(Ordering::Relaxed)
    }

    /// Watches over a pool for as long as it lives.
    pub fn watch(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.lock();
        if pools.len() == pools.capacity() {
            pools.retain(|pool| pool.strong_count() > 0);
        }
        pools.push(Arc::downgrade(pool));
    }

    /// Counts these too.
    pub fn watch_sessions(&self, sandboxes: &Arc<Sandboxes>) {
        // There is one table of them.
        let _ = self.sessions.set(Arc::downgrade(sandboxes));
    }

    fn held(&self) -> u64 {
        let parts = [&self.measured, &self.promised, &self.promised_before, &self.making];
        parts.iter().map(|part| part.load(Ordering::Relaxed)).sum()
    }

    /// Takes room if there is some, and leaves `spare` bytes. `counter` is what counts it.
    fn try_take(&self, need: Need, spare: u64, counter: &AtomicU64) -> bool {
        let parts = [&self.measured, &self.promised, &self.promised_before, &self.making];
        let others = parts.iter().filter(|part| !std::ptr::eq(**part, counter));
        let others: u64 = others.map(|part| part.load(Ordering::Relaxed)).sum();
        let fits = |own: u64| [own, need.bytes, spare].iter().fold(others, |a, b| a.saturating_add(*b));
        let more = |own| (fits(own) <= self.limit_bytes).then_some(own + need.bytes);
        if need.kept {
            counter.try_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        } else {
            more(counter.load(Ordering::Relaxed)).is_some()
        }
    }

    /// Room for a sandbox that nobody waits for; a part of the budget is left to callers.
    #[must_use]
    pub fn take_ahead(&self, need: Need) -> bool {
        self.try_take(need, self.limit_bytes / LEFT_TO_CALLERS, &self.promised)
    }

    /// Room for a caller's sandbox; waits for it a little.
    ///
    /// # Errors
    /// [`Full`] where none came.
    pub async fn take(&self, need: Need, deadline: Instant) -> Result<(), Full> {
        let counter = &self.promised;
        if self.try_take(need, 0, counter) { Ok(()) } else { self.wait_for(need, deadline, counter).await }
    }

    /// Room for so many bytes that are being made, however long that takes; waits for it a little.
    ///
    /// # Errors
    /// [`Full`] where none came.
    pub async fn make(self: &Arc<Self>, bytes: u64, deadline: Instant) -> Result<Making, Full> {
        let need = Need { bytes, kept: true };
        if !self.try_take(need, 0, &self.making) {
            self.wait_for(need, deadline, &self.making).await?;
        }
        Ok(Making { budget: Arc::clone(self), bytes })
    }

    async fn wait_for(&self, need: Need, deadline: Instant, counter: &AtomicU64) -> Result<(), Full> {
        let _wanted = Wanted::new(&self.wanted, need.bytes);
        let until = deadline.min(Instant::now() + PATIENCE);
        loop {
            // Made before the keeper is asked: its answer cannot be missed.
            let room = self.room.notified();
            self.ask.notify_one();
            let waited = timeout(until.saturating_duration_since(Instant::now()), room).await;
            if self.try_take(need, 0, counter) {
                return Ok(());
            }
            if waited.is_err() {
                return Err(Full { held_bytes: self.held(), limit_bytes: self.limit_bytes });
            }
        }
    }

    /// A sandbox became idle: if somebody waits for room, it may be given up for him.
    pub fn became_idle(&self) {
        if self.wanted.load(Ordering::Relaxed) > 0 {
            self.ask.notify_one();
        }
    }

    /// Measures and makes room until nobody holds the budget any more. Runs on the control runtime.
    pub async fn keep(budget: Weak<Self>) {
        loop {
            let Some(this) = budget.upgrade() else { return };
            let began = Instant::now();
            let own = Arc::clone(&this);
            let removed = tokio::task::spawn_blocking(move || own.measure_and_make_room()).await.unwrap_or(0);
            this.room.notify_waiters();
            let hurry = removed > 0 || this.wanted.load(Ordering::Relaxed) > 0;
            if hurry {
                // An answer to whoever asked while this measured: not before what was removed is really gone.
                tokio::time::sleep(SETTLE.max(began.elapsed())).await;
            } else {
                let pause = MEASURE_EVERY.max(began.elapsed() * MEASURE_SHARE);
                let _ = timeout(pause, this.ask.notified()).await;
            }
        }
    }

    /// One turn of the keeper: how many sandboxes were removed.
    fn measure_and_make_room(&self) -> u32 {
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        let promised = self.promised.swap(0, Ordering::Relaxed);
        self.promised_before.store(promised, Ordering::Relaxed);
        let sessions = self.sessions.get().and_then(Weak::upgrade);
        let measured = pools.iter().map(|pool| pool.measure()).sum::<u64>()
            + sessions.map_or(0, |sandboxes| sandboxes.measure());
        self.measured.store(measured, Ordering::Relaxed);
        // `promised_before` is left out: nearly all of it has just been measured, and what is removed does not come back.
        let coming = [&self.promised, &self.making, &self.wanted].map(|part| part.load(Ordering::Relaxed));
        let needed = coming.iter().fold(measured, |sum, part| sum.saturating_add(*part));
        let (removed, freed) = remove_idle(&pools, needed.saturating_sub(self.limit_bytes));
        self.measured.fetch_sub(freed.min(measured), Ordering::Relaxed);
        removed
    }
}

/// Removes idle sandboxes that hold `excess` together, those used longest ago first: how many, and what they held.
fn remove_idle(pools: &[Arc<Pool>], excess: u64) -> (u32, u64) {
    let (mut removed, mut freed) = (0, 0);
    while freed < excess {
        let oldest = pools.iter().filter_map(|pool| Some((pool.idle_since()?, pool)));
        let Some((_, pool)) = oldest.min_by_key(|(since, _)| *since) else { break };
        if pool.evict_oldest() {
            removed += 1;
            freed += pool.typical_bytes().max(1);
        }
    }
    (removed, freed)
}

/// What a new sandbox will hold.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    bytes: u64,
    kept: bool,
}

impl Need {
    /// As much as its function's sandboxes usually hold. `kept`: from request to request.
    #[must_use]
    pub fn new(typical_bytes: u64, kept: bool) -> Self {
        Self { bytes: if kept { typical_bytes.max(LEAST_BYTES) } else { typical_bytes }, kept }
    }
}

/// Something is being made. From its drop on, what was made counts until it is measured.
#[derive(Debug)]
pub struct Making {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Making {
    fn drop(&mut self) {
        // In this order: it may count twice for a moment, and is never forgotten.
        self.budget.promised.fetch_add(self.bytes, Ordering::Relaxed);
        self.budget.making.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Somebody waits for so many bytes.
struct Wanted<'a>(&'a AtomicU64, u64);

impl<'a> Wanted<'a> {
    fn new(wanted: &'a AtomicU64, bytes: u64) -> Self {
        // Something must be wanted for the keeper to hurry.
        let bytes = bytes.max(1);
        wanted.fetch_add(bytes, Ordering::Relaxed);
        Self(wanted, bytes)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The default: three quarters of what this machine, or the control group that the gateway lives in, has.
#[must_use]
pub fn default_limit_bytes() -> u64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let total = meminfo_total(&read("/proc/meminfo"));
    // Version 2, and version 1 where that is mounted; "max" is no number and no limit.
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = groups.iter().filter_map(|path| read(path).trim().parse::<u64>().ok());
    limits.chain(total).filter(|bytes| *bytes > 0).min().unwrap_or(4 << 30) / 4 * 3
}

fn meminfo_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_share_of_what_is_there() {
        assert_eq!(meminfo_total("MemFree: 1 kB\nMemTotal:       24576 kB\n"), Some(24 << 20));
        assert_eq!(meminfo_total(""), None);
        let limit = default_limit_bytes();
        let total = meminfo_total(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert!(limit > 0 && limit <= total / 4 * 3, "{limit} of {total}");
    }

    #[tokio::test]
    async fn promises_count_until_they_are_measured() {
        let budget = Budget::new(4 << 20);
        let (kept, brief) = (Need::new(1 << 20, true), Need::new(1 << 20, false));
        let soon = || Instant::now() + Duration::from_millis(5);
        for _ in 0..4 {
            budget.take(kept, soon()).await.unwrap();
        }
        let full = Full { held_bytes: 4 << 20, limit_bytes: 4 << 20 };
        assert_eq!(budget.take(kept, soon()).await, Err(full));
        assert_eq!(budget.take(brief, soon()).await, Err(full));
        // The first measurement may have missed sandboxes that were being made; the second has not.
        budget.measure_and_make_room();
        assert_eq!(budget.held(), 4 << 20);
        budget.measure_and_make_room();
        assert_eq!(budget.held(), 0);
        for _ in 0..8 {
            budget.take(brief, soon()).await.unwrap();
        }
        assert_eq!(budget.held(), 0, "who lives for one request promises nothing");
        assert!((0..3).all(|_| budget.take_ahead(kept)) && !budget.take_ahead(kept));
        budget.take(kept, soon()).await.unwrap();
    }
    #[tokio::test]
    async fn what_takes_long_to_make_counts_until_it_is_there() {
        let budget = Budget::new(4 << 20);
        let soon = || Instant::now() + Duration::from_millis(5);
        let slow = budget.make(3 << 20, soon()).await.unwrap();
        for _ in 0..3 {
            budget.measure_and_make_room();
        }
        assert_eq!(budget.held(), 3 << 20);
        assert!(budget.make(2 << 20, soon()).await.is_err());
        assert!(budget.take(Need::new(2 << 20, true), soon()).await.is_err());
        drop(slow);
        assert_eq!(budget.held(), 3 << 20, "a promise, until it is measured");
        budget.measure_and_make_room();
        budget.measure_and_make_room();
        assert_eq!(budget.held(), 0);
        drop(budget.make(4 << 20, soon()).await.unwrap());
    }
}
