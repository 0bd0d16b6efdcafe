//! A VM with a program of our own in it, to see what the KVM here does: a tenant's program must not decide that.
//!
//! ```text
//! guest-virtual          guest-physical
//! 0x7fff_ffff_e000  ──>  PROGRAM_GPA      the program, readable and executable in ring 3
//! 0x7fff_fff0_0000  ──>  SCRATCH_GPA      the stub's scratch and answers, as in every VM of the process engine
//! 0x7fff_ffff_f000  ──>  CALL_STUB_GPA    as in every VM of the process engine, like the system area in the upper half
//! ```
//! The program's parts:
//! ```text
//! CALLS   0f 05      syscall        COUNT   48 ff c9   dec rcx
//!         eb fc      jmp CALLS              75 fb      jnz COUNT
//!                                           e7 91      out 0x91, eax
//! ```

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::entry;
use super::layout::{
    ANSWERS_GPA, ANSWERS_GVA, CALL_STUB_GPA, CALL_STUB_GVA, DESCRIPTORS_GPA, FAULT_STUBS_GPA, PAGE,
    RING0_STACK_GPA, SCRATCH_GPA, SCRATCH_GVA, SYSTEM_GVA, SYSTEM_SIZE, TABLES_GPA,
};
use super::sys::{Backing, Protection, Region};
use super::vcpu::{Exit, Vcpu};
use super::vm::{Vm, VmError};

/// Behind the tables, of which there are eight.
const PROGRAM_GPA: u64 = TABLES_GPA + 16 * PAGE;
const PROGRAM_GVA: u64 = CALL_STUB_GVA - PAGE;

/// Makes calls for ever.
pub(super) const CALLS: u64 = PROGRAM_GVA;
/// Counts rcx down to zero and uses a port that is nobody's.
pub(super) const COUNT: u64 = PROGRAM_GVA + 16;
/// Instructions of one turn of [`COUNT`].
pub(super) const COUNT_INSTRUCTIONS: u64 = 2;

const PROGRAM: [(u64, &[u8]); 2] =
    [(CALLS, &[0x0f, 0x05, 0xeb, 0xfc]), (COUNT, &[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe7, 0x91])];

/// A fresh VM with the program, on the device of the caller.
pub(super) fn vm(kvm: &Kvm) -> Result<Vm, VmError> {
    let memory = memory().map_err(|error| VmError::Unavailable(format!("no memory for a VM: {error}")))?;
    let mut vm = Vm::on(kvm, Arc::new(memory))?;
    vm.add_slot(0, SYSTEM_SIZE)?;
    Ok(vm)
}

/// Whether `syscall` leads to ring 0 here, and the VM in which that was seen.
pub(super) fn ring_changes(kvm: &Kvm, cpuid: &CpuId) -> Result<(Vm, bool), VmError> {
    let vm = vm(kvm)?;
    let mut vcpu = vm.vcpu_with(cpuid, false)?;
    vcpu.enter(entry::registers(CALLS, 0));
    let ring = call(&mut vcpu).and_then(|()| Ok(vcpu.special()?.cs.selector & 3))?;
    Ok((vm, ring == 0))
}

/// Runs to the program's next call.
pub(super) fn call(vcpu: &mut Vcpu) -> Result<(), VmError> {
    /// Signals for others on this thread that are let pass.
    const INTERRUPTIONS: usize = 100;
    let mut exits = (0..INTERRUPTIONS).map(|_| vcpu.run()).skip_while(|exit| *exit == Exit::Interrupted);
    expect_call(exits.next().unwrap_or(Exit::Interrupted))
}

/// Anything but a call means that the KVM here does not do what programs need.
pub(super) fn expect_call(exit: Exit) -> Result<(), VmError> {
    match exit {
        Exit::Call => Ok(()),
        other => Err(VmError::Unavailable(format!("this KVM does not run a first program: {other:?}"))),
    }
}

fn memory() -> std::io::Result<Region> {
    let region = Region::reserve(SYSTEM_SIZE)?;
    region.map(0, PROGRAM_GPA + PAGE, Protection::READ_WRITE, Backing::Anonymous)?;
    let program = PROGRAM.iter().map(|(gva, bytes)| (PROGRAM_GPA + (gva - PROGRAM_GVA), bytes.to_vec()));
    for (gpa, bytes) in entry::system_pages().into_iter().chain(program) {
        if region.write(gpa, &bytes) != bytes.len() {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
    }
    enter_pages(&region);
    Ok(region)
}

/// Intel SDM vol. 3A §4.5: present, writable, user, accessed, dirty.
fn enter_pages(region: &Region) {
    const TABLE: u64 = 0x27;
    const KERNEL: u64 = 0x63;
    const USER: u64 = 0x65;
    const USER_DATA: u64 = 0x67;
    const INDEX: u64 = 511;
    let mut next = TABLES_GPA + PAGE;
    for (gva, gpa, bits) in [
        (SYSTEM_GVA + DESCRIPTORS_GPA, DESCRIPTORS_GPA, KERNEL),
        (SYSTEM_GVA + FAULT_STUBS_GPA, FAULT_STUBS_GPA, KERNEL),
        (SYSTEM_GVA + RING0_STACK_GPA, RING0_STACK_GPA, KERNEL),
        (CALL_STUB_GVA, CALL_STUB_GPA, USER),
        (PROGRAM_GVA, PROGRAM_GPA, USER),
        (SCRATCH_GVA, SCRATCH_GPA, USER_DATA),
        (ANSWERS_GVA, ANSWERS_GPA, USER),
        (ANSWERS_GVA + PAGE, ANSWERS_GPA + PAGE, USER),
    ] {
        let mut table = TABLES_GPA;
        for shift in [39, 30, 21] {
            let at = table + (gva >> shift & INDEX) * 8;
            if region.word(at) == 0 {
                region.set_word(at, next | TABLE);
                next += PAGE;
            }
            table = region.word(at) & !(PAGE - 1);
        }
        region.set_word(table + (gva >> 12 & INDEX) * 8, gpa | bits);
    }
}
