//! Who runs a call, and until when.
//!
//! A call starts on its caller's thread: most end within their first time slice, and handing a call over costs
//! more than such a call does. One that uses up [`SLICES_INLINE`] slices moves to a small runtime of the engine
//! with low priority, so that it delays neither its neighbours on that thread nor short calls on other threads.
//!
//! ```text
//! poll ── ready ──────────────────────────> reply
//!   └─ slice over ─ yield to neighbours ─ poll ... (SLICES_INLINE times)
//!                                           └─> spawn on `wasm-long` ─ ... ─> reply
//! deadline: the epoch callback while it computes, a timer while it waits
//! ```

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep_until};

use super::tenant::Slices;

/// Time slices that a call may use on its caller's thread.
const SLICES_INLINE: u32 = 4;
/// What `wasm-long` threads add to their nice value.
const NICE: i32 = 5;

/// Why a call was given up.
#[derive(Debug)]
pub(super) enum GivenUp {
    /// Its deadline passed while it waited.
    Deadline,
    /// The task that ran it panicked or its runtime ended.
    Lost(tokio::task::JoinError),
}

/// The runtime for long calls, made when the first one needs it.
#[derive(Default)]
pub(super) struct LongRuns(OnceLock<Option<Runtime>>);

impl LongRuns {
    /// `None` where the threads cannot be made: calls then stay where they are.
    fn handle(&self) -> Option<&Handle> {
        self.0.get_or_init(make).as_ref().map(Runtime::handle)
    }
}

impl Drop for LongRuns {
    fn drop(&mut self) {
        // Runs may be anywhere, in an async context too, where waiting for the threads is forbidden.
        if let Some(runtime) = self.0.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn make() -> Option<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let lower = || {
        // Linux keeps the nice value by thread (setpriority(2), "C library/kernel differences").
        let thread = Some(rustix::thread::gettid());
        let nice = rustix::process::getpriority_process(thread);
        let lowered = nice.and_then(|nice| rustix::process::setpriority_process(thread, nice + NICE));
        if let Err(error) = lowered {
            tracing::debug!(%error, "a wasm-long thread keeps its priority");
        }
    };
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("wasm-long")
        .on_thread_start(lower)
        .enable_all()
        .build()
        .inspect_err(|error| tracing::warn!(%error, "no threads for long wasm calls"))
        .ok()
}

type Run<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where a call runs now.
enum Place<T> {
    Here(Run<T>),
    Long(Task<T>),
}

/// A task that ends when nobody waits for it any more.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `run` to its end, or to `deadline`. Dropping the future drops the run.
pub(super) async fn drive<T: Send + 'static>(
    run: Run<T>,
    slices: &Slices,
    deadline: Instant,
    long: &LongRuns,
) -> Result<T, GivenUp> {
    let mut place = Place::Here(run);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(move |cx| {
        if let Poll::Ready(ended) = poll_place(&mut place, cx, slices, long) {
            return Poll::Ready(ended);
        }
        // Made only now: most calls are never pending.
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        timer.as_mut().poll(cx).map(|()| Err(GivenUp::Deadline))
    })
    .await
}

fn poll_place<T: Send + 'static>(
    place: &mut Place<T>,
    cx: &mut Context<'_>,
    slices: &Slices,
    long: &LongRuns,
) -> Poll<Result<T, GivenUp>> {
    if let Place::Here(run) = place {
        if let Poll::Ready(ended) = run.as_mut().poll(cx) {
            return Poll::Ready(Ok(ended));
        }
        let Some(handle) = (slices.used() >= SLICES_INLINE).then(|| long.handle()).flatten() else {
            return Poll::Pending;
        };
        let run = std::mem::replace(run, Box::pin(std::future::pending()));
        *place = Place::Long(Task(handle.spawn(run)));
    }
    let Place::Long(task) = place else { return Poll::Pending };
    Pin::new(&mut task.0).poll(cx).map(|joined| joined.map_err(GivenUp::Lost))
}
