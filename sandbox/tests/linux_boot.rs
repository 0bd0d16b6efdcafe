//! Linux guests boot without BIOS, and every way to end is told apart. These need a KVM with hardware
//! virtualization: `cargo xtask rig test --test linux_boot`.
#![cfg(feature = "vm")]

mod guest;

use std::time::Instant;

use guest::{Console, Guest, debian_kernel, our_kernel};
use novum_sandbox::linux::End;
use novum_sandbox::linux::boot::EntryKind;

const HELLO: &str = "$b echo hello from init; /exit";

#[track_caller]
fn greets(guest: &Guest) {
    let (end, console) = guest.run(HELLO);
    assert!(console.contains("hello from init"), "{end}\n{console}");
    assert_eq!(end, End::Exit(42), "{console}");
}

#[test]
fn our_kernel_boots_by_the_64_bit_entry() {
    let Some(kernel) = our_kernel("our_kernel_boots_by_the_64_bit_entry") else { return };
    greets(&Guest::new(kernel.vmlinux()));
}

#[test]
fn our_kernel_boots_as_a_bzimage() {
    let Some(kernel) = our_kernel("our_kernel_boots_as_a_bzimage") else { return };
    greets(&Guest::new(kernel.bzimage()));
}

#[test]
fn our_kernel_boots_by_pvh() {
    let Some(kernel) = our_kernel("our_kernel_boots_by_pvh") else { return };
    greets(&Guest { entry: EntryKind::Pvh, ..Guest::new(kernel.vmlinux()) });
}

#[test]
fn several_processors_and_memory_above_the_hole_are_found() {
    let Some(kernel) = our_kernel("several_processors_and_memory_above_the_hole_are_found") else { return };
    let guest = Guest { vcpus: 4, memory_mib: 3 * 1024 + 512, ..Guest::new(kernel.vmlinux()) };
    let (end, console) = guest.run("$b nproc; $b head -n1 /proc/meminfo; /exit");
    assert_eq!(end, End::Exit(42), "{console}");
    let lines: Vec<&str> = console.lines().collect();
    assert!(lines.contains(&"4"), "{console}");
    let total = lines.iter().find_map(|line| line.strip_prefix("MemTotal:")).expect(&console);
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib > 3400 * 1024, "{kib} KiB");
}

#[test]
fn a_reset_is_told_from_a_triple_fault() {
    let Some(kernel) = our_kernel("a_reset_is_told_from_a_triple_fault") else { return };
    let (end, console) = Guest::new(kernel.vmlinux()).run("$b reboot -f");
    assert_eq!(end, End::Reset, "{console}");
    let (end, console) = Guest { words: "reboot=t", ..Guest::new(kernel.vmlinux()) }.run("$b reboot -f");
    assert_eq!(end, End::TripleFault { vcpu: 0 }, "{console}");
}

#[test]
fn a_panic_is_reported_with_its_message() {
    let Some(kernel) = our_kernel("a_panic_is_reported_with_its_message") else { return };
    let (end, console) = Guest::new(kernel.vmlinux()).run("exit 3");
    let End::Panic(message) = end else { panic!("{end}\n{console}") };
    assert!(message.starts_with("Attempted to kill init! exitcode=0x00000300"), "{message}");
}

#[test]
fn a_looping_guest_can_be_stopped() {
    let Some(kernel) = our_kernel("a_looping_guest_can_be_stopped") else { return };
    let console = Console::default();
    let machine = Guest { vcpus: 2, ..Guest::new(kernel.vmlinux()) }.boot("while :; do :; done", &console);
    assert_eq!(machine.wait(Some(Instant::now() + std::time::Duration::from_secs(2))), None);
    assert_eq!(machine.stop(), End::Stopped);
}

#[test]
fn debians_kernel_boots_by_each_entry_and_powers_off_by_acpi() {
    let name = "debians_kernel_boots_by_each_entry_and_powers_off_by_acpi";
    let Some(kernel) = debian_kernel(name) else { return };
    let vmlinux = Guest { memory_mib: 256, ..Guest::new(kernel.vmlinux()) };
    let (end, console) = vmlinux.run("$b echo hello from init; $b poweroff -f");
    assert!(console.contains("hello from init"), "{end}\n{console}");
    assert_eq!(end, End::PowerOff, "{console}");
    greets(&Guest { entry: EntryKind::Pvh, vcpus: 2, ..vmlinux });
    greets(&Guest { memory_mib: 256, ..Guest::new(kernel.bzimage()) });
}
