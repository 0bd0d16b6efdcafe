//! Which kernel a guest boots: the small one, else the newest of a distribution that was imported.

use std::path::{Path, PathBuf};

use novum_kernel::{Cache, build, import};

/// A kernel's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The vmlinux.
    pub image: PathBuf,
    /// An initramfs with its modules, where it is one of a distribution.
    pub modules: Option<PathBuf>,
}

/// There is no guest kernel.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no guest kernel in {}; make one with `novum kernel build` (some minutes, once) or take over a \
     distribution's with `novum kernel import`",
    .0.display()
)]
pub struct KernelMissing(pub PathBuf);

impl Kernel {
    /// The best one of those that `novum kernel` keeps in `folder`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(folder: &Path) -> Result<Self, KernelMissing> {
        let cache = Cache::new(folder);
        if let Some(kernel) = build::built(&cache) {
            return Ok(Self { image: kernel.vmlinux(), modules: None });
        }
        match import::imported(&cache).into_iter().next() {
            Some(kernel) => Ok(Self { image: kernel.vmlinux(), modules: Some(kernel.modules()) }),
            None => Err(KernelMissing(folder.to_owned())),
        }
    }
}
