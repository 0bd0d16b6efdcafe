//! What a Linux guest costs: from the call to the agent's readiness, and the VMM's memory beside the guest's.
//!
//! Counted in instructions in the rig (docs/linux-engine.md, "Measured"), because there 1 ns of virtual time is 1
//! instruction:
//!
//! ```text
//! cargo build -p novum-sandbox --no-default-features --features vm --example linux_boot_cost
//! cargo xtask rig --icount -- target/debug/examples/linux_boot_cost
//! ```

mod cost;

use std::time::Instant;

use cost::{Result, cat, check, million, streams};
use novum_sandbox::linux::guest::Guest;

const ROUNDS: usize = 3;
/// Where a vmlinux begins in guest memory.
const KERNEL: u64 = 16 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (_, config) = cost::guest("linux_boot_cost")?;
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        let mut guest = Guest::boot(config.clone()).await?;
        let ready = begun.elapsed();
        let called = Instant::now();
        check(&guest.run(&cat(), streams()).await?)?;
        let call = called.elapsed();
        let beside = resident_beside_guest(&std::fs::read_to_string("/proc/self/smaps")?);
        println!(
            "round {round}: start to agent ready {:.1} M ns, first command {:.1} M ns, VMM beside the guest's memory {} KiB, \
             guest's memory filled {} KiB",
            million(ready),
            million(call),
            beside,
            guest.resident_bytes() >> 10,
        );
    }
    Ok(())
}

/// KiB of this process's resident memory that are no guest memory. That lies around the mapped kernel, whose first byte is at
/// [`KERNEL`] in it.
fn resident_beside_guest(smaps: &str) -> u64 {
    let kernel = smaps.lines().find(|line| line.ends_with("vmlinux")).and_then(range);
    let guest = kernel.map_or(0..0, |(from, _)| from - KERNEL..from - KERNEL + cost::MEMORY_BYTES);
    let (mut beside, mut counts) = (0, false);
    for line in smaps.lines() {
        if let Some((from, _)) = range(line) {
            counts = !guest.contains(&from);
        } else if let (true, Some(kib)) = (counts, line.strip_prefix("Rss:")) {
            beside += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    beside
}

/// The addresses of a mapping's first line.
fn range(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}
