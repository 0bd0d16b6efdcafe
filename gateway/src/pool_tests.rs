//! The pool with an engine made for these tests: its sandboxes count themselves.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use novum_sandbox::{
    Artifact, ArtifactFormat, Engine, EngineKind, Error, Function, Image, Invocation, Manifest, Reply,
};
use novum_snapshot::Digest;

use super::*;
use crate::image::SharePolicy;

/// What one of these sandboxes says that it holds.
const SANDBOX_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Fake {
    renewal: Renewal,
    starts: Arc<AtomicUsize>,
    alive: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
}

impl Fake {
    fn new(renewal: Renewal) -> Arc<Self> {
        let zero = || Arc::new(AtomicUsize::new(0));
        Arc::new(Self { renewal, starts: zero(), alive: zero(), resets: zero() })
    }

    fn clone_counts(&self) -> Arc<Self> {
        let Self { renewal, starts, alive, resets } = self;
        Arc::new(Self {
            renewal: *renewal,
            starts: starts.clone(),
            alive: alive.clone(),
            resets: resets.clone(),
        })
    }
}

#[async_trait]
impl Engine for Fake {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    async fn prepare(&self, _function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        Ok(self.clone_counts())
    }
}

#[async_trait]
impl Image for Fake {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        self.alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeSandbox(self)))
    }

    fn renewal(&self) -> Renewal {
        self.renewal
    }

    fn private_bytes(&self) -> u64 {
        (self.alive.load(Ordering::SeqCst) * SANDBOX_BYTES) as u64
    }
}

struct FakeSandbox(Arc<Fake>);

impl Drop for FakeSandbox {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn invoke(&mut self, _call: Invocation) -> Result<Reply, Error> {
        Err(Error::Cancelled)
    }

    async fn reset(&mut self) -> Result<(), Error> {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn pool(fake: &Arc<Fake>, limits: Limits) -> Arc<Pool> {
    pool_with(fake, limits, Budget::new(u64::MAX))
}

fn pool_with(fake: &Arc<Fake>, limits: Limits, budget: Arc<Budget>) -> Arc<Pool> {
    let manifest = Manifest { pool: limits, ..Manifest::new("f".parse().unwrap()) };
    let artifact = Artifact {
        format: ArtifactFormat::File,
        digest: Digest::of(b""),
        path: PathBuf::from("/nonexistent"),
    };
    let function = Arc::new(Function { version: 1, manifest, artifact });
    let control = Handle::current();
    let image = ImageCell::new(function, Ok(fake.clone_counts()), SharePolicy::default(), control.clone());
    Pool::new(limits, image, budget, control)
}

fn limits(max: u32, queue: u32) -> Limits {
    Limits { min: 0, max, queue, idle: Duration::from_secs(60) }
}

async fn lease(pool: &Arc<Pool>) -> Result<Lease, LeaseError> {
    let now = Instant::now();
    pool.lease(now, now + Duration::from_secs(5)).await
}

async fn settle(done: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(5), async {
        while !done() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it settles");
}

#[tokio::test]
async fn a_restarted_sandbox_is_always_new() {
    let fake = Fake::new(Renewal::Restart);
    let pool = pool(&fake, limits(1, 0));
    for n in 1..=3 {
        let mut lease = lease(&pool).await.unwrap();
        assert!(lease.cold);
        lease.decide(Disposition::Reset);
        drop(lease);
        assert_eq!((fake.starts.load(Ordering::SeqCst), fake.alive.load(Ordering::SeqCst)), (n, 0));
    }
}

#[tokio::test]
async fn a_reset_sandbox_serves_again() {
    let fake = Fake::new(Renewal::Reset);
    let pool = pool(&fake, limits(1, 1));
    for n in 0..3 {
        // Waits for the reset, because the permit comes back only then.
        let mut lease = lease(&pool).await.unwrap();
        assert_eq!(lease.cold, n == 0);
        lease.decide(Disposition::Reset);
    }
    settle(|| fake.resets.load(Ordering::SeqCst) == 3 && pool.occupancy().idle == 1).await;
    assert_eq!(fake.starts.load(Ordering::SeqCst), 1);
    assert_eq!(pool.occupancy(), Occupancy { running: 0, queued: 0, idle: 1 });
}

#[tokio::test]
async fn a_lease_that_nobody_decided_destroys_its_sandbox() {
    let fake = Fake::new(Renewal::Reset);
    let pool = pool(&fake, limits(1, 0));
    drop(lease(&pool).await.unwrap());
    settle(|| fake.alive.load(Ordering::SeqCst) == 0).await;
    assert_eq!((pool.occupancy(), fake.resets.load(Ordering::SeqCst)), (Occupancy::default(), 0));
}

#[tokio::test]
async fn waiters_beyond_the_queue_are_refused_and_the_others_come_in_order() {
    let fake = Fake::new(Renewal::Restart);
    let pool = pool(&fake, limits(1, 2));
    let first = lease(&pool).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for n in 0..2 {
        let (waiting, order) = (Arc::clone(&pool), Arc::clone(&order));
        waiters.push(tokio::spawn(async move {
            let lease = lease(&waiting).await.unwrap();
            order.lock().push(n);
            drop(lease);
        }));
        settle(|| pool.occupancy().queued == n + 1).await;
    }
    assert!(matches!(lease(&pool).await, Err(LeaseError::Refused)));
    assert_eq!(pool.occupancy(), Occupancy { running: 1, queued: 2, idle: 0 });
    drop(first);
    for waiter in waiters {
        waiter.await.unwrap();
    }
    assert_eq!(*order.lock(), [0, 1]);
    assert_eq!(pool.occupancy(), Occupancy::default());
}

#[tokio::test]
async fn a_waiter_that_leaves_or_is_late_gives_its_place_back() {
    let fake = Fake::new(Renewal::Restart);
    let pool = pool(&fake, limits(1, 1));
    let kept = lease(&pool).await.unwrap();
    let now = Instant::now();
    let late = pool.lease(now, now + Duration::from_millis(5)).await;
    assert!(matches!(late, Err(LeaseError::Deadline)));
    assert_eq!(pool.occupancy().queued, 0);
    let waiting = Arc::clone(&pool);
    let gone = tokio::spawn(async move { lease(&waiting).await.map(drop) });
    settle(|| pool.occupancy().queued == 1).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(pool.occupancy().queued, 0);
    drop(kept);
    assert!(lease(&pool).await.is_ok());
}

#[tokio::test]
async fn the_minimum_is_kept_warm_and_the_rest_expires() {
    for renewal in [Renewal::Restart, Renewal::Reset] {
        let fake = Fake::new(renewal);
        let pool = pool(&fake, Limits { min: 2, max: 4, queue: 0, idle: Duration::ZERO });
        pool.fill_later();
        settle(|| pool.occupancy().idle == 2).await;
        let mut leases = Vec::new();
        for _ in 0..4 {
            leases.push(lease(&pool).await.unwrap());
        }
        assert!(!leases[0].cold && leases[3].cold);
        leases.iter_mut().for_each(|lease| lease.decide(Disposition::Reset));
        drop(leases);
        pool.fill_later();
        settle(|| pool.occupancy().running == 0 && pool.occupancy().idle >= 2).await;
        pool.expire(Instant::now());
        assert_eq!(pool.occupancy().idle, 2);
        pool.retire();
        settle(|| fake.alive.load(Ordering::SeqCst) == 0).await;
    }
}

/// A pool of sandboxes that are reset, with the gateway's budget.
fn kept(budget: &Arc<Budget>, min: u32) -> (Arc<Fake>, Arc<Pool>) {
    let fake = Fake::new(Renewal::Reset);
    let limits = Limits { min, max: 8, queue: 8, idle: Duration::from_secs(60) };
    let pool = pool_with(&fake, limits, Arc::clone(budget));
    (fake, pool)
}

async fn make_idle(pool: &Arc<Pool>) {
    let mut lease = lease(pool).await.unwrap();
    lease.decide(Disposition::Keep);
}

#[tokio::test]
async fn a_full_budget_removes_the_idle_sandbox_used_longest_ago_of_any_function() {
    let budget = Budget::new(3 * SANDBOX_BYTES as u64);
    let [(_, a), (_, b), (of_c, c)] = [kept(&budget, 0), kept(&budget, 0), kept(&budget, 0)];
    make_idle(&a).await;
    let mut two = [lease(&b).await.unwrap(), lease(&b).await.unwrap()];
    two.iter_mut().for_each(|lease| lease.decide(Disposition::Keep));
    drop(two);
    tokio::spawn(Budget::keep(Arc::downgrade(&budget)));
    let mut leases = Vec::new();
    for expected in [(0, 2), (0, 1), (0, 0)] {
        let lease = lease(&c).await.unwrap();
        assert!(lease.cold);
        leases.push(lease);
        settle(|| (a.occupancy().idle, b.occupancy().idle) == expected).await;
        settle(|| budget.measured_bytes() == 3 * SANDBOX_BYTES as u64).await;
    }
    assert_eq!((a.evicted(), b.evicted(), c.evicted()), (1, 2, 0));
    assert_eq!((budget.measured_bytes(), of_c.alive.load(Ordering::SeqCst)), (3 * SANDBOX_BYTES as u64, 3));
}

#[tokio::test]
async fn a_start_without_memory_waits_for_an_idle_sandbox_and_is_refused_without_one() {
    let budget = Budget::new(2 * SANDBOX_BYTES as u64);
    let [(_, a), (_, b)] = [kept(&budget, 0), kept(&budget, 0)];
    let mut held = [lease(&a).await.unwrap(), lease(&a).await.unwrap()];
    tokio::spawn(Budget::keep(Arc::downgrade(&budget)));
    settle(|| budget.measured_bytes() == budget.limit_bytes()).await;
    let now = Instant::now();
    let refused = b.lease(now, now + Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(LeaseError::NoMemory(full)) if full.held_bytes >= full.limit_bytes));
    assert_eq!((b.occupancy(), a.evicted()), (Occupancy::default(), 0), "what runs is left alone");
    let waiting = Arc::clone(&b);
    let waiter = tokio::spawn(async move { lease(&waiting).await });
    settle(|| b.occupancy().running == 1).await;
    held.iter_mut().for_each(|lease| lease.decide(Disposition::Keep));
    drop(held);
    assert!(waiter.await.unwrap().is_ok());
    assert!(a.evicted() >= 1);
}

#[tokio::test]
async fn what_is_kept_ready_makes_room_and_comes_back_only_when_there_is_plenty() {
    let budget = Budget::new(32 * SANDBOX_BYTES as u64);
    let [(_, ready), (_, busy)] = [kept(&budget, 4), kept(&budget, 0)];
    ready.image().get().await.map(drop).unwrap();
    ready.fill_later();
    settle(|| ready.occupancy().idle == 4).await;
    tokio::spawn(Budget::keep(Arc::downgrade(&budget)));
    let mut leases = Vec::new();
    for _ in 0..8 {
        leases.push(lease(&busy).await.unwrap());
    }
    let more = Limits { min: 0, max: 32, queue: 0, idle: Duration::from_secs(60) };
    let crowd = pool_with(&Fake::new(Renewal::Reset), more, Arc::clone(&budget));
    for _ in 0..22 {
        leases.push(lease(&crowd).await.unwrap());
        settle(|| budget.measured_bytes() >= 4 * SANDBOX_BYTES as u64).await;
    }
    settle(|| ready.occupancy().idle <= 2).await;
    let evicted = ready.evicted();
    ready.fill_later();
    settle(|| budget.measured_bytes() >= 30 * SANDBOX_BYTES as u64).await;
    assert!(ready.occupancy().idle <= 2 && evicted >= 2, "{:?} {evicted}", ready.occupancy());
    drop(leases);
    settle(|| {
        ready.fill_later();
        ready.occupancy().idle == 4
    })
    .await;
}

#[tokio::test]
async fn a_pool_scales_to_zero_and_back() {
    let fake = Fake::new(Renewal::Reset);
    let pool = pool(&fake, Limits { min: 0, max: 4, queue: 0, idle: Duration::ZERO });
    for round in 1..=2 {
        let mut one = lease(&pool).await.unwrap();
        assert!(one.cold);
        one.decide(Disposition::Reset);
        drop(one);
        settle(|| pool.occupancy().idle == 1).await;
        pool.expire(Instant::now());
        settle(|| fake.alive.load(Ordering::SeqCst) == 0).await;
        assert_eq!((fake.starts.load(Ordering::SeqCst), pool.occupancy()), (round, Occupancy::default()));
    }
}
