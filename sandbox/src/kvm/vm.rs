//! The KVM of this machine, and one VM.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::sys::Region;
use super::trial;
use super::vcpu::Vcpu;

/// What failed when a VM was made or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// The device does not open or lacks something; the text says what to do.
    #[error("{0}")]
    Unavailable(String),
    /// One call to KVM.
    #[error("KVM: {doing}")]
    Kvm {
        /// What was asked.
        doing: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl VmError {
    pub(super) fn at(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { doing, source }
    }
}

/// What the engines need of KVM, and how it is called where it is missing.
const NEEDED: [(Cap, &str); 4] = [
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// The opened device with what is asked of it only once.
#[derive(Debug)]
pub(crate) struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    /// The same without the leaves that are all zero.
    short_cpuid: CpuId,
    /// Whether `syscall` changes the ring here.
    ring_changes: bool,
    /// The VM in which that was found out: while one exists, making another is faster by 150 us.
    _keeper: Vm,
}

/// The device, opened at first use.
pub(crate) fn host() -> Result<&'static Host, VmError> {
    static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
    HOST.get_or_init(|| Host::open().map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|reason| VmError::Unavailable(reason.clone()))
}

/// Whether this machine can run microVMs; `Err` says why not and what to do.
pub(crate) fn probe() -> Result<(), String> {
    host().map(drop).map_err(|error| error.to_string())
}

impl Host {
    fn open() -> Result<Self, VmError> {
        let kvm = Kvm::new().map_err(|error| VmError::Unavailable(refusal(error.errno())))?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(VmError::Unavailable(format!("KVM speaks API {version}, not {KVM_API_VERSION}")));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(VmError::Unavailable(format!("this KVM lacks {name}; a newer host kernel has it")));
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmError::at("list CPU features"))?;
        let (keeper, ring_changes) = trial::ring_changes(&kvm, &cpuid)?;
        let short_cpuid = without_zeroes(&cpuid)?;
        Ok(Self { kvm, cpuid, short_cpuid, ring_changes, _keeper: keeper })
    }

    /// The opened device.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Whether `syscall` leads to ring 0 here, which tells hardware virtualization from a KVM that interprets ring 0.
    pub(crate) fn ring_changes(&self) -> bool {
        self.ring_changes
    }

    /// The CPU features that KVM says it can give.
    pub(crate) fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }
}

/// What is not listed is zero for the guest as well, and every entry costs 0.2 us for each vCPU.
fn without_zeroes(cpuid: &CpuId) -> Result<CpuId, VmError> {
    let told = cpuid.as_slice().iter().filter(|leaf| leaf.eax | leaf.ebx | leaf.ecx | leaf.edx != 0);
    let told: Vec<_> = told.copied().collect();
    CpuId::from_entries(&told).map_err(|_| VmError::Unavailable("KVM lists too many CPU features".into()))
}

fn refusal(errno: i32) -> String {
    let advice = match errno {
        libc::ENOENT => "load the module kvm_intel or kvm_amd, or turn on virtualization in the firmware",
        libc::EACCES | libc::EPERM => "add this user to the group that owns it (usually `kvm`)",
        _ => "see the kernel's log",
    };
    format!("/dev/kvm does not open ({}); {advice}", std::io::Error::from_raw_os_error(errno))
}

/// One VM. Its memslots are offsets in one [`Region`], which it keeps alive.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    region: Arc<Region>,
    slots: Vec<kvm_userspace_memory_region>,
}

impl Vm {
    /// A VM without memory.
    pub(crate) fn new(region: Arc<Region>) -> Result<Self, VmError> {
        Self::on(&host()?.kvm, region)
    }

    /// The same on a device of the caller's.
    pub(super) fn on(kvm: &Kvm, region: Arc<Region>) -> Result<Self, VmError> {
        let fd = kvm.create_vm().map_err(VmError::at("create a VM"))?;
        Ok(Self { fd, region, slots: Vec::new() })
    }

    /// Gives the VM the region's bytes `gpa..gpa + len` at the guest-physical address `gpa`.
    pub(crate) fn add_slot(&mut self, gpa: u64, len: u64) -> Result<(), VmError> {
        let slot = kvm_userspace_memory_region {
            slot: self.slots.len() as u32,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: self.region.host_address(gpa, len),
        };
        super::sys::set_slot(&self.fd, slot).map_err(VmError::at("add memory"))?;
        self.slots.push(slot);
        Ok(())
    }

    /// Makes KVM forget what it derived from the guest's page tables: deletes every memslot and adds it again.
    pub(crate) fn forget_translations(&mut self) -> Result<(), VmError> {
        for slot in &self.slots {
            let gone = kvm_userspace_memory_region { memory_size: 0, ..*slot };
            super::sys::set_slot(&self.fd, gone).map_err(VmError::at("remove memory"))?;
            super::sys::set_slot(&self.fd, *slot).map_err(VmError::at("add memory again"))?;
        }
        Ok(())
    }

    /// The vCPU, in ring 3 with nothing to run yet.
    pub(crate) fn add_vcpu(&self) -> Result<Vcpu, VmError> {
        let host = host()?;
        self.vcpu_with(&host.short_cpuid, host.ring_changes())
    }

    /// The same with what the caller knows of the host.
    pub(super) fn vcpu_with(&self, cpuid: &CpuId, ring_changes: bool) -> Result<Vcpu, VmError> {
        let fd = self.fd.create_vcpu(0).map_err(VmError::at("create a vCPU"))?;
        Vcpu::new(fd, cpuid, ring_changes)
    }
}
