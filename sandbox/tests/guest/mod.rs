//! What the tests of Linux guests share: kernels, an initramfs with busybox, a console that can be read, a program that
//! ends the machine with an exit code.
#![allow(dead_code)]

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use novum_kernel::cpio::Cpio;
use novum_kernel::{Cache, build, import};
use novum_sandbox::LogSink;
use novum_sandbox::linux::boot::{BootSource, EntryKind, Initramfs};
use novum_sandbox::linux::guest::{GuestConfig, Kernel, Root};
use novum_sandbox::linux::layout::EXIT_PORT;
use novum_sandbox::linux::net::{MacAddress, Net};
use novum_sandbox::linux::{Device, End, Machine, MachineConfig};

/// Far above what a boot takes in the rig.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The cache of kernels, where guests can run: only where ring 0 runs on the processor. The rig says so.
pub(crate) fn kernels(test: &str) -> Option<Cache> {
    if std::env::var_os("NOVUM_RIG").is_none() {
        eprintln!("SKIPPED: {test}: Linux guests are tested in the rig (cargo xtask rig test)");
        return None;
    }
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = home("XDG_CACHE_HOME").or_else(|| Some(home("HOME")?.join(".cache")))?;
    Some(Cache::new(cache.join("novum/kernels")))
}

/// Our kernel.
pub(crate) fn our_kernel(test: &str) -> Option<build::Kernel> {
    let kernel = build::built(&kernels(test)?);
    if kernel.is_none() {
        eprintln!("SKIPPED: {test}: there is no guest kernel (novum kernel build)");
    }
    kernel
}

/// Debian's kernel, imported.
pub(crate) fn debian_kernel(test: &str) -> Option<import::Imported> {
    let kernel = import::imported(&kernels(test)?).into_iter().next();
    if kernel.is_none() {
        eprintln!("SKIPPED: {test}: there is no imported kernel (novum kernel import)");
    }
    kernel
}

/// A console that can be read afterwards.
#[derive(Clone, Default)]
pub(crate) struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Console {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Waits until `seen` holds.
#[track_caller]
pub(crate) fn until(what: &str, console: &Console, mut seen: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !seen() {
        assert!(Instant::now() < deadline, "{what} does not come:\n{}", console.text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command's standard error.
#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A guest with an agent whose root is this machine's `/`, read-only.
pub(crate) fn with_agent(kernel: Kernel, hostname: &str) -> GuestConfig {
    GuestConfig {
        kernel,
        memory_bytes: 256 << 20,
        vcpus: 1,
        root: Root::Layers(vec!["/".into()]),
        directories: Vec::new(),
        hostname: hostname.into(),
        machine_id: None,
        network: None,
        balloon: false,
        patience: PATIENCE,
    }
}

/// Runs the test `name` of this program again, in a network of its own; true there.
pub(crate) fn in_own_network(name: &str) -> bool {
    if std::env::var_os("NOVUM_TEST_OWN_NETWORK").is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let mut again = std::process::Command::new("unshare");
    again.arg("--net").arg(program).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let status = again.env("NOVUM_TEST_OWN_NETWORK", "1").status().expect("unshare of util-linux");
    assert!(status.success(), "{status}");
    false
}

/// busybox's `words` on the host.
pub(crate) fn on_host(words: &str) {
    let done = std::process::Command::new("/bin/busybox").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "{words}: {done:?}");
}

/// A card on a tap that is made now, on the bridge `bridge`.
pub(crate) fn card(number: u32) -> Net {
    let tap = format!("tap{number}");
    let net = Net::open(&tap, MacAddress::of(number), 1400).unwrap();
    on_host(&format!("brctl addif bridge {tap}"));
    on_host(&format!("ip link set {tap} up"));
    net
}

/// busybox as init, running `script`, in which `$b` is busybox and `/exit` ends the machine with code 42.
pub(crate) fn initramfs(script: &str) -> Initramfs {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut cpio = Cpio::new();
    for folder in ["bin", "dev", "proc", "sys", "mnt"] {
        cpio.folder(folder, 0o755);
    }
    cpio.device("dev/console", 0o600, 5, 1).file("bin/busybox", 0o755, &busybox).file(
        "exit",
        0o755,
        &exit_program(42),
    );
    let init = format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in /modules/*; do [ -e $m ] && $b insmod $m; done
{script}
"
    );
    cpio.file("init", 0o755, init.as_bytes());
    Initramfs::Bytes(cpio.finish().into())
}

/// A static program that writes `code` to the exit port.
fn exit_program(code: u8) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let port = EXIT_PORT.to_le_bytes();
    let code = [
        &[0xbf, port[0], port[1], 0, 0][..],         // mov edi, EXIT_PORT
        &[0xbe, 1, 0, 0, 0, 0xba, 1, 0, 0, 0],       // mov esi, 1; mov edx, 1
        &[0xb8, 173, 0, 0, 0, 0x0f, 0x05],           // mov eax, 173 (ioperm); syscall
        &[0x66, 0xba, port[0], port[1], 0xb0, code], // mov dx, EXIT_PORT; mov al, code
        &[0xee, 0xeb, 0xfe],                         // out dx, al; jmp $
    ]
    .concat();
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([BASE + HEADERS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    elf
}

/// A guest to boot.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) modules: Option<PathBuf>,
    pub(crate) entry: EntryKind,
    pub(crate) words: &'static str,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
    pub(crate) devices: Vec<Device>,
}

impl Guest {
    pub(crate) fn new(kernel: PathBuf) -> Self {
        Self {
            kernel,
            modules: None,
            entry: EntryKind::Linux64,
            words: "reboot=k",
            vcpus: 1,
            memory_mib: 128,
            devices: vec![Device::Rng],
        }
    }

    /// Boots with `script` as init.
    pub(crate) fn boot(&self, script: &str, console: &Console) -> Machine {
        Machine::boot(MachineConfig { console: Box::new(console.clone()), ..self.config(script) }).unwrap()
    }

    /// The machine whose init is `script`, with nobody to see its console.
    pub(crate) fn config(&self, script: &str) -> MachineConfig {
        let words = "console=ttyS0 panic=-1 tsc=reliable no_timer_check i8042.nokbd pci=off";
        let mut archives = vec![initramfs(script)];
        archives.extend(self.modules.clone().map(Initramfs::File));
        MachineConfig {
            boot: BootSource {
                kernel: self.kernel.clone(),
                initramfs: archives,
                command_line: format!("{words} {}", self.words),
                entry: self.entry,
            },
            memory_bytes: self.memory_mib << 20,
            vcpus: self.vcpus,
            pit: false,
            console: Box::new(std::io::sink()),
            devices: self.devices.clone(),
        }
    }

    /// Boots, runs `script` as init, returns how it ended and the console.
    pub(crate) fn run(&self, script: &str) -> (End, String) {
        let console = Console::default();
        let machine = self.boot(script, &console);
        let end = machine.wait(Some(Instant::now() + PATIENCE));
        let end = end.unwrap_or_else(|| panic!("the guest hangs:\n{}", console.text()));
        machine.stop();
        (end, console.text())
    }
}
