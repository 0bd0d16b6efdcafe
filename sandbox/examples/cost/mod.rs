//! What the examples that count a Linux guest's costs share: the guest, its command `cat`, and what it must answer.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::linux::guest::{Command, Done, GuestConfig, Kernel, Root, Streams};
use novum_sandbox::{Input, LogSink, Output};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) const MEMORY_BYTES: u64 = 128 << 20;
/// Files here cost no host I/O while something is measured.
const FAST: &str = "/dev/shm";
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

/// The folder of the example `name`, and a guest with one processor whose kernel and root (busybox) lie in it.
pub(crate) fn guest(name: &str) -> Result<(PathBuf, GuestConfig)> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let found = Kernel::find(&home.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("novum/kernels"))?;
    let folder = Path::new(FAST).join(name);
    let root = folder.join("root/bin");
    std::fs::create_dir_all(&root)?;
    let image = folder.join("vmlinux");
    std::fs::copy(&found.image, &image)?;
    std::fs::copy("/bin/busybox", root.join("busybox"))?;
    println!("{} MiB, 1 vCPU, kernel {}", MEMORY_BYTES >> 20, found.image.display());
    let config = GuestConfig {
        kernel: Kernel { image, modules: found.modules },
        memory_bytes: MEMORY_BYTES,
        vcpus: 1,
        root: Root::Layers(vec![folder.join("root")]),
        balloon: false,
        directories: Vec::new(),
        hostname: "cost".into(),
        machine_id: None,
        network: None,
        patience: PATIENCE,
    };
    Ok((folder, config))
}

/// The smallest command that uses both directions.
pub(crate) fn cat() -> Command {
    let args = ["/bin/busybox", "cat"].map(str::to_owned).to_vec();
    Command { args, ..Command::default() }
}

/// Its input.
pub(crate) fn streams() -> Streams {
    Streams {
        input: Input::Bytes(Bytes::from_static(b"hello")),
        output: Output::Collect { limit_bytes: 100 },
        log: Arc::new(Nowhere),
        control: None,
        deadline: Instant::now() + PATIENCE,
    }
}

/// That it answered.
pub(crate) fn check(done: &Done) -> Result<()> {
    if done.output == b"hello" { Ok(()) } else { Err(format!("the guest answered {:?}", done.output).into()) }
}

/// Of instructions, where a nanosecond is one.
pub(crate) fn million(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}
