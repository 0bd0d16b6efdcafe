//! A distribution's kernel as a guest kernel: its ELF, its bzImage, and an initramfs with the modules that a guest
//! needs, numbered in the order of insertion for whoever is PID 1.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::cache::{Cache, short_digest};
use crate::compact::compact;
use crate::cpio::Cpio;
use crate::debian::Package;
use crate::image;
use crate::modules::{Module, Modules};

/// What a guest needs of a kernel that has everything in modules.
pub const GUEST_MODULES: &[&str] = &[
    "virtio_mmio",
    "9pnet_virtio",
    "9p",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtiofs",
    "overlay",
];

/// A kernel with its modules, as a package or an installation lays them out below a root folder.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE` are below it.
    pub root: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

impl Distribution {
    /// The kernel `package`, fetched and unpacked into `cache`.
    ///
    /// # Errors
    /// Where the package cannot be fetched or holds no kernel.
    pub fn fetch(cache: &Cache, package: &Package) -> Result<Self, Error> {
        let root = cache.entry(&package.key(), |into| package.unpack(into))?;
        let release = package.name.trim_start_matches("linux-image-").trim_end_matches("-unsigned");
        Ok(Self { root, release: release.to_owned() })
    }

    /// The kernel `release` that is installed below `root` (`/`).
    #[must_use]
    pub fn installed(root: &Path, release: &str) -> Self {
        Self { root: root.to_owned(), release: release.to_owned() }
    }

    /// The bzImage.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The ELF file inside the bzImage.
    ///
    /// # Errors
    /// Where it cannot be read or unpacked.
    pub fn vmlinux(&self) -> Result<Vec<u8>, Error> {
        let path = self.bzimage();
        image::elf_of_bzimage(&fs::read(&path).map_err(Error::file("reading", &path))?)
    }

    /// `wanted` and what they need, in the order of insertion.
    ///
    /// # Errors
    /// Where a module is missing.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        Modules::open(&self.root.join("lib/modules").join(&self.release))?.closure(wanted)
    }
}

/// An imported kernel: `vmlinux`, `bzImage` and `modules.cpio` in one folder.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The folder.
    pub folder: PathBuf,
}

impl Imported {
    /// The ELF file: the 64-bit entry, and PVH where the kernel has it.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// As the distribution ships it.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.folder.join("bzImage")
    }

    /// An initramfs with the modules; see [`archive`].
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.folder.join("modules.cpio")
    }
}

/// The imported kernels in `cache`, newest first.
#[must_use]
pub fn imported(cache: &Cache) -> Vec<Imported> {
    let entries = fs::read_dir(cache.root()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut found: Vec<_> =
        ours.map(|entry| (entry.metadata().and_then(|data| data.modified()).ok(), entry.path())).collect();
    found.sort();
    found.into_iter().rev().map(|(_, folder)| Imported { folder }).collect()
}

/// How the names of imported kernels begin.
const PREFIX: &str = "imported-";

/// Imports `kernel` with [`GUEST_MODULES`] into `cache`, once.
///
/// # Errors
/// Where a file cannot be read or a module is missing.
pub fn import(cache: &Cache, kernel: &Distribution) -> Result<Imported, Error> {
    let path = kernel.bzimage();
    let bzimage = fs::read(&path).map_err(Error::file("reading", &path))?;
    let name = format!(
        "{PREFIX}{}-{}",
        kernel.release,
        short_digest(&[&bzimage, GUEST_MODULES.join(",").as_bytes()])
    );
    let folder = cache.entry(&name, |into| {
        let write = |name: &str, bytes: &[u8]| {
            let path = into.join(name);
            fs::write(&path, bytes).map_err(Error::file("writing", &path))
        };
        write("vmlinux", &compact(&image::elf_of_bzimage(&bzimage)?)?)?;
        write("bzImage", &bzimage)?;
        write("modules.cpio", &archive(&kernel.modules(GUEST_MODULES)?))
    })?;
    Ok(Imported { folder })
}

/// `modules/000-virtio.ko`, `modules/001-…`: inserted in the order of their names.
#[must_use]
pub fn archive(modules: &[Module]) -> Vec<u8> {
    let mut cpio = Cpio::new();
    cpio.folder("modules", 0o755);
    for (number, module) in modules.iter().enumerate() {
        cpio.file(&format!("modules/{number:03}-{}.ko", module.name), 0o644, &module.elf);
    }
    cpio.finish()
}
