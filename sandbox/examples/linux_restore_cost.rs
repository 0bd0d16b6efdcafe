//! What saving and restoring a Linux guest costs: restore to first reply against boot to first reply, how long a guest
//! stands to be saved, and memory of forks.
//!
//! Counted in instructions in the rig (docs/linux-engine.md, "Measured"), because there 1 ns of virtual time is 1
//! instruction:
//!
//! ```text
//! cargo build -p novum-sandbox --no-default-features --features vm --example linux_restore_cost
//! cargo xtask rig --icount --memory 2048 -- target/debug/examples/linux_restore_cost
//! ```

mod cost;

use std::sync::Arc;
use std::time::Instant;

use cost::{PATIENCE, Result, cat, check, million, streams};
use novum_sandbox::linux::WorkingSet;
use novum_sandbox::linux::guest::{Guest, Identity, Standing};
use novum_snapshot::{Snapshot, Store};

const ROUNDS: usize = 5;
const FORKS: [usize; 3] = [1, 10, 50];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (folder, config) = cost::guest("linux_restore_cost")?;
    let cat = cat();
    let store = Store::open(folder.join("store"))?;
    let mut snapshot = None;
    for round in 1..=2 {
        let begun = Instant::now();
        let mut guest = Guest::boot(config.clone()).await?;
        check(&guest.run(&cat, streams()).await?)?;
        println!("boot {round}: start to first reply {:.1} M", million(begun.elapsed()));
        if !guest.begin(&cat, PATIENCE).await? {
            return Err("cat did not wait".into());
        }
        let begun = Instant::now();
        let digest = guest.snapshot(&store).await?;
        let (whole, stood) = (million(begun.elapsed()), million(guest.stood()));
        let file = std::fs::metadata(store.path(&digest))?.len() >> 10;
        println!("save {round}: {whole:.2} M, of which the guest stood {stood:.2} M; file of {file} KiB");
        snapshot = Some(Snapshot::open(&store, &digest)?);
    }
    let snapshot = snapshot.ok_or("no snapshot")?;
    let runs = snapshot.mapping_plan().runs().count();
    println!("the snapshot maps {runs} runs");
    let identity = Identity {
        hostname: "restored".into(),
        machine_id: None,
        root: config.root.clone(),
        directories: Vec::new(),
        network: None,
        balloon: false,
        patience: PATIENCE,
    };
    let mut set = None;
    for round in 1..=ROUNDS {
        for (how, set) in [("", None), (" with its working set", set.as_ref())] {
            if round > 1 || set.is_none() {
                restore(&format!("restore {round}{how}"), &snapshot, &identity, set).await?;
            }
        }
        // Each waits for the answer of the guest before it is used.
        let mut guest = Guest::restore(&snapshot, &identity).await?;
        check(&guest.go_on(streams()).await?)?;
        if set.is_none() {
            let learnt = guest.working_set().ok_or("no working set")?;
            let (written, read) = learnt.bytes();
            println!("the working set: {} KiB written, {} KiB read", written >> 10, read >> 10);
            set = Some(Arc::new(learnt));
        }
        let begun = Instant::now();
        guest.snapshot(&store).await?;
        let (whole, stood) = (million(begun.elapsed()), million(guest.stood()));
        println!("save as a diff: {whole:.2} M, of which the guest stood {stood:.2} M");
    }
    // Each guest has some twenty descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    for count in FORKS {
        let before = resident_kib()?;
        let mut guests = Vec::new();
        for _ in 0..count {
            guests.push(Guest::restore(&snapshot, &identity).await?);
        }
        let each = (resident_kib()? - before) / count as i64;
        let private = guests.iter().map(Guest::private_bytes).sum::<u64>() / count as u64;
        println!(
            "{count} forks: {} KiB of guest memory private to each, {each} KiB of the process in all",
            private >> 10
        );
    }
    Ok(())
}

/// Restores a guest as an image's sandbox does: its work is behind its identity, and it is waited for once.
async fn restore(
    what: &str,
    snapshot: &Snapshot,
    identity: &Identity,
    set: Option<&Arc<WorkingSet>>,
) -> Result<()> {
    let (begun, faults) = (Instant::now(), minor_faults()?);
    let standing = Standing::make(snapshot, identity, set).await?;
    let (made, made_faults) = (begun.elapsed(), minor_faults()? - faults);
    let begun = Instant::now();
    let mut guest = standing.wake(identity).await?;
    let woken = begun.elapsed();
    let done = guest.go_on(streams()).await?;
    let ended = begun.elapsed();
    check(&done)?;
    let first = woken + done.first_byte.ok_or("no output")?;
    let faults = minor_faults()? - faults - made_faults;
    let private = guest.private_bytes() >> 10;
    println!(
        "{what}: made in {:.2} M ({made_faults} page faults); then woken after {:.2} M, first byte after {:.2} M, \
         ended after {:.2} M ({faults} page faults), {private} KiB private",
        million(made),
        million(woken),
        million(first),
        million(ended),
    );
    Ok(())
}

/// Page faults of this process that needed no I/O.
fn minor_faults() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, words) = stat.rsplit_once(')').ok_or("no stat")?;
    Ok(words.split_ascii_whitespace().nth(7).ok_or("no faults")?.parse()?)
}

/// Anonymous memory of this process in KiB: what it shares with nobody.
fn resident_kib() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
