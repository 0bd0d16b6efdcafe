//! Machines that are saved, restored and forked, in the rig.
#![cfg(feature = "vm")]

mod guest;

use std::time::{Duration, Instant};

use guest::{Console, Guest, PATIENCE, debian_kernel, our_kernel, with_agent};
use novum_sandbox::linux::guest::{Command, GuestConfig, Kernel, Root};
use novum_sandbox::linux::{Device, Machine, SnapshotError};
use novum_snapshot::{Snapshot, Store};

/// Waits until the console has `text`.
fn until(machine: &Machine, console: &Console, text: &str) {
    let end = Instant::now() + PATIENCE;
    while !console.text().contains(text) {
        assert!(machine.end_now().is_none() && Instant::now() < end, "no {text:?}:\n{}", console.text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn save(machine: &Machine, store: &Store) -> Snapshot {
    let saved = machine.snapshot(store, |_| Ok(())).unwrap();
    Snapshot::open(store, &saved.digest).unwrap()
}

/// Counts, with a nonce that is drawn at the boot.
const COUNT: &str = "nonce=$($b hexdump -n 8 -e '\"%x\"' /dev/urandom)
    i=0; while :; do i=$((i+1)); echo count $i $nonce; $b sleep 0.1; done";

fn last_count(text: &str) -> (String, u64) {
    let (whole, _) = text.rsplit_once('\n').expect(text);
    let line = whole.lines().rev().find_map(|line| line.strip_prefix("count ")).expect(text);
    let (count, nonce) = line.trim().split_once(' ').expect(line);
    (nonce.to_owned(), count.parse().expect(line))
}

fn goes_on(guest: &Guest) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let console = Console::default();
    let machine = guest.boot(COUNT, &console);
    until(&machine, &console, "count 1 ");
    until(&machine, &console, "count 2 ");
    let snapshot = save(&machine, &store);
    let (nonce, saved) = last_count(&console.text());
    until(&machine, &console, &format!("count {} {nonce}\r", saved + 5));
    machine.stop();
    for _ in 0..2 {
        let console = Console::default();
        let machine = Machine::restore(&snapshot, &guest.devices, Box::new(console.clone())).unwrap();
        assert_eq!(console.text(), "", "it is paused");
        machine.resume().unwrap();
        until(&machine, &console, &format!("count {} {nonce}\r", saved + 5));
        assert!(!console.text().contains("Linux version"), "it was not booted");
        machine.stop();
    }
}

#[test]
fn a_restored_machine_goes_on_where_it_was_saved() {
    let Some(kernel) = our_kernel("a_restored_machine_goes_on_where_it_was_saved") else { return };
    goes_on(&Guest::new(kernel.vmlinux()));
}

#[test]
fn a_restored_machine_with_four_processors_goes_on() {
    let Some(kernel) = our_kernel("a_restored_machine_with_four_processors_goes_on") else { return };
    goes_on(&Guest { vcpus: 4, ..Guest::new(kernel.vmlinux()) });
}

#[test]
fn a_restored_machine_with_debians_kernel_goes_on() {
    let Some(kernel) = debian_kernel("a_restored_machine_with_debians_kernel_goes_on") else { return };
    let guest = Guest { modules: Some(kernel.modules()), ..Guest::new(kernel.vmlinux()) };
    goes_on(&guest);
}

#[test]
fn other_devices_than_the_saved_ones_are_refused() {
    let Some(kernel) = our_kernel("other_devices_than_the_saved_ones_are_refused") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let console = Console::default();
    let machine = Guest::new(kernel.vmlinux()).boot(COUNT, &console);
    until(&machine, &console, "count 1 ");
    until(&machine, &console, "count 2 ");
    let snapshot = save(&machine, &store);
    let restore = |devices: &[Device]| Machine::restore(&snapshot, devices, Box::new(Console::default()));
    assert!(restore(&[]).is_err());
    assert!(restore(&[Device::Rng, Device::Rng]).is_err());
    let vsock = novum_sandbox::linux::vsock::Vsock::new(3).unwrap();
    assert!(restore(&[Device::Vsock(vsock)]).is_err());
    machine.stop();
}

/// What a child of the test below does: a machine is saved again and again, until it is killed.
fn save_without_end(folder: &str) {
    let kernel = our_kernel("save_without_end").expect("the test has found it");
    let store = Store::open(folder).unwrap();
    let console = Console::default();
    let machine = Guest::new(kernel.vmlinux()).boot(COUNT, &console);
    until(&machine, &console, "count 2 ");
    loop {
        save(&machine, &store);
    }
}

#[test]
fn a_save_that_is_killed_in_the_middle_leaves_no_half_snapshot() {
    const FOLDER: &str = "NOVUM_TEST_SAVE_WITHOUT_END";
    const KILLS: u32 = 2;
    let name = "a_save_that_is_killed_in_the_middle_leaves_no_half_snapshot";
    if let Ok(folder) = std::env::var(FOLDER) {
        return save_without_end(&folder);
    }
    let Some(kernel) = our_kernel(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    let snapshots = folder.path().join("snapshots");
    let drafts = || {
        let files = std::fs::read_dir(&snapshots).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().starts_with(".draft-")).count()
    };
    let (mut in_the_middle, mut last) = (0, None);
    for kill in 0..KILLS {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(FOLDER, folder.path());
        let mut child = child.spawn().unwrap();
        let begun = Instant::now();
        let before = Store::open(folder.path()).unwrap().digests().unwrap().len();
        // One whole snapshot at least, then the first signs of another, and some way into it.
        while Store::open(folder.path()).unwrap().digests().unwrap().len() == before || drafts() == 0 {
            assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "no save was seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 5));
        child.kill().unwrap();
        child.wait().unwrap();
        in_the_middle += u32::from(drafts() > 0);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(drafts(), 0, "what was not finished is removed");
        for digest in store.digests().unwrap() {
            let snapshot = Snapshot::open(&store, &digest).unwrap();
            snapshot.verify().unwrap();
            last = Some(snapshot);
        }
    }
    assert!(in_the_middle > 0, "no kill hit a save");
    let console = Console::default();
    let devices = Guest::new(kernel.vmlinux()).devices;
    let machine = Machine::restore(&last.unwrap(), &devices, Box::new(console.clone())).unwrap();
    machine.resume().unwrap();
    until(&machine, &console, "count ");
    machine.stop();
}

/// Once, by: `mkdir /tmp/golden; cargo xtask rig test --share /tmp/golden --env NOVUM_GOLDEN=/tmp/golden/guest-v1.bin --test
/// linux_snapshot golden -- --ignored`
#[tokio::test]
#[ignore = "writes the golden file of linux::snapshot::golden"]
async fn the_golden_file_is_written() {
    let Some(kernel) = our_kernel("the_golden_file_is_written") else { return };
    let Some(file) = std::env::var_os("NOVUM_GOLDEN") else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root/bin");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let kernel = Kernel { image: kernel.vmlinux(), modules: None };
    let root = Root::Layers(vec![folder.path().join("root")]);
    let config = GuestConfig { root, memory_bytes: 64 << 20, ..with_agent(kernel, "golden") };
    let mut guest = novum_sandbox::linux::guest::Guest::boot(config).await.unwrap();
    let args = ["/bin/busybox", "cat"].map(str::to_owned).to_vec();
    assert!(guest.begin(&Command { args, ..Command::default() }, PATIENCE).await.unwrap());
    let digest = guest.snapshot(&store).await.unwrap();
    let snapshot = Snapshot::open(&store, &digest).unwrap();
    let sections = snapshot.sections();
    let sections: Vec<_> = sections.iter().map(|s| (s.kind, s.owner, s.version, s.bytes)).collect();
    std::fs::write(file, postcard::to_stdvec(&sections).unwrap()).unwrap();
}

#[test]
fn a_machine_that_has_ended_is_not_paused() {
    let Some(kernel) = our_kernel("a_machine_that_has_ended_is_not_paused") else { return };
    let console = Console::default();
    let machine = Guest::new(kernel.vmlinux()).boot("/exit", &console);
    assert!(machine.wait(Some(Instant::now() + PATIENCE)).is_some());
    assert!(matches!(machine.pause(), Err(SnapshotError::Ended(_))));
}
