//! Programs of a few instructions, in a VM.

use super::*;
use crate::process::files::{Files, FilesConfig};
use crate::process::load::{Start, stack};
use crate::process::memory::{AddressSpace, At, Placement, Prot, Request};
use crate::process::time::Time;
use iced_x86::code_asm::*;

const CODE: u64 = 0x40_0000;

/// A program made of `code`, with a stack.
fn machine(code: impl FnOnce(&mut CodeAssembler)) -> Option<Machine> {
    if let Err(reason) = crate::kvm::vm::probe() {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"SKIPPED: process::run: /dev/kvm does not open\n",
        );
        return None;
    }
    let mut assembler = CodeAssembler::new(64).unwrap();
    code(&mut assembler);
    let bytes = assembler.assemble(CODE).unwrap();
    let mut memory = AddressSpace::new(64 << 20, Placement::random([7; 16])).unwrap();
    memory.map(Request::anonymous(At::Fixed(CODE), 4096, Prot::READ_WRITE)).unwrap();
    memory.write(CODE, &bytes).unwrap();
    memory.protect(CODE, 4096, Prot { read: true, write: false, exec: true }).unwrap();
    let stack = memory.map(Request::anonymous(At::Hint(0), 65536, Prot::READ_WRITE)).unwrap();
    let contents = stack::Contents { args: &[], env: &[], path: b"", random: [0; 16], aux: &[] };
    let stack = stack::build(stack + 65536, &contents, 4096).unwrap();
    memory.write(stack.pointer, &stack.bytes).unwrap();
    let files = Files::new(&FilesConfig::new()).unwrap();
    let process = Process::new(memory, files, Time::default(), Start { entry: CODE, stack });
    Some(Machine::new(process, Control::new().unwrap()).unwrap())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn a_program_ends_with_its_code() {
    let Some(mut machine) = machine(|a| {
        a.mov(eax, 39).unwrap();
        a.syscall().unwrap();
        a.lea(edi, ptr(rax + 6)).unwrap();
        a.mov(eax, 231).unwrap();
        a.syscall().unwrap();
    }) else {
        return;
    };
    let ended = machine.run(soon()).unwrap();
    assert!(matches!(ended, Ended::Code(7)), "{ended:?}");
}

#[test]
fn wild_accesses_are_reported_with_their_address() {
    let cases: [(u64, &str); 3] =
        [(0x10, "0x10 is not mapped"), (CODE, "may not be used so"), (0x7000_0000_0000, "is not mapped")];
    for (address, text) in cases {
        let Some(mut machine) = machine(|a| {
            a.mov(rax, address).unwrap();
            a.mov(qword_ptr(rax + 8), rcx).unwrap();
        }) else {
            return;
        };
        let Ended::Fault(report) = machine.run(soon()).unwrap() else { panic!("no fault at {address:#x}") };
        assert_eq!(report.kind, "SIGSEGV");
        assert!(report.message.contains(text) || address == 0x10, "{}", report.message);
    }
}

#[test]
fn a_loop_is_stopped_at_its_deadline_and_on_demand() {
    let Some(mut machine) = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.jmp(top).unwrap();
    }) else {
        return;
    };
    let ended = machine.run(Instant::now() + Duration::from_millis(20)).unwrap();
    assert!(matches!(ended, Ended::Deadline), "{ended:?}");
    machine.control.clone().cancel();
    assert!(matches!(machine.run(soon()).unwrap(), Ended::Cancelled));
}

#[test]
fn exceptions_become_the_signals_that_linux_raises() {
    type Case = (fn(&mut CodeAssembler), &'static str);
    let cases: [Case; 5] = [
        (|a| a.ud2().unwrap(), "SIGILL"),
        (|a| a.int3().unwrap(), "SIGTRAP"),
        (
            |a| {
                a.xor(ecx, ecx).unwrap();
                a.div(ecx).unwrap();
            },
            "SIGFPE",
        ),
        (|a| a.hlt().unwrap(), "SIGSEGV"),
        (
            |a| {
                a.mov(rax, 0x8000_0000_0000_0000u64).unwrap();
                a.mov(rax, qword_ptr(rax)).unwrap();
            },
            "SIGSEGV",
        ),
    ];
    for (code, kind) in cases {
        let Some(mut machine) = machine(code) else { return };
        let ended = machine.run(soon()).unwrap();
        let Ended::Fault(report) = ended else { panic!("{kind}: {ended:?}") };
        assert_eq!(report.kind, kind, "{}", report.message);
    }
}

/// `movabs rax, CALL_STUB; jmp rax` with these values in rcx and r11, where a call leaves RIP and RFLAGS.
fn jump_to_the_stub(a: &mut CodeAssembler, number: u32, rip: u64, flags: u64) {
    a.mov(rcx, rip).unwrap();
    a.mov(r11, flags).unwrap();
    a.mov(rdx, crate::kvm::layout::CALL_STUB_GVA).unwrap();
    a.mov(eax, number).unwrap();
    a.jmp(rdx).unwrap();
}

#[test]
fn a_program_that_jumps_to_the_stub_has_made_a_call_or_ends() {
    const IOPL_NT_VM: u64 = 3 << 12 | 1 << 14 | 1 << 17;
    const GETPID: u32 = 39;
    for rip in [0, 1, 1 << 47, 1 << 63, u64::MAX, CODE + 4000] {
        let Some(mut machine) = machine(|a| jump_to_the_stub(a, GETPID, rip, IOPL_NT_VM | 0xff)) else {
            return;
        };
        let ended = machine.run(soon()).unwrap();
        assert!(matches!(&ended, Ended::Fault(_)), "{rip:#x}: {ended:?}");
    }
    // Back to the stub: a loop of calls.
    let mut looping = machine(|a| jump_to_the_stub(a, GETPID, crate::kvm::layout::CALL_STUB_GVA, 0)).unwrap();
    let ended = looping.run(Instant::now() + Duration::from_millis(50)).unwrap();
    assert!(matches!(&ended, Ended::Deadline | Ended::Fault(_)), "{ended:?}");
    // The same thread of the host: what a tenant did before must not matter to the next.
    let mut next = machine(|a| {
        a.mov(eax, GETPID).unwrap();
        a.syscall().unwrap();
        a.mov(edi, cs).unwrap();
        a.and(edi, 3).unwrap();
        a.mov(eax, 231).unwrap();
        a.syscall().unwrap();
    })
    .unwrap();
    let ended = next.run(soon()).unwrap();
    assert!(matches!(ended, Ended::Code(3)), "still in ring 3: {ended:?}");
}

#[test]
fn a_return_from_a_forged_frame_to_nowhere_is_a_fault_there() {
    for rip in [1u64 << 47, 0xffff_8000_0000_1000, u64::MAX, 0x7fff_ffff_f000] {
        let Some(mut machine) = machine(|a| {
            // The frame is all zeroes but for RIP (sigcontext 16, behind pretcode and ucontext's head) and RFLAGS.
            a.sub(rsp, 1024).unwrap();
            a.mov(rdi, rsp).unwrap();
            a.xor(eax, eax).unwrap();
            a.mov(ecx, 128).unwrap();
            a.rep().stosq().unwrap();
            a.mov(rax, rip).unwrap();
            a.mov(qword_ptr(rsp + 40 + 16 * 8), rax).unwrap();
            a.mov(qword_ptr(rsp + 40 + 17 * 8), -1).unwrap();
            a.mov(eax, 15).unwrap();
            a.syscall().unwrap();
        }) else {
            return;
        };
        let Ended::Fault(report) = machine.run(soon()).unwrap() else { panic!("no fault at {rip:#x}") };
        assert!(
            matches!(report.kind.as_str(), "SIGSEGV" | "SIGTRAP"),
            "{rip:#x}: {} {}",
            report.kind,
            report.message
        );
        assert!(
            report.message.contains(&format!("rip {rip:#x}")) || rip == 0x7fff_ffff_f000,
            "{rip:#x}: {}",
            report.message
        );
    }
}

#[test]
fn a_question_that_is_answered_within_the_vm_costs_no_exit() {
    const TIMES: i32 = 1000;
    let Some(mut machine) = machine(|a| {
        let mut top = a.create_label();
        a.mov(ebx, TIMES).unwrap();
        a.set_label(&mut top).unwrap();
        // rt_sigaction(SIGINT, NULL, stack, 8)
        a.mov(eax, 13).unwrap();
        a.mov(edi, 2).unwrap();
        a.xor(esi, esi).unwrap();
        a.lea(rdx, ptr(rsp - 256)).unwrap();
        a.mov(r10d, 8).unwrap();
        a.syscall().unwrap();
        a.sub(ebx, 1).unwrap();
        a.jnz(top).unwrap();
        a.mov(edi, eax).unwrap();
        a.mov(eax, 231).unwrap();
        a.syscall().unwrap();
    }) else {
        return;
    };
    let ended = machine.run(soon()).unwrap();
    assert!(matches!(ended, Ended::Code(0)), "{ended:?}");
    let calls = machine.take_counts().calls;
    if machine.vcpu().answers_calls() {
        assert!(calls < TIMES as u64 / 10, "{calls} calls left the VM");
    } else {
        assert_eq!(calls, TIMES as u64 + 1);
    }
}
