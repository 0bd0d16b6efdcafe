//! All of a vCPU: read and written in the order that KVM needs (Documentation/virt/kvm/api.rst, and what breaks
//! without it).
//!
//! | step | why there |
//! |---|---|
//! | CPUID, TSC frequency | which MSRs, XCR0 bits and APIC modes exist |
//! | registers, then control registers | the APIC's base, and with it x2APIC, is one of these |
//! | XCR0, then the vector state | the state's layout |
//! | MSRs, the TSC first | the deadline is in TSC units |
//! | local APIC | its mode must be known; it carries pending interrupts |
//! | TSC deadline | taken only where the APIC's timer is in that mode |
//! | events, debug registers | SET_REGS drops pending exceptions |
//! | MP state | it may start the vCPU |

use std::sync::OnceLock;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use novum_snapshot::State;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::raw::Raw;
use crate::kvm::sys::XsaveArea;
use crate::kvm::vm::Host;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// What describes VMX: not offered to guests.
const VMX: std::ops::RangeInclusive<u32> = 0x480..=0x493;
/// Hyper-V's own, which no guest of ours has.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;
/// Further from any time stamp counter than it counts in a second.
const FAR: u64 = 1 << 48;
/// Bytes of the vector state that KVM_GET_XSAVE gives.
const XSAVE_BYTES: usize = 4096;
/// Hosts may differ by this many parts of a million before the TSC must be scaled; KVM takes less for none.
const TSC_TOLERANCE_PPM: u64 = 250;
/// A task that is not busy.
const AVAILABLE_TASK: u8 = 9;

/// See the module.
#[derive(Serialize, Deserialize)]
pub(super) struct VcpuState {
    pub(super) cpuid: Vec<Raw<kvm_cpuid_entry2>>,
    tsc_khz: u32,
    regs: Raw<kvm_regs>,
    sregs: Raw<kvm_sregs>,
    xcrs: Raw<kvm_xcrs>,
    /// Without the zeroes at its end.
    xsave: Vec<u8>,
    /// (index, value)
    msrs: Vec<(u32, u64)>,
    lapic: Raw<kvm_lapic_state>,
    events: Raw<kvm_vcpu_events>,
    debug: Raw<kvm_debugregs>,
    mp_state: Raw<kvm_mp_state>,
}

impl State for VcpuState {
    const KIND: &'static str = "vcpu";
    const VERSION: u32 = 1;
}

fn reading(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |source| SnapshotError::Kvm { doing: "reading", what, source }
}

fn writing(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |source| SnapshotError::Kvm { doing: "writing", what, source }
}

impl VcpuState {
    /// Of a vCPU that stands between two instructions.
    pub(super) fn read(host: &Host, vcpu: &VcpuFd) -> Result<Self, SnapshotError> {
        // First: it lets a vCPU take an INIT or SIPI that is pending, which changes the rest.
        let mp_state = vcpu.get_mp_state().map_err(reading("a vCPU's run state"))?;
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(reading("a vCPU's CPUID"))?;
        let xsave = XsaveArea::get(vcpu).map_err(reading("a vCPU's vector state"))?;
        let mut xsave = xsave.bytes(XSAVE_BYTES);
        xsave.truncate(xsave.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(Self {
            cpuid: cpuid.as_slice().iter().copied().map(Raw).collect(),
            tsc_khz: vcpu.get_tsc_khz().map_err(reading("a vCPU's TSC frequency"))?,
            regs: Raw(vcpu.get_regs().map_err(reading("a vCPU's registers"))?),
            sregs: Raw(vcpu.get_sregs().map_err(reading("a vCPU's control registers"))?),
            xcrs: Raw(vcpu.get_xcrs().map_err(reading("a vCPU's XCRs"))?),
            xsave,
            // Before the APIC: a deadline that passes in between is then seen twice rather than never.
            msrs: read_msrs(host, vcpu)?,
            lapic: Raw(vcpu.get_lapic().map_err(reading("a local APIC"))?),
            events: Raw(vcpu.get_vcpu_events().map_err(reading("a vCPU's events"))?),
            debug: Raw(vcpu.get_debug_regs().map_err(reading("a vCPU's debug registers"))?),
            mp_state: Raw(mp_state),
        })
    }

    /// Into a vCPU that has not run.
    pub(super) fn write(&self, vcpu: &VcpuFd) -> Result<(), SnapshotError> {
        let entries: Vec<_> = self.cpuid.iter().map(|entry| entry.0).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| refused("CPUID has too many leaves"))?;
        vcpu.set_cpuid2(&cpuid).map_err(writing("a vCPU's CPUID"))?;
        self.write_frequency(vcpu)?;
        vcpu.set_regs(&self.regs.0).map_err(writing("a vCPU's registers"))?;
        vcpu.set_sregs(&self.control_registers()).map_err(writing("a vCPU's control registers"))?;
        vcpu.set_xcrs(&self.xcrs.0).map_err(writing("a vCPU's XCRs"))?;
        let mut xsave = XsaveArea::initial();
        let mut bytes = self.xsave.clone();
        bytes.resize(XSAVE_BYTES, 0);
        xsave.set_bytes(&bytes);
        xsave.set(vcpu).map_err(writing("a vCPU's vector state"))?;
        let (deadline, msrs): (Vec<_>, Vec<_>) =
            self.msrs.iter().copied().partition(|(index, _)| *index == MSR_TSC_DEADLINE);
        let (tsc, rest): (Vec<_>, Vec<_>) = msrs.into_iter().partition(|(index, _)| *index == MSR_TSC);
        write_msrs(vcpu, &[tsc, rest].concat())?;
        vcpu.set_lapic(&self.lapic.0).map_err(writing("a local APIC"))?;
        write_msrs(vcpu, &deadline)?;
        vcpu.set_vcpu_events(&self.events.0).map_err(writing("a vCPU's events"))?;
        vcpu.set_debug_regs(&self.debug.0).map_err(writing("a vCPU's debug registers"))?;
        vcpu.set_mp_state(self.mp_state.0).map_err(writing("a vCPU's run state"))
    }

    /// Its time stamp counter, and what waits for a value of it.
    pub(super) fn counter(&self) -> Counter {
        let of = |wanted: u32| self.msrs.iter().copied().filter(|(index, _)| *index == wanted).collect();
        Counter { tsc: of(MSR_TSC), deadline: of(MSR_TSC_DEADLINE) }
    }

    fn write_frequency(&self, vcpu: &VcpuFd) -> Result<(), SnapshotError> {
        let here = u64::from(vcpu.get_tsc_khz().map_err(reading("a vCPU's TSC frequency"))?);
        let wanted = u64::from(self.tsc_khz);
        if here.abs_diff(wanted) * 1_000_000 <= wanted * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        vcpu.set_tsc_khz(self.tsc_khz)
            .map_err(writing("a vCPU's TSC frequency, which this host cannot scale"))
    }

    /// QEMU's emulation of SVM refuses port instructions of user space where the task is busy (docs/linux-engine.md).
    fn control_registers(&self) -> kvm_sregs {
        let mut sregs = self.sregs.0;
        if emulated_processor() {
            sregs.tr.type_ = AVAILABLE_TASK;
        }
        sregs
    }
}

/// See [`VcpuState::counter`]: (MSR, value), or nothing where the vCPU has none.
pub(super) struct Counter {
    tsc: Vec<(u32, u64)>,
    deadline: Vec<(u32, u64)>,
}

impl Counter {
    /// Into a vCPU that has not run; the `first` of its machine decides for all: KVM takes a counter that is written within a second
    /// of what it has for an attempt to make it equal to the others', and then leaves it as it is. So it is first made something
    /// else altogether.
    pub(super) fn write(&self, vcpu: &VcpuFd, first: bool) -> Result<(), SnapshotError> {
        if first {
            let far = self.tsc.iter().map(|(index, value)| (*index, value.wrapping_add(FAR)));
            write_msrs(vcpu, &far.collect::<Vec<_>>())?;
        }
        write_msrs(vcpu, &self.tsc)?;
        write_msrs(vcpu, &self.deadline)
    }
}

/// Whether this host's processor is QEMU's emulation.
fn emulated_processor() -> bool {
    const SIGNATURE: &[u8; 12] = b"TCGTCGTCGTCG";
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
        let words = [leaf.ebx, leaf.ecx, leaf.edx];
        words.iter().flat_map(|word| word.to_le_bytes()).eq(SIGNATURE.iter().copied())
    })
}

/// The MSRs that a vCPU of this host has; asked once.
fn msr_indices(host: &Host, vcpu: &VcpuFd) -> Result<&'static [u32], SnapshotError> {
    static INDICES: OnceLock<Vec<u32>> = OnceLock::new();
    if let Some(indices) = INDICES.get() {
        return Ok(indices);
    }
    let list = host.kvm().get_msr_index_list().map_err(reading("the list of MSRs"))?;
    let ours = |index: &u32| !VMX.contains(index) && !HYPER_V.contains(index);
    // The list names some that this kind of vCPU does not have.
    let has = |index: &u32| {
        let entry = kvm_msr_entry { index: *index, ..Default::default() };
        Msrs::from_entries(&[entry]).is_ok_and(|mut one| vcpu.get_msrs(&mut one) == Ok(1))
    };
    let mut indices: Vec<u32> = list.as_slice().iter().copied().filter(ours).collect();
    if !indices.contains(&MSR_TSC_DEADLINE) {
        indices.push(MSR_TSC_DEADLINE);
    }
    indices.retain(has);
    Ok(INDICES.get_or_init(|| indices))
}

fn read_msrs(host: &Host, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, SnapshotError> {
    let entry = |index: &u32| kvm_msr_entry { index: *index, ..Default::default() };
    let entries: Vec<_> = msr_indices(host, vcpu)?.iter().map(entry).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| refused("too many MSRs"))?;
    let read = vcpu.get_msrs(&mut msrs).map_err(reading("a vCPU's MSRs"))?;
    if let Some(missing) = entries.get(read) {
        return Err(refused(format!("KVM does not give MSR {:#x}", missing.index)));
    }
    Ok(msrs.as_slice().iter().map(|entry| (entry.index, entry.data)).collect())
}

/// All of them. KVM stops at one that it refuses: where that one is 0, as at reset, nothing is lost.
fn write_msrs(vcpu: &VcpuFd, mut msrs: &[(u32, u64)]) -> Result<(), SnapshotError> {
    let entry =
        |(index, data): &(u32, u64)| kvm_msr_entry { index: *index, data: *data, ..Default::default() };
    while !msrs.is_empty() {
        let entries: Vec<_> = msrs.iter().map(entry).collect();
        let entries = Msrs::from_entries(&entries).map_err(|_| refused("too many MSRs"))?;
        let written = vcpu.set_msrs(&entries).map_err(writing("a vCPU's MSRs"))?;
        match msrs.get(written) {
            None => return Ok(()),
            Some((_, 0)) => msrs = &msrs[written + 1..],
            Some((index, value)) => {
                return Err(refused(format!("KVM refuses MSR {index:#x} with value {value:#x}")));
            }
        }
    }
    Ok(())
}

fn refused(reason: impl Into<String>) -> SnapshotError {
    SnapshotError::Refused(reason.into())
}
