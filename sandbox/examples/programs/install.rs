//! `--install`: what the cases need from Debian.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::harness::{Case, Cases};

/// Installs the packages of `chosen` that are not installed.
pub(crate) fn missing(cases: &Cases, chosen: &[&Case]) -> Result<()> {
    let compilers = cases.build.iter().map(|build| &build.package);
    let packages: BTreeSet<&str> = chosen
        .iter()
        .map(|case| &case.package)
        .chain(compilers)
        .flat_map(|names| names.split_whitespace())
        .filter(|name| !is_installed(name))
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    apt(&["update", "-qq"])?;
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&options.into_iter().chain(packages).collect::<Vec<_>>())
}

fn is_installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    asked.is_ok_and(|answer| answer.stdout.ends_with(b"ok installed"))
}

fn apt(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").status()?;
    ensure!(status.success(), "apt-get {}: {status}", args.join(" "));
    Ok(())
}
