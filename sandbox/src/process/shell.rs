//! What a program needs of KVM, made without a program: a VM with its first memslot, a vCPU, a timer, on a thread of
//! its own.

use std::sync::Arc;

use super::memory::Slot;
use super::run::RunError;
use crate::kvm::sys::{KickSlot, KickTimer, Region};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;

/// See the module. It belongs to the thread that made it, which must also drop it.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(super) vcpu: Vcpu,
    pub(super) vm: Vm,
    pub(super) kick: KickSlot,
    pub(super) timer: KickTimer,
    pub(super) counter_khz: Option<u32>,
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
        Ok(Self { vcpu, vm, kick, timer, counter_khz })
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // A kick that comes now must not reach the vCPU's page, which goes away.
        KickSlot::detach();
    }
}
