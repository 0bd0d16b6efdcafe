//! A program at the moment when it first waits for its input: what every sandbox of the function starts from, and goes
//! back to.
//!
//! ```text
//!                 take                        start (into a shell)              reset
//! [program runs] ──────> Image: memory,  ───────────────────────> [sandbox] ──────────┐
//!  to its first          threads, files,      maps, forks, shifts     ^   the pages that were written,
//!  wait for input        signals, timers                              └── the mappings that changed, all the rest
//! ```
//! Everything but memory and files is plain data, copied at every start and reset. What must not be the same in two
//! sandboxes is made new each time: the bytes of `AT_RANDOM`, the clocks, the boot id.

mod learnt;
mod stored;
mod take;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::answers::Ahead;
use super::calls::credentials::Credentials;
use super::calls::limits::ResourceLimits;
use super::control::Control;
use super::files::Files;
use super::load::stack::Stack;
use super::memory::{AddressSpace, MappedFile, MemoryImage, Renewed, WorkingSet, region_bytes};
use super::run::{Machine, RunError};
use super::shell::Shell;
use super::signal::{Actions, Pending};
use super::thread::{Status, Threads};
use super::threads::futex::Futexes;
use super::time::clock::Clock;
use super::time::timers::Timers;
use super::time::{Moment, Time};
use super::{Call, Process};
use crate::kvm::sys::Region;

use learnt::Home;
pub(super) use learnt::use_working_sets;
pub(super) use take::{Refused, prepare};

/// What a program wrote before it waited for its input: the beginning of every reply and log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Prologue {
    pub(super) output: Vec<u8>,
    pub(super) log: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Image {
    memory: Arc<MemoryImage>,
    files: Mutex<Files>,
    threads: Threads,
    actions: Actions,
    pending: Pending,
    futexes: Futexes,
    credentials: Credentials,
    limits: ResourceLimits,
    nice: i32,
    timers: Timers,
    recent: VecDeque<Call>,
    unserved: BTreeMap<u64, u64>,
    stack: Stack,
    moment: Moment,
    taken: Instant,
    /// What the first run stored into.
    working_set: OnceLock<Arc<WorkingSet>>,
    /// Where it is kept, if it is.
    home: OnceLock<Home>,
    pub(super) prologue: Prologue,
}

impl Image {
    /// Whether a shell that was made without knowing the program will do.
    pub(super) fn fits_shells(&self) -> bool {
        region_bytes(self.memory.limit_bytes()) == region_bytes(0)
    }

    /// A region for a sandbox of this image.
    fn region(&self) -> std::io::Result<Arc<Region>> {
        Ok(Arc::new(Region::reserve(region_bytes(self.memory.limit_bytes()))?))
    }

    /// A sandbox with everything made now, on the calling thread.
    pub(super) fn start(self: &Arc<Self>, control: Arc<Control>) -> Result<Machine, RunError> {
        let region = self.region().map_err(RunError::host("reserve addresses for a sandbox"))?;
        let mut process = self.process(region.clone(), None, false)?;
        let shell = Shell::new(region, process.memory.take_slots())?;
        self.finish(shell, process, control)
    }

    /// A sandbox in a VM that was made ahead over `region`, with its first memslot, on the calling thread.
    pub(super) fn start_in(
        self: &Arc<Self>,
        mut shell: Shell,
        region: Arc<Region>,
        control: Arc<Control>,
    ) -> Result<Machine, RunError> {
        let mut process = self.process(region, shell.take_clocks(), true)?;
        for slot in process.memory.take_slots() {
            shell.vm.add_slot(slot.gpa, slot.len)?;
        }
        self.finish(shell, process, control)
    }

    fn finish(&self, shell: Shell, mut process: Process, control: Arc<Control>) -> Result<Machine, RunError> {
        process.clock = Clock::new(shell.counter_khz);
        let mut machine = Machine::in_shell(shell, process, control);
        self.freshen(&mut machine.process)?;
        Ok(machine)
    }

    /// The program in `region`; `clocks`: a page for its clocks, where there is one.
    fn process(
        &self,
        region: Arc<Region>,
        clocks: Option<Arc<MappedFile>>,
        slot_made: bool,
    ) -> Result<Process, RunError> {
        let time = Time::restored(self.page_of_clocks(clocks)?);
        let memory = AddressSpace::from_image(&self.memory, region, time.page(), slot_made)
            .map_err(RunError::host("map the image"))?;
        let files = self
            .files
            .lock()
            .fork()
            .map_err(|errno| RunError::host("open the image's files")(errno.into()))?;
        Ok(Process {
            memory,
            files,
            threads: self.threads.clone(),
            actions: self.actions.clone(),
            pending: self.pending.clone(),
            futexes: self.futexes.clone(),
            credentials: self.credentials.clone(),
            limits: self.limits.clone(),
            nice: self.nice,
            clock: Clock::new(None),
            timers: self.timers.clone(),
            time,
            recent: self.recent.clone(),
            unserved: self.unserved.clone(),
            stack: self.stack.clone(),
            generation: String::new(),
            started: Instant::now(),
            new_bases: None,
            changed: false,
            posted: false,
            ahead: Ahead::default(),
            resumed: None,
        })
    }

    fn page_of_clocks(&self, made: Option<Arc<MappedFile>>) -> Result<Option<Arc<MappedFile>>, RunError> {
        if !self.memory.has_clocks() || made.is_some() {
            return Ok(made.filter(|_| self.memory.has_clocks()));
        }
        let page = Time::new_page().map_err(|e| RunError::host("make the clocks' page")(e.into()))?;
        Ok(Some(page))
    }

    /// Brings a used sandbox back; `false` where another one must be made instead.
    pub(super) fn reset(&self, machine: &mut Machine) -> Result<bool, RunError> {
        let process = &mut machine.process;
        let clocks = process.time.page().cloned();
        let renewed = process.memory.renew(clocks.as_ref()).map_err(RunError::host("restore the memory"))?;
        if renewed == Renewed::Worn {
            return Ok(false);
        }
        self.put_back(process);
        process.renew_answers();
        self.freshen(process)?;
        machine.forget_cpu();
        machine.preload()?;
        Ok(true)
    }

    /// Everything but memory. Every field is named: one that is added must say here what a reset does to it.
    fn put_back(&self, process: &mut Process) {
        let Process {
            memory: _,
            files,
            threads,
            actions,
            pending,
            futexes,
            credentials,
            limits,
            nice,
            clock: _,
            timers,
            time: _,
            recent,
            unserved,
            stack: _,
            generation: _,
            started: _,
            new_bases,
            changed,
            posted,
            // Made anew by the caller, when all else is the image's.
            ahead: _,
            resumed,
        } = process;
        files.reset();
        threads.clone_from(&self.threads);
        actions.clone_from(&self.actions);
        pending.clone_from(&self.pending);
        futexes.clone_from(&self.futexes);
        credentials.clone_from(&self.credentials);
        limits.clone_from(&self.limits);
        *nice = self.nice;
        timers.clone_from(&self.timers);
        recent.clone_from(&self.recent);
        unserved.clone_from(&self.unserved);
        (*new_bases, *resumed) = (None, None);
        (*changed, *posted) = (false, false);
    }

    /// What is new in every sandbox and after every reset.
    fn freshen(&self, process: &mut Process) -> Result<(), RunError> {
        process.resume_time(&self.moment);
        process.generation = super::files::uuid();
        let passed = self.taken.elapsed();
        for thread in process.threads.iter_mut() {
            if let Status::Blocked(pending) = &mut thread.status {
                for time in [&mut pending.wait.until, &mut pending.wait.deadline] {
                    // What lies behind the end of time never comes.
                    *time = time.and_then(|at| at.checked_add(passed));
                }
            }
        }
        let random = super::setup::random().map_err(RunError::host("draw random numbers"))?;
        // A program that has unmapped its first stack does not read them any more.
        let _ = process.memory.write(process.stack.random, &random);
        Ok(())
    }

    /// Bytes of memory that all sandboxes of the image share.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.memory.picture_bytes()
    }
}

#[cfg(test)]
mod tests;
