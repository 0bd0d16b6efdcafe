//! Artifacts on disk, named by the SHA-256 of the bytes that were deployed.
//!
//! ```text
//! data_dir/artifacts/DIGEST    a FILE artifact
//! data_dir/roots/DIGEST/       a TAR artifact, unpacked
//! data_dir/*/.draft-*          under construction; swept at the next start
//! ```
//!
//! Both appear by a rename after their bytes are durable. The store counts who uses each artifact; the last user's
//! release removes it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use novum_sandbox::ArtifactFormat;
use novum_snapshot::Digest;
use novum_snapshot::digest::Hasher;
use novum_snapshot::publish::{self, Draft};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::unpack::{self, UnpackError};

/// An artifact could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk.
    #[error("storing the artifact failed: {0}")]
    Io(#[from] io::Error),
    /// Over the size limit.
    #[error("the artifact has more than {limit_bytes} bytes; start the gateway with a larger --max-artifact")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The tar is not one that can be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// Names one artifact.
pub type Key = (ArtifactFormat, Digest);

/// The store.
#[derive(Debug)]
pub struct Artifacts {
    files: PathBuf,
    roots: PathBuf,
    limits: unpack::Limits,
    users: Mutex<HashMap<(bool, Digest), u32>>,
}

/// Bytes that arrived whole.
#[derive(Debug)]
pub struct Uploaded {
    draft: Draft,
    /// Their SHA-256.
    pub digest: Digest,
    /// Their number.
    pub size_bytes: u64,
}

/// Bytes that arrive: written and hashed on a thread of their own, so that nothing slow runs on a worker.
#[derive(Debug)]
pub struct Upload {
    sender: mpsc::Sender<Bytes>,
    writer: JoinHandle<Result<Uploaded, ArtifactError>>,
}

impl Upload {
    /// The next bytes.
    ///
    /// # Errors
    /// What stopped the writer; the upload is then over.
    pub async fn write(self, chunk: Bytes) -> Result<Self, ArtifactError> {
        if self.sender.send(chunk).await.is_ok() {
            return Ok(self);
        }
        match self.finish().await {
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("the writer stopped early").into()),
        }
    }

    /// That was all.
    ///
    /// # Errors
    /// The disk's, or the size limit.
    pub async fn finish(self) -> Result<Uploaded, ArtifactError> {
        drop(self.sender);
        self.writer.await.map_err(io::Error::other)?
    }
}

impl Artifacts {
    /// Opens the store below `data_dir` and removes what crashed processes left. Only one process may have it.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(data_dir: &Path, limits: unpack::Limits) -> io::Result<Arc<Self>> {
        let (files, roots) = (data_dir.join("artifacts"), data_dir.join("roots"));
        for directory in [&files, &roots] {
            fs::create_dir_all(directory)?;
        }
        publish::sweep(&files)?;
        for entry in fs::read_dir(&roots)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".draft-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Arc::new(Self { files, roots, limits, users: Mutex::default() }))
    }

    /// Begins to take an artifact.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn upload(&self) -> io::Result<Upload> {
        let draft = Draft::create(&self.files)?;
        let limit_bytes = self.limits.bytes;
        let (sender, receiver) = mpsc::channel(4);
        let writer = tokio::task::spawn_blocking(move || write_draft(draft, receiver, limit_bytes));
        Ok(Upload { sender, writer })
    }

    /// Where an artifact lies.
    #[must_use]
    pub fn path(&self, (format, digest): Key) -> PathBuf {
        match format {
            ArtifactFormat::File => self.files.join(digest.to_string()),
            ArtifactFormat::Tar => self.roots.join(digest.to_string()),
        }
    }

    /// Counts one more user of an artifact that is there.
    pub fn retain(&self, (format, digest): Key) {
        *self.users.lock().entry((format == ArtifactFormat::Tar, digest)).or_default() += 1;
    }

    /// Counts one user less; removes the artifact after its last one. Blocks on the disk.
    pub fn release(&self, key: Key) {
        let counted = (key.0 == ArtifactFormat::Tar, key.1);
        // Held while removing, so that a publish of the same digest comes wholly before or after.
        let mut users = self.users.lock();
        let Some(count) = users.get_mut(&counted) else { return };
        *count -= 1;
        if *count == 0 {
            users.remove(&counted);
            remove(&self.path(key));
        }
    }

    /// Makes an upload durable under its digest and counts one user of it. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's, or the tar's.
    pub fn publish(&self, format: ArtifactFormat, mut uploaded: Uploaded) -> Result<PathBuf, ArtifactError> {
        let key = (format, uploaded.digest);
        let path = self.path(key);
        self.retain(key);
        let stored = match format {
            _ if path.exists() => Ok(()),
            ArtifactFormat::File => uploaded.draft.publish(&path).map_err(ArtifactError::from),
            ArtifactFormat::Tar => self.unpack(&mut uploaded, &path),
        };
        match stored {
            Ok(()) => Ok(path),
            Err(error) => {
                self.release(key);
                Err(error)
            }
        }
    }

    fn unpack(&self, uploaded: &mut Uploaded, path: &Path) -> Result<(), ArtifactError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = self.roots.join(format!(".draft-{}-{n}", std::process::id()));
        fs::create_dir(&draft)?;
        let result = unpack::unpack(uploaded.draft.file(), &draft, self.limits)
            .map_err(ArtifactError::from)
            .and_then(|()| match fs::rename(&draft, path) {
                // Another deploy of the same bytes was quicker.
                Err(_) if path.is_dir() => {
                    remove(&draft);
                    Ok(())
                }
                other => other.map_err(ArtifactError::from),
            })
            .and_then(|()| publish::sync_directory(&self.roots).map_err(ArtifactError::from));
        if result.is_err() {
            remove(&draft);
        }
        result
    }

    /// Removes every artifact that nobody counts. Call it once after all known users are counted.
    ///
    /// # Errors
    /// Those of listing.
    pub fn remove_unused(&self) -> io::Result<usize> {
        let users = self.users.lock();
        let mut removed = 0;
        for (directory, tar) in [(&self.files, false), (&self.roots, true)] {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                let digest = name.to_str().and_then(|name| name.parse::<Digest>().ok());
                if digest.is_some_and(|digest| !users.contains_key(&(tar, digest))) {
                    remove(&entry.path());
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// Nothing can be done about a failure here but to say so; the next start tries again.
fn remove(path: &Path) {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), %error, "could not remove an unused artifact");
    }
}

fn write_draft(
    mut draft: Draft,
    mut chunks: mpsc::Receiver<Bytes>,
    limit_bytes: u64,
) -> Result<Uploaded, ArtifactError> {
    let mut hasher = Hasher::default();
    let mut size_bytes = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        size_bytes += chunk.len() as u64;
        if size_bytes > limit_bytes {
            return Err(ArtifactError::TooLarge { limit_bytes });
        }
        hasher.update(&chunk);
        draft.write_all(&chunk)?;
    }
    Ok(Uploaded { draft, digest: hasher.finish(), size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: unpack::Limits = unpack::Limits { bytes: 1000, entries: 10 };

    async fn upload(store: &Artifacts, bytes: &'static [u8]) -> Result<Uploaded, ArtifactError> {
        let upload = store.upload().unwrap();
        upload.write(Bytes::from_static(bytes)).await?.finish().await
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[tokio::test]
    async fn an_artifact_lives_until_its_last_user_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path(), LIMITS).unwrap();
        let key = (ArtifactFormat::File, Digest::of(b"abc"));
        for _ in 0..2 {
            let uploaded = upload(&store, b"abc").await.unwrap();
            assert_eq!((uploaded.digest, uploaded.size_bytes), (key.1, 3));
            let path = store.publish(ArtifactFormat::File, uploaded).unwrap();
            assert_eq!(fs::read(path).unwrap(), b"abc");
        }
        store.release(key);
        assert!(store.path(key).exists());
        store.release(key);
        assert!(!store.path(key).exists());
        assert_eq!(count(&dir.path().join("artifacts")), 0);
    }

    #[tokio::test]
    async fn too_large_an_artifact_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path(), LIMITS).unwrap();
        let error = upload(&store, &[0; 1001]).await.unwrap_err();
        assert!(matches!(error, ArtifactError::TooLarge { limit_bytes: 1000 }), "{error}");
        assert_eq!(count(&dir.path().join("artifacts")), 0);
    }

    #[tokio::test]
    async fn a_bad_tar_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Artifacts::open(dir.path(), LIMITS).unwrap();
        let uploaded = upload(&store, b"this is no tar").await.unwrap();
        assert!(store.publish(ArtifactFormat::Tar, uploaded).is_err());
        assert_eq!((count(&dir.path().join("artifacts")), count(&dir.path().join("roots"))), (0, 0));
    }

    #[tokio::test]
    async fn opening_sweeps_and_unused_artifacts_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("roots/.draft-1-1/x")).unwrap();
        fs::create_dir_all(dir.path().join("artifacts")).unwrap();
        fs::write(dir.path().join("artifacts/.draft-1-1"), "half").unwrap();
        let used = (ArtifactFormat::File, Digest::of(b"used"));
        for name in [used.1, Digest::of(b"unused")] {
            fs::write(dir.path().join("artifacts").join(name.to_string()), "x").unwrap();
        }
        fs::create_dir(dir.path().join("roots").join(Digest::of(b"used").to_string())).unwrap();
        let store = Artifacts::open(dir.path(), LIMITS).unwrap();
        store.retain(used);
        assert_eq!(store.remove_unused().unwrap(), 2);
        assert_eq!((count(&dir.path().join("artifacts")), count(&dir.path().join("roots"))), (1, 0));
        assert!(store.path(used).exists());
    }
}
