//! Texts about the process: `/proc/self` and `/proc/self/task/<tid>`.

use std::fmt::Write as _;

use super::{Render, Scene};

/// Name, permission bits, text.
pub(super) const TEXTS: &[(&str, u32, Render)] = &[
    ("auxv", 0o400, |s| s.process.auxv()),
    ("cgroup", 0o444, |_| b"0::/\n".into()),
    ("cmdline", 0o444, |s| s.process.cmdline()),
    ("comm", 0o644, comm),
    ("environ", 0o400, |s| s.process.environ()),
    ("limits", 0o444, limits),
    ("loginuid", 0o444, |_| b"4294967295".into()),
    ("maps", 0o444, |s| s.process.maps()),
    ("mountinfo", 0o444, mountinfo),
    ("mounts", 0o444, mounts),
    ("oom_score", 0o444, |_| b"0\n".into()),
    ("oom_score_adj", 0o444, |_| b"0\n".into()),
    ("personality", 0o400, |_| b"00000000\n".into()),
    ("stat", 0o444, stat),
    ("statm", 0o444, statm),
    ("status", 0o444, status),
    ("wchan", 0o444, |_| b"0".into()),
];

const PAGE_BYTES: u64 = 4096;

fn comm(scene: &Scene<'_>) -> Vec<u8> {
    let mut name = scene.process.comm(scene.tid);
    name.push(b'\n');
    name
}

/// By the resources' numbers: name and unit.
const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

fn limits(scene: &Scene<'_>) -> Vec<u8> {
    let mut text = format!("{:<26}{:<21}{:<21}{:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    let shown = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
    for ((name, unit), limit) in LIMITS.iter().zip(scene.process.limits()) {
        let [soft, hard] = limit.map(shown);
        let _ = writeln!(text, "{name:<26}{soft:<21}{hard:<21}{unit:<10}");
    }
    text.into_bytes()
}

/// A path as mount tables write it: blanks and backslashes in octal.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(*byte),
        }
    }
    text
}

fn mounts(scene: &Scene<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for (point, kind, read_only) in scene.mounts {
        text.extend(format!("{kind} ").bytes());
        text.extend(escaped(point));
        let access = if *read_only { "ro" } else { "rw" };
        text.extend(format!(" {kind} {access},nosuid,nodev 0 0\n").bytes());
    }
    text
}

fn mountinfo(scene: &Scene<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for (i, (point, kind, read_only)) in scene.mounts.iter().enumerate() {
        let (id, parent) = (20 + i, if i == 0 { 1 } else { 20 });
        text.extend(format!("{id} {parent} 0:{id} / ").bytes());
        text.extend(escaped(point));
        let access = if *read_only { "ro" } else { "rw" };
        text.extend(format!(" {access},nosuid,nodev - {kind} {kind} {access}\n").bytes());
    }
    text
}

/// proc_pid_stat(5): 52 fields.
fn stat(scene: &Scene<'_>) -> Vec<u8> {
    let process = scene.process;
    let (user, system) = process.cpu_time();
    let memory = process.memory();
    let ticks = |time: std::time::Duration| time.as_millis() / 10;
    let mut text = format!("{} (", scene.tid).into_bytes();
    text.extend(process.comm(scene.tid));
    let pid = process.pid();
    let _ = std::io::Write::write_fmt(
        &mut text,
        format_args!(
            ") R 0 {pid} {pid} 0 -1 4194304 0 0 0 0 {} {} 0 0 20 0 {} 0 0 {} {} 18446744073709551615 0 0 0 0 0 \
             0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
            ticks(user),
            ticks(system),
            process.threads().len(),
            memory.mapped,
            memory.resident / PAGE_BYTES,
        ),
    );
    text
}

fn statm(scene: &Scene<'_>) -> Vec<u8> {
    let memory = scene.process.memory();
    let pages = |bytes: u64| bytes / PAGE_BYTES;
    format!("{} {} 0 0 0 {} 0\n", pages(memory.mapped), pages(memory.resident), pages(memory.data))
        .into_bytes()
}

fn status(scene: &Scene<'_>) -> Vec<u8> {
    let process = scene.process;
    let memory = process.memory();
    let cpus = process.cpus();
    let (user, group, groups) = process.credentials();
    // The file system's id follows the effective one.
    let four = |[real, effective, saved]: [u32; 3]| format!("{real}\t{effective}\t{saved}\t{effective}");
    let mut text = b"Name:\t".to_vec();
    text.extend(process.comm(scene.tid));
    let rest = format!(
        "\nUmask:\t0022\nState:\tR (running)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{tid}\nPPid:\t0\nTracerPid:\t0\n\
         Uid:\t{user}\nGid:\t{group}\nFDSize:\t{slots}\nGroups:\t{groups} \nVmPeak:\t{mapped:>8} kB\n\
         VmSize:\t{mapped:>8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\nVmHWM:\t{resident:>8} kB\n\
         VmRSS:\t{resident:>8} kB\nRssAnon:\t{resident:>8} kB\nVmData:\t{data:>8} kB\nVmStk:\t{stack:>8} kB\n\
         VmSwap:\t       0 kB\nThreads:\t{threads}\nNoNewPrivs:\t1\nSeccomp:\t0\nCpus_allowed:\t{mask:x}\n\
         Cpus_allowed_list:\t{list}\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\n\
         nonvoluntary_ctxt_switches:\t0\n",
        pid = process.pid(),
        tid = scene.tid,
        user = four(user),
        group = four(group),
        groups = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        slots = scene.fd_slots,
        mapped = memory.mapped >> 10,
        resident = memory.resident >> 10,
        data = memory.data >> 10,
        stack = memory.stack >> 10,
        threads = process.threads().len(),
        mask = 1_u64.checked_shl(cpus).map_or(u64::MAX, |bit| bit - 1),
        list = if cpus > 1 { format!("0-{}", cpus - 1) } else { "0".into() },
    );
    text.extend(rest.bytes());
    text
}
