//! What a program needs of KVM, made without a program: a VM with its first memslot, a vCPU, a timer, on a thread of
//! its own.
//!
//! A *blank* one, made ahead, has been in its guest once already: the first entry of a vCPU costs twice as much as the
//! others. It ran the system-call stub on tables that every program's memory begins with
//! ([`system_area`](super::memory::system_area)).

use std::sync::Arc;

use super::memory::{MappedFile, Slot, first_slot, region_bytes, system_area};
use super::run::RunError;
use super::time::Time;
use crate::kvm::entry;
use crate::kvm::sys::{KickSlot, KickTimer, Region};
use crate::kvm::vcpu::{Exit, Vcpu};
use crate::kvm::vm::Vm;

/// See the module. It belongs to the thread that made it, which must also drop it.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(super) vcpu: Vcpu,
    pub(super) vm: Vm,
    pub(super) kick: KickSlot,
    pub(super) timer: KickTimer,
    pub(super) counter_khz: Option<u32>,
    /// A page of clocks that nobody has.
    clocks: Option<Arc<MappedFile>>,
}

impl Shell {
    /// On the calling thread, for a program in `region`.
    pub(crate) fn new(region: Arc<Region>, slots: impl IntoIterator<Item = Slot>) -> Result<Self, RunError> {
        let mut vm = Vm::new(region)?;
        for slot in slots {
            vm.add_slot(slot.gpa, slot.len)?;
        }
        let mut vcpu = vm.add_vcpu()?;
        let (kick, counter_khz) = (vcpu.kick_slot(), vcpu.counter_khz());
        let timer = KickTimer::new().map_err(RunError::host("create a timer"))?;
        Ok(Self { vcpu, vm, kick, timer, counter_khz, clocks: None })
    }

    /// On the calling thread, for any program whose memory fits into a region of the common size.
    pub(super) fn blank() -> Result<(Self, Arc<Region>), RunError> {
        let region =
            Region::reserve(region_bytes(0)).map_err(RunError::host("reserve addresses for a sandbox"))?;
        let region = Arc::new(region);
        system_area(&region).map_err(RunError::host("prepare the system area"))?;
        let mut shell = Self::new(region.clone(), [first_slot()])?;
        shell.clocks = Time::new_page().ok();
        shell.kick.attach();
        let exit = shell.run_stub();
        KickSlot::detach();
        match exit {
            Exit::Call => Ok((shell, region)),
            other => Err(RunError::Broken(format!("an empty sandbox left with {other:?}"))),
        }
    }

    /// Enters the guest at the system-call stub, which leaves at once.
    fn run_stub(&mut self) -> Exit {
        loop {
            self.vcpu.enter(entry::registers(entry::CALL_STUB, 0));
            match self.vcpu.run() {
                // A kick for whoever used this thread before.
                Exit::Interrupted => self.kick.clear(),
                other => return other,
            }
        }
    }

    /// The page of clocks that was made with it.
    pub(super) fn take_clocks(&mut self) -> Option<Arc<MappedFile>> {
        self.clocks.take()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // A kick that comes now must not reach the vCPU's page, which goes away.
        KickSlot::detach();
    }
}
