//! Threads in a stored image.
//!
//! Points in time become distances from the moment at which the image was taken. A thread that waits for something outside of
//! the program cannot be stored: what it waits for is gone by the time that it is read again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

use crate::kvm::vcpu::UserState;
use crate::process::calls::Args;
use crate::process::signal::ThreadSignals;
use crate::process::thread::{Pending, Status, Thread, Threads};
use crate::process::wait::Wait;

/// All threads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ThreadsState {
    threads: Vec<ThreadState>,
    current: u32,
    ready: Vec<u32>,
    last_id: u32,
}

impl State for ThreadsState {
    const KIND: &'static str = "process-threads";
    const VERSION: u32 = 1;
}

#[derive(Debug, Serialize, Deserialize)]
struct ThreadState {
    id: u32,
    state: UserState,
    blocked: Option<CallState>,
    clear_child_tid: u64,
    robust_list: u64,
    signals: ThreadSignals,
    cpu: Duration,
    name: [u8; 16],
    policy: u8,
}

/// A call in progress.
#[derive(Debug, Serialize, Deserialize)]
struct CallState {
    number: u64,
    args: Args,
    inside: bool,
    input: bool,
    output: bool,
    until: Option<i64>,
    deadline: Option<i64>,
    done: u64,
}

/// A thread waits for a descriptor of the host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("thread {0} waits for something outside of the program")]
pub(crate) struct WaitsForHost(pub(crate) u32);

/// Longest time that anything here may be from the image: beyond it no clock would get.
const LONGEST: Duration = Duration::from_secs(1 << 35);

impl ThreadsState {
    /// Of `threads` in an image that was taken at `taken`.
    pub(crate) fn of(threads: &Threads, taken: Instant) -> Result<Self, WaitsForHost> {
        let (current, ready, last_id) = threads.order();
        let states = threads.iter().map(|thread| ThreadState::of(thread, taken));
        let states = states.collect::<Result<Vec<_>, _>>()?;
        let known: Vec<u32> = states.iter().map(|thread| thread.id).collect();
        // Those that have ended may still stand in the queue.
        let ready = ready.filter(|id| known.contains(id)).collect();
        Ok(Self { threads: states, current, ready, last_id })
    }

    /// The threads, as if the image had been taken at `taken`.
    ///
    /// # Errors
    /// What cannot be.
    pub(crate) fn restore(self, taken: Instant) -> Result<Threads, &'static str> {
        let mut map = BTreeMap::new();
        for thread in self.threads {
            if thread.id == 0 || thread.id > self.last_id || thread.cpu > LONGEST {
                return Err("a thread's number or running time cannot be");
            }
            if map.insert(thread.id, thread.restore(taken)).is_some() {
                return Err("two threads have one number");
            }
        }
        if map.is_empty() || self.last_id > u32::MAX / 2 {
            return Err("there is no thread, or the last number is too high");
        }
        if self.ready.iter().any(|id| !map.contains_key(id)) {
            return Err("a thread that does not exist is ready");
        }
        Ok(Threads::ordered(map, self.current, VecDeque::from(self.ready), self.last_id))
    }
}

impl ThreadState {
    fn of(thread: &Thread, taken: Instant) -> Result<Self, WaitsForHost> {
        // Every field is named: a new one must say what becomes of it.
        let Thread { id, state, status, clear_child_tid, robust_list, signals, cpu, name, policy } = thread;
        let blocked = match status {
            Status::Ready => None,
            Status::Blocked(pending) => Some(CallState::of(pending, taken).ok_or(WaitsForHost(*id))?),
        };
        Ok(Self {
            id: *id,
            state: state.clone(),
            blocked,
            clear_child_tid: *clear_child_tid,
            robust_list: *robust_list,
            signals: signals.clone(),
            cpu: *cpu,
            name: *name,
            policy: *policy,
        })
    }

    fn restore(self, taken: Instant) -> Thread {
        let Self { id, state, blocked, clear_child_tid, robust_list, signals, cpu, name, policy } = self;
        let status = blocked.map_or(Status::Ready, |call| Status::Blocked(call.restore(taken)));
        Thread { id, state, status, clear_child_tid, robust_list, signals, cpu, name, policy }
    }
}

impl CallState {
    fn of(pending: &Pending, taken: Instant) -> Option<Self> {
        let Pending { number, args, wait } = pending;
        let Wait { host, inside, input, output, until, deadline, done } = wait;
        host.is_empty().then(|| Self {
            number: *number,
            args: *args,
            inside: *inside,
            input: *input,
            output: *output,
            until: until.map(|at| distance(at, taken)),
            deadline: deadline.map(|at| distance(at, taken)),
            done: *done,
        })
    }

    fn restore(self, taken: Instant) -> Pending {
        let wait = Wait {
            host: Vec::new(),
            inside: self.inside,
            input: self.input,
            output: self.output,
            until: self.until.map(|distance| at(distance, taken)),
            deadline: self.deadline.map(|distance| at(distance, taken)),
            done: self.done,
        };
        Pending { number: self.number, args: self.args, wait }
    }
}

/// Nanoseconds from `from` to `to`, negative where it lies before.
fn distance(to: Instant, from: Instant) -> i64 {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match to.checked_duration_since(from) {
        Some(after) => nanos(after),
        None => -nanos(from.duration_since(to)),
    }
}

/// The counterpart; what lies before the beginning of the clock is `from`.
fn at(distance: i64, from: Instant) -> Instant {
    let by = Duration::from_nanos(distance.unsigned_abs());
    let at = if distance < 0 { from.checked_sub(by) } else { from.checked_add(by) };
    at.unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(id: u32, wait: Wait) -> Thread {
        let pending = Pending { number: 0, args: [1, 2, 3, 4, 5, 6], wait };
        Thread { status: Status::Blocked(pending), ..Thread::new(id, UserState::start(7, 8)) }
    }

    #[test]
    fn a_wait_is_as_long_as_before() {
        let (then, now) = (Instant::now(), Instant::now() + Duration::from_secs(100));
        let until = Some(then + Duration::from_millis(30));
        let deadline = then.checked_sub(Duration::from_millis(5));
        let threads = Threads::new(blocked(1, Wait { input: true, until, deadline, ..Wait::default() }));
        let threads = ThreadsState::of(&threads, then).unwrap().restore(now).unwrap();
        let Status::Blocked(pending) = &threads.get(1).unwrap().status else { panic!("blocked") };
        assert_eq!(pending.wait.until, Some(now + Duration::from_millis(30)));
        assert_eq!(pending.wait.deadline, deadline.and(now.checked_sub(Duration::from_millis(5))));
        assert!(pending.wait.input && pending.args == [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_wait_for_the_host_cannot_be_stored() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let host = vec![(std::sync::Arc::new(null.into()), rustix::event::PollFlags::IN)];
        let threads = Threads::new(blocked(1, Wait { host, ..Wait::default() }));
        assert_eq!(ThreadsState::of(&threads, Instant::now()).unwrap_err(), WaitsForHost(1));
    }

    #[test]
    fn impossible_threads_are_refused() {
        let threads = Threads::new(blocked(1, Wait::default()));
        type Spoil = fn(&mut ThreadsState);
        let cases: [Spoil; 5] = [
            |s| s.threads.clear(),
            |s| s.threads[0].id = 9,
            |s| s.ready.push(3),
            |s| s.last_id = u32::MAX,
            |s| s.threads[0].cpu = Duration::MAX,
        ];
        for spoil in cases {
            let mut state = ThreadsState::of(&threads, Instant::now()).unwrap();
            spoil(&mut state);
            assert!(state.restore(Instant::now()).is_err());
        }
    }
}
