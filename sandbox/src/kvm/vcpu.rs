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
//! software KVM may have stayed in ring 3, where the VMM sets RIP and RFLAGS itself. Which of the two it is, a program
//! of our own finds out once ([`trial`](super::trial)): a tenant's could jump to the stub and make hardware look like software.

use std::sync::OnceLock;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use super::answers;
use super::entry::{self, CALL_STUB, FAULT_STUBS, VECTORS};
use super::features::{StateLayout, state_layout};
use super::layout::{CALL_PORT, FAULT_PORT, FAULT_STUB_SIZE, PAGE};
use super::sys::{KickSlot, XsaveArea};
use super::vm::VmError;

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
    /// The program is to run on at an address that no CPU takes (not canonical): as if it had jumped there.
    Nowhere,
    /// A signal came to this thread.
    Interrupted,
    /// KVM cannot go on, and says this.
    Broken(String),
}

/// Where the vCPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the program: the general registers are the program's.
    Program,
    /// In the stub of a call that left the VM, answered or not: the program's RIP and RFLAGS are in rcx and r11.
    Call,
    /// In a stub that a signal of ours caught before it left the VM: it does so when the vCPU runs on.
    Stub,
}

/// The vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    sregs: kvm_sregs,
    layout: StateLayout,
    /// Whether `syscall` changes the ring on this machine.
    ring_changes: bool,
    place: Place,
    /// Special registers that KVM takes over when the vCPU next runs.
    next_special: Option<kvm_sregs>,
}

/// Everything a program's thread has in the CPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// A vCPU in ring 3. `ring_changes`: whether `syscall` changes the ring on this machine.
    pub(super) fn new(mut fd: VcpuFd, cpuid: &CpuId, ring_changes: bool) -> Result<Self, VmError> {
        fd.set_cpuid2(cpuid).map_err(VmError::at("set CPU features"))?;
        let sregs = special_registers(&fd)?;
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
        let mut vcpu = Self {
            fd,
            sregs,
            layout: state_layout(xcr0),
            ring_changes,
            place: Place::Program,
            next_special: None,
        };
        vcpu.set_special(sregs);
        Ok(vcpu)
    }

    /// The general registers as the last exit left them; a change counts from the next [`Self::run`] on.
    pub(crate) fn regs_mut(&mut self) -> &mut kvm_regs {
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        &mut self.fd.sync_regs_mut().regs
    }

    /// The rate of the time-stamp counter in kHz, where the CPU says that it is constant. A fresh vCPU has the host's, which is
    /// asked for once: each question costs 5 us.
    pub(crate) fn counter_khz(&self) -> Option<u32> {
        static RATE: OnceLock<Option<u32>> = OnceLock::new();
        let ask = || if super::features::has_constant_counter() { self.fd.get_tsc_khz().ok() } else { None };
        *RATE.get_or_init(ask)
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
        if let Some(special) = self.next_special {
            return Ok(special);
        }
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
        self.set_bases(state.fs_base, state.gs_base);
        self.forget_events();
        self.enter(state.regs);
        Ok(())
    }

    /// Sets the bases of FS and GS, and ring 3.
    pub(crate) fn set_bases(&mut self, fs: u64, gs: u64) {
        (self.sregs.fs.base, self.sregs.gs.base) = (fs, gs);
        self.set_special(self.sregs);
    }

    /// With the next run, which costs less than a call of its own.
    fn set_special(&mut self, special: kvm_sregs) {
        self.fd.sync_regs_mut().sregs = special;
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
        self.next_special = Some(special);
    }

    /// Ring 3 with these general registers, where a call or a fault has left the CPU in ring 0; the rest stays.
    pub(crate) fn enter_user(&mut self, regs: kvm_regs) -> Result<(), VmError> {
        let special = self.special()?;
        self.set_bases(special.fs.base, special.gs.base);
        self.enter(regs);
        Ok(())
    }

    /// Drops exceptions that were on their way when the run was interrupted: the instruction that raised one raises it again, if it
    /// is ever made again.
    pub(crate) fn forget_events(&mut self) {
        self.fd.sync_regs_mut().events = kvm_vcpu_events::default();
        self.fd.set_sync_dirty_reg(SyncReg::VcpuEvents);
    }

    /// Runs on in ring 3 with these general registers, wherever the vCPU was; FS and GS stay.
    pub(crate) fn enter(&mut self, regs: kvm_regs) {
        *self.regs_mut() = regs;
        self.place = Place::Program;
    }

    /// Runs on in `ring` 0 or 3. Only programs of ours know ring 0.
    pub(super) fn enter_ring(&mut self, ring: u8, regs: kvm_regs) {
        let mut sregs = self.sregs;
        if ring == 0 {
            entry::enter_ring0(&mut sregs);
        }
        self.set_special(sregs);
        self.enter(regs);
    }

    /// Whether the program itself was interrupted, and not a stub of ours.
    pub(crate) fn is_in_program(&self) -> bool {
        self.place == Place::Program
    }

    /// Whether the program's registers cannot be had until the vCPU has run on: it stands in a stub that has not left the VM.
    pub(crate) fn is_in_stub(&self) -> bool {
        self.place == Place::Stub
    }

    /// Whether calls stay in ring 3, where the stub's code may answer them by itself.
    pub(crate) fn answers_calls(&self) -> bool {
        !self.ring_changes
    }

    /// Runs on in the call stub, which leaves the VM at once, with the call that these registers make.
    pub(crate) fn enter_call(&mut self, regs: kvm_regs) {
        self.forget_events();
        self.enter(regs);
        self.place = Place::Stub;
    }

    /// The user's registers inside a call: RIP and RFLAGS stand in rcx and r11. A program that jumped to the stub put
    /// there what it liked.
    pub(crate) fn regs_in_call(&self) -> kvm_regs {
        let mut regs = self.regs();
        regs.rip = regs.rcx;
        regs.rflags = entry::program_flags(regs.r11);
        regs
    }

    /// Returns `value` from the call in which the program is.
    pub(crate) fn resume_call(&mut self, value: u64) {
        if self.ring_changes {
            self.regs_mut().rax = value;
        } else {
            let regs = kvm_regs { rax: value, ..self.regs_in_call() };
            self.enter(regs);
        }
    }

    /// The place through which a signal makes the next [`Self::run`] return at once.
    pub(crate) fn kick_slot(&mut self) -> KickSlot {
        KickSlot::of(&mut self.fd)
    }

    /// Runs the program until it leaves.
    pub(crate) fn run(&mut self) -> Exit {
        // Some processors refuse to run on there at all, which would look like a failure of ours.
        if self.place == Place::Program && !is_canonical(self.fd.sync_regs().regs.rip) {
            return Exit::Nowhere;
        }
        self.next_special = None;
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
        let rip = self.fd.sync_regs().regs.rip;
        let exit = self.classify(exit, rip);
        self.place = match exit {
            Exit::Call => Place::Call,
            Exit::Interrupted if rip == CALL_STUB || answers::is_code(rip) || is_fault_stub(rip) => {
                Place::Stub
            }
            // At its `sysretq`.
            Exit::Interrupted if rip == CALL_STUB + OUT_BYTES => Place::Call,
            _ => Place::Program,
        };
        if exit == Exit::Privileged {
            self.abandon_access();
        }
        exit
    }

    /// Ends the access to a port or device in which KVM stands. KVM wants to finish it when the vCPU runs on, and then puts
    /// the instruction's registers over those that we set in between (Linux Documentation/virt/kvm/api.rst §5, KVM_EXIT_IO).
    fn abandon_access(&mut self) {
        /// Pieces of one string instruction; more than one only until its counter is seen to be 1.
        const PIECES: usize = 16;
        let before = self.regs();
        for _ in 0..PIECES {
            self.regs_mut().rcx = 1;
            self.fd.set_kvm_immediate_exit(1);
            if self.fd.run().is_err() {
                break;
            }
        }
        // That stays set, because a signal may have set it too: the next run is interrupted, and whoever asked for it is served.
        *self.regs_mut() = before;
    }

    fn classify(&mut self, exit: Raw, rip: u64) -> Exit {
        match exit {
            Raw::Port(CALL_PORT) if (CALL_STUB..=CALL_STUB + OUT_BYTES).contains(&rip) => Exit::Call,
            Raw::Port(FAULT_PORT) if is_fault_stub(rip) => {
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

/// The length of a stub's `out`.
const OUT_BYTES: u64 = 2;

fn is_fault_stub(rip: u64) -> bool {
    (FAULT_STUBS..FAULT_STUBS + PAGE).contains(&rip)
}

/// Whether the bits above the 48th repeat it.
fn is_canonical(address: u64) -> bool {
    const UNUSED_BITS: u32 = 16;
    ((address << UNUSED_BITS) as i64 >> UNUSED_BITS) as u64 == address
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

/// Those of ring 3, of which a fresh vCPU's own are the same every time, and read once.
static SREGS: OnceLock<kvm_sregs> = OnceLock::new();

fn special_registers(fd: &VcpuFd) -> Result<kvm_sregs, VmError> {
    if let Some(sregs) = SREGS.get() {
        return Ok(*sregs);
    }
    let fresh = fd.get_sregs().map_err(VmError::at("read registers"))?;
    let mut sregs = entry::special_registers(fresh, super::features::has_base_instructions());
    if fd.set_sregs(&sregs).is_err() {
        // The CPU has them and KVM does not pass them on.
        sregs = entry::special_registers(fresh, false);
    }
    Ok(*SREGS.get_or_init(|| sregs))
}

/// Whether programs have the instructions for the bases of FS and GS. Known once there was a vCPU.
pub(crate) fn offers_base_instructions() -> bool {
    SREGS.get().is_some_and(|sregs| sregs.cr4 & entry::CR4_FSGSBASE != 0)
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
