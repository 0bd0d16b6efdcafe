//! Bare KVM: the least that any engine on it has to do.
//!
//! ```text
//! guest-physical = guest-virtual
//! 0x1000 PML4   0x2000 page-directory pointers   0x3000 page directory: one page of 2 MiB, for ring 3
//! 0x10000  mov eax, 39; syscall; jmp back          the program
//! 0x11000  out 0x80, eax; sysretq                  where LSTAR points
//! ```
//! It starts in ring 3, as the engine's programs do. On hardware `syscall` enters ring 0 and the stub goes back by
//! itself; a software KVM may stay in ring 3, and RIP is set from here. Nothing else is there: no CPUID, no descriptor
//! tables, no fault can be survived.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};

use super::sys::Pages;

const MEMORY: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PROGRAM: u64 = 0x1_0000;
const STUB: u64 = 0x1_1000;
const GETPID: u64 = 39;
/// I/O privilege 3, so that ring 3 may use the port; bit 1 is always set.
const FLAGS: u64 = 0x3002;
/// Round trips whose cost is not counted.
const WARM: u32 = 100;

/// One VM with everything it needs, dropped in this order.
struct Bare {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Pages,
}

impl Bare {
    fn new(kvm: &Kvm) -> Result<Self> {
        let memory = Pages::new(MEMORY)?;
        write_memory(&memory);
        let vm = kvm.create_vm()?;
        memory.lend(&vm)?;
        let mut vcpu = vm.create_vcpu(0)?;
        enter_ring3(&vcpu)?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }

    fn run_to_call(&mut self) -> Result<()> {
        match self.vcpu.run()? {
            VcpuExit::IoOut(0x80, _) => {}
            other => bail!("bare KVM: unexpected exit {other:?}"),
        }
        let rax = self.vcpu.sync_regs().regs.rax;
        ensure!(rax == GETPID, "bare KVM: call {rax}");
        Ok(())
    }

    /// Whether `syscall` has left the CPU in ring 3.
    fn stays_in_ring3(&self) -> Result<bool> {
        Ok(self.vcpu.get_sregs()?.cs.selector & 3 == 3)
    }

    fn answer(&mut self, stays_in_ring3: bool) {
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        let regs = &mut self.vcpu.sync_regs_mut().regs;
        regs.rax = 1;
        if stays_in_ring3 {
            regs.rip = regs.rcx;
            regs.rflags = FLAGS;
        } else {
            regs.r11 = FLAGS;
        }
    }
}

fn write_memory(memory: &Pages) {
    const TABLE: u64 = 0b10_0111;
    const LARGE_PAGE: u64 = 0b1110_0111;
    memory.write(0x1000, &(0x2000 | TABLE).to_le_bytes());
    memory.write(0x2000, &(0x3000 | TABLE).to_le_bytes());
    memory.write(0x3000, &LARGE_PAGE.to_le_bytes());
    memory.write(PROGRAM as usize, &[0xb8, GETPID as u8, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    memory.write(STUB as usize, &[0xe7, 0x80, 0x48, 0x0f, 0x07]);
}

fn enter_ring3(vcpu: &VcpuFd) -> Result<()> {
    let segment = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(0x2b, 0xb, true);
    let data = segment(0x23, 0x3, false);
    (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8005_0033, PML4, 1 << 5);
    // System calls, long mode wanted and active.
    sregs.efer = 1 | 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_regs { rip: PROGRAM, rsp: 0x1f_0000, rflags: FLAGS, ..kvm_regs::default() };
    vcpu.set_regs(&regs)?;
    let star = (0x1b << 48) | (0x08 << 32);
    let msrs = [(0xc000_0081, star), (0xc000_0082, STUB), (0xc000_0084, 0)];
    let msrs = msrs.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let written = vcpu.set_msrs(&Msrs::from_entries(&msrs)?)?;
    ensure!(written == msrs.len(), "bare KVM: a register is refused");
    Ok(())
}

/// Makes a VM with one vCPU and one memslot, runs it to its first call, and closes it.
pub(crate) fn one_exit(kvm: &Kvm) -> Result<Duration> {
    let start = Instant::now();
    Bare::new(kvm)?.run_to_call()?;
    Ok(start.elapsed())
}

/// Makes a VM with one vCPU and one memslot and runs it to its first call; closing it is not counted.
#[cfg(feature = "gateway")]
pub(crate) fn first_exit(kvm: &Kvm) -> Result<Duration> {
    let start = Instant::now();
    let mut bare = Bare::new(kvm)?;
    bare.run_to_call()?;
    Ok(start.elapsed())
}

/// Makes one round trip each time.
#[cfg(feature = "gateway")]
pub(crate) fn exits(kvm: &Kvm) -> Result<impl FnMut() -> Result<Duration> + use<>> {
    let mut bare = Bare::new(kvm)?;
    bare.run_to_call()?;
    let stays = bare.stays_in_ring3()?;
    Ok(move || {
        let start = Instant::now();
        bare.answer(stays);
        bare.run_to_call()?;
        Ok(start.elapsed())
    })
}

/// One round trip of a system call, the mean of `count`.
pub(super) fn round_trip(kvm: &Kvm, count: u32) -> Result<Duration> {
    let mut bare = Bare::new(kvm)?;
    bare.run_to_call()?;
    let stays = bare.stays_in_ring3()?;
    for _ in 0..WARM {
        bare.answer(stays);
        bare.run_to_call()?;
    }
    let start = Instant::now();
    for _ in 0..count {
        bare.answer(stays);
        bare.run_to_call()?;
    }
    Ok(start.elapsed() / count)
}
