//! What shared directories give a Linux guest: bytes and calls per second over 9p and over virtio-fs, in each cache mode.
//!
//! A second is a thousand million instructions in the rig with `--icount` (docs/linux-engine.md, "Measured"):
//!
//! ```text
//! cargo build -p novum-sandbox --no-default-features --features vm --example linux_share_rates
//! cargo xtask rig --icount -- target/debug/examples/linux_share_rates
//! ```

#[path = "../tests/guest/mod.rs"]
mod guest;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use guest::{Guest, PATIENCE};
use novum_sandbox::linux::guest::Kernel;
use novum_sandbox::linux::{Device, End, Machine, MachineConfig};
use novum_sandbox::share::{Access, Share};

/// Files here cost no host I/O while something is measured.
const FAST: &str = "/dev/shm";
const MIB: usize = 8;
const FILES: usize = 300;

/// (name, what the guest mounts).
const MOUNTS: &[(&str, &str)] = &[
    ("9p, `cache=none`", "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,access=any p9"),
    ("9p, `cache=none`, `msize=65536`", "-t 9p -o trans=virtio,version=9p2000.L,msize=65536,access=any p9"),
    (
        "9p, `cache=mmap` (`--write`)",
        "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,access=any,cache=mmap p9",
    ),
    (
        "9p, `cache=loose` (layers of a root)",
        "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose p9",
    ),
    ("virtio-fs, writable", "-t virtiofs fs"),
    ("virtio-fs, read-only", "-t virtiofs fsro"),
];

/// (name, unit, how many of it, shell; only on what can be written).
type Work = (&'static str, &'static str, usize, &'static str, bool);
const WORK: &[Work] = &[
    ("read", "MiB/s", MIB, "dd if=/mnt/big of=/dev/null bs=1M 2>/dev/null", false),
    ("read again", "MiB/s", MIB, "dd if=/mnt/big of=/dev/null bs=1M 2>/dev/null", false),
    ("read 4 KiB", "calls/s", 500, "dd if=/mnt/other of=/dev/null bs=4k count=500 2>/dev/null", false),
    ("list and stat", "files/s", FILES, "ls -l /mnt/many > /dev/null", false),
    ("stat again", "files/s", FILES, "ls -l /mnt/many > /dev/null", false),
    ("write", "MiB/s", MIB, "dd if=/dev/zero of=/mnt/out bs=1M count=8 conv=fsync 2>/dev/null", true),
    (
        "create",
        "files/s",
        100,
        "cd /mnt/new; i=0; while [ $i -lt 100 ]; do : > f$i; i=$((i + 1)); done; cd /",
        true,
    ),
    ("remove", "files/s", 100, "rm -r /mnt/new", true),
];

/// Notes when each line of the guest's came.
#[derive(Clone, Default)]
struct Clock(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    lines: Vec<(String, Instant)>,
    begun: String,
}

impl Write for Clock {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut seen = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.begun.push_str(&String::from_utf8_lossy(bytes));
        while let Some(end) = seen.begun.find('\n') {
            let line = seen.begun[..end].trim().to_owned();
            seen.begun.drain(..=end);
            seen.lines.push((line, Instant::now()));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let kernel = Kernel::find(&home.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("novum/kernels"))?;
    println!(
        "| over | {} |",
        WORK.iter().map(|work| format!("{}, {}", work.0, work.1)).collect::<Vec<_>>().join(" | ")
    );
    println!("|{}", "---|".repeat(WORK.len() + 1));
    for (name, mount) in MOUNTS {
        let times = measure(&kernel, mount)?;
        let cells = WORK.iter().map(|work| match times.iter().find(|(done, _)| done == work.0) {
            Some((_, seconds)) => format!("{:.0}", work.2 as f64 / seconds),
            None => "-".to_owned(),
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// Seconds of each piece of work on one mount, in a guest of its own.
fn measure(kernel: &Kernel, mount: &str) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error>> {
    let folder = Path::new(FAST).join("linux_share_rates");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("many"))?;
    std::fs::create_dir_all(folder.join("new"))?;
    for name in ["big", "other"] {
        std::fs::write(folder.join(name), vec![b'x'; MIB << 20])?;
    }
    (0..FILES).try_for_each(|number| std::fs::write(folder.join(format!("many/file{number}")), "some"))?;
    let share = |access| Share::open_dir(&folder, access).map(Arc::new);
    let devices = vec![
        Device::P9 { tag: "p9".into(), share: share(Access::ReadWrite)? },
        Device::Fs { tag: "fs".into(), share: share(Access::ReadWrite)? },
        Device::Fs { tag: "fsro".into(), share: share(Access::ReadOnly)? },
    ];
    let mut script = format!(
        "PATH=/bin; for name in $(busybox --list); do ln -s busybox /bin/$name 2>/dev/null; done\nmount {mount} /mnt || /exit\n"
    );
    for (name, _, _, work, writes) in WORK {
        if !(*writes && mount.ends_with("fsro")) {
            script.push_str(&format!("echo begin\n{work}\necho done {name}\n"));
        }
    }
    let script = script.replace("$(busybox", "$(/bin/busybox") + "/exit";
    let guest = Guest { devices, words: "reboot=k quiet", ..Guest::new(kernel.image.clone()) };
    let clock = Clock::default();
    let config = MachineConfig { console: Box::new(clock.clone()), ..guest.config(&script) };
    let machine = Machine::boot(config)?;
    let end = machine.wait(Some(Instant::now() + PATIENCE));
    let seen = clock.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if end != Some(End::Exit(42)) {
        return Err(format!("the guest: {end:?}: {:?}", seen.lines).into());
    }
    let pairs = seen.lines.windows(2).filter(|pair| pair[0].0 == "begin");
    let times = pairs.filter_map(|pair| {
        Some((pair[1].0.strip_prefix("done ")?.to_owned(), (pair[1].1 - pair[0].1).as_secs_f64()))
    });
    Ok(times.collect())
}
