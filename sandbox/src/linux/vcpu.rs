//! A vCPU: what it looks like to the guest, and its thread's loop.

use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Mutex, MutexGuard};

use super::bus::Bus;
use super::end::{End, Ending};
use super::error::Error;
use super::pause::Gate;
use crate::kvm::sys::KickSlot;

/// CPUID leaf 1, ECX: a hypervisor is there, so kvm-clock is looked for.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, ECX: the APIC timer can be set by a TSC value, so it need not be calibrated.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, ECX, and leaf 0x8000_0001, ECX: virtualization, whose state a snapshot does not hold.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// CPUID leaf 1, EDX: several logical processors.
const HTT: u32 = 1 << 28;

const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, memory is write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Local vector table of LINT0 and LINT1, and what a PC's firmware leaves in them.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTERNAL: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Everything but the boot state of vCPU `id` of `count`: CPUID, MSRs, local interrupts.
pub(crate) fn configure(vcpu: &VcpuFd, supported: &CpuId, id: u8, count: u8) -> Result<(), Error> {
    vcpu.set_cpuid2(&cpuid(supported, id, count)).map_err(Error::kvm("setting a vCPU's CPUID"))?;
    set_msrs(vcpu)?;
    set_local_interrupts(vcpu)
}

/// What vCPU `id` of `count` says about itself.
pub(crate) fn cpuid(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let threads = u32::from(count);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx = entry.ecx & !VMX | HYPERVISOR | TSC_DEADLINE;
                entry.ebx = entry.ebx & 0xffff | threads.next_power_of_two() << 16 | u32::from(id) << 24;
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Topology: one thread per core, all cores in one package; the x2APIC id of this one.
            0xb | 0x1f => {
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (threads.next_power_of_two().trailing_zeros(), threads, 2 << 8 | 1),
                    index => (0, 0, index),
                };
                entry.edx = u32::from(id);
            }
            0x8000_0001 => entry.ecx &= !SVM,
            // AMD: cores in this package; the extended APIC id.
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (threads - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (u32::from(id), u32::from(id), 0),
            _ => {}
        }
    }
    cpuid
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MSR_MISC_ENABLE, FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).map_err(|error| Error::Config(format!("{error:?}")))?;
    let written = vcpu.set_msrs(&msrs).map_err(Error::kvm("writing a vCPU's MSRs"))?;
    match entries.get(written) {
        None => Ok(()),
        Some(refused) => Err(Error::Config(format!("KVM refuses MSR {:#x}", refused.index))),
    }
}

fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut lapic = vcpu.get_lapic().map_err(Error::kvm("reading a local APIC"))?;
    set_delivery(&mut lapic, LVT_LINT0, DELIVER_EXTERNAL);
    set_delivery(&mut lapic, LVT_LINT1, DELIVER_NMI);
    vcpu.set_lapic(&lapic).map_err(Error::kvm("writing a local APIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = mode.to_le_bytes();
    for (to, from) in lapic.regs[register..register + 4].iter_mut().zip(bytes) {
        *to = from as std::ffi::c_char;
    }
}

/// What a vCPU thread works with.
pub(crate) struct Runner {
    pub(crate) id: u8,
    /// Locked by the thread while it does not stand at the gate.
    pub(crate) vcpu: Arc<Mutex<VcpuFd>>,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) gate: Arc<Gate>,
}

impl Runner {
    /// Runs until the machine has ended.
    pub(crate) fn run(self) {
        let mut vcpu = self.vcpu.lock();
        let slot = KickSlot::of(&mut vcpu);
        slot.attach();
        while !self.ending.is_over() {
            if self.gate.is_closed() {
                if let Err(end) = self.settle(&mut vcpu) {
                    self.ending.note(end);
                }
                MutexGuard::unlocked(&mut vcpu, || self.gate.park());
            } else if let Err(end) = self.step(&mut vcpu) {
                self.ending.note(end);
            }
        }
        // Before the vCPU is dropped.
        KickSlot::detach();
        drop(vcpu);
        self.gate.leave();
    }

    /// Finishes what the last exit has begun: KVM does so at the next entry, even at one that must not run anything.
    fn settle(&self, vcpu: &mut VcpuFd) -> Result<(), End> {
        loop {
            vcpu.set_kvm_immediate_exit(1);
            if self.step(vcpu)? == Step::Interrupted {
                return Ok(());
            }
        }
    }

    /// Into the guest and out again, once.
    fn step(&self, vcpu: &mut VcpuFd) -> Result<Step, End> {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => self.ports.read(port.into(), data),
            Ok(VcpuExit::MmioRead(address, data)) => self.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.mmio.write(address, data),
            // A kick, or a signal of somebody else.
            Ok(VcpuExit::Intr) => return Ok(interrupted(vcpu)),
            Ok(VcpuExit::Shutdown) => return Err(End::TripleFault { vcpu: self.id }),
            Ok(VcpuExit::InternalError) => return Err(internal_error(vcpu)),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(End::Host(format!(
                    "the processor refused to enter the guest, reason {reason:#x}"
                )));
            }
            Ok(other) => return Err(End::Host(format!("unexpected exit from the guest: {other:?}"))),
            Err(error) if error.errno() == libc::EINTR => return Ok(interrupted(vcpu)),
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(End::Host(format!("KVM_RUN: {error}"))),
        }
        Ok(Step::Ran)
    }
}

/// What came of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ran,
    /// A kick came, and everything before it is finished.
    Interrupted,
}

/// A kick that comes after this counts again; whoever kicks says before why.
fn interrupted(vcpu: &mut VcpuFd) -> Step {
    vcpu.set_kvm_immediate_exit(0);
    Step::Interrupted
}

fn internal_error(vcpu: &VcpuFd) -> End {
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    End::Host(format!(
        "KVM met an instruction at {rip:#x} that it cannot emulate; \
         a KVM without hardware virtualization cannot run Linux guests (see `novum doctor`)"
    ))
}
