//! The process engine: one unmodified Linux program in a microVM without a guest kernel.
//!
//! ```text
//! program (ring 3) ──syscall──> run loop ──table──> a handler of calls/ ──> memory, files, threads
//!        ^                        │ run.rs
//!        └──── value in rax ──────┘
//! ```
//! [`Process`] is all of a program's state outside of its memory's bytes and its CPU registers: plain data. The
//! handlers get it whole; the run loop owns the VM.

mod answers;
pub(crate) mod calls;
pub(crate) mod control;
mod engine;
pub(crate) mod fault;
pub mod files;
pub(crate) mod foresight;
mod image;
mod live;
pub(crate) mod load;
pub(crate) mod memory;
mod onset;
pub(crate) mod run;
mod sandbox;
mod session;
mod setup;
mod shell;
mod shells;
pub(crate) mod signal;
mod stdio;
pub(crate) mod thread;
pub(crate) mod threads;
pub(crate) mod time;
mod view;
pub(crate) mod wait;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use answers::Ahead;
use calls::credentials::Credentials;
use calls::limits::ResourceLimits;
use calls::{Args, Outcome, identity};
use files::{Files, MapSource};
use load::Start;
use load::stack::Stack;
use memory::{AddressSpace, MappedFile};
use signal::{Actions, Detail, Info, Pending, SI_USER, Signal};
use thread::{Base, Thread, Threads};
use threads::futex::Futexes;
use time::Time;
use time::clock::Clock;
use time::timers::Timers;
use wait::Wait;

use crate::kvm::vcpu::UserState;

pub use engine::ProcessEngine;
pub use sandbox::exits;

/// Whether this machine can run the engine; `Err` says why not and what to do.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), String> {
    crate::kvm::vm::probe()
}

/// VM shells that are ready: that many sandboxes can start without having to make a VM.
#[must_use]
pub fn ready_shells() -> usize {
    shells::ready()
}

/// Keeps `count` VM shells ready from now on instead of a few, in the whole process. With 0 every start makes its own VM.
pub fn keep_shells(count: usize) {
    shells::set_kept(count);
}

/// Whether sandboxes have the pages ready into which their image's first run stored, from now on and in the whole process: yes,
/// unless a benchmark wants to see the difference.
pub fn use_working_sets(used: bool) {
    image::use_working_sets(used);
}

/// Whether an artifact begins as an ELF file for x86-64, or as a script that names its interpreter.
#[must_use]
pub fn recognises(head: &[u8]) -> bool {
    const X86_64: [u8; 2] = [62, 0];
    let elf =
        head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20).is_none_or(|machine| machine == X86_64);
    elf || head.starts_with(b"#!")
}

/// One program's state.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its address space.
    pub(crate) memory: AddressSpace,
    /// Its files.
    pub(crate) files: Files,
    /// Its threads.
    pub(crate) threads: Threads,
    /// What it wants done about signals.
    pub(crate) actions: Actions,
    /// Signals sent to the program as a whole that no thread has taken.
    pub(crate) pending: Pending,
    /// Who waits on which memory word.
    pub(crate) futexes: Futexes,
    /// Who it is.
    pub(crate) credentials: Credentials,
    /// What it may use, by its own wish.
    pub(crate) limits: ResourceLimits,
    /// `setpriority`: kept and told.
    pub(crate) nice: i32,
    /// Its clocks.
    pub(crate) clock: Clock,
    /// Its timers.
    pub(crate) timers: Timers,
    /// Its running time, and the page from which it reads the clocks itself.
    pub(crate) time: Time,
    /// The last calls, for a fault's report.
    pub(crate) recent: VecDeque<Call>,
    /// Calls that nobody serves, with how often they were made.
    pub(crate) unserved: BTreeMap<u64, u64>,
    /// What stands on the first stack, for `/proc/self`.
    pub(crate) stack: Stack,
    /// `/proc/sys/kernel/random/boot_id`: another in every sandbox and after every reset.
    pub(crate) generation: String,
    /// When it began.
    started: Instant,
    /// Segment bases that the current thread asked for and the vCPU does not have yet.
    new_bases: Option<(Base, u64)>,
    /// Something inside changed that blocked threads may wait for.
    changed: bool,
    /// A signal was sent that threads may have to take.
    posted: bool,
    /// What it is told ahead of its calls.
    ahead: Ahead,
    /// The wait of the current thread's call, where this is not its first attempt.
    resumed: Option<Wait>,
}

/// One call that was made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Which.
    pub(crate) number: u64,
    /// With what.
    pub(crate) args: Args,
}

impl Process {
    /// A program that is loaded into `memory` and begins at `start`.
    pub(crate) fn new(memory: AddressSpace, files: Files, time: Time, start: Start) -> Self {
        let state = UserState::start(start.entry, start.stack.pointer);
        let limits = ResourceLimits::new(files.open_files_limit());
        let threads = Threads::new(Thread::new(identity::PID as u32, state));
        Self {
            memory,
            files,
            stack: start.stack,
            threads,
            actions: Actions::default(),
            pending: Pending::default(),
            futexes: Futexes::default(),
            credentials: Credentials::default(),
            limits,
            nice: 0,
            clock: Clock::new(None),
            timers: Timers::default(),
            time,
            recent: VecDeque::with_capacity(Self::RECENT),
            unserved: BTreeMap::new(),
            generation: files::uuid(),
            started: Instant::now(),
            new_bases: None,
            changed: false,
            posted: false,
            ahead: Ahead::default(),
            resumed: None,
        }
    }

    const RECENT: usize = 8;

    /// How long it has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Serves one call of the current thread.
    pub(crate) fn serve(&mut self, number: u64, args: Args) -> Result<Outcome, Errno> {
        if self.resumed.is_none() {
            if self.recent.len() == Self::RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Call { number, args });
        }
        match calls::handler(number) {
            Some(handler) => handler(self, args),
            None => {
                self.count_unserved(number);
                Err(Errno::NOSYS)
            }
        }
    }

    /// Counts a call, or a use of one, that the program made and did not get. All that are no calls of any Linux count as one.
    pub(crate) fn count_unserved(&mut self, number: u64) {
        *self.unserved.entry(number.min(calls::NUMBERS as u64)).or_default() += 1;
    }

    /// What the current thread's call waited for, when it is made again. A call with a time limit keeps it here.
    pub(crate) fn resumed(&self) -> Option<&Wait> {
        self.resumed.as_ref()
    }

    pub(crate) fn set_resumed(&mut self, wait: Option<Wait>) {
        self.resumed = wait;
    }

    /// Something changed that a [`Wait`] with `inside` may wait for: blocked threads try again.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A write found no reader.
    pub(crate) fn broken_pipe(&mut self) {
        let thread = self.threads.current().id;
        let detail = Detail::Sent { pid: identity::PID as u32 };
        self.post(Info { signal: Signal::PIPE, code: SI_USER, detail }, Some(thread));
    }

    /// Sets a segment base of the current thread.
    pub(crate) fn set_base(&mut self, base: Base, address: u64) -> Result<Outcome, Errno> {
        self.new_bases = Some((base, address));
        let state = &mut self.threads.current_mut().state;
        match base {
            Base::Fs => state.fs_base = address,
            Base::Gs => state.gs_base = address,
        }
        Ok(Outcome::ZERO)
    }

    /// Writes a segment base, as it was last set by a call, to `address`.
    pub(crate) fn read_base(&mut self, base: Base, address: u64) -> Result<Outcome, Errno> {
        let state = &self.threads.current().state;
        let value = match base {
            Base::Fs => state.fs_base,
            Base::Gs => state.gs_base,
        };
        self.memory.put(address, &value)?;
        Ok(Outcome::ZERO)
    }

    pub(crate) fn take_new_base(&mut self) -> Option<(Base, u64)> {
        self.new_bases.take()
    }

    /// The host's file behind a descriptor, for `mmap`.
    pub(crate) fn mappable(
        &mut self,
        fd: i32,
        shared: bool,
        write: bool,
    ) -> Result<Option<Arc<MappedFile>>, Errno> {
        match self.files.map(fd, shared, write)? {
            MapSource::Zeroes => Ok(None),
            MapSource::File(mapping) => {
                let name = self.files.path_of(fd)?;
                self.memory.count_file(MappedFile::of(mapping, name)).map(Some)
            }
        }
    }
}
