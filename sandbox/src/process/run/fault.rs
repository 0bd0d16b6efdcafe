//! What stops a program besides its calls: exceptions, and memory that the host refuses.

use kvm_bindings::kvm_regs;

use super::{Ended, Machine, PAGE_FAULT, RunError};
use crate::kvm::{answers, entry};
use crate::process::fault::{self, Cause, Refused};

impl Machine {
    /// A program that was stopped in the code that answers calls leaves the VM with its call next; whether it was.
    pub(super) fn finish_call(&mut self, regs: &kvm_regs) -> bool {
        let there = self.shell.vcpu.answers_calls() && answers::is_code(regs.rip);
        if there {
            let regs = answers::full_call(self.process.memory.region(), regs);
            self.shell.vcpu.enter_call(regs);
        }
        there
    }

    /// The CPU raised an exception.
    pub(super) fn fault(&mut self, vector: u64) -> Result<Option<Ended>, RunError> {
        let frame =
            self.process.memory.exception_frame(self.shell.vcpu.regs().rsp, entry::has_error_code(vector));
        let mut regs = self.shell.vcpu.regs();
        (regs.rip, regs.rflags, regs.rsp) = (frame.rip, frame.rflags, frame.rsp);
        let special = self.shell.vcpu.special()?;
        self.shell.vcpu.set_bases(special.fs.base, special.gs.base);
        self.shell.vcpu.enter(regs);
        if self.finish_call(&regs) {
            return Ok(None);
        }
        if vector == PAGE_FAULT {
            let access = fault::access_of(frame.error);
            return match self.process.memory.touch(special.cr2, access) {
                Ok(()) => Ok(None),
                Err(refusal) => self.crash(Cause::Memory { address: special.cr2, refusal }),
            };
        }
        self.crash(Cause::Exception { vector, error: frame.error })
    }

    /// The host's memory protection refused an access of the program.
    pub(super) fn denied(&mut self, gpa: Option<u64>) -> Result<Option<Ended>, RunError> {
        let regs = self.shell.vcpu.regs();
        if self.finish_call(&regs) {
            return Ok(None);
        }
        if let Some(ended) = self.end_watch(regs)? {
            return Ok(Some(ended));
        }
        let special = self.shell.vcpu.special()?;
        match fault::find_refused(&self.process.memory, &regs, &special, gpa) {
            Refused::Access(address, access) => match self.process.memory.touch(address, access) {
                Ok(()) => Ok(None),
                Err(refusal) => self.crash(Cause::Memory { address, refusal }),
            },
            Refused::Absent(address) => self.crash(Cause::Bus { address }),
        }
    }
}
