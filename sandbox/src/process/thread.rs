//! The program's threads, as data.
//!
//! All of them take turns on the sandbox's one vCPU: a thread that does not run is its saved registers, which a snapshot
//! can hold; no page-table change ever concerns another CPU; and a sandbox costs one core at most.
//!
//! ```text
//!            chosen                    call blocks
//! [ready] ───────────> [running] ────────────────────> [blocked on a Wait]
//!    ^  <─── time slice over ──┘                          │
//!    └──────────── what it waits for may have come ───────┘   (the call is made again)
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::calls::Args;
use super::signal::ThreadSignals;
use super::wait::Wait;
use crate::kvm::vcpu::UserState;

/// A segment base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The thread pointer.
    Fs,
    /// Free for the program.
    Gs,
}

/// A call in progress.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// Its number.
    pub(crate) number: u64,
    /// Its arguments.
    pub(crate) args: Args,
    /// What it waits for.
    pub(crate) wait: Wait,
}

/// What a thread that does not run will do when it gets the CPU.
#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// It runs on from its saved state.
    Ready,
    /// It makes its call again when what it waits for may have come.
    Blocked(Pending),
}

/// One thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    /// Its thread id; the first one's is the process id.
    pub(crate) id: u32,
    /// Registers: up to date while the thread does not run. While it is in a call, the general ones are too.
    pub(crate) state: UserState,
    /// What it does next.
    pub(crate) status: Status,
    /// Where a zero is written and a futex woken when it ends.
    pub(crate) clear_child_tid: u64,
    /// `set_robust_list`: the mutexes it holds.
    pub(crate) robust_list: u64,
    /// Its signal mask, alternate stack and waiting signals.
    pub(crate) signals: ThreadSignals,
    /// CPU time before it was last put on the vCPU.
    pub(crate) cpu: Duration,
    /// `PR_SET_NAME`.
    pub(crate) name: [u8; 16],
    /// `sched_setscheduler`: kept and told.
    pub(crate) policy: u8,
}

impl Thread {
    /// A thread that begins with `state`.
    pub(crate) fn new(id: u32, state: UserState) -> Self {
        Self {
            id,
            state,
            status: Status::Ready,
            clear_child_tid: 0,
            robust_list: 0,
            signals: ThreadSignals::default(),
            cpu: Duration::ZERO,
            name: [0; 16],
            policy: 0,
        }
    }
}

/// All threads. There is a current one whenever the program runs; while all wait it may have ended.
#[derive(Clone, Debug)]
pub(crate) struct Threads {
    map: BTreeMap<u32, Thread>,
    current: u32,
    ready: VecDeque<u32>,
    last_id: u32,
}

impl Threads {
    /// The first thread, current and ready.
    pub(crate) fn new(first: Thread) -> Self {
        let current = first.id;
        Self {
            map: BTreeMap::from([(current, first)]),
            current,
            ready: VecDeque::from([current]),
            last_id: current,
        }
    }

    /// These threads; what [`Self::order`] told of others.
    pub(crate) fn ordered(
        map: BTreeMap<u32, Thread>,
        current: u32,
        ready: VecDeque<u32>,
        last_id: u32,
    ) -> Self {
        Self { map, current, ready, last_id }
    }

    /// The current one, those that are ready in their order, and the last number that was given.
    pub(crate) fn order(&self) -> (u32, impl Iterator<Item = u32> + '_, u32) {
        (self.current, self.ready.iter().copied(), self.last_id)
    }

    /// The thread that runs or makes a call.
    pub(crate) fn current(&self) -> &Thread {
        &self.map[&self.current]
    }

    /// The thread that runs or makes a call.
    pub(crate) fn current_mut(&mut self) -> &mut Thread {
        self.map.get_mut(&self.current).expect("the current thread exists")
    }

    /// The thread that last had the CPU, unless it has ended since.
    pub(crate) fn last(&self) -> Option<&Thread> {
        self.map.get(&self.current)
    }

    /// The thread with this id.
    pub(crate) fn get(&self, id: u32) -> Option<&Thread> {
        self.map.get(&id)
    }

    /// The thread with this id.
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Thread> {
        self.map.get_mut(&id)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Thread> {
        self.map.values()
    }

    /// All of them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Thread> {
        self.map.values_mut()
    }

    /// An id that no thread has or had.
    pub(crate) fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Adds a thread that is ready to run.
    pub(crate) fn add(&mut self, thread: Thread) {
        self.ready.push_back(thread.id);
        self.map.insert(thread.id, thread);
    }

    /// Marks a blocked thread as worth trying again, after the others that are ready.
    pub(crate) fn wake(&mut self, id: u32) {
        if id != self.current && self.map.contains_key(&id) && !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
    }

    /// As [`Self::wake`], for the current thread when it does not run.
    pub(crate) fn wake_current_if(&mut self, id: u32) {
        if id == self.current && !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
    }

    /// Whether another thread could run.
    pub(crate) fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Puts the current thread at the end of the queue, if it can go on.
    pub(crate) fn queue_current(&mut self) {
        self.ready.push_back(self.current);
    }

    /// Makes the next ready thread the current one.
    pub(crate) fn next(&mut self) -> Option<u32> {
        while let Some(id) = self.ready.pop_front() {
            if self.map.contains_key(&id) {
                self.current = id;
                return Some(id);
            }
        }
        None
    }

    /// Takes the current thread away for good. The caller chooses another one, or ends the program.
    pub(crate) fn remove_current(&mut self) -> Option<Thread> {
        if self.map.len() == 1 { None } else { self.map.remove(&self.current) }
    }
}
