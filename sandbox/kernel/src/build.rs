//! The small guest kernel, built from Debian's `linux-source-6.1` with `guest.config`.
//!
//! A finished build is one cache entry, `guest-VERSION-DIGEST`, with `vmlinux` (stripped ELF), `bzImage` and
//! `config`. DIGEST covers guest.config, so a changed configuration is another kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, short_digest};
use crate::compact::compact;
use crate::debian::Package;
use crate::{Error, run};

/// The Debian package whose source is built.
pub const SOURCE_PACKAGE: &str = "linux-source-6.1";

/// Debian packages with the programs that a build runs.
pub const TOOLS: &[&str] = &["gcc", "make", "flex", "bison", "bc", "xz-utils", "binutils"];

/// What is changed in `make tinyconfig`.
const CONFIG: &str = include_str!("../guest.config");

/// What is changed in the source: (file, text that stands there once, what is put in its place).
const EDITS: &[(&str, &str, &str)] = &[
    // Memory of the kernel's image that is given back when it has booted is not overwritten first: a megabyte, and with it the
    // 3.5 MB between code and data, would become pages of the host for the sake of a debugging aid.
    ("arch/x86/mm/init.c", "POISON_FREE_INITMEM, what);", "-1, what);"),
];

/// Parts of the source tree that this build never reads, half of its size.
const UNREAD: &[&str] =
    &["*/drivers/gpu/drm/amd/include/*", "*/Documentation/*/*", "*/tools/testing/*", "*/sound/*/*/*.c"];

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The folder that holds it.
    pub folder: PathBuf,
}

impl Kernel {
    /// The ELF file, stripped: the 64-bit and the PVH entry.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The same kernel as a bzImage.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.folder.join("bzImage")
    }
}

/// The newest build of this configuration in `cache`, if there is one. Asks no package source.
#[must_use]
pub fn built(cache: &Cache) -> Option<Kernel> {
    let ending = format!("-{}", digest());
    let entries = fs::read_dir(cache.root()).ok()?.flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("guest-") && name.ends_with(&ending)
    });
    let newest = ours.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())?;
    Some(Kernel { folder: newest.path() })
}

/// Builds the kernel, unless `cache` has this configuration of the source version on offer. `say` gets one line per
/// step. Takes three minutes and 1.5 GB of the cache's file system on two cores.
///
/// # Errors
/// Where the source cannot be fetched, a tool is missing, the configuration does not fit or the build fails.
pub fn build(cache: &Cache, say: &mut dyn FnMut(&str)) -> Result<Kernel, Error> {
    let source = Package::candidate(SOURCE_PACKAGE)?;
    let name = format!("guest-{}-{}", source.version.replace([':', '/'], "_"), digest());
    let folder = cache.entry(&name, |into| {
        let work = tempfile::Builder::new().prefix(".build-").tempdir_in(cache.root());
        let work = work.map_err(Error::file("making a folder in", cache.root()))?;
        say(&format!("fetching {} {}", source.name, source.version));
        let tree = unpack_source(&source, work.path())?;
        let output = work.path().join("output");
        EDITS.iter().try_for_each(|edit| change(&tree, edit))?;
        say("configuring");
        configure(&tree, &output)?;
        say("compiling");
        make(&tree, &output, &["bzImage"])?;
        collect(&output, into)
    })?;
    Ok(Kernel { folder })
}

fn digest() -> String {
    let edits = EDITS.iter().flat_map(|(file, from, to)| [file, from, to]);
    let parts: Vec<&[u8]> = [CONFIG].iter().chain(edits).map(|part| part.as_bytes()).collect();
    short_digest(&parts)
}

/// One of [`EDITS`]; another source than the one that it was made for is refused.
fn change(tree: &Path, (file, from, to): &(&str, &str, &str)) -> Result<(), Error> {
    let path = tree.join(file);
    let text = fs::read_to_string(&path).map_err(Error::file("reading", &path))?;
    if text.matches(from).count() != 1 {
        return Err(Error::format("the kernel's source", format!("{file} does not have {from:?} once")));
    }
    fs::write(&path, text.replace(from, to)).map_err(Error::file("writing", &path))
}

/// Fetches the package and unpacks the archive in it; returns the source tree.
fn unpack_source(source: &Package, work: &Path) -> Result<PathBuf, Error> {
    let package = work.join("package");
    source.unpack(&package)?;
    let archive = package.join(format!("usr/src/{}.tar.xz", source.name));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(work).args(UNREAD.iter().map(|pattern| format!("--exclude={pattern}")));
    run::output(tar.arg("-xJf").arg(&archive), "tar")?;
    fs::remove_dir_all(&package).map_err(Error::file("removing", &package))?;
    Ok(work.join(&source.name))
}

/// tinyconfig, then ours; every line of ours must survive.
fn configure(tree: &Path, output: &Path) -> Result<(), Error> {
    fs::create_dir_all(output).map_err(Error::file("making the folder", output))?;
    make(tree, output, &["tinyconfig"])?;
    let file = output.join(".config");
    let tiny = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
    // The last word on a symbol counts.
    fs::write(&file, format!("{tiny}\n{CONFIG}")).map_err(Error::file("writing", &file))?;
    make(tree, output, &["olddefconfig"])?;
    let result = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
    match lost(CONFIG, &result) {
        symbols if symbols.is_empty() => Ok(()),
        symbols => Err(Error::Config { symbols }),
    }
}

/// Lines of `wanted` that `result` does not honour. A symbol that is wanted unset may also be absent.
fn lost(wanted: &str, result: &str) -> Vec<String> {
    let honoured =
        |line: &str| match line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
            Some(symbol) => !result.lines().any(|other| other.starts_with(&format!("{symbol}="))),
            None => !line.starts_with("CONFIG_") || result.lines().any(|other| other == line),
        };
    wanted.lines().filter(|line| !honoured(line)).map(str::to_owned).collect()
}

fn make(tree: &Path, output: &Path, targets: &[&str]) -> Result<(), Error> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("make");
    command.arg("-C").arg(tree).arg(format!("O={}", output.display())).arg(format!("-j{jobs}"));
    // The same source and configuration give the same kernel.
    command.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01").env("KBUILD_BUILD_USER", "novum");
    command.env("KBUILD_BUILD_HOST", "novum").args(targets);
    run::output(&mut command, "make, gcc, flex, bison and bc")?;
    Ok(())
}

fn collect(output: &Path, into: &Path) -> Result<(), Error> {
    let copy = |from: &str, to: &str| {
        let from = output.join(from);
        fs::copy(&from, into.join(to)).map_err(Error::file("copying", &from))
    };
    copy("arch/x86/boot/bzImage", "bzImage")?;
    copy(".config", "config")?;
    let stripped = output.join("vmlinux.stripped");
    run::output(
        Command::new("strip").arg("-s").arg(output.join("vmlinux")).arg("-o").arg(&stripped),
        "binutils",
    )?;
    let elf = fs::read(&stripped).map_err(Error::file("reading", &stripped))?;
    let path = into.join("vmlinux");
    fs::write(&path, compact(&elf)?).map_err(Error::file("writing", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_symbols_are_named() {
        let wanted = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_D=4\n";
        let result = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=40\n";
        assert_eq!(lost(wanted, result), ["# CONFIG_B is not set", "CONFIG_D=4"]);
    }

    #[test]
    fn a_source_is_changed_only_where_it_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file.c");
        let edit = ("file.c", "old", "new");
        fs::write(&file, "some old line").unwrap();
        change(folder.path(), &edit).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "some new line");
        assert!(change(folder.path(), &edit).is_err(), "it is not there");
        fs::write(&file, "old, old").unwrap();
        assert!(change(folder.path(), &edit).is_err(), "it is there twice");
    }

    #[test]
    fn only_this_configurations_build_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        fs::create_dir(folder.path().join("guest-6.1-000000000000")).unwrap();
        assert!(built(&cache).is_none());
        let ours = folder.path().join(format!("guest-6.1-{}", digest()));
        fs::create_dir(&ours).unwrap();
        assert_eq!(built(&cache).unwrap().folder, ours);
    }
}
