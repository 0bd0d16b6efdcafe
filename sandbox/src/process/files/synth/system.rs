//! Texts about the machine and the kernel: what a sandbox shows of them, which is little and never the host's.

use super::{Render, Scene};
use crate::process::files::random::uuid;

/// Path, permission bits, text.
pub(super) const TEXTS: &[(&str, u32, Render)] = &[
    ("proc/cpuinfo", 0o444, cpuinfo),
    ("proc/meminfo", 0o444, meminfo),
    ("proc/stat", 0o444, stat),
    ("proc/uptime", 0o444, uptime),
    ("proc/loadavg", 0o444, |_| b"0.00 0.00 0.00 1/1 1\n".into()),
    ("proc/version", 0o444, version),
    ("proc/cmdline", 0o444, |_| b"\n".into()),
    ("proc/filesystems", 0o444, |_| b"nodev\tproc\nnodev\ttmpfs\nnodev\tdevtmpfs\nnodev\tsysfs\n".into()),
    ("proc/swaps", 0o444, |_| b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into()),
    ("proc/sys/kernel/osrelease", 0o444, |s| line(s.process.release())),
    ("proc/sys/kernel/ostype", 0o444, |_| line("Linux")),
    ("proc/sys/kernel/version", 0o444, |_| line("#1 SMP")),
    ("proc/sys/kernel/hostname", 0o444, |s| line(s.process.hostname())),
    ("proc/sys/kernel/domainname", 0o444, |_| line("(none)")),
    ("proc/sys/kernel/pid_max", 0o444, |_| line(4_194_304)),
    ("proc/sys/kernel/threads-max", 0o444, |_| line(1024)),
    ("proc/sys/kernel/cap_last_cap", 0o444, |_| line(40)),
    ("proc/sys/kernel/ngroups_max", 0o444, |_| line(65_536)),
    ("proc/sys/kernel/randomize_va_space", 0o444, |_| line(2)),
    ("proc/sys/kernel/core_pattern", 0o444, |_| line("")),
    ("proc/sys/kernel/shmmax", 0o444, |_| line(0)),
    ("proc/sys/kernel/random/boot_id", 0o444, |s| line(s.process.boot_id())),
    ("proc/sys/kernel/random/uuid", 0o444, |_| line(uuid())),
    ("proc/sys/kernel/random/entropy_avail", 0o444, |_| line(256)),
    ("proc/sys/kernel/random/poolsize", 0o444, |_| line(256)),
    ("proc/sys/vm/overcommit_memory", 0o444, |_| line(1)),
    ("proc/sys/vm/overcommit_ratio", 0o444, |_| line(50)),
    ("proc/sys/vm/max_map_count", 0o444, |_| line(65_530)),
    ("proc/sys/vm/mmap_min_addr", 0o444, |_| line(65_536)),
    ("proc/sys/fs/file-max", 0o444, |s| line(s.open_files)),
    ("proc/sys/fs/nr_open", 0o444, |s| line(s.open_files)),
    ("proc/sys/fs/pipe-max-size", 0o444, |_| line(1 << 20)),
    ("proc/sys/net/core/somaxconn", 0o444, |_| line(4096)),
    ("sys/devices/system/cpu/online", 0o444, cpu_range),
    ("sys/devices/system/cpu/possible", 0o444, cpu_range),
    ("sys/devices/system/cpu/present", 0o444, cpu_range),
    ("sys/devices/system/cpu/kernel_max", 0o444, |_| line(8191)),
    ("sys/devices/system/node/online", 0o444, |_| line(0)),
    ("sys/devices/system/node/possible", 0o444, |_| line(0)),
    ("sys/kernel/mm/transparent_hugepage/enabled", 0o444, |_| line("always [madvise] never")),
    ("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", 0o444, |_| line(2 << 20)),
    ("sys/fs/cgroup/cgroup.controllers", 0o444, |_| line("cpu memory")),
    ("sys/fs/cgroup/memory.max", 0o444, |s| line(s.process.memory().limit)),
    ("sys/fs/cgroup/memory.high", 0o444, |_| line("max")),
    ("sys/fs/cgroup/memory.current", 0o444, |s| line(s.process.memory().resident)),
    ("sys/fs/cgroup/cpu.max", 0o444, |s| line(format!("{} 100000", s.process.cpus() * 100_000))),
];

fn line(value: impl std::fmt::Display) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

/// The text of a file that says 1.
pub(super) fn one(_: &Scene<'_>) -> Vec<u8> {
    line(1)
}

fn cpu_range(scene: &Scene<'_>) -> Vec<u8> {
    match scene.process.cpus() {
        0 | 1 => line(0),
        n => line(format!("0-{}", n - 1)),
    }
}

fn cpuinfo(scene: &Scene<'_>) -> Vec<u8> {
    (0..scene.process.cpus())
        .map(|cpu| {
            format!(
                "processor\t: {cpu}\nvendor_id\t: novum\ncpu family\t: 6\nmodel\t\t: 0\nmodel name\t: novum vCPU\n\
                 stepping\t: 0\ncpu MHz\t\t: 1000.000\nphysical id\t: 0\nsiblings\t: {n}\ncore id\t\t: {cpu}\n\
                 cpu cores\t: {n}\nfpu\t\t: yes\nbogomips\t: 2000.00\nclflush size\t: 64\ncache_alignment\t: 64\n\n",
                n = scene.process.cpus(),
            )
        })
        .collect::<String>()
        .into_bytes()
}

fn meminfo(scene: &Scene<'_>) -> Vec<u8> {
    let memory = scene.process.memory();
    let total = memory.limit >> 10;
    let free = memory.limit.saturating_sub(memory.resident) >> 10;
    let mut text = String::new();
    for (name, kib) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", memory.resident >> 10),
        ("Inactive", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("AnonPages", memory.resident >> 10),
        ("Mapped", 0),
        ("Shmem", 0),
        ("Slab", 0),
        ("CommitLimit", total),
        ("Committed_AS", memory.data >> 10),
        ("VmallocTotal", 34_359_738_367),
        ("VmallocUsed", 0),
    ] {
        text.push_str(&format!("{:<16}{kib:>8} kB\n", format!("{name}:")));
    }
    text.push_str("HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n");
    text.into_bytes()
}

fn ticks(time: std::time::Duration) -> u128 {
    time.as_millis() / 10
}

fn stat(scene: &Scene<'_>) -> Vec<u8> {
    let (user, system) = scene.process.cpu_time();
    let total = scene.process.uptime();
    let idle = ticks(total).saturating_sub(ticks(user) + ticks(system));
    let mut text = String::new();
    let mut row = |name: &str| {
        text.push_str(&format!("{name} {} 0 {} {idle} 0 0 0 0 0 0\n", ticks(user), ticks(system)));
    };
    row("cpu ");
    (0..scene.process.cpus()).for_each(|cpu| row(&format!("cpu{cpu}")));
    let boot = crate::process::files::host::now().seconds - total.as_secs() as i64;
    text.push_str(&format!(
        "intr 0\nctxt 0\nbtime {boot}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
    ));
    text.into_bytes()
}

fn uptime(scene: &Scene<'_>) -> Vec<u8> {
    let up = scene.process.uptime().as_secs_f64();
    line(format!("{up:.2} 0.00"))
}

fn version(scene: &Scene<'_>) -> Vec<u8> {
    line(format!("Linux version {} (novum) #1 SMP", scene.process.release()))
}
