//! A folder of things that were made once, outside every source tree.
//!
//! An entry is a folder whose name holds all that it depends on (versions, a digest of the configuration). It is
//! filled under another name and renamed, so that an entry that exists is complete.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// Where finished things are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in folder `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry `name` if it is there.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join(name)).filter(|entry| entry.is_dir())
    }

    /// The entry `name`, filled by `make` first where it is missing. `make` gets an empty folder.
    ///
    /// # Errors
    /// What `make` returns; [`Error::File`] where the cache cannot be written.
    pub fn entry(&self, name: &str, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        if let Some(entry) = self.get(name) {
            return Ok(entry);
        }
        fs::create_dir_all(&self.root).map_err(Error::file("making the folder", &self.root))?;
        let unfinished = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(&self.root);
        let unfinished = unfinished.map_err(Error::file("making a folder in", &self.root))?;
        make(unfinished.path())?;
        let entry = self.root.join(name);
        match fs::rename(unfinished.path(), &entry) {
            // Another process may have finished the same entry in the meantime: then that one serves.
            Err(_) if entry.is_dir() => Ok(entry),
            Err(source) => Err(Error::File { doing: "publishing", path: entry, source }),
            Ok(()) => {
                // It has another name now; there is nothing to remove.
                let _ = unfinished.keep();
                Ok(entry)
            }
        }
    }
}

/// A short digest of `parts`, for entry names.
#[must_use]
pub fn short_digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once_and_a_failed_one_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("cache"));
        assert!(cache.entry("a", |_| Err(Error::format("a", "bad"))).is_err());
        assert!(cache.get("a").is_none());
        let write = |text: &'static str| {
            move |at: &Path| fs::write(at.join("f"), text).map_err(Error::file("writing", at))
        };
        let first = cache.entry("a", write("1")).unwrap();
        let second = cache.entry("a", write("2")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(first.join("f")).unwrap(), "1");
        let left = fs::read_dir(cache.root()).unwrap().count();
        assert_eq!(left, 1, "nothing unfinished is left behind");
    }

    #[test]
    fn digests_tell_where_parts_begin() {
        assert_ne!(short_digest(&[b"ab", b"c"]), short_digest(&[b"a", b"bc"]));
    }
}
