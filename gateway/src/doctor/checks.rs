//! The checks of the host.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::{Context, Finding};
use crate::config::Listen;
use crate::units::format_size;

fn kernel_version() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn kernel(_: &Context) -> Finding {
    let uname = rustix::system::uname();
    let text = format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
    match kernel_version() {
        Some(version) if version < (5, 6) => Finding::bad(text, "use Linux 5.6 or later"),
        _ => Finding::info(text),
    }
}

pub(super) fn cpu(_: &Context) -> Finding {
    const INTERESTING: [&str; 8] =
        ["sse4_2", "avx2", "avx512f", "vmx", "svm", "hypervisor", "erms", "fsgsbase"];
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    let flags = field("flags");
    let has = |flag: &&&str| flags.split(' ').any(|present| present == **flag);
    let present: Vec<_> = INTERESTING.iter().filter(has).copied().collect();
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    Finding::info(format!("{count} x {}, {}", field("model name"), present.join(" ")))
}

/// A value of /proc/meminfo in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut words = line.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    Some(number * if words.next() == Some("kB") { 1024 } else { 1 })
}

pub(super) fn memory(_: &Context) -> Finding {
    const LITTLE: u64 = 512 << 20;
    let (Some(total), Some(available)) = (meminfo("MemTotal"), meminfo("MemAvailable")) else {
        return Finding::poor("/proc/meminfo cannot be read", "mount /proc");
    };
    let text = format!("{} available of {}", format_size(available), format_size(total));
    match available < LITTLE {
        true => Finding::poor(text, "end other programs, or lower `memory` and `pool.max` in the manifests"),
        false => Finding::good(text),
    }
}

/// Kernels that `novum kernel` has made or taken over.
pub(super) fn guest_kernels(context: &Context) -> Finding {
    let folder = &context.kernel_dir;
    let cache = novum_kernel::Cache::new(folder);
    let built = novum_kernel::build::built(&cache).map(|kernel| kernel.folder);
    let imported = novum_kernel::import::imported(&cache).into_iter().map(|kernel| kernel.folder);
    let name = |path: std::path::PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = built.into_iter().chain(imported).map(name).collect();
    match names.is_empty() {
        false => Finding::good(format!("{} in {}", names.join(", "), folder.display())),
        true => Finding::poor(
            format!("none in {}", folder.display()),
            "novum kernel build (some minutes, once), or take over a distribution's: novum kernel import",
        ),
    }
}

/// The ioctl came with Linux 6.7 (include/uapi/linux/fs.h).
pub(super) fn pagemap_scan(_: &Context) -> Finding {
    match kernel_version() {
        Some(version) if version >= (6, 7) => Finding::good("the kernel has PAGEMAP_SCAN"),
        _ => Finding::poor(
            "no PAGEMAP_SCAN",
            "it comes with Linux 6.7; without it each Wasm call costs some 20 us more",
        ),
    }
}

pub(super) fn openat2(_: &Context) -> Finding {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, ".", flags, Mode::empty(), ResolveFlags::BENEATH) {
        Ok(_) => Finding::good("paths can be resolved beneath a directory"),
        Err(e) => Finding::bad(
            format!("openat2 fails: {e}"),
            "use Linux 5.6 or later; in a container allow the system call openat2 (a newer runtime does)",
        ),
    }
}

pub(super) fn huge_pages(_: &Context) -> Finding {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let mode = enabled.split(['[', ']']).nth(1).unwrap_or("absent").to_owned();
    let reserved = meminfo("HugePages_Total").unwrap_or(0);
    let text = format!("transparent huge pages: {mode}; {reserved} reserved huge pages");
    match mode.as_str() {
        "always" | "madvise" => Finding::good(text),
        _ => Finding::poor(text, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)"),
    }
}

/// A sandbox of the process engine takes 10 to 60 mappings of the gateway, and its program may have 8,190.
pub(super) fn mappings(_: &Context) -> Finding {
    const DEFAULT: u64 = 65_530;
    const A_SANDBOX: u64 = 60;
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let Ok(most) = text.trim().parse::<u64>() else {
        return Finding::info("vm.max_map_count cannot be read");
    };
    let text =
        format!("{most} in one process: room for about {} sandboxes of the process engine", most / A_SANDBOX);
    if most >= DEFAULT { Finding::good(text) } else { Finding::poor(text, "sysctl vm.max_map_count=262144") }
}

pub(super) fn user_namespaces(_: &Context) -> Finding {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Finding::poor("switched off", "sysctl user.max_user_namespaces=10000");
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Finding::poor("only for root", "sysctl kernel.unprivileged_userns_clone=1");
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Finding::poor(
            "restricted by AppArmor",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    match Path::new("/proc/self/ns/user").exists() {
        true => Finding::good("allowed"),
        false => Finding::poor("not in this kernel", "use a kernel with CONFIG_USER_NS"),
    }
}

pub(super) fn cgroups(_: &Context) -> Finding {
    let exists = |path: &str| Path::new(path).exists();
    if exists("/sys/fs/cgroup/cgroup.controllers") {
        return Finding::good("version 2");
    }
    if exists("/sys/fs/cgroup/unified/cgroup.controllers") {
        return Finding::poor(
            "version 1, with version 2 beside it and no controllers in it",
            "boot with systemd.unified_cgroup_hierarchy=1",
        );
    }
    Finding::poor("no version 2 at /sys/fs/cgroup", "mount it: mount -t cgroup2 none /sys/fs/cgroup")
}

pub(super) fn data_dir(context: &Context) -> Finding {
    let wanted = &context.data_dir;
    let Some(existing) = wanted.ancestors().find(|dir| dir.exists()) else {
        return Finding::bad(format!("{} has no parent", wanted.display()), "name one with --data-dir DIR");
    };
    let may_write = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match may_write {
        Ok(()) if existing.is_dir() => Finding::good(format!("{} can be written", wanted.display())),
        Ok(()) => Finding::bad(
            format!("{} is not a directory", existing.display()),
            "name another with --data-dir DIR or NOVUM_DATA_DIR",
        ),
        Err(e) => Finding::bad(
            format!("{} cannot be written: {e}", existing.display()),
            "name another with --data-dir DIR or NOVUM_DATA_DIR",
        ),
    }
}

pub(super) fn address(context: &Context) -> Finding {
    let bound = match &context.listen {
        Listen::Tcp(address) => std::net::TcpListener::bind(address).map(drop),
        Listen::Unix(path) if path.exists() => Err(io::ErrorKind::AddrInUse.into()),
        Listen::Unix(_) => Ok(()),
    };
    let listen = &context.listen;
    match bound {
        Ok(()) => Finding::good(format!("{listen} is free")),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Finding::poor(
            format!("{listen} is in use"),
            "fine if that is your gateway; otherwise choose another with --listen",
        ),
        Err(e) => Finding::bad(format!("{listen} cannot be bound: {e}"), "choose another with --listen"),
    }
}
