//! One vCPU that runs a program in ring 3 and comes back at every system call and every fault.
//!
//! ```text
//!            enter(user state)                      Exit::Call            resume_call(value)
//! [ready] ────────────────────> [ring 3] ─ syscall ──────────> [in call] ──────────────────> [ring 3]
//!                                  │  fault, through the IDT    Exit::Fault: the user state is given back
//!                                  │  host memory says no       Exit::Denied          │
//!                                  └─ signal to this thread     Exit::Interrupted     └─ enter(...)
//! ```
//! A call is left to the VMM by the stub's `out`. On hardware the CPU is in ring 0 then and runs on to `sysretq`; a
//! software KVM may have stayed in ring 3, where the VMM sets RIP and RFLAGS itself. Which of the two it is, is
//! read from CS at the first call of this process.

use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};

use super::entry::{self, CALL_STUB, FAULT_STUBS, VECTORS};
use super::features::{StateLayout, state_layout};
use super::layout::{CALL_PORT, FAULT_PORT, FAULT_STUB_SIZE, PAGE, USER_END};
use super::sys::{KickSlot, XsaveArea};
use super::vm::VmError;

/// Whether `syscall` changes the ring on this machine: 0 not known yet, 1 no, 2 yes.
static RING_CHANGES: AtomicU8 = AtomicU8::new(0);
const STAYS: u8 = 1;
const CHANGES: u8 = 2;

/// Why the program stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A system call: number in rax, arguments in rdi, rsi, rdx, r10, r8, r9.
    Call,
    /// An exception of the CPU; ring 0's stack holds the frame at RSP.
    Fault(u64),
    /// The host's memory protection refused an access; the guest-physical address where KVM told it.
    Denied(Option<u64>),
    /// The program used a port or another device that it does not have.
    Privileged,
    /// A signal came to this thread.
    Interrupted,
    /// KVM cannot go on, and says this.
    Broken(String),
}

/// The vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    sregs: kvm_sregs,
    layout: StateLayout,
}

/// Everything a program's thread has in the CPU.
#[derive(Clone, Debug)]
pub(crate) struct UserState {
    /// General registers.
    pub(crate) regs: kvm_regs,
    /// Base of FS, the thread pointer.
    pub(crate) fs_base: u64,
    /// Base of GS.
    pub(crate) gs_base: u64,
    /// x87, SSE, AVX...; `None`: as at the start of a program.
    pub(crate) xsave: Option<Box<XsaveArea>>,
}

impl UserState {
    /// The state at a program's first instruction.
    pub(crate) fn start(rip: u64, rsp: u64) -> Self {
        Self { regs: entry::registers(rip, rsp), fs_base: 0, gs_base: 0, xsave: None }
    }
}

impl Vcpu {
    pub(super) fn new(mut fd: VcpuFd, cpuid: &CpuId) -> Result<Self, VmError> {
        fd.set_cpuid2(cpuid).map_err(VmError::at("set CPU features"))?;
        let sregs = entry::special_registers(fd.get_sregs().map_err(VmError::at("read registers"))?);
        fd.set_sregs(&sregs).map_err(VmError::at("write special registers"))?;
        let xcr0 = set_xcr0(&fd, cpuid)?;
        let entries =
            entry::MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
        let msrs = Msrs::from_entries(&entries).expect("four registers fit");
        let written = fd.set_msrs(&msrs).map_err(VmError::at("write model-specific registers"))?;
        if written != entries.len() {
            let reason = format!("KVM refuses model-specific register {:#x}", entries[written].index);
            return Err(VmError::Unavailable(reason));
        }
        fd.set_sync_valid_reg(SyncReg::Register);
        Ok(Self { fd, sregs, layout: state_layout(xcr0) })
    }

    /// The general registers as the last exit left them; a change counts from the next [`Self::run`] on.
    pub(crate) fn regs_mut(&mut self) -> &mut kvm_regs {
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        &mut self.fd.sync_regs_mut().regs
    }

    /// The rate of the time-stamp counter in kHz, where the CPU says that it is constant.
    pub(crate) fn counter_khz(&self) -> Option<u32> {
        if super::features::has_constant_counter() { self.fd.get_tsc_khz().ok() } else { None }
    }

    /// The form of the vector state.
    pub(crate) fn state_layout(&self) -> StateLayout {
        self.layout
    }

    /// The program's registers, whether it stands in a call that was answered or not.
    pub(crate) fn program_regs(&self) -> kvm_regs {
        if self.is_in_program() { self.regs() } else { self.regs_in_call() }
    }

    /// The general registers as the last exit left them.
    pub(crate) fn regs(&self) -> kvm_regs {
        self.fd.sync_regs().regs
    }

    /// The special registers, read from the vCPU (5 us).
    pub(crate) fn special(&self) -> Result<kvm_sregs, VmError> {
        self.fd.get_sregs().map_err(VmError::at("read special registers"))
    }

    /// Reads the rest of the user state: what the general registers do not hold.
    pub(crate) fn save(&mut self, regs: kvm_regs) -> Result<UserState, VmError> {
        let special = self.special()?;
        let xsave = XsaveArea::get(&self.fd).map_err(VmError::at("read vector registers"))?;
        Ok(UserState {
            regs,
            fs_base: special.fs.base,
            gs_base: special.gs.base,
            xsave: Some(Box::new(xsave)),
        })
    }

    /// Replaces the user state as a whole.
    pub(crate) fn load(&mut self, state: &UserState) -> Result<(), VmError> {
        let initial;
        let xsave = match &state.xsave {
            Some(xsave) => xsave.as_ref(),
            None => {
                initial = XsaveArea::initial();
                &initial
            }
        };
        xsave.set(&self.fd).map_err(VmError::at("write vector registers"))?;
        self.set_bases(state.fs_base, state.gs_base)?;
        self.enter(state.regs);
        Ok(())
    }

    /// Sets the bases of FS and GS, and ring 3.
    pub(crate) fn set_bases(&mut self, fs: u64, gs: u64) -> Result<(), VmError> {
        (self.sregs.fs.base, self.sregs.gs.base) = (fs, gs);
        self.fd.set_sregs(&self.sregs).map_err(VmError::at("write special registers"))?;
        Ok(())
    }

    /// Runs on in ring 3 with these general registers, wherever the vCPU was; FS and GS stay.
    pub(crate) fn enter(&mut self, regs: kvm_regs) {
        *self.regs_mut() = regs;
    }

    /// Whether the program itself was interrupted, and not a stub of ours on hardware.
    pub(crate) fn is_in_program(&self) -> bool {
        self.regs().rip < USER_END
    }

    /// The user's registers inside a call: RIP and RFLAGS stand in rcx and r11.
    pub(crate) fn regs_in_call(&self) -> kvm_regs {
        let mut regs = self.regs();
        regs.rip = regs.rcx;
        regs.rflags = regs.r11;
        regs
    }

    /// Returns `value` from the call in which the program is.
    pub(crate) fn resume_call(&mut self, value: u64) {
        let stays = RING_CHANGES.load(Ordering::Relaxed) == STAYS;
        let regs = self.regs_mut();
        regs.rax = value;
        if stays {
            regs.rip = regs.rcx;
            regs.rflags = regs.r11;
        }
    }

    /// The place through which a signal makes the next [`Self::run`] return at once.
    pub(crate) fn kick_slot(&mut self) -> KickSlot {
        KickSlot::of(&mut self.fd)
    }

    /// Runs the program until it leaves.
    pub(crate) fn run(&mut self) -> Exit {
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, _)) => Raw::Port(port),
            Ok(VcpuExit::IoIn(..) | VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Raw::Device,
            Ok(VcpuExit::MemoryFault { gpa, .. }) => Raw::Denied(Some(gpa)),
            Ok(VcpuExit::Intr) => Raw::Interrupted,
            Ok(VcpuExit::Shutdown) => Raw::Broken("the CPU shut down (triple fault)".into()),
            Ok(VcpuExit::InternalError) => Raw::Internal,
            Ok(other) => Raw::Broken(format!("unexpected exit {other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Raw::Interrupted,
                libc::EFAULT => Raw::Refused,
                _ => Raw::Broken(format!("KVM_RUN: {error}")),
            },
        };
        self.classify(exit)
    }

    fn classify(&mut self, exit: Raw) -> Exit {
        let rip = self.fd.sync_regs().regs.rip;
        match exit {
            Raw::Port(CALL_PORT) if (CALL_STUB..=CALL_STUB + 2).contains(&rip) => self.note_call(),
            Raw::Port(FAULT_PORT) if (FAULT_STUBS..FAULT_STUBS + PAGE).contains(&rip) => {
                let vector = (rip - FAULT_STUBS) / FAULT_STUB_SIZE;
                if vector < VECTORS { Exit::Fault(vector) } else { Exit::Broken("no such vector".into()) }
            }
            Raw::Port(_) | Raw::Device => Exit::Privileged,
            Raw::Denied(gpa) => Exit::Denied(gpa),
            Raw::Refused => Exit::Denied(self.refused_address()),
            Raw::Interrupted => Exit::Interrupted,
            Raw::Internal => Exit::Broken(self.internal_error()),
            Raw::Broken(reason) => Exit::Broken(reason),
        }
    }

    fn note_call(&mut self) -> Exit {
        if RING_CHANGES.load(Ordering::Relaxed) == 0
            && let Ok(special) = self.special()
        {
            let found = if special.cs.selector & 3 == 3 { STAYS } else { CHANGES };
            RING_CHANGES.store(found, Ordering::Relaxed);
        }
        Exit::Call
    }

    /// KVM_RUN said EFAULT: the guest-physical address, where the exit has one.
    fn refused_address(&mut self) -> Option<u64> {
        super::sys::memory_fault_address(&mut self.fd)
    }

    fn internal_error(&mut self) -> String {
        let regs = self.regs();
        let (suberror, data) = super::sys::internal_error(&mut self.fd);
        format!(
            "KVM gave up (suberror {suberror}, data {data:x?}) at rip {:#x}, rsp {:#x}",
            regs.rip, regs.rsp
        )
    }
}

/// An exit without a borrow of the run page.
enum Raw {
    Port(u16),
    Device,
    Denied(Option<u64>),
    Refused,
    Interrupted,
    Internal,
    Broken(String),
}

/// Turns on every vector register file that KVM can save: leaf 0xD lists them.
fn set_xcr0(fd: &VcpuFd, cpuid: &CpuId) -> Result<u64, VmError> {
    /// x87, SSE, AVX, AVX-512 (three parts), PKRU.
    const USABLE: u64 = 0b10_1110_0111;
    let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 0xd && leaf.index == 0);
    let offered = leaf.map_or(3, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: offered & USABLE, ..kvm_xcr::default() };
    fd.set_xcrs(&xcrs).map_err(VmError::at("turn on vector registers"))?;
    Ok(offered & USABLE)
}
