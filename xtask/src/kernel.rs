//! `cargo xtask kernel`: the kernels that the rig's tests boot, as `novum kernel` makes them, without building novum.

use std::process::ExitCode;

use novum_kernel::debian::Package;
use novum_kernel::import::Distribution;
use novum_kernel::{Cache, build, import};

use crate::rig::cache_home;

/// Arguments of `cargo xtask kernel`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only import Debian's kernel (a download), do not build ours (minutes of compiling).
    #[arg(long)]
    import_only: bool,
}

/// Builds our kernel and imports Debian's into the cache, where they are missing.
///
/// # Errors
/// Where a package cannot be fetched or the build fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cache = Cache::new(cache_home()?.join("novum/kernels"));
    if import::imported(&cache).is_empty() {
        let package = Package::kernel_of("linux-image-amd64")?;
        eprintln!("kernel: fetching {}", package.key());
        let kernel = Distribution::fetch(&cache, &package)?;
        let imported = import::import(&cache, &kernel)?;
        // 400 MB that nobody needs again.
        std::fs::remove_dir_all(&kernel.root)?;
        println!("{}", imported.folder.display());
    }
    if !args.import_only && build::built(&cache).is_none() {
        let kernel = build::build(&cache, &mut |step| eprintln!("kernel: {step}"))?;
        println!("{}", kernel.folder.display());
    }
    Ok(ExitCode::SUCCESS)
}
