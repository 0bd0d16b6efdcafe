//! The initramfs of L1: busybox, modules and the init script, then, as a second archive, the job.

use novum_kernel::cache::short_digest;
use novum_kernel::cpio::Cpio;
use novum_kernel::{import, modules::Module};

/// PID 1 of L1.
const INIT: &str = include_str!("init.sh");

/// Names what [`base`] makes of `modules`, apart from the packages' versions.
pub(crate) fn digest(modules: &[&str]) -> String {
    short_digest(&[INIT.as_bytes(), modules.join(",").as_bytes()])
}

/// The part that does not change from run to run.
pub(crate) fn base(busybox: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut cpio = Cpio::new();
    cpio.folder("bin", 0o755).folder("dev", 0o755).device("dev/console", 0o600, 5, 1);
    cpio.device("dev/null", 0o666, 1, 3);
    cpio.file("bin/busybox", 0o755, busybox).file("init", 0o755, INIT.as_bytes());
    [cpio.finish(), import::archive(modules)].concat()
}

/// The part that is made for one run.
pub(crate) fn job(script: &str, shares: &str) -> Vec<u8> {
    let mut cpio = Cpio::new();
    cpio.file("job", 0o644, script.as_bytes()).file("shares", 0o644, shares.as_bytes());
    cpio.finish()
}
