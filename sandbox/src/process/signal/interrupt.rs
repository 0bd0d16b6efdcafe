//! Signals in the run loop: when they are delivered, and what they do to a call that waits.

use kvm_bindings::kvm_regs;
use rustix::io::Errno;

use super::{Delivery, Detail, Info, SI_KERNEL, Signal};
use crate::kvm::vcpu::UserState;
use crate::process::fault::{Cause, Report};
use crate::process::memory::Refusal;
use crate::process::run::{Ended, Machine, RunError};
use crate::process::thread::Status;

/// The length of the `syscall` instruction.
const CALL_BYTES: u64 = 2;

impl Machine {
    /// Delivers what the thread on the CPU has to take before it goes back to the program.
    pub(in crate::process) fn deliver_signals(&mut self) -> Result<Option<Ended>, RunError> {
        if self.process.take_posted() {
            self.wake_signalled();
            self.spread_changes()?;
            self.watch_waits()?;
        }
        if !self.process.may_have_signal() || self.vcpu().is_in_stub() {
            return Ok(None);
        }
        loop {
            let layout = self.vcpu().state_layout();
            let mut state = self.save_state()?;
            match self.process.deliver(&mut state, &layout) {
                None => return Ok(None),
                Some(Delivery::Handler) => self.load_state(&state)?,
                Some(Delivery::Deadly(info)) => {
                    let report = Report::killed(&self.process, &state.regs, info.signal);
                    return Ok(Some(Ended::Fault(report)));
                }
            }
        }
    }

    /// Lets blocked threads that have a signal to take try their call again; whether there are any.
    pub(in crate::process) fn wake_signalled(&mut self) -> bool {
        let process = &self.process;
        let blocked = |status: &Status| matches!(status, Status::Blocked(_));
        let woken: Vec<u32> = process
            .threads
            .iter()
            .filter(|thread| blocked(&thread.status) && process.has_signal(thread))
            .map(|thread| thread.id)
            .collect();
        for id in &woken {
            self.process.threads.wake(*id);
            if !self.is_on_cpu() {
                self.process.threads.wake_current_if(*id);
            }
        }
        !woken.is_empty()
    }

    /// The current thread's call waited and a signal came: it ends, to be made again after the handler or not.
    pub(in crate::process) fn interrupt_call(
        &mut self,
        number: u64,
    ) -> Result<Option<Option<Ended>>, RunError> {
        let restarts = self.process.restarts(number);
        let thread = self.process.threads.current_mut();
        thread.status = Status::Ready;
        if restarts {
            // A program that jumped to the stub may return to anywhere.
            thread.state.regs.rip = thread.state.regs.rip.wrapping_sub(CALL_BYTES);
            thread.state.regs.rax = number;
        } else {
            thread.state.regs.rax = (-i64::from(Errno::INTR.raw_os_error())) as u64;
        }
        self.load_current()?;
        Ok(Some(None))
    }

    /// `rt_sigreturn`.
    pub(in crate::process) fn sigreturn(&mut self, regs: kvm_regs) -> Result<Option<Ended>, RunError> {
        let layout = self.vcpu().state_layout();
        let mut state = self.save_state()?;
        match self.process.sigreturn(&mut state, &layout) {
            Ok(()) => self.load_state(&state)?,
            Err(_) => {
                let address = regs.rsp;
                return self.crash(Cause::Memory { address, refusal: Refusal::Unmapped });
            }
        }
        Ok(None)
    }

    /// The program did what it must not: its handler runs, or it ends.
    pub(in crate::process) fn crash(&mut self, cause: Cause) -> Result<Option<Ended>, RunError> {
        let mut state = self.save_state()?;
        let info = info(cause, state.regs.rip);
        let layout = self.vcpu().state_layout();
        let report = Report::new(&self.process, &state.regs, cause);
        match self.process.deliver_fault(&mut state, &layout, info, exception(cause)) {
            Delivery::Handler => {
                self.load_state(&state)?;
                Ok(None)
            }
            Delivery::Deadly(_) => Ok(Some(Ended::Fault(report))),
        }
    }

    fn save_state(&mut self) -> Result<UserState, RunError> {
        let regs = self.vcpu().program_regs();
        Ok(self.vcpu().save(regs)?)
    }

    fn load_state(&mut self, state: &UserState) -> Result<(), RunError> {
        Ok(self.vcpu().load(state)?)
    }
}

/// `siginfo_t` of a fault: sigaction(2) names the codes.
fn info(cause: Cause, rip: u64) -> Info {
    const SEGV_MAPERR: i32 = 1;
    const SEGV_ACCERR: i32 = 2;
    const BUS_ADRERR: i32 = 2;
    const ILL_ILLOPN: i32 = 2;
    const FPE_INTDIV: i32 = 1;
    const FPE_FLTINV: i32 = 7;
    let (signal, code, address) = match cause {
        Cause::Memory { address, refusal: Refusal::Unmapped } => (Signal::SEGV, SEGV_MAPERR, address),
        Cause::Memory { address, refusal: Refusal::Forbidden } => (Signal::SEGV, SEGV_ACCERR, address),
        Cause::Bus { address } => (Signal::BUS, BUS_ADRERR, address),
        Cause::Exception { vector: 0, .. } => (Signal::FPE, FPE_INTDIV, rip),
        Cause::Exception { vector: 16 | 19, .. } => (Signal::FPE, FPE_FLTINV, rip),
        Cause::Exception { vector: 1 | 3, .. } => (Signal::TRAP, SI_KERNEL, rip),
        Cause::Exception { vector: 6, .. } => (Signal::ILL, ILL_ILLOPN, rip),
        Cause::Exception { vector: 11 | 12 | 17, .. } => (Signal::BUS, SI_KERNEL, 0),
        Cause::Exception { .. } | Cause::Privileged => (Signal::SEGV, SI_KERNEL, 0),
    };
    Info { signal, code, detail: Detail::Fault { address } }
}

/// Vector, error code and CR2, for the frame.
fn exception(cause: Cause) -> (u64, u64, u64) {
    const PAGE_FAULT: u64 = 14;
    const GENERAL_PROTECTION: u64 = 13;
    match cause {
        Cause::Memory { address, refusal } => {
            // User mode; present where the mapping exists.
            (PAGE_FAULT, 4 | u64::from(matches!(refusal, Refusal::Forbidden)), address)
        }
        Cause::Bus { address } => (PAGE_FAULT, 4, address),
        Cause::Exception { vector, error } => (vector, error, 0),
        Cause::Privileged => (GENERAL_PROTECTION, 0, 0),
    }
}
