//! The sandboxes of one deployed version, and who may have one.
//!
//! ```text
//!             no permit, queue full ──> Refused
//! lease() ──> permit ──> idle sandbox, else Image::start ──> Lease ──invoke──> drop
//!                            ^                                                   │
//!                            └── idle <── reset in the background <── Reset ─────┤
//!                                                                     Restart ──> destroyed
//! ```
//!
//! A permit stands for one caller; `pool.max` of them exist. Waiters get them in the order of their arrival. A permit
//! is given back only after a background reset, so that a waiter finds the clean sandbox instead of starting one.
//! Every start takes its memory from the gateway's [`Budget`], which may remove idle sandboxes.
//! The only lock is that of the idle list; it is held for a push or a pop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use novum_sandbox::{Disposition, Pool as Limits, Renewal, Sandbox};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::budget::{Budget, Full, Need};
use crate::image::{ImageCell, ImageError};

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The queue is full.
    #[error("the queue is full")]
    Refused,
    /// The deadline passed while waiting or starting.
    #[error("the deadline passed before there was a sandbox")]
    Deadline,
    /// The gateway's memory budget is used up, and nothing idle could be removed.
    #[error("the memory budget of {} bytes is used up", .0.limit_bytes)]
    NoMemory(Full),
    /// There is no image, or it did not start.
    #[error(transparent)]
    Image(#[from] ImageError),
}

struct Idle {
    sandbox: Box<dyn Sandbox>,
    since: Instant,
}

/// The sandboxes of one version.
pub struct Pool {
    limits: Limits,
    image: ImageCell,
    permits: Semaphore,
    waiting: AtomicU32,
    /// Leased sandboxes that are being reset.
    renewing: AtomicU32,
    /// Sandboxes that are being started without a caller.
    filling: AtomicU32,
    idle: Mutex<VecDeque<Idle>>,
    /// Length of `idle`, so that an empty list costs no lock.
    idle_count: AtomicU32,
    /// A task that fills is about to run.
    fill_planned: AtomicBool,
    /// Not the current version: `pool.min` does not count.
    cooled: AtomicBool,
    /// No longer invocable: nothing is kept.
    retired: AtomicBool,
    budget: Arc<Budget>,
    /// What its sandboxes hold, as last measured, and one of them on average.
    measured_bytes: AtomicU64,
    typical_bytes: AtomicU64,
    /// Idle sandboxes that had to make room.
    evicted: AtomicU64,
    /// Where background work runs.
    control: Handle,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("limits", &self.limits).field("now", &self.occupancy()).finish()
    }
}

/// What a pool does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Sandboxes with a caller.
    pub running: u32,
    /// Callers without a sandbox.
    pub queued: u32,
    /// Sandboxes without a caller.
    pub idle: u32,
}

impl std::ops::AddAssign for Occupancy {
    fn add_assign(&mut self, other: Self) {
        self.running += other.running;
        self.queued += other.queued;
        self.idle += other.idle;
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: Limits, image: ImageCell, budget: Arc<Budget>, control: Handle) -> Arc<Self> {
        let pool = Arc::new(Self {
            limits,
            image,
            permits: Semaphore::new(limits.max as usize),
            waiting: AtomicU32::new(0),
            renewing: AtomicU32::new(0),
            filling: AtomicU32::new(0),
            idle: Mutex::default(),
            idle_count: AtomicU32::new(0),
            fill_planned: AtomicBool::new(false),
            cooled: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            budget,
            measured_bytes: AtomicU64::new(0),
            typical_bytes: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            control,
        });
        pool.budget.watch(&pool);
        pool
    }

    /// What it starts sandboxes from.
    #[must_use]
    pub fn image(&self) -> &ImageCell {
        &self.image
    }

    /// What it does now.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let leased =
            self.limits.max.saturating_sub(u32::try_from(self.permits.available_permits()).unwrap_or(0));
        Occupancy {
            running: leased.saturating_sub(self.renewing.load(Ordering::Relaxed)),
            queued: self.waiting.load(Ordering::Relaxed),
            idle: self.idle_count.load(Ordering::Relaxed),
        }
    }

    /// A clean sandbox: an idle one, or a new one.
    ///
    /// # Errors
    /// See [`LeaseError`]. Dropping the future gives up the place in the queue.
    pub async fn lease(self: &Arc<Self>, arrived: Instant, deadline: Instant) -> Result<Lease, LeaseError> {
        let permit = self.permit(deadline).await?;
        let queued = arrived.elapsed();
        if let Some(sandbox) = self.take_idle() {
            self.fill_later();
            return Ok(permit.lease(sandbox, queued, None));
        }
        let began = Instant::now();
        if !self.image.is_ready() {
            // What a sandbox will need is known only then.
            before(deadline, self.image.get()).await??;
        }
        self.budget.take(self.need(), deadline).await.map_err(LeaseError::NoMemory)?;
        let sandbox = before(deadline, self.image.start()).await??;
        Ok(permit.lease(sandbox, queued, Some(began.elapsed())))
    }

    async fn permit(self: &Arc<Self>, deadline: Instant) -> Result<Permit, LeaseError> {
        if let Ok(permit) = self.permits.try_acquire() {
            permit.forget();
            return Ok(Permit { pool: Arc::clone(self) });
        }
        let _place = self.place().ok_or(LeaseError::Refused)?;
        match before(deadline, self.permits.acquire()).await? {
            Ok(permit) => permit.forget(),
            // Nobody closes the semaphore.
            Err(_) => return Err(LeaseError::Refused),
        }
        Ok(Permit { pool: Arc::clone(self) })
    }

    /// A place in the queue, unless it is full.
    fn place(&self) -> Option<Counted<'_>> {
        // Counted first and given back when it is too many: two arrivals cannot both take the last place.
        let place = Counted(&self.waiting);
        (self.waiting.fetch_add(1, Ordering::Relaxed) < self.limits.queue).then_some(place)
    }

    fn take_idle(&self) -> Option<Box<dyn Sandbox>> {
        if self.idle_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut idle = self.idle.lock();
        // The one used last: its memory is likeliest in the caches.
        let taken = idle.pop_back();
        self.idle_count.store(u32::try_from(idle.len()).unwrap_or(u32::MAX), Ordering::Release);
        drop(idle);
        taken.map(|idle| idle.sandbox)
    }

    fn put_idle(&self, sandbox: Box<dyn Sandbox>) {
        let mut idle = self.idle.lock();
        if !self.retired.load(Ordering::Relaxed) {
            idle.push_back(Idle { sandbox, since: Instant::now() });
            self.idle_count.store(u32::try_from(idle.len()).unwrap_or(u32::MAX), Ordering::Release);
        }
        drop(idle);
        self.budget.became_idle();
    }

    /// Starts what `pool.min` lacks, in the background.
    pub fn fill_later(self: &Arc<Self>) {
        if !self.lacks_idle() || self.fill_planned.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool = Arc::clone(self);
        self.control.spawn(async move {
            pool.fill_planned.store(false, Ordering::Relaxed);
            if let Err(error) = pool.fill().await {
                tracing::warn!(%error, "a sandbox could not be started ahead of its caller");
            }
        });
    }

    async fn fill(&self) -> Result<(), ImageError> {
        while self.lacks_idle() {
            if !self.budget.take_ahead(self.need()) {
                // Looked at again every second.
                break;
            }
            let _filling = Counted::new(&self.filling);
            let sandbox = self.image.start_ahead().await?;
            self.put_idle(sandbox);
        }
        Ok(())
    }

    fn min(&self) -> u32 {
        if self.cooled.load(Ordering::Relaxed) { 0 } else { self.limits.min }
    }

    fn lacks_idle(&self) -> bool {
        let min = self.min();
        if min == 0 || self.retired.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.occupancy();
        let filling = self.filling.load(Ordering::Relaxed);
        let leased = now.running + self.renewing.load(Ordering::Relaxed);
        // A leased sandbox that will be reset comes back by itself; one that will be destroyed does not.
        let returning = if self.image.renewal() == Renewal::Reset { leased } else { 0 };
        now.idle + filling + returning < min && now.idle + filling + leased < self.limits.max
    }

    /// Removes sandboxes above `pool.min` that were idle for `pool.idle`.
    pub fn expire(&self, now: Instant) {
        let mut expired = Vec::new();
        let mut idle = self.idle.lock();
        while idle.len() > self.min() as usize
            && idle.front().is_some_and(|oldest| now.duration_since(oldest.since) >= self.limits.idle)
        {
            expired.extend(idle.pop_front());
        }
        self.idle_count.store(u32::try_from(idle.len()).unwrap_or(u32::MAX), Ordering::Release);
        drop(idle);
        drop(expired);
    }

    fn need(&self) -> Need {
        Need::new(self.typical_bytes(), self.image.renewal() == Renewal::Reset)
    }

    /// What one of its sandboxes held on average when that was last measured.
    #[must_use]
    pub fn typical_bytes(&self) -> u64 {
        self.typical_bytes.load(Ordering::Relaxed)
    }

    /// What its sandboxes held together when that was last measured.
    #[must_use]
    pub fn measured_bytes(&self) -> u64 {
        self.measured_bytes.load(Ordering::Relaxed)
    }

    /// Idle sandboxes that were removed for the memory budget's sake.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Asks the engine what the sandboxes hold. May take milliseconds.
    pub(crate) fn measure(&self) -> u64 {
        let bytes = self.image.private_bytes();
        self.measured_bytes.store(bytes, Ordering::Relaxed);
        let now = self.occupancy();
        let alive = now.running + now.idle + self.renewing.load(Ordering::Relaxed);
        // Nothing alive says nothing about the next one.
        if bytes > 0 && alive > 0 {
            self.typical_bytes.store(bytes / u64::from(alive), Ordering::Relaxed);
        }
        bytes
    }

    /// Since when the sandbox that was used longest ago is idle.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        if self.idle_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.idle.lock().front().map(|oldest| oldest.since)
    }

    /// Removes the sandbox that was used longest ago, also below `pool.min`.
    pub(crate) fn evict_oldest(&self) -> bool {
        let mut idle = self.idle.lock();
        let oldest = idle.pop_front();
        self.idle_count.store(u32::try_from(idle.len()).unwrap_or(u32::MAX), Ordering::Release);
        drop(idle);
        let found = oldest.is_some();
        self.evicted.fetch_add(u64::from(found), Ordering::Relaxed);
        found
    }

    /// No longer the current version: nothing is started ahead of a caller, and what is idle goes when its time is over.
    pub fn cool(&self) {
        self.cooled.store(true, Ordering::Relaxed);
    }

    /// Keeps nothing from now on. Leases under way go on.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle.lock());
        self.idle_count.store(0, Ordering::Release);
        drop(idle);
    }
}

async fn before<F: Future>(deadline: Instant, future: F) -> Result<F::Output, LeaseError> {
    tokio::time::timeout_at(deadline.into(), future).await.map_err(|_| LeaseError::Deadline)
}

/// A counter that is one higher while this lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to one sandbox.
struct Permit {
    pool: Arc<Pool>,
}

impl Permit {
    fn lease(self, sandbox: Box<dyn Sandbox>, queued: Duration, start: Option<Duration>) -> Lease {
        Lease {
            permit: Some(self),
            sandbox: Some(sandbox),
            fate: Disposition::Destroy,
            queued,
            start: start.unwrap_or_default(),
            cold: start.is_some(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.permits.add_permits(1);
    }
}

/// One caller's sandbox. Dropped, the sandbox meets the fate that was last set; [`Disposition::Destroy`] at first, so
/// that a cancelled run leaves nothing behind.
pub struct Lease {
    permit: Option<Permit>,
    sandbox: Option<Box<dyn Sandbox>>,
    fate: Disposition,
    /// From arrival until the permit.
    pub queued: Duration,
    /// Of a cold start; 0 for a warm one.
    pub start: Duration,
    /// Started for this lease.
    pub cold: bool,
}

impl Lease {
    /// The sandbox.
    pub fn sandbox(&mut self) -> &mut dyn Sandbox {
        match &mut self.sandbox {
            Some(sandbox) => sandbox.as_mut(),
            None => unreachable!("only drop takes the sandbox"),
        }
    }

    /// What becomes of the sandbox.
    pub fn decide(&mut self, fate: Disposition) {
        self.fate = fate;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(permit), Some(sandbox)) = (self.permit.take(), self.sandbox.take()) else { return };
        let pool = &permit.pool;
        match (self.fate, pool.image.renewal()) {
            (Disposition::Keep, _) => pool.put_idle(sandbox),
            // A new instance is as cheap: nothing to wait for.
            (_, Renewal::Restart) => drop(sandbox),
            (Disposition::Reset, Renewal::Reset) => renew(permit, sandbox),
            (Disposition::Destroy, Renewal::Reset) => destroy(sandbox),
        }
    }
}

/// Resets the sandbox once the reply is on its way.
fn renew(permit: Permit, mut sandbox: Box<dyn Sandbox>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        let pool = Arc::clone(&permit.pool);
        let renewing = Counted::new(&pool.renewing);
        // Lets the connection write the reply first.
        tokio::task::yield_now().await;
        match sandbox.reset().await {
            Ok(()) => pool.put_idle(sandbox),
            Err(error) => {
                tracing::warn!(%error, "a sandbox could not be reset; it is destroyed");
                destroy(sandbox);
            }
        }
        drop(renewing);
        drop(permit);
    });
}

/// Closing a VM can take milliseconds: not on a worker.
fn destroy(sandbox: Box<dyn Sandbox>) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(sandbox))),
        Err(_) => drop(sandbox),
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
