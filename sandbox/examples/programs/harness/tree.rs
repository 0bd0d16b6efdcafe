//! What is in a folder: kinds, modes, link counts, contents, targets of links, and times that were set on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// By path below the folder.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// One file, folder or link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    mode: u32,
    links: u64,
    /// Seconds, of a file whose time is no time of these runs.
    modified: Option<i64>,
    content: Vec<u8>,
}

/// Older than this was set on purpose.
const LONG_AGO: Duration = Duration::from_secs(30 * 86400);

/// Reads all below `folder`.
pub(super) fn read(folder: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    add(folder, "", &mut tree)?;
    Ok(tree)
}

fn add(folder: &Path, prefix: &str, tree: &mut Tree) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        let stat = path.symlink_metadata()?;
        let kind = stat.file_type();
        let content = if kind.is_symlink() {
            path.read_link()?.into_os_string().into_encoded_bytes()
        } else if kind.is_file() {
            fs::read(&path)?
        } else {
            Vec::new()
        };
        let recent = SystemTime::now() - LONG_AGO;
        let modified = stat.modified().is_ok_and(|time| time < recent).then(|| stat.mtime());
        // The link count of a folder is its file system's affair.
        let links = if kind.is_dir() { 0 } else { stat.nlink() };
        tree.insert(name.clone(), Entry { mode: stat.mode(), links, modified, content });
        if kind.is_dir() {
            add(&path, &format!("{name}/"), tree)?;
        }
    }
    Ok(())
}

/// What differs between two folders; of those in `ignore` the contents may.
pub(super) fn differences(native: &Tree, inside: &Tree, ignore: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, entry) in native {
        match inside.get(name) {
            None => found.push(format!("{name}: missing inside")),
            Some(other) => found.extend(compare(name, entry, other, ignore.contains(name))),
        }
    }
    let extra = inside.keys().filter(|name| !native.contains_key(*name));
    found.extend(extra.map(|name| format!("{name}: only inside")));
    found
}

fn compare(name: &str, native: &Entry, inside: &Entry, any_content: bool) -> Option<String> {
    if native == inside {
        return None;
    }
    let head =
        |entry: &Entry| format!("mode {:o}, {} links, time {:?}", entry.mode, entry.links, entry.modified);
    let (left, right) = (head(native), head(inside));
    if left != right {
        return Some(format!("{name}: natively {left}, inside {right}"));
    }
    if any_content {
        return None;
    }
    super::difference(name, &native.content, &inside.content)
}
