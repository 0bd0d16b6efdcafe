//! `novum kernel`: guest kernels for the linux engine.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Subcommand;
use novum_kernel::debian::Package;
use novum_kernel::import::{self, Distribution};
use novum_kernel::{Cache, build};
use serde_json::json;

use super::Global;
use super::error::Error;
use super::output;

/// Build, import and list kernels for Linux guests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum kernel build                              the small kernel, from Debian's linux-source package
  novum kernel import                             the kernel that runs this machine, with the modules a guest needs
  novum kernel import --package linux-image-cloud-amd64
  novum kernel list")]
pub(super) struct Args {
    /// Where kernels are kept [default: $XDG_CACHE_HOME/novum/kernels or ~/.cache/novum/kernels]
    #[arg(long, global = true, value_name = "DIR", env = "NOVUM_KERNEL_DIR")]
    kernel_dir: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Build the small kernel; takes some minutes once, and needs gcc, make, flex, bison, bc, xz-utils and binutils
    Build,
    /// Import a distribution's kernel
    Import {
        /// A Debian package to fetch (not installed), or a meta package that depends on one
        #[arg(long, value_name = "NAME", conflicts_with_all = ["release", "root"])]
        package: Option<String>,
        /// The installed kernel to import, as `uname -r` says it [default: the running one]
        #[arg(long, value_name = "RELEASE")]
        release: Option<String>,
        /// Below which folder boot/ and lib/modules/ are
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// List what is there
    List,
}

/// Where this user's kernels are kept.
pub(super) fn default_dir() -> Result<PathBuf, Error> {
    Ok(super::run::default_cache_dir()?.join("kernels"))
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let folder = args.kernel_dir.clone().map_or_else(default_dir, Ok)?;
    let cache = Cache::new(folder);
    match &args.what {
        What::Build => made(global, "build", |say| Ok(build::build(&cache, say)?.folder))?,
        What::Import { package, release, root } => made(global, "import", |say| {
            let kernel = distribution(&cache, package.as_deref(), release.as_deref(), root, say)?;
            Ok(import::import(&cache, &kernel)?.folder)
        })?,
        What::List => list(global, &cache)?,
    }
    Ok(0)
}

/// Runs `make`, which names its steps, and prints the folder that came out.
fn made(
    global: &Global,
    action: &str,
    make: impl FnOnce(&mut dyn FnMut(&str)) -> Result<PathBuf, novum_kernel::Error>,
) -> Result<(), Error> {
    let start = Instant::now();
    let folder = make(&mut |step| output::note(format_args!("{step} ...")))?;
    let bytes = std::fs::metadata(folder.join("vmlinux")).map_or(0, |data| data.len());
    match global.json {
        true => output::json_line(&json!({
            "action": action, "folder": folder, "vmlinux_bytes": bytes, "seconds": start.elapsed().as_secs_f64(),
        })),
        false => output::line(format_args!("{} (vmlinux: {} KiB)", folder.display(), bytes / 1024)),
    }
}

fn distribution(
    cache: &Cache,
    package: Option<&str>,
    release: Option<&str>,
    root: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Distribution, novum_kernel::Error> {
    match package {
        Some(name) => {
            // `linux-image-amd64` is a meta package; `linux-image-6.1.0-56-amd64` is the kernel itself.
            let package = Package::kernel_of(name).or_else(|_| Package::candidate(name))?;
            say(&format!("fetching {} {}", package.name, package.version));
            Distribution::fetch(cache, &package)
        }
        None => {
            let running = rustix::system::uname();
            let release = release.map_or_else(|| running.release().to_string_lossy(), Into::into);
            Ok(Distribution::installed(root, &release))
        }
    }
}

fn list(global: &Global, cache: &Cache) -> Result<(), Error> {
    let built = build::built(cache).map(|kernel| ("built", kernel.folder));
    let imported = import::imported(cache).into_iter().map(|kernel| ("imported", kernel.folder));
    for (kind, folder) in built.into_iter().chain(imported) {
        match global.json {
            true => output::json_line(&json!({ "kind": kind, "folder": folder }))?,
            false => output::line(format_args!("{kind:<9} {}", folder.display()))?,
        }
    }
    Ok(())
}
