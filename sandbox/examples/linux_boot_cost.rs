//! What a Linux guest costs: from the call to the agent's readiness, and the VMM's memory beside the guest's.
//!
//! Counted in instructions in the rig (docs/linux-engine.md, "Measured"), because there 1 ns of virtual time is 1
//! instruction:
//!
//! ```text
//! cargo build -p novum-sandbox --no-default-features --features vm --example linux_boot_cost
//! cargo xtask rig --icount -- target/debug/examples/linux_boot_cost
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::linux::guest::{Command, Guest, GuestConfig, Kernel, Root, Streams};
use novum_sandbox::{Input, LogSink, Output};

const MEMORY_BYTES: u64 = 128 << 20;
const ROUNDS: usize = 3;
/// Files here cost no host I/O while something is measured.
const FAST: &str = "/dev/shm";
const PATIENCE: Duration = Duration::from_secs(600);

struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let found = Kernel::find(&home.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("novum/kernels"))?;
    let folder = Path::new(FAST).join("linux_boot_cost");
    let root = folder.join("root/bin");
    std::fs::create_dir_all(&root)?;
    let image = folder.join("vmlinux");
    std::fs::copy(&found.image, &image)?;
    std::fs::copy("/bin/busybox", root.join("busybox"))?;
    let config = GuestConfig {
        kernel: Kernel { image, modules: found.modules },
        memory_bytes: MEMORY_BYTES,
        vcpus: 1,
        root: Root::Layers(vec![folder.join("root")]),
        directories: Vec::new(),
        hostname: "cost".into(),
        patience: PATIENCE,
    };
    println!("{} MiB, 1 vCPU, kernel {}", MEMORY_BYTES >> 20, found.image.display());
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        let mut guest = Guest::boot(config.clone()).await?;
        let ready = begun.elapsed();
        let called = Instant::now();
        cat(&mut guest).await?;
        let call = called.elapsed();
        let beside = resident_beside_guest(&std::fs::read_to_string("/proc/self/smaps")?);
        println!(
            "round {round}: start to agent ready {:.1} M ns, first command {:.1} M ns, VMM beside the guest's memory {} KiB, \
             guest's memory filled {} KiB",
            ready.as_nanos() as f64 / 1e6,
            call.as_nanos() as f64 / 1e6,
            beside,
            guest.resident_bytes() >> 10,
        );
    }
    Ok(())
}

/// The smallest command that uses both directions.
async fn cat(guest: &mut Guest) -> Result<(), Box<dyn std::error::Error>> {
    let args = ["/bin/busybox", "cat"].map(str::to_owned).to_vec();
    let streams = Streams {
        input: Input::Bytes(Bytes::from_static(b"hello")),
        output: Output::Collect { limit_bytes: 100 },
        log: Arc::new(Nowhere),
        control: None,
        deadline: Instant::now() + PATIENCE,
    };
    let done = guest.run(&Command { args, ..Command::default() }, streams).await?;
    if done.output != b"hello" {
        return Err(format!("the guest answered {:?}", done.output).into());
    }
    Ok(())
}

/// KiB of this process's resident memory that are no guest memory. That is the run of mappings one behind the other in
/// which the kernel's file is mapped.
fn resident_beside_guest(smaps: &str) -> u64 {
    let (mut runs, mut end) = (Vec::<(bool, u64)>::new(), 0);
    for line in smaps.lines() {
        if let Some((from, to)) = range(line) {
            if from != end || runs.is_empty() {
                runs.push((false, 0));
            }
            end = to;
            if let Some(run) = runs.last_mut() {
                run.0 |= line.ends_with("vmlinux");
            }
        } else if let (Some(kib), Some(run)) = (line.strip_prefix("Rss:"), runs.last_mut()) {
            run.1 += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    runs.iter().filter(|(guest, _)| !guest).map(|(_, kib)| kib).sum()
}

/// The addresses of a mapping's first line.
fn range(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}
