//! A Linux guest uses each device. These need a KVM with hardware virtualization: `cargo xtask rig test --test
//! linux_devices`.
#![cfg(feature = "vm")]

mod guest;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use guest::{Console, Guest, PATIENCE, card, in_own_network, on_host, our_kernel, until};
use novum_sandbox::linux::balloon::Balloon;
use novum_sandbox::linux::block::{Block, DiskAccess};
use novum_sandbox::linux::{Device, End, Machine, console};
use novum_sandbox::share::{Access, Share};

#[track_caller]
fn exits(machine: &Machine, console: &Console) {
    let end = machine.wait(Some(Instant::now() + PATIENCE));
    assert_eq!(end, Some(End::Exit(42)), "{}", console.text());
}

fn boot(kernel: std::path::PathBuf, devices: &[Device], memory_mib: u64, script: &str) -> (Machine, Console) {
    let console = Console::default();
    let guest = Guest { devices: devices.to_vec(), memory_mib, ..Guest::new(kernel) };
    (guest.boot(script, &console), console)
}

/// Bytes that do not compress and differ everywhere.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(step).collect()
}

#[test]
fn disks_hold_what_the_guest_writes_and_change_their_size() {
    let Some(kernel) = our_kernel("disks_hold_what_the_guest_writes_and_change_their_size") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let content = noise(4 << 20);
    for name in ["read", "private"] {
        fs::write(path(name), &content).unwrap();
    }
    fs::write(path("write"), vec![0; 4 << 20]).unwrap();
    let disk = |name: &str, access| Block::open(&path(name), access, name).unwrap();
    let write = disk("write", DiskAccess::ReadWrite);
    let devices = [
        Device::Block(disk("read", DiskAccess::ReadOnly)),
        Device::Block(write.clone()),
        Device::Block(disk("private", DiskAccess::Private { folder: None })),
    ];
    let script = "$b cat /sys/block/vda/ro; $b echo serial $($b cat /sys/block/vdb/serial)
$b dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync 2>/dev/null || $b echo cannot write
$b dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null && $b echo wrote to a read-only disk
$b dd if=/dev/zero of=/dev/vdc bs=64k count=16 conv=fsync 2>/dev/null
$b dd if=/dev/zero bs=64k count=16 2>/dev/null | $b sha256sum > /sum
$b dd if=/dev/vdc bs=64k count=16 iflag=direct 2>/dev/null | $b sha256sum | $b cmp - /sum && $b echo zeroes
$b echo now resize
until [ $($b cat /sys/block/vdb/size) = 16384 ]; do $b sleep 0.1; done
$b echo the end | $b dd of=/dev/vdb bs=512 seek=16383 conv=fsync 2>/dev/null
/exit";
    let (machine, console) = boot(kernel.vmlinux(), &devices, 128, script);
    until("the request", &console, || console.text().contains("now resize"));
    write.resize(8 << 20).unwrap();
    exits(&machine, &console);
    let text = console.text();
    for line in ["1", "serial write", "zeroes"] {
        assert!(text.lines().any(|seen| seen.trim() == line), "{line} is missing in:\n{text}");
    }
    assert!(!text.contains("cannot write") && !text.contains("wrote to"), "{text}");
    let written = fs::read(path("write")).unwrap();
    assert_eq!(written.len(), 8 << 20);
    assert!(written[..4 << 20] == content, "what the guest copied is what it read");
    assert!(written[(8 << 20) - 512..].starts_with(b"the end\n"));
    for name in ["read", "private"] {
        assert!(fs::read(path(name)).unwrap() == content, "{name}");
    }
}

#[test]
fn a_file_system_on_a_disk_is_whole_afterwards() {
    let name = "a_file_system_on_a_disk_is_whole_afterwards";
    let Some(kernel) = our_kernel(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let e2fs = |program: &str, words: &[&str]| {
        Command::new(format!("/sbin/{program}")).args(words).arg(&disk).output()
    };
    match e2fs("mkfs.ext4", &["-q", "-F"]) {
        Ok(made) => assert!(made.status.success(), "{made:?}"),
        Err(error) => return eprintln!("SKIPPED: {name}: mkfs.ext4: {error}"),
    }
    let block = Block::open(&disk, DiskAccess::ReadWrite, "ext4").unwrap();
    let script = "$b mount -t ext4 -o discard /dev/vda /mnt || $b echo cannot mount
cd /mnt; $b mkdir -p d/e; $b cp /bin/busybox d/e/copy
i=0; while [ $i -lt 200 ]; do $b echo $i > d/n$i; i=$((i + 1)); done
$b tar -cf all.tar d; $b rm -r d; $b sync; $b tar -xf all.tar; $b rm all.tar
$b fstrim /mnt && $b echo trimmed
cd /; $b umount /mnt && $b mount -t ext4 /dev/vda /mnt && $b cmp /bin/busybox /mnt/d/e/copy && $b echo same
$b ls /mnt/d | $b wc -l; $b umount /mnt
/exit";
    let (machine, console) = boot(kernel.vmlinux(), &[Device::Block(block)], 128, script);
    exits(&machine, &console);
    let text = console.text();
    for line in ["trimmed", "same", "201"] {
        assert!(text.lines().any(|seen| seen.trim() == line), "{line} is missing in:\n{text}");
    }
    let checked = e2fs("fsck.ext4", &["-f", "-n"]).unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).unwrap());
    assert!(blocks * 512 < 20 << 20, "{blocks} blocks: what was trimmed is a hole");
}

/// Memory of this process that is not shared, in bytes.
fn private_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_balloon_gives_memory_to_the_host_and_back() {
    let Some(kernel) = our_kernel("a_balloon_gives_memory_to_the_host_and_back") else { return };
    const MIB: u64 = 1 << 20;
    let balloon = Balloon::new().unwrap();
    let script = "$b mount -t tmpfs -o size=200m none /mnt
$b dd if=/dev/zero of=/mnt/file bs=1M count=120 2>/dev/null; $b echo filled
until [ -e /mnt/gone ]; do $b sleep 0.2; $b rm /mnt/file 2>/dev/null && $b touch /mnt/gone; done
$b echo removed
until [ $($b awk '/MemFree/{print int($2/1024)}' /proc/meminfo) -lt 90 ]; do $b sleep 0.2; done
$b echo smaller
until [ $($b awk '/MemFree/{print int($2/1024)}' /proc/meminfo) -gt 190 ]; do $b sleep 0.2; done
$b dd if=/dev/zero of=/mnt/file bs=1M count=120 2>/dev/null && $b echo filled again
/exit";
    let (machine, console) = boot(kernel.vmlinux(), &[Device::Balloon(balloon.clone())], 256, script);
    until("the file", &console, || console.text().contains("filled"));
    let full = private_bytes();
    assert!(full > 120 * MIB, "{full}");
    // Free pages are reported about two seconds after they became free.
    until("the report", &console, || balloon.reported_bytes() > 80 * MIB);
    until("the memory", &console, || private_bytes() + 80 * MIB < full);
    let statistics = balloon.statistics(PATIENCE).expect("the guest's statistics");
    let (total, free) = (statistics.total_bytes.unwrap(), statistics.free_bytes.unwrap());
    assert!(total > 200 * MIB && free > 120 * MIB && free < total, "{statistics:?}");
    balloon.set_target_bytes(160 * MIB);
    until("the balloon", &console, || balloon.actual_bytes() == 160 * MIB);
    until("less memory", &console, || console.text().contains("smaller"));
    assert!(private_bytes() < 100 * MIB, "{}", private_bytes());
    balloon.set_target_bytes(0);
    exits(&machine, &console);
    assert!(console.text().contains("filled again"));
    assert_eq!(balloon.actual_bytes(), 0);
}

#[test]
fn a_terminal_passes_lines_and_its_size() {
    let Some(kernel) = our_kernel("a_terminal_passes_lines_and_its_size") else { return };
    let said = Console::default();
    let terminal = console::Console::new(Box::new(said.clone())).unwrap();
    let script = "exec < /dev/hvc0 > /dev/hvc0 2>&1
$b stty -echo; $b echo terminal
until [ \"$($b stty size 2>&1)\" = '25 80' ]; do $b sleep 0.1; done; $b echo ready
read line; $b echo got $line
until [ \"$($b stty size)\" = '43 132' ]; do $b sleep 0.1; done
$b echo resized; read line; $b echo then $line; $b seq 1 3000
/exit";
    let (machine, console) = boot(kernel.vmlinux(), &[Device::Console(terminal.clone())], 128, script);
    until("the terminal", &console, || said.text().contains("ready"));
    assert_eq!(terminal.send(b"hello\n"), 6);
    until("the line", &console, || said.text().contains("got hello"));
    terminal.resize(132, 43);
    until("the size", &console, || said.text().contains("resized"));
    terminal.send(b"last line\n");
    exits(&machine, &console);
    let text = said.text().replace('\r', "");
    assert!(text.starts_with("terminal\nready\n"), "{text}");
    assert!(text.contains("then last line\n1\n2\n"), "{text}");
    let numbers: Vec<&str> = text.lines().rev().take(3000).collect();
    assert!((1..=3000).rev().map(|n| n.to_string()).eq(numbers.iter().map(ToString::to_string)), "{text}");
}

#[test]
fn two_guests_reach_each_other_over_a_bridge() {
    let name = "two_guests_reach_each_other_over_a_bridge";
    let Some(kernel) = our_kernel(name) else { return };
    if !in_own_network(name) {
        return;
    }
    on_host("brctl addbr bridge");
    let (one, two) = (Device::Net(card(1)), Device::Net(card(2)));
    on_host("ip link set bridge up");
    let script = |own: u32, rest: &str| {
        format!(
            "$b ip addr add 10.0.0.{own}/24 dev eth0; $b ip link set eth0 up; $b cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address\n{rest}\n/exit"
        )
    };
    let serve = "$b mkdir /www; $b seq 1 100000 > /www/file; $b sha256sum < /www/file
$b httpd -p 80 -h /www; while :; do $b sleep 1; done";
    let ask = "until $b ping -c 1 -W 1 10.0.0.1; do $b sleep 0.2; done
$b ping -c 5 -s 1300 10.0.0.1; $b ping -c 2 -s 9000 10.0.0.1
until $b wget -q -O /got http://10.0.0.1/file; do $b sleep 0.2; done; $b sha256sum < /got";
    let (first, first_console) = boot(kernel.vmlinux(), &[one], 128, &script(1, serve));
    let (second, second_console) = boot(kernel.vmlinux(), &[two], 128, &script(2, ask));
    exits(&second, &second_console);
    assert_eq!(first.stop(), End::Stopped, "{}", first_console.text());
    let (one, two) = (first_console.text(), second_console.text());
    assert!(one.contains("1400") && one.contains("52:4e:00:00:00:01"), "{one}");
    assert!(two.contains("5 packets received") && two.contains("2 packets received"), "{two}");
    let sum = |text: &str| text.lines().find(|line| line.trim_end().ends_with("  -")).map(str::to_owned);
    assert!(sum(&one).is_some() && sum(&one) == sum(&two), "{one}\n{two}");
}

#[test]
fn a_guest_that_writes_garbage_into_registers_and_rings_ends_as_it_wants() {
    let name = "a_guest_that_writes_garbage_into_registers_and_rings_ends_as_it_wants";
    let Some(kernel) = our_kernel(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let block = Block::open(&folder.path().join("disk"), DiskAccess::ReadWrite, "").unwrap();
    let share = Arc::new(Share::open_dir(folder.path(), Access::ReadWrite).unwrap());
    let terminal = console::Console::new(Box::new(std::io::sink())).unwrap();
    let devices = [
        Device::Rng,
        Device::P9 { tag: "work".into(), share },
        Device::Block(block),
        Device::Balloon(Balloon::new().unwrap()),
        Device::Console(terminal),
    ];
    // Each device: as it is while Linux drives it, then set up anew with rings at odd places and kicked.
    let script = "$b awk 'BEGIN {
  srand(7); split(\"4 8 16 32 36 48 52 56 68 80 96 100 112 128 132 144 148 160 164 252 256 260 264\", r);
  for (d = 0; d < 5; d++) for (i = 0; i < 24; i++) {
    v = i % 3 ? int(rand() * 16) : int(rand() * 2147483647);
    printf \"0xd%07x %d %d\\n\", d * 4096 + r[1 + int(rand() * 23)], i % 7 ? 32 : 8 * (1 + i % 2), v;
    if (i % 12 == 11) for (s = 0; s < 16; s = s * 2 + 1) printf \"0xd%07x 32 %d\\n\", d * 4096 + 112, s;
    if (i % 12 == 11) for (q = 0; q < 4; q++) printf \"0xd%07x 32 %d\\n\", d * 4096 + 80, q;
  }
}' | while read address width value; do $b devmem $address $width $value || $b echo no such write; done
$b devmem 0xd0000000; $b echo still here; /exit";
    let (machine, console) = boot(kernel.vmlinux(), &devices, 128, script);
    let end =
        machine.wait(Some(Instant::now() + PATIENCE)).unwrap_or_else(|| panic!("hangs:\n{}", console.text()));
    // Linux itself may fall over what its devices then do: the machine has ended either way, and in good order.
    assert!(matches!(end, End::Exit(42) | End::Panic(_) | End::Reset | End::TripleFault { .. }), "{end}");
    assert!(!console.text().contains("no such write"), "{}", console.text());
    // "virt": the registers were reached.
    assert!(end != End::Exit(42) || console.text().contains("0x74726976"), "{}", console.text());
    machine.stop();
}

/// What is in a folder: names, kinds, contents.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            all.extend(tree(&path).into_iter().map(|(below, what)| (format!("{name}/{below}"), what)));
        } else if kind.is_symlink() {
            all.push((name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
        } else {
            all.push((name, fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

/// Run by the host's busybox in a folder of the host, and by the guest's in a share.
const QUICK: &str = include_str!("guest/quick.sh");

#[test]
fn busybox_works_over_9p_and_virtio_fs_as_on_the_host() {
    let name = "busybox_works_over_9p_and_virtio_fs_as_on_the_host";
    let Some(kernel) = our_kernel(name) else { return };
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    folders.iter().for_each(|folder| fs::write(folder.path().join("quick.sh"), QUICK).unwrap());
    let [here, over_9p, over_fs] = &folders;
    let run =
        Command::new("/bin/busybox").args(["sh", "quick.sh"]).current_dir(here.path()).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let share =
        |folder: &tempfile::TempDir| Arc::new(Share::open_dir(folder.path(), Access::ReadWrite).unwrap());
    let devices = [
        Device::P9 { tag: "nine".into(), share: share(over_9p) },
        Device::Fs { tag: "fuse".into(), share: share(over_fs) },
    ];
    let script = "$b mkdir -p /nine /fuse
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,access=any,cache=mmap nine /nine
$b mount -t virtiofs fuse /fuse
for share in /nine /fuse; do cd $share; $b sh quick.sh; $b echo $share $?; cd /; done
$b umount /nine && $b umount /fuse && $b echo let go; /exit";
    let (machine, console) = boot(kernel.vmlinux(), &devices, 128, script);
    exits(&machine, &console);
    let text = console.text();
    for line in ["/nine 0", "/fuse 0", "let go"] {
        assert!(text.lines().any(|seen| seen.trim() == line), "{line} is missing in:\n{text}");
    }
    assert_same(here.path(), over_9p.path());
    assert_same(here.path(), over_fs.path());
}

/// Run by the host's shell, with the host's tar, compiler and Python, in a folder of the host and in the guest: both
/// must see and leave the same.
const EXERCISER: &str = include_str!("guest/exerciser.sh");

/// The same of stress-ng.
const STRESS: &str = "sh stress.sh /tmp/stress > stress-said; cat stress-said; tail -n 60 /tmp/stress";
const STRESSORS: &str = include_str!("guest/stress.sh");

/// Runs `script` (of [`EXERCISER`] or [`STRESSORS`]) in a guest whose root is the host's, over `device`, and on the host;
/// compares what they leave.
#[track_caller]
fn exercise(
    script: &str,
    kernel: std::path::PathBuf,
    root: Device,
    work: impl FnOnce(Arc<Share>) -> Device,
    mounts: [&str; 2],
) {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&here, &there] {
        fs::write(folder.path().join("exerciser.sh"), EXERCISER).unwrap();
        fs::write(folder.path().join("stress.sh"), STRESSORS).unwrap();
    }
    let run = Command::new("sh").args(["-c", script]).current_dir(here.path()).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let share = Arc::new(Share::open_dir(there.path(), Access::ReadWrite).unwrap());
    let [root_mount, work_mount] = mounts;
    // A share ends at mount points of the host, so /proc and the like cannot be mounted over its own.
    let guest_script = format!(
        "$b mkdir /new && $b mount -t tmpfs none /new && cd /new && $b mkdir usr etc work proc dev tmp
$b mount {root_mount} root /mnt && $b mount {work_mount} work work || $b echo cannot mount
for name in usr etc; do $b mount -o bind /mnt/$name $name; done
for name in bin sbin lib lib64; do $b ln -s usr/$name $name; done
$b mount -t proc proc proc; $b mount -t devtmpfs dev dev; $b mount -t tmpfs tmp tmp
$b chroot . /bin/sh -c 'cd /work; PATH=/usr/local/bin:/usr/bin:/bin; ({script}) > /tmp/log 2>&1; echo status $?; tail -n 100 /tmp/log'
$b sync; /exit"
    );
    let (machine, console) = boot(kernel, &[root, work(share)], 512, &guest_script);
    let end = machine.wait(Some(Instant::now() + 5 * PATIENCE));
    assert_eq!(end, Some(End::Exit(42)), "{}", console.text());
    assert!(console.text().contains("status 0"), "{}", console.text());
    assert_same(here.path(), there.path());
}

/// Asserts that two folders hold the same.
#[track_caller]
fn assert_same(here: &Path, there: &Path) {
    let (expected, found) = (tree(here), tree(there));
    let names = |tree: &[(String, Vec<u8>)]| tree.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found));
    for ((name, host), (_, guest)) in expected.iter().zip(&found) {
        let text = String::from_utf8_lossy;
        assert!(host == guest, "{name}:\n{}\n--- and in the guest ---\n{}", text(host), text(guest));
    }
}

/// The root and the work folder over 9p.
fn over_9p(script: &str, kernel: std::path::PathBuf) {
    let root = Arc::new(Share::open_dir(Path::new("/"), Access::ReadOnly).unwrap());
    let root = Device::P9 { tag: "root".into(), share: root };
    let work = |share| Device::P9 { tag: "work".into(), share };
    let mounts = [
        "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro",
        "-t 9p -o trans=virtio,version=9p2000.L,msize=512000",
    ];
    exercise(script, kernel, root, work, mounts);
}

/// Both over virtio-fs.
fn over_virtio_fs(script: &str, kernel: std::path::PathBuf) {
    let root = Arc::new(Share::open_dir(Path::new("/"), Access::ReadOnly).unwrap());
    let root = Device::Fs { tag: "root".into(), share: root };
    let work = |share| Device::Fs { tag: "work".into(), share };
    exercise(script, kernel, root, work, ["-t virtiofs -o ro", "-t virtiofs"]);
}

#[test]
#[ignore = "takes minutes in the rig: cargo xtask rig test --test linux_devices programs_work -- --ignored"]
fn programs_work_on_a_directory_over_9p_as_on_the_host() {
    let name = "programs_work_on_a_directory_over_9p_as_on_the_host";
    let Some(kernel) = our_kernel(name) else { return };
    over_9p("sh exerciser.sh", kernel.vmlinux());
}

#[test]
#[ignore = "takes minutes in the rig: cargo xtask rig test --test linux_devices programs_work -- --ignored"]
fn programs_work_on_a_directory_over_virtio_fs_as_on_the_host() {
    let name = "programs_work_on_a_directory_over_virtio_fs_as_on_the_host";
    let Some(kernel) = our_kernel(name) else { return };
    over_virtio_fs("sh exerciser.sh", kernel.vmlinux());
}

#[test]
#[ignore = "takes minutes in the rig: cargo xtask rig test --test linux_devices programs_work -- --ignored"]
fn programs_work_as_stress_ng_over_9p_as_on_the_host() {
    let name = "programs_work_as_stress_ng_over_9p_as_on_the_host";
    let Some(kernel) = our_kernel(name) else { return };
    over_9p(STRESS, kernel.vmlinux());
}

#[test]
#[ignore = "takes minutes in the rig: cargo xtask rig test --test linux_devices programs_work -- --ignored"]
fn programs_work_as_stress_ng_over_virtio_fs_as_on_the_host() {
    let name = "programs_work_as_stress_ng_over_virtio_fs_as_on_the_host";
    let Some(kernel) = our_kernel(name) else { return };
    over_virtio_fs(STRESS, kernel.vmlinux());
}
