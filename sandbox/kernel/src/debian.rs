//! Debian packages, fetched and unpacked without being installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, run};

/// A package in the version that this machine's package sources offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The version on offer.
    pub version: String,
}

impl Package {
    /// The candidate version of `name`, after one `apt-get update` where the lists are missing.
    ///
    /// # Errors
    /// [`Error::NoPackage`] where no source offers it.
    pub fn candidate(name: &str) -> Result<Self, Error> {
        let ask = || -> Result<Option<String>, Error> {
            let policy = run::output(Command::new("apt-cache").args(["policy", name]), "apt")?;
            Ok(candidate_in(&String::from_utf8_lossy(&policy)))
        };
        let version = match ask()? {
            Some(version) => version,
            None => {
                run::output(Command::new("apt-get").args(["update", "-qq"]), "apt")?;
                ask()?.ok_or_else(|| Error::NoPackage { package: name.to_owned() })?
            }
        };
        Ok(Self { name: name.to_owned(), version })
    }

    /// The kernel image that the meta package `meta` (such as `linux-image-amd64`) depends on.
    ///
    /// # Errors
    /// [`Error::NoPackage`] where it cannot be found.
    pub fn kernel_of(meta: &str) -> Result<Self, Error> {
        Self::candidate(meta)?;
        let depends = run::output(Command::new("apt-cache").args(["depends", meta]), "apt")?;
        let text = String::from_utf8_lossy(&depends);
        let name = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        let name = name.ok_or_else(|| Error::NoPackage { package: format!("linux-image-* of {meta}") })?;
        Self::candidate(&format!("linux-image-{name}"))
    }

    /// Downloads the package and unpacks its files below `into`. Nothing is installed, no script of it runs.
    ///
    /// # Errors
    /// Where the download or the unpacking fails.
    pub fn unpack(&self, into: &Path) -> Result<(), Error> {
        let folder = tempfile::tempdir().map_err(Error::file("making a folder in", &std::env::temp_dir()))?;
        let wanted = format!("{}={}", self.name, self.version);
        let mut download = Command::new("apt-get");
        download.args(["download", "-qq", &wanted]).current_dir(folder.path());
        run::output(&mut download, "apt")?;
        let deb = only_file(folder.path())?;
        run::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into), "dpkg")?;
        Ok(())
    }

    /// `name_version` with only characters that suit a file name.
    #[must_use]
    pub fn key(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+~".contains(c) { c } else { '_' };
        format!("{}_{}", self.name, self.version).chars().map(plain).collect()
    }
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn only_file(folder: &Path) -> Result<PathBuf, Error> {
    let mut entries = std::fs::read_dir(folder).map_err(Error::file("listing", folder))?;
    match entries.next() {
        Some(Ok(entry)) => Ok(entry.path()),
        _ => Err(Error::format("apt-get download", "it left no file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "busybox:\n  Installed: (none)\n  Candidate: 1:1.35.0-4\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1:1.35.0-4"));
        assert_eq!(candidate_in("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }

    #[test]
    fn keys_suit_file_names() {
        let package = Package { name: "a".into(), version: "1:2/3~x".into() };
        assert_eq!(package.key(), "a_1_2_3~x");
    }
}
