//! The run loop: lets the program run, serves what it leaves the VM for, and decides who runs next.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Process;
use super::calls::Outcome;
use super::control::Control;
use super::fault::Cause;
use super::onset::Watch;
use super::shell::Shell;
use super::thread::{Base, Pending, Status, Thread};
use super::wait::Wait;
use crate::kvm::vcpu::{Exit, Vcpu};

mod end;
mod entry;
mod fault;
mod reply;
mod wake;

pub(crate) use end::{Ended, RunError};
pub(crate) use reply::AtReply;

/// Vectors of the CPU's exceptions.
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

/// How long a thread may run while others are ready.
pub(super) const SLICE: Duration = Duration::from_millis(5);

/// How long a line of the log may lie with the program: each look costs it 30 us.
const UNSEEN: Duration = Duration::from_millis(50);

/// A program in its VM. Lives on one thread.
#[derive(Debug)]
pub(crate) struct Machine {
    shell: Shell,
    control: Arc<Control>,
    /// The program.
    pub(crate) process: Process,
    /// Whose turn it is: the thread that runs as soon as the vCPU does.
    on_cpu: Option<u32>,
    /// Whose registers, but for the general ones, the vCPU holds.
    resident: Option<u32>,
    /// Whose state the vCPU was given ahead of its turn.
    preloaded: Option<u32>,
    ticking: bool,
    /// When the timer strikes, where it does not tick.
    strikes: Instant,
    deadline: Instant,
    /// When the memory is looked at next, where the program could use more than its limit.
    look_due: Instant,
    /// Stop where the program waits for standard input.
    to_input: bool,
    /// Stop at the end of the call in which this came true.
    marker: Option<Arc<AtomicBool>>,
    /// Follows the program to its entry point.
    watch: Option<Watch>,
    /// When the reply begins.
    at_reply: AtReply,
    counts: Counts,
}

/// How often a program left its VM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// In all.
    pub(crate) exits: u64,
    /// For system calls.
    pub(crate) calls: u64,
}

impl Machine {
    /// A VM for `process`, on the calling thread, which must also drop it.
    pub(crate) fn new(mut process: Process, control: Arc<Control>) -> Result<Self, RunError> {
        let slots = process.memory.take_slots();
        let shell = Shell::new(process.memory.region().clone(), slots)?;
        process.begin_time(shell.counter_khz);
        Ok(Self::in_shell(shell, process, control))
    }

    /// `process` in a VM that knows its memory.
    pub(super) fn in_shell(shell: Shell, mut process: Process, control: Arc<Control>) -> Self {
        process.begin_answers(shell.vcpu.answers_calls(), shell.counter_khz);
        let machine = Self {
            shell,
            control,
            process,
            on_cpu: None,
            resident: None,
            preloaded: None,
            ticking: false,
            strikes: Instant::now(),
            deadline: Instant::now(),
            look_due: Instant::now(),
            to_input: false,
            marker: None,
            watch: None,
            at_reply: AtReply::Nothing,
            counts: Counts::default(),
        };
        machine.attach();
        machine
    }

    /// From now on this machine's vCPU is the one that runs on the calling thread.
    pub(super) fn attach(&self) {
        self.control.adopt();
        self.shell.kick.attach();
    }

    /// What was counted since the last time.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    #[cfg(test)]
    pub(super) fn load_for_test(&mut self, state: &crate::kvm::vcpu::UserState) {
        self.shell.vcpu.load(state).unwrap();
    }

    /// How others reach the thread.
    pub(super) fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// The state of the program may be another now: nothing in the vCPU counts.
    pub(super) fn forget_cpu(&mut self) {
        (self.on_cpu, self.resident, self.preloaded, self.ticking) = (None, None, None, false);
        self.shell.vcpu.forget_events();
    }

    /// Gives the vCPU what the program will go on with, while nobody waits: writing the vector state takes 5 us.
    pub(super) fn preload(&mut self) -> Result<(), RunError> {
        if self.process.threads.len() == 1
            && let Some(thread) = self.process.threads.last()
        {
            self.shell.vcpu.load(&thread.state)?;
            self.preloaded = Some(thread.id);
        }
        Ok(())
    }

    /// As [`Self::run`], but only until all threads wait, one of them for standard input.
    pub(super) fn run_to_input(&mut self, deadline: Instant) -> Result<Ended, RunError> {
        self.to_input = true;
        let ended = self.run(deadline);
        self.to_input = false;
        ended
    }

    /// As [`Self::run`], but only to the end of the call in which `seen` comes true, and a visit is paid by who sets it.
    pub(super) fn run_to_marker(
        &mut self,
        deadline: Instant,
        seen: Arc<AtomicBool>,
    ) -> Result<Ended, RunError> {
        self.marker = Some(seen);
        let ended = self.run(deadline);
        self.marker = None;
        ended
    }

    /// Stops after the marker: `Some(None)` where the CPU is still on its way back from the call.
    fn stop_at_marker(&mut self) -> Result<Option<Option<Ended>>, RunError> {
        if !self.marker.as_ref().is_some_and(|seen| seen.load(Ordering::SeqCst)) {
            return Ok(None);
        }
        if !self.shell.vcpu.is_in_program() {
            self.shell.timer.arm(SLICE, SLICE).map_err(RunError::host("start the timer"))?;
            return Ok(Some(None));
        }
        let regs = self.shell.vcpu.regs();
        self.process.threads.queue_current();
        self.leave_cpu(regs)?;
        Ok(Some(Some(Ended::Marked)))
    }

    /// Gives the program away, complete with what only the vCPU held, and ends the VM.
    pub(super) fn into_process(mut self) -> Result<Process, RunError> {
        if let Some(id) = self.resident
            && let Some(thread) = self.process.threads.get_mut(id)
        {
            thread.state = self.shell.vcpu.save(thread.state.regs)?;
        }
        Ok(self.process)
    }

    /// Lets threads that wait for standard input, output, or each other try again: there is another console now.
    pub(super) fn wake_console(&mut self) {
        self.wake(|wait| wait.input || wait.output || wait.inside);
        let waits = |thread: &&Thread| matches!(&thread.status, Status::Blocked(pending) if pending.wait.input || pending.wait.inside);
        // It may have ended since it had the CPU, and left the others waiting.
        if let Some(id) = self.process.threads.last().filter(waits).map(|thread| thread.id) {
            self.process.threads.wake_current_if(id);
        }
    }

    /// Runs until the program ends, its time is over, or somebody cancels.
    pub(crate) fn run(&mut self, deadline: Instant) -> Result<Ended, RunError> {
        (self.deadline, self.look_due) = (deadline, Instant::now());
        let ended = self.run_until(deadline);
        self.process.take_done();
        self.shell.timer.arm(Duration::ZERO, Duration::ZERO).map_err(RunError::host("stop the timer"))?;
        ended
    }

    fn run_until(&mut self, deadline: Instant) -> Result<Ended, RunError> {
        self.process.gather();
        self.arm()?;
        // Whoever came before this thread could be reached.
        self.control.attend(&mut self.process);
        if let Some(ended) = self.stop(deadline) {
            return Ok(ended);
        }
        loop {
            if self.on_cpu.is_none()
                && let Some(ended) = self.choose(deadline)?
            {
                return Ok(ended);
            }
            if let Some(ended) = self.deliver_signals()? {
                return Ok(ended);
            }
            self.settle()?;
            self.watch_memory()?;
            self.process.refresh_time();
            self.process.settle_answers();
            self.counts.exits += 1;
            let ended = match self.shell.vcpu.run() {
                Exit::Call => self.call()?,
                Exit::Interrupted => self.interrupted(deadline)?,
                Exit::Fault(vector) => self.fault(vector)?,
                Exit::Denied(gpa) => self.denied(gpa)?,
                Exit::Privileged => self.crash(Cause::Privileged)?,
                Exit::Nowhere => self.crash(Cause::Exception { vector: GENERAL_PROTECTION, error: 0 })?,
                Exit::Broken(reason) => return Err(RunError::Broken(reason)),
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
            self.look_at_reply();
        }
    }

    /// The timer ticks only while somebody has to be watched; otherwise it strikes once, when the first thing is due:
    /// the deadline, a timer, the end of a blocked thread's wait.
    fn arm(&mut self) -> Result<(), RunError> {
        let now = Instant::now();
        let first = self.next_due().map_or(self.deadline, |due| due.min(self.deadline));
        let left = first.saturating_duration_since(now);
        let left = self.process.next_timer().map_or(left, |timer| left.min(timer));
        // What a program has said and then works on is not to lie about unseen.
        let left = if self.process.gathers_log() { left.min(UNSEEN) } else { left };
        let left = left.max(Duration::from_nanos(1));
        self.strikes = now + left;
        self.ticking = self.must_tick();
        let (first, every) = if self.ticking { (left.min(SLICE), SLICE) } else { (left, Duration::ZERO) };
        self.shell.timer.arm(first, every).map_err(RunError::host("start the timer"))
    }

    fn must_tick(&self) -> bool {
        self.process.threads.any_ready()
            || self.process.memory.is_overcommitted()
            || self.waits().any(|(_, wait)| wait.is_for_host())
    }

    /// What the blocked threads wait for.
    fn waits(&self) -> impl Iterator<Item = (u32, &Wait)> {
        self.process.threads.iter().filter_map(|thread| match &thread.status {
            Status::Blocked(pending) => Some((thread.id, &pending.wait)),
            Status::Ready => None,
        })
    }

    /// When the first blocked thread wants to be woken.
    fn next_due(&self) -> Option<Instant> {
        self.waits().filter_map(|(_, wait)| wait.until).min()
    }

    /// Tells the VM what changed in the address space.
    fn settle(&mut self) -> Result<(), RunError> {
        // Out of memory for tables: the program finds out when it touches the page.
        let _ = self.process.memory.settle();
        for slot in self.process.memory.take_slots() {
            self.shell.vm.add_slot(slot.gpa, slot.len)?;
        }
        if self.process.memory.take_stale() {
            self.shell.vm.forget_translations()?;
        }
        if let Some((base, address)) = self.process.take_new_base() {
            let now = self.shell.vcpu.special()?;
            let (fs, gs) = match base {
                Base::Fs => (address, now.gs.base),
                Base::Gs => (now.fs.base, address),
            };
            let ring0 = now.cs.selector & 3 == 0;
            self.shell.vcpu.set_bases(fs, gs);
            if ring0 {
                // The registers are still those of the stub; go back to the program without it.
                let regs = self.shell.vcpu.regs_in_call();
                self.shell.vcpu.enter(regs);
            }
        }
        Ok(())
    }

    /// Serves a system call.
    fn call(&mut self) -> Result<Option<Ended>, RunError> {
        self.counts.calls += 1;
        self.process.take_done();
        let regs = self.shell.vcpu.regs_in_call();
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        self.process.threads.current_mut().state.regs = regs;
        let outcome = self.process.serve(regs.rax, args);
        self.process.answer_ahead(regs.rax, args, &outcome);
        if let Some(ended) = self.watch_call(regs.rax, args, &outcome) {
            return Ok(Some(ended));
        }
        self.spread_changes()?;
        match outcome {
            Ok(Outcome::Block(wait)) => {
                let pending = Pending { number: regs.rax, args, wait };
                self.process.threads.current_mut().status = Status::Blocked(pending);
                self.leave_cpu(regs)?;
                self.retry_if_signalled();
                Ok(None)
            }
            Ok(Outcome::Value(value)) => self.answer(value),
            Err(errno) => self.answer(negative(errno)),
            Ok(Outcome::Exit(code)) => Ok(Some(Ended::Code(code))),
            Ok(Outcome::ExitThread(code)) => self.exit_thread(code),
            Ok(Outcome::SignalReturn) => self.sigreturn(regs),
            Ok(Outcome::Yield) => self.give_way(regs),
        }
    }

    /// `sched_yield`: 0 for the caller, the CPU for the others.
    fn give_way(&mut self, mut regs: kvm_bindings::kvm_regs) -> Result<Option<Ended>, RunError> {
        if !self.process.threads.any_ready() {
            return self.answer(0);
        }
        regs.rax = 0;
        self.process.threads.queue_current();
        self.leave_cpu(regs)?;
        Ok(None)
    }

    /// What the last call did to others: blocked threads that may go on, a timer that was set.
    pub(super) fn spread_changes(&mut self) -> Result<(), RunError> {
        if self.process.take_changed() {
            self.wake(|wait| wait.inside);
        }
        if self.process.timers.take_changed() || (!self.ticking && self.process.threads.any_ready()) {
            self.arm()?;
        }
        Ok(())
    }

    fn answer(&mut self, value: u64) -> Result<Option<Ended>, RunError> {
        self.shell.vcpu.resume_call(value);
        Ok(None)
    }

    pub(super) fn load_current(&mut self) -> Result<Option<Ended>, RunError> {
        let preloaded = self.preloaded.take();
        let thread = self.process.threads.current();
        if self.resident == Some(thread.id) {
            self.shell.vcpu.enter_user(thread.state.regs)?;
        } else if preloaded == Some(thread.id) {
            // Only the general registers can be others since: the result of the call in which it stood.
            self.shell.vcpu.enter(thread.state.regs);
        } else {
            self.shell.vcpu.load(&thread.state)?;
        }
        (self.on_cpu, self.resident) = (Some(thread.id), Some(thread.id));
        self.process.start_slice();
        Ok(None)
    }

    fn exit_thread(&mut self, code: i32) -> Result<Option<Ended>, RunError> {
        let Some(thread) = self.process.threads.remove_current() else {
            return Ok(Some(Ended::Code(code)));
        };
        self.process.thread_ended(thread.id, thread.clear_child_tid, thread.robust_list);
        (self.on_cpu, self.resident) = (None, None);
        Ok(None)
    }

    /// Saves the current thread's state and frees the CPU. Where no other thread exists the state simply stays in the CPU.
    fn leave_cpu(&mut self, regs: kvm_bindings::kvm_regs) -> Result<(), RunError> {
        self.process.threads.current_mut().state.regs = regs;
        if self.process.threads.len() > 1 {
            self.process.threads.current_mut().state = self.shell.vcpu.save(regs)?;
            self.resident = None;
        }
        self.process.end_slice();
        self.on_cpu = None;
        Ok(())
    }

    pub(super) fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.shell.vcpu
    }

    /// Whether a thread has the CPU.
    pub(super) fn is_on_cpu(&self) -> bool {
        self.on_cpu.is_some()
    }

    /// Gives the CPU to a thread that can go on, waiting for one if need be.
    fn choose(&mut self, deadline: Instant) -> Result<Option<Ended>, RunError> {
        loop {
            self.wake_due();
            while let Some(id) = self.process.threads.next() {
                if let Some(ended) = self.resume(id)? {
                    self.watch_waits()?;
                    return Ok(ended);
                }
            }
            if let Some(ended) = self.idle(deadline)? {
                return Ok(Some(ended));
            }
        }
    }

    /// Tries to let the current thread `id` go on: `Some(None)` if it does.
    fn resume(&mut self, id: u32) -> Result<Option<Option<Ended>>, RunError> {
        let Status::Blocked(pending) = self.process.threads.current().status.clone() else {
            self.load_current()?;
            return Ok(Some(None));
        };
        self.process.set_resumed(Some(pending.wait.clone()));
        let outcome = self.process.serve(pending.number, pending.args);
        let interrupted = self.process.interrupted();
        self.process.set_resumed(None);
        self.spread_changes()?;
        let value = match outcome {
            Ok(Outcome::Block(wait)) if interrupted && wait.done > 0 => wait.done,
            Ok(Outcome::Block(_)) | Err(Errno::INTR) if interrupted => {
                return self.interrupt_call(pending.number);
            }
            Ok(Outcome::Block(wait)) => {
                self.process.threads.current_mut().status = Status::Blocked(Pending { wait, ..pending });
                return Ok(None);
            }
            Ok(Outcome::Exit(code)) => return Ok(Some(Some(Ended::Code(code)))),
            Ok(Outcome::ExitThread(code)) => return self.exit_thread(code).map(|ended| ended.map(Some)),
            Ok(Outcome::SignalReturn | Outcome::Yield) => 0,
            Ok(Outcome::Value(value)) => value,
            Err(errno) => negative(errno),
        };
        let thread = self.process.threads.current_mut();
        thread.status = Status::Ready;
        thread.state.regs.rax = value;
        if self.resident == Some(id) {
            // Everything but the result is still in the CPU.
            self.shell.vcpu.resume_call(value);
            self.on_cpu = Some(id);
            self.process.start_slice();
        } else {
            self.load_current()?;
        }
        Ok(Some(None))
    }

    /// Waits until a blocked thread may go on, and marks those.
    fn idle(&mut self, deadline: Instant) -> Result<Option<Ended>, RunError> {
        // First: a kick that comes after the looks below must still be there when the vCPU runs.
        self.shell.kick.clear();
        self.control.attend(&mut self.process);
        if let Some(ended) = self.stop(deadline) {
            return Ok(Some(ended));
        }
        self.process.expire_timers();
        let (signalled, changed) = (self.wake_signalled(), self.wake_changed());
        if signalled || changed {
            return Ok(None);
        }
        let waits: BTreeMap<u32, Wait> = self.waits().map(|(id, wait)| (id, wait.clone())).collect();
        let timer = self.process.next_timer_asleep().and_then(|left| Instant::now().checked_add(left));
        let until = waits.values().filter_map(|wait| wait.until).chain(timer).chain([deadline]).min();
        let until = until.unwrap_or(deadline);
        if self.to_input && waits.values().any(|wait| wait.input) {
            return Ok(Some(Ended::WantsInput));
        }
        let ready = self.poll(&waits, until)?;
        self.wake_all(ready);
        Ok(None)
    }

    /// Looks, without waiting, whether anything came for blocked threads while another one runs.
    fn look_around(&mut self) -> Result<(), RunError> {
        self.wake_due();
        let waits: BTreeMap<u32, Wait> = self
            .waits()
            .filter(|(_, wait)| wait.is_for_host())
            .map(|(id, wait)| (id, wait.clone()))
            .collect();
        if !waits.is_empty() {
            let ready = self.poll(&waits, Instant::now())?;
            self.wake_all(ready);
        }
        Ok(())
    }

    /// Waits for the events of `waits` until `until`; the threads whose events came.
    fn poll(&self, waits: &BTreeMap<u32, Wait>, until: Instant) -> Result<Vec<u32>, RunError> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.control.event(), PollFlags::IN)];
        let mut owners = vec![];
        for (id, wait) in waits {
            for (fd, events) in &wait.host {
                fds.push(PollFd::from_borrowed_fd(fd.as_fd(), *events));
                owners.push(*id);
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RunError::host("wait for events")(errno.into())),
        }
        let mut ready: Vec<u32> = owners
            .iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(id, _)| *id)
            .collect();
        if !fds[0].revents().is_empty() {
            self.control.take_notice();
            ready.extend(waits.iter().filter(|(_, wait)| wait.input || wait.output).map(|(id, _)| *id));
        }
        Ok(ready)
    }

    fn stop(&mut self, deadline: Instant) -> Option<Ended> {
        if self.control.is_cancelled() {
            return Some(Ended::Cancelled);
        }
        if Instant::now() >= deadline {
            return Some(Ended::Deadline);
        }
        self.is_over_limit().then_some(Ended::MemoryLimit)
    }

    /// A signal came: the deadline, a cancellation, the end of a time slice.
    fn interrupted(&mut self, deadline: Instant) -> Result<Option<Ended>, RunError> {
        self.shell.kick.clear();
        let regs = self.shell.vcpu.regs();
        self.finish_call(&regs);
        self.process.take_done();
        self.control.attend(&mut self.process);
        if let Some(ended) = self.stop_at_marker()? {
            return Ok(ended);
        }
        if let Some(ended) = self.stop(deadline) {
            return Ok(Some(ended));
        }
        self.process.expire_timers();
        if self.process.threads.len() > 1 {
            self.look_around()?;
        }
        if !self.ticking || !self.must_tick() {
            self.arm()?;
        }
        if self.process.threads.any_ready() && self.shell.vcpu.is_in_program() {
            let regs = self.shell.vcpu.regs();
            self.process.threads.queue_current();
            self.leave_cpu(regs)?;
        }
        Ok(None)
    }
}

fn negative(errno: Errno) -> u64 {
    (-i64::from(errno.raw_os_error())) as u64
}

#[cfg(test)]
mod tests;
