//! Files that appear whole or not at all.
//!
//! A [`Draft`] is written under a temporary name in the directory where it will live, then flushed, then
//! renamed, then the directory is flushed. A crash at any moment leaves the old file, the new one, or a
//! stray `.draft-*` that [`sweep`] removes. A draft is locked (flock) for as long as its writer lives, so
//! `sweep` can tell a stray from one that another process is still writing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = ".draft-";

/// A file under construction. Dropped without [`Draft::publish`], it is removed.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: Option<PathBuf>,
}

impl Draft {
    /// Starts an empty draft in `directory`, which must be on the file system of the final name. Only its
    /// owner may read it (mode 0600) unless its writer decides otherwise.
    ///
    /// # Errors
    /// Those of creating and locking a file there.
    pub fn create(directory: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{PREFIX}{}-{n}", std::process::id()));
            let file = match File::options().read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                // A crashed process had our number, or one in another PID namespace has it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            flock(&file, FlockOperation::LockExclusive)?;
            // A sweep that came between the two took it for a stray: then the name is gone.
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { file, path: Some(path) });
            }
        }
    }

    /// The open file, for writers that need more than [`Write`].
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the draft durable under `name`, replacing what was there.
    ///
    /// # Errors
    /// Those of fsync and rename; the draft is then removed and `name` is as it was.
    pub fn publish(mut self, name: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            fs::rename(path, name)?;
        }
        self.path = None;
        name.parent().map_or(Ok(()), sync_directory)
    }
}

impl Write for Draft {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing to do about a failure here: `sweep` comes by at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes renames and removals in `directory` durable.
///
/// # Errors
/// Those of opening and fsync.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes the drafts that crashed processes left in `directory`; returns how many. Drafts that are being
/// written, by this or any other process, are left alone.
///
/// # Errors
/// Those of listing, opening and removing.
pub fn sweep(directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) && remove_stray(&entry.path())?
        {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the draft at `path` if nobody writes it.
fn remove_stray(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    // The lock is ours: its writer is gone, or has just renamed it away.
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_appears_only_when_published() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("a");
        let mut draft = Draft::create(dir.path()).unwrap();
        draft.write_all(b"new").unwrap();
        assert!(!name.exists());
        draft.publish(&name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_draft_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("a");
        fs::write(&name, b"old").unwrap();
        let mut draft = Draft::create(dir.path()).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert_eq!(fs::read(&name).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweep_takes_drafts_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".draft-1-1"), b"x").unwrap();
        fs::write(dir.path().join("kept"), b"x").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 1);
        assert!(dir.path().join("kept").exists());
    }

    #[test]
    fn sweep_leaves_a_draft_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut draft = Draft::create(dir.path()).unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 0);
        draft.write_all(b"kept").unwrap();
        let name = dir.path().join("a");
        draft.publish(&name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"kept");
    }

    #[test]
    fn a_stray_with_the_next_name_is_stepped_over() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10_000 {
            fs::write(dir.path().join(format!("{PREFIX}{}-{n}", std::process::id())), b"").unwrap();
        }
        Draft::create(dir.path()).unwrap().publish(&dir.path().join("a")).unwrap();
        assert!(dir.path().join("a").exists());
    }
}
