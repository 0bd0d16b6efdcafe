//! What belongs to no vCPU: interrupt controllers, KVM's clock, the PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use novum_snapshot::State;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::raw::Raw;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// See the module.
#[derive(Serialize, Deserialize)]
pub(crate) struct VmState {
    chips: Vec<Raw<kvm_irqchip>>,
    /// Nanoseconds of the guest's clock, which stands while the machine is paused or at rest.
    clock: u64,
    pit: Option<Raw<kvm_pit_state2>>,
}

impl State for VmState {
    const KIND: &'static str = "vm";
    const VERSION: u32 = 1;
}

impl VmState {
    /// Once no vCPU runs and no device raises an interrupt.
    pub(super) fn read(vm: &VmFd, pit: bool) -> Result<Self, SnapshotError> {
        let reading = |what| move |source| SnapshotError::Kvm { doing: "reading", what, source };
        let chip = |chip_id: u32| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(reading("an interrupt controller")).map(|()| Raw(chip))
        };
        let pit = pit.then(|| vm.get_pit2().map(Raw).map_err(reading("the PIT"))).transpose()?;
        let clock = vm.get_clock().map_err(reading("the guest's clock"))?.clock;
        Ok(Self { chips: CHIPS.into_iter().map(chip).collect::<Result<_, _>>()?, clock, pit })
    }

    pub(super) fn write_chips(&self, vm: &VmFd) -> Result<(), SnapshotError> {
        let writing = |what| move |source| SnapshotError::Kvm { doing: "writing", what, source };
        for chip in &self.chips {
            vm.set_irqchip(&chip.0).map_err(writing("an interrupt controller"))?;
        }
        match &self.pit {
            Some(pit) => vm.set_pit2(&pit.0).map_err(writing("the PIT")),
            None => Ok(()),
        }
    }

    /// The clock goes on from where it stood.
    pub(super) fn write_clock(&self, vm: &VmFd) -> Result<(), SnapshotError> {
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        let writing = |source| SnapshotError::Kvm { doing: "writing", what: "the guest's clock", source };
        vm.set_clock(&clock).map_err(writing)
    }
}
