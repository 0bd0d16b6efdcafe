//! Which functions stand below a directory, and whether one has changed.
//!
//! A directory with a `novum.toml` is a function; nothing else in it is looked at, but directories below it may be
//! functions too. Elsewhere every `*.wasm` and `*.wat` is one by itself, named after the file. Hidden directories,
//! `target` and `node_modules` are left out.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use novum_sandbox::Manifest;
use walkdir::{DirEntry, WalkDir};

use crate::manifest::{self, ArtifactSource, FunctionFile, ManifestError};

const LEFT_OUT: [&str; 2] = ["target", "node_modules"];

/// The files that define functions below `root`, manifests and bare modules, sorted.
#[must_use]
pub fn find(root: &Path) -> Vec<PathBuf> {
    let walk = WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(is_looked_at);
    let files: Vec<_> = walk.flatten().filter(|e| e.file_type().is_file()).map(DirEntry::into_path).collect();
    let is_manifest = |path: &Path| path.file_name().is_some_and(|name| name == manifest::FILE_NAME);
    let functions: BTreeSet<_> = files.iter().filter(|p| is_manifest(p)).filter_map(|p| p.parent()).collect();
    let in_a_function = |path: &Path| path.ancestors().skip(1).any(|dir| functions.contains(dir));
    files.iter().filter(|p| is_manifest(p) || (is_module(p) && !in_a_function(p))).cloned().collect()
}

fn is_looked_at(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    // The root itself may have any name.
    entry.depth() == 0 || !(name.starts_with('.') || LEFT_OUT.contains(&name.as_ref()))
}

fn is_module(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wasm" || extension == "wat")
}

/// Reads a function that [`find`] found.
///
/// # Errors
/// A manifest that cannot be used.
pub fn read(path: &Path) -> Result<FunctionFile, ManifestError> {
    if !is_module(path) {
        return manifest::load(path);
    }
    let mut manifest = Manifest::new(crate::cli::name_from(path));
    manifest.entry = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(FunctionFile { manifest, artifact: ArtifactSource::File(path.to_owned()) })
}

/// Reads a function that [`find`] found, with a number that changes when its files do: from names, sizes, times and
/// inodes, not from contents. Each file is looked at before it is read, so that a change meanwhile is seen later.
pub fn read_with_fingerprint(path: &Path) -> (u64, Result<FunctionFile, ManifestError>) {
    let mut hasher = DefaultHasher::new();
    add(path, &mut hasher);
    let function = read(path);
    match function.as_ref().map(|function| &function.artifact) {
        Ok(ArtifactSource::File(file)) => add(file, &mut hasher),
        Ok(ArtifactSource::Root(root)) => {
            let walk = WalkDir::new(root).sort_by_file_name();
            walk.into_iter().flatten().for_each(|entry| add(entry.path(), &mut hasher));
        }
        Err(_) => {}
    }
    (hasher.finish(), function)
}

fn add(path: &Path, hasher: &mut DefaultHasher) {
    path.hash(hasher);
    if let Ok(found) = path.symlink_metadata() {
        (found.ino(), found.len(), found.mode(), found.mtime(), found.mtime_nsec()).hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn manifests_and_lone_modules_are_functions() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        for path in
            ["a/novum.toml", "a/a.wasm", "a/build/x.wasm", "a/b/novum.toml", "lone.wat", "deep/er/two.wasm"]
        {
            put(path);
        }
        for path in [".git/x.wasm", "target/y.wasm", "c/node_modules/z.wasm", "notes.txt"] {
            put(path);
        }
        let found = find(dir.path());
        let found: Vec<_> =
            found.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["a/b/novum.toml", "a/novum.toml", "deep/er/two.wasm", "lone.wat"]);
    }

    #[test]
    fn a_fingerprint_changes_with_the_artifact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("novum.toml");
        fs::write(&path, "name = \"a\"\nroot = \"r\"\nentry = \"p\"\n").unwrap();
        fs::create_dir(dir.path().join("r")).unwrap();
        let before = read_with_fingerprint(&path).0;
        assert_eq!(before, read_with_fingerprint(&path).0);
        fs::write(dir.path().join("r/p"), "x").unwrap();
        assert_ne!(before, read_with_fingerprint(&path).0);
    }
}
