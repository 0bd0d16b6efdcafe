//! Runs that end at the program's entry point, behind its interpreter.

use std::time::Instant;

use kvm_bindings::kvm_regs;
use rustix::io::Errno;

use super::{Ended, Machine, RunError};
use crate::process::calls::{Args, Outcome};
use crate::process::onset::Watch;

impl Machine {
    /// As [`Self::run`], but only to the entry point ([`Ended::Marked`]) or to what `watch` does not allow before it.
    pub(in crate::process) fn run_to_entry(
        &mut self,
        deadline: Instant,
        watch: Watch,
    ) -> Result<(Ended, Option<Watch>), RunError> {
        self.watch = Some(watch);
        let ended = self.run(deadline);
        let watch = self.watch.take();
        Ok((ended?, watch))
    }

    /// A call was served: how the run ends, where it must not go on.
    pub(super) fn watch_call(
        &mut self,
        number: u64,
        args: Args,
        outcome: &Result<Outcome, Errno>,
    ) -> Option<Ended> {
        let watch = self.watch.as_mut()?;
        let goes_on = watch.note(&mut self.process, number, args, outcome);
        (!goes_on).then_some(Ended::Cancelled)
    }

    /// The program was refused an access: it has come to its entry point, or looked at the clocks.
    pub(super) fn end_watch(&mut self, regs: kvm_regs) -> Result<Option<Ended>, RunError> {
        let Some(watch) = &mut self.watch else { return Ok(None) };
        self.process.take_done();
        watch.end(&mut self.process, regs.rip);
        self.process.threads.queue_current();
        self.leave_cpu(regs)?;
        Ok(Some(Ended::Marked))
    }
}
