//! QEMU's command line, and a run of it from start to status.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::console::Stream;
use super::job::{Job, tag};
use super::stock::Stock;
use super::{MachineArgs, Outcome, initramfs};

const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is installed; where it is not, it is installed by apt-get if that works.
pub(crate) fn require_qemu() -> anyhow::Result<()> {
    if qemu_is_installed() {
        return Ok(());
    }
    eprintln!("rig: installing qemu-system-x86");
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends", "qemu-system-x86"]);
    let status = install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) || !qemu_is_installed() {
        bail!("{QEMU} is not installed; as root: apt-get install qemu-system-x86");
    }
    Ok(())
}

/// Whether QEMU can be started.
pub(crate) fn qemu_is_installed() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Boots L1, runs `job`, and returns how it ended.
pub(crate) fn run(args: &MachineArgs, stock: &Stock, job: &Job) -> anyhow::Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("novum-rig-").tempdir()?;
    let initrd = folder.path().join("initrd");
    let base = fs::read(&stock.initramfs).context("reading the rig's initramfs")?;
    fs::write(&initrd, [base, initramfs::job(&job.script, &job.share_list())].concat())?;
    let log: Box<dyn std::io::Write + Send> =
        if args.verbose { Box::new(std::io::stderr()) } else { Box::new(std::io::sink()) };
    let out = Stream::open(folder.path(), "out", Box::new(std::io::stdout()))?;
    let err = Stream::open(folder.path(), "err", Box::new(std::io::stderr()))?;
    let console = Stream::open(folder.path(), "console", log)?;
    let status = folder.path().join("status");

    let ports = [("out", &*out.path), ("err", &*err.path), ("status", &*status)];
    let mut command = command(args, stock, &initrd, job);
    connect(&mut command, &console.path, &ports);
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {QEMU}"))?;
    let ended = wait(&mut child, Duration::from_secs(args.timeout))?;
    out.finish();
    err.finish();
    let last_words = console.finish();
    if !ended {
        return Ok(Outcome::TimedOut);
    }
    let status = fs::read_to_string(&status).unwrap_or_default();
    Ok(status.trim().parse().map_or(Outcome::Died(last_words), Outcome::Exit))
}

fn command(args: &MachineArgs, stock: &Stock, initrd: &Path, job: &Job) -> Command {
    let mut qemu = Command::new(QEMU);
    if args.icount {
        qemu.args([
            "-accel",
            "tcg",
            "-icount",
            "shift=0,sleep=on",
            "-rtc",
            "clock=vm,base=2026-01-01",
            "-seed",
            "1",
        ]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi"]);
    }
    // q35, because the smaller `microvm` hangs now and then.
    qemu.args(["-M", "q35", "-cpu", "max,+svm,+npt", "-nodefaults", "-no-reboot", "-display", "none"]);
    qemu.args(["-smp", &args.cpus.to_string(), "-m", &args.memory.to_string()]);
    let append = "console=ttyS0 panic=-1 loglevel=4 mitigations=off nokaslr no_timer_check";
    qemu.arg("-kernel").arg(&stock.kernel).arg("-initrd").arg(initrd).args(["-append", append]);
    share(&mut qemu, "host", Path::new("/"), ",readonly=on");
    job.shares.iter().enumerate().for_each(|(number, path)| share(&mut qemu, &tag(number), path, ""));
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
    qemu
}

/// The serial port and the named ports, each into its own file.
fn connect(qemu: &mut Command, console: &Path, ports: &[(&str, &Path)]) {
    let file = |id: &str, path: &Path| format!("file,id={id},path={}", path.display());
    qemu.args(["-chardev", &file("console", console), "-serial", "chardev:console"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for (name, path) in ports {
        qemu.args(["-chardev", &file(name, path)]);
        qemu.args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
    }
}

fn share(qemu: &mut Command, tag: &str, path: &Path, options: &str) {
    // A comma in a value is written twice.
    let path = path.display().to_string().replace(',', ",,");
    let fsdev = format!("local,id={tag},path={path},security_model=none,multidevs=remap{options}");
    qemu.args(["-fsdev", &fsdev, "-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// Waits for the end; after `timeout` kills the machine and returns false.
fn wait(child: &mut Child, timeout: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        // A child's end cannot be waited for with a time limit in std; this costs nothing beside QEMU.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}
