//! Linux guests boot without BIOS, and every way to end is told apart. These need a KVM with hardware
//! virtualization: `cargo xtask rig test --test linux_boot`.
#![cfg(feature = "vm")]

mod guest;

use std::sync::Arc;
use std::time::Instant;

use guest::{Console, Guest, debian_kernel, our_kernel};
use novum_sandbox::linux::boot::EntryKind;
use novum_sandbox::linux::{Device, End};
use novum_sandbox::share::{Access, Share};

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
fn the_guest_gets_random_bytes_from_the_host() {
    let Some(kernel) = our_kernel("the_guest_gets_random_bytes_from_the_host") else { return };
    let script = "$b cat /sys/class/misc/hw_random/rng_current
$b dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null | $b wc -c
$b dd if=/dev/hwrng bs=16 count=1 2>/dev/null | $b od -An -tx1
/exit";
    let (end, console) = Guest::new(kernel.vmlinux()).run(script);
    assert_eq!(end, End::Exit(42), "{console}");
    assert!(console.contains("virtio_rng.0"), "{console}");
    assert!(console.lines().any(|line| line.trim() == "256"), "{console}");
    assert!(!console.contains(" 00 00 00 00 00 00 00 00"), "{console}");
}

/// Copies, renames, links, lists and removes in /mnt; says what it sees.
const EXERCISE: &str = "cd /mnt
$b cat from-host
$b mkdir -p d/e && $b cp /bin/busybox d/e/copy && $b cmp /bin/busybox d/e/copy && $b echo same
$b mv d moved && $b ln -s moved/e/copy link && $b test -x link && $b echo link works
$b tar -cf all.tar moved && $b rm -r moved && $b tar -xf all.tar && $b cmp /bin/busybox moved/e/copy && $b echo untarred
i=0; while [ $i -lt 300 ]; do $b echo $i > n$i; i=$((i + 1)); done
$b ls | $b grep -c ^n; $b rm n*; $b ls -a | $b wc -l
$b dd if=/dev/zero of=big bs=1M count=4 2>/dev/null; $b truncate -s 5000000 big; $b stat -c %s big
$b echo appended >> from-host; $b chmod 640 from-host; $b stat -c %a from-host
$b rm all.tar big; $b sync";

#[test]
fn a_shared_directory_is_used_over_9p() {
    let Some(kernel) = our_kernel("a_shared_directory_is_used_over_9p") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("from-host"), "greetings\n").unwrap();
    let share = Arc::new(Share::open_dir(folder.path(), Access::ReadWrite).unwrap());
    let share = Device::P9 { tag: "work".into(), share };
    let mount =
        "$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 work /mnt || $b echo cannot mount";
    let mut guest = Guest::new(kernel.vmlinux());
    guest.devices.push(share);
    let (end, console) = guest.run(&format!("{mount}\n{EXERCISE}\n/exit"));
    assert_eq!(end, End::Exit(42), "{console}");
    for line in ["greetings", "same", "link works", "untarred", "300", "6", "5000000", "640"] {
        assert!(console.lines().any(|seen| seen.trim() == line), "{line} is missing in:\n{console}");
    }
    assert_eq!(std::fs::read_to_string(folder.path().join("from-host")).unwrap(), "greetings\nappended\n");
    let copied = std::fs::read(folder.path().join("moved/e/copy")).unwrap();
    assert!(copied == std::fs::read("/bin/busybox").unwrap(), "the host sees what the guest wrote");
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
    let modules = Guest { memory_mib: 256, modules: Some(kernel.modules()), ..Guest::new(kernel.vmlinux()) };
    let (end, console) = modules.run("$b cat /sys/class/misc/hw_random/rng_current; /exit");
    assert!(console.contains("virtio_rng.0"), "found through ACPI: {end}\n{console}");
    greets(&Guest { memory_mib: 256, ..Guest::new(kernel.bzimage()) });
}
