//! What devices hold outlives a snapshot of the machine: open files, disks, terminals; in the rig: `cargo xtask rig test
//! --test linux_device_state`.
#![cfg(feature = "vm")]

mod guest;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use guest::{Console, Guest, PATIENCE, our_kernel, until};
use novum_sandbox::linux::balloon::Balloon;
use novum_sandbox::linux::block::{Block, DiskAccess};
use novum_sandbox::linux::{Device, End, Machine, console};
use novum_sandbox::share::{Access, Share};
use novum_snapshot::{Snapshot, Store};

/// Devices made anew, as another process would: shares, disk and terminal of `folder`.
fn devices(folder: &Path, said: &Console) -> (Vec<Device>, console::Console) {
    let share = || Arc::new(Share::open_dir(&folder.join("share"), Access::ReadWrite).unwrap());
    let private = DiskAccess::Private { folder: None };
    let terminal = console::Console::new(Box::new(said.clone())).unwrap();
    let devices = vec![
        Device::P9 { tag: "p9".into(), share: share() },
        Device::Fs { tag: "fs".into(), share: share() },
        Device::Block(Block::open(&folder.join("disk"), private, "disk").unwrap()),
        Device::Rng,
        Device::Console(terminal.clone()),
        Device::Balloon(Balloon::new().unwrap()),
    ];
    (devices, terminal)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    fs::write(folder.path().join("disk"), vec![0; 1 << 20]).unwrap();
    folder
}

/// Saves the machine and stops it.
fn save(machine: Machine, store: &Store) -> Snapshot {
    machine.pause().unwrap();
    let digest = machine.save(store, |_| Ok(())).unwrap();
    machine.stop();
    Snapshot::open(store, &digest).unwrap()
}

const MOUNT: &str = "$b mkdir /fs
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536 p9 /mnt || $b echo cannot mount
$b mount -t virtiofs fs /fs || $b echo cannot mount";

#[test]
fn open_files_disks_and_terminals_go_on_in_a_restored_machine() {
    let Some(kernel) = our_kernel("open_files_disks_and_terminals_go_on_in_a_restored_machine") else {
        return;
    };
    let folder = folder();
    let share = folder.path().join("share");
    for (name, text) in [("lines", "one\ntwo\n"), ("replaced", "mine\n"), ("kept", "mine\n"), ("out", "")] {
        fs::write(share.join(name), text).unwrap();
    }
    let script = format!(
        "{MOUNT}
exec 3</mnt/lines 4>>/mnt/out 5</mnt/replaced 6</fs/lines 7</fs/kept
$b dd if=/dev/urandom of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null; $b sha256sum < /dev/vda > /sum
$b stty -F /dev/hvc0 -echo; $b echo hello > /dev/hvc0
read a <&3; read f <&6; $b echo first $a $f
until [ -e /mnt/go ]; do $b sleep 0.2; done
echo 3 > /proc/sys/vm/drop_caches
read a <&3; read f <&6; read k <&7; $b echo second $a $f $k
$b echo more >&4 && $b echo wrote
read x <&5 || $b echo stale
$b sha256sum < /dev/vda | $b cmp - /sum && $b echo same disk
$b dd if=/dev/hwrng bs=16 count=1 2>/dev/null | $b wc -c
read line < /dev/hvc0; $b echo typed $line
/exit"
    );
    let (console, said) = (Console::default(), Console::default());
    let (first, _) = devices(folder.path(), &said);
    let machine = Guest { devices: first, ..Guest::new(kernel.vmlinux()) }.boot(&script, &console);
    until("the first lines", &console, || console.text().contains("first one one"));
    let store = Store::open(folder.path().join("store")).unwrap();
    let snapshot = save(machine, &store);
    fs::write(share.join("new"), "yours\n").unwrap();
    fs::rename(share.join("new"), share.join("replaced")).unwrap();
    for round in 1..=2 {
        let (console, said) = (Console::default(), Console::default());
        let (again, terminal) = devices(folder.path(), &said);
        let machine = Machine::restore(&snapshot, &again, Box::new(console.clone())).unwrap();
        terminal.send(b"at the host\n");
        machine.resume().unwrap();
        fs::write(share.join("go"), "").unwrap();
        let end = machine.wait(Some(Instant::now() + PATIENCE));
        let text = console.text();
        assert_eq!(end, Some(End::Exit(42)), "{text}");
        for line in ["second two two mine", "wrote", "stale", "same disk", "16", "typed at the host"] {
            assert!(text.lines().any(|seen| seen.trim() == line), "{line} is missing in:\n{text}");
        }
        assert_eq!(fs::read_to_string(share.join("out")).unwrap(), "more\n".repeat(round));
        fs::remove_file(share.join("go")).unwrap();
    }
}

/// `rounds` times in a row: saved at any moment, stopped, restored behind new devices.
fn restores_in_a_row(name: &str, rounds: u32) {
    let Some(kernel) = our_kernel(name) else { return };
    let folder = folder();
    let share = folder.path().join("share");
    fs::write(share.join("noise"), (0..64u32 << 8).flat_map(|n| (n * n).to_le_bytes()).collect::<Vec<_>>())
        .unwrap();
    let script = format!(
        "{MOUNT}
exec 4>>/mnt/log; want=$($b sha256sum < /fs/noise); i=0
until [ -e /mnt/stop ]; do
i=$((i+1)); at=$((i%16)); echo $i >&4
$b dd if=/mnt/noise of=/dev/vda bs=64k seek=$at count=1 conv=notrunc,fsync 2>/dev/null
got=$($b dd if=/dev/vda bs=64k skip=$at count=1 iflag=direct 2>/dev/null | $b sha256sum)
[ \"$got\" = \"$want\" ] || $b echo BAD disk $i
[ $($b dd if=/dev/hwrng bs=64 count=1 2>/dev/null | $b wc -c) = 64 ] || $b echo BAD rng $i
$b cmp /fs/noise /mnt/noise || $b echo BAD files $i
echo $i > /dev/hvc0
done
echo rounds $i
/exit"
    );
    let (console, said) = (Console::default(), Console::default());
    let (first, _) = devices(folder.path(), &said);
    let mut machine = Guest { devices: first, ..Guest::new(kernel.vmlinux()) }.boot(&script, &console);
    let store = Store::open(folder.path().join("store")).unwrap();
    let lines = || fs::read_to_string(share.join("log")).unwrap_or_default().lines().count();
    until("the first round", &console, || lines() > 1);
    for round in 0..rounds {
        let snapshot = save(machine, &store);
        let (again, _) = devices(folder.path(), &said);
        machine = Machine::restore(&snapshot, &again, Box::new(console.clone())).unwrap();
        let before = lines();
        machine.resume().unwrap();
        until("the next line", &console, || lines() > before + usize::try_from(round % 2).unwrap());
    }
    fs::write(share.join("stop"), "").unwrap();
    let end = machine.wait(Some(Instant::now() + PATIENCE));
    let text = console.text();
    assert_eq!(end, Some(End::Exit(42)), "{text}");
    assert!(!text.contains("BAD"), "{text}");
    let expected: Vec<String> = (1..=lines()).map(|number| number.to_string()).collect();
    let log = fs::read_to_string(share.join("log")).unwrap();
    assert!(log.lines().eq(expected.iter()), "a line is lost or doubled:\n{log}");
    let said = said.text().replace('\r', "");
    assert!(said.lines().eq(expected.iter()), "a line of the terminal is lost or doubled:\n{said}");
    assert!(text.contains(&format!("rounds {}", expected.len())), "{text}");
}

#[test]
fn traffic_of_all_devices_outlives_restores_in_a_row() {
    restores_in_a_row("traffic_of_all_devices_outlives_restores_in_a_row", 5);
}

#[test]
#[ignore = "minutes in the rig"]
fn traffic_of_all_devices_outlives_a_hundred_restores_in_a_row() {
    restores_in_a_row("traffic_of_all_devices_outlives_a_hundred_restores_in_a_row", 100);
}
