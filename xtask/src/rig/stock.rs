//! What the rig boots: Debian's kernel, its modules and busybox, fetched once and kept in
//! `$XDG_CACHE_HOME/novum/rig`, keyed by their versions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use novum_kernel::debian::Package;
use novum_kernel::import::Distribution;
use novum_kernel::{Cache, Error};

use super::initramfs;

/// Modules of L1: its disk-less root, its ports to us, KVM, what joins guests by a network, and a file system on a file:
/// neither tmpfs nor 9p keeps what the upper layer of a guest's overlay needs.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
    "kvm_amd",
    "tun",
    "bridge",
    "loop",
    "crc32c_generic",
    "ext4",
];

/// The files to boot L1 with.
pub(crate) struct Stock {
    /// The kernel's ELF file: it starts by PVH, without 3.5 s of decompression.
    pub(crate) kernel: PathBuf,
    /// The initramfs without the job.
    pub(crate) initramfs: PathBuf,
}

impl Stock {
    /// Those in the cache if there are any, else newly fetched. `NOVUM_RIG_REFRESH=1` asks the package sources for
    /// newer versions.
    pub(crate) fn fetch() -> anyhow::Result<Self> {
        let cache = Cache::new(cache_home()?.join("novum/rig"));
        let refresh = std::env::var_os("NOVUM_RIG_REFRESH").is_some_and(|value| value == "1");
        if let Some(ready) = newest(&cache).filter(|_| !refresh) {
            return Ok(Self::at(&ready));
        }
        let kernel = Package::kernel_of("linux-image-amd64")?;
        let busybox = Package::candidate("busybox-static")?;
        eprintln!("rig: fetching {} and {}", kernel.key(), busybox.key());
        let name = format!("l1-{}-{}-{}", kernel.key(), busybox.key(), initramfs::digest(MODULES));
        let entry = cache.entry(&name, |into| fill(&cache, &kernel, &busybox, into))?;
        Ok(Self::at(&entry))
    }

    fn at(entry: &Path) -> Self {
        Self { kernel: entry.join("vmlinux"), initramfs: entry.join("initramfs") }
    }
}

fn fill(cache: &Cache, kernel: &Package, busybox: &Package, into: &Path) -> Result<(), Error> {
    let distribution = Distribution::fetch(cache, kernel)?;
    let tools = cache.entry(&busybox.key(), |into| busybox.unpack(into))?;
    write(&into.join("vmlinux"), &distribution.vmlinux()?)?;
    let shell = tools.join("bin/busybox");
    let shell = fs::read(&shell).map_err(|source| Error::File { doing: "reading", path: shell, source })?;
    let modules = distribution.modules(MODULES)?;
    write(&into.join("initramfs"), &initramfs::base(&shell, &modules))?;
    // 400 MB that nobody needs again.
    fs::remove_dir_all(&distribution.root).map_err(|source| Error::File {
        doing: "removing",
        path: distribution.root.clone(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| Error::File { doing: "writing", path: path.to_owned(), source })
}

/// The newest complete set that this version of the rig made.
fn newest(cache: &Cache) -> Option<PathBuf> {
    let ending = format!("-{}", initramfs::digest(MODULES));
    let entries = fs::read_dir(cache.root()).ok()?.flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("l1-") && name.ends_with(&ending)
    });
    Some(ours.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())?.path())
}

/// `$XDG_CACHE_HOME`, or `~/.cache`.
pub(crate) fn cache_home() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| Some(set("HOME")?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep the rig's files")
}
