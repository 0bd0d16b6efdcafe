//! A directory of snapshots.
//!
//! ```text
//! store/                       0700
//!   lock                       held shared to publish and to set references, alone to remove
//!   snapshots/<digest>.snap    0400, never written again; flock held shared by whoever has it open;
//!                              modification time = last use, to the minute
//!   refs/<name>                the digest it stands for, and a newline
//! ```
//!
//! Any number of processes may use one store. Files appear whole ([`crate::publish`]) and are removed only
//! when no process has them open, so an open [`Snapshot`](crate::Snapshot) stays complete. Lock order: `lock`, then a
//! snapshot's own lock. Nothing waits for a snapshot's lock except who opens it, for as long as a removal takes.
//!
//! A reference keeps its snapshot and all layers below. Others are a cache: they stay until they are
//! [removed](crate::collect), or until the size limit needs their room, the longest unused first.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock};

use crate::Digest;
use crate::publish::{self, Draft};
use crate::refs::RefName;

const EXTENSION: &str = "snap";
/// Last use is noted no more often than this.
const USE_GRAIN: Duration = Duration::from_secs(60);

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An operation on a file or directory failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No such snapshot.
    #[error("there is no snapshot {0}")]
    Missing(Digest),
    /// No such reference.
    #[error("there is no reference {0}")]
    MissingRef(RefName),
    /// Neither a name nor the beginning of a digest.
    #[error("no snapshot or reference is called {0:?}")]
    Unknown(String),
    /// Several digests begin like that.
    #[error("{0:?} begins more than one digest")]
    Ambiguous(String),
    /// A reference that does not hold a digest.
    #[error("reference {0} is damaged: it does not hold a digest")]
    DamagedRef(RefName),
    /// References keep it.
    #[error("snapshot {digest} is kept by reference {name}")]
    Referenced {
        /// The snapshot.
        digest: Digest,
        /// One of the references.
        name: RefName,
    },
    /// Diffs stand on it.
    #[error("snapshot {digest} is the parent of {child}")]
    HasChild {
        /// The snapshot.
        digest: Digest,
        /// One of the diffs.
        child: Digest,
    },
    /// Some process has it open.
    #[error("snapshot {0} is in use")]
    InUse(Digest),
    /// No room, even without what nobody refers to.
    #[error("the store is full: {needed} bytes more are needed, {limit} are allowed and {kept} must stay")]
    Full {
        /// Bytes of the new snapshot.
        needed: u64,
        /// The limit of the store.
        limit: u64,
        /// Bytes that are referenced or in use.
        kept: u64,
    },
}

/// A store of snapshots in a directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) limit: Option<u64>,
    counts_use: bool,
}

/// Holds the store's lock.
pub(crate) struct Guard(#[allow(dead_code, reason = "closing it is what unlocks")] File);

impl Store {
    /// Opens the store at `root`, which is made if it is not there, and removes what crashed writers left.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { root: root.into(), limit: None, counts_use: true };
        for directory in [store.root.clone(), store.snapshots(), store.refs()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(failed("create", &directory))?;
        }
        for directory in [store.snapshots(), store.refs()] {
            publish::sweep(&directory).map_err(failed("sweep", &directory))?;
        }
        Ok(store)
    }

    /// Limits what the snapshots may take on the disk. To keep to it, publishing removes snapshots that
    /// nobody refers to or has open, the longest unused first, and fails if that is not enough.
    #[must_use]
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Does not count opening through this handle as a use: for looking at snapshots, not for starting from them.
    #[must_use]
    pub fn without_counting_use(mut self) -> Self {
        self.counts_use = false;
        self
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    /// Where a snapshot's file is.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.snapshots().join(format!("{digest}.{EXTENSION}"))
    }

    /// Whether the snapshot is there now.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// What a snapshot's file takes on the disk; holes take nothing.
    pub(crate) fn disk_bytes(&self, digest: &Digest) -> Result<u64, StoreError> {
        let path = self.path(digest);
        fs::metadata(&path).map(|metadata| metadata.blocks() * 512).map_err(failed("read", &path))
    }

    /// Opens a snapshot's file. As long as it is open no process removes it. Notes the use.
    pub(crate) fn open_file(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(*digest)),
            Err(e) => return Err(failed("open", &path)(e)),
        };
        flock(&file, FlockOperation::LockShared).map_err(|e| failed("lock", &path)(e.into()))?;
        let metadata = file.metadata().map_err(failed("read", &path))?;
        if metadata.nlink() == 0 {
            return Err(StoreError::Missing(*digest));
        }
        if self.counts_use {
            note_use(&file, metadata.modified().ok());
        }
        Ok(file)
    }

    pub(crate) fn lock(&self, operation: FlockOperation) -> Result<Guard, StoreError> {
        let path = self.root.join("lock");
        let open = || {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
            flock(&file, operation)?;
            Ok(file)
        };
        open().map(Guard).map_err(failed("lock", &path))
    }

    /// Starts a file that [`Store::adopt`] takes.
    pub(crate) fn draft(&self) -> Result<Draft, StoreError> {
        Draft::create(&self.snapshots()).map_err(failed("create a file in", &self.snapshots()))
    }

    /// Makes a finished draft the snapshot `digest`, and lets `name` refer to it.
    pub(crate) fn adopt(
        &self,
        mut draft: Draft,
        digest: &Digest,
        name: Option<&RefName>,
    ) -> Result<(), StoreError> {
        let path = self.path(digest);
        let file = draft.file();
        file.set_permissions(Permissions::from_mode(0o400)).map_err(failed("protect", &path))?;
        // The slow part, before anybody is kept waiting.
        file.sync_all().map_err(failed("write", &path))?;
        let needed = file.metadata().map_err(failed("read", &path))?.blocks() * 512;
        let _guard = match self.limit {
            Some(limit) => {
                let guard = self.lock(FlockOperation::LockExclusive)?;
                self.make_room(needed, limit)?;
                guard
            }
            None => self.lock(FlockOperation::LockShared)?,
        };
        draft.publish(&path).map_err(failed("publish", &path))?;
        name.map_or(Ok(()), |name| self.write_ref(name, digest))
    }

    /// The names of all snapshots, sorted.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests: Vec<Digest> = names(&self.snapshots())?
            .iter()
            .filter_map(|name| name.strip_suffix(&format!(".{EXTENSION}"))?.parse().ok())
            .collect();
        digests.sort_unstable();
        Ok(digests)
    }

    /// Lets `name` refer to a snapshot, whatever it referred to before.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is no such snapshot; [`StoreError::Io`].
    pub fn set_ref(&self, name: &RefName, digest: &Digest) -> Result<(), StoreError> {
        let _guard = self.lock(FlockOperation::LockShared)?;
        if !self.contains(digest) {
            return Err(StoreError::Missing(*digest));
        }
        self.write_ref(name, digest)
    }

    /// Lets `name` refer to `to` where it refers to `from` now; whether it did. Nobody sets or removes it in between.
    ///
    /// # Errors
    /// As [`Store::set_ref`] and [`Store::get_ref`].
    pub fn replace_ref(&self, name: &RefName, from: &Digest, to: &Digest) -> Result<bool, StoreError> {
        let _guard = self.lock(FlockOperation::LockExclusive)?;
        if self.get_ref(name)? != Some(*from) {
            return Ok(false);
        }
        if !self.contains(to) {
            return Err(StoreError::Missing(*to));
        }
        self.write_ref(name, to).map(|()| true)
    }

    fn write_ref(&self, name: &RefName, digest: &Digest) -> Result<(), StoreError> {
        let path = self.refs().join(name.as_str());
        let write = || {
            let mut draft = Draft::create(&self.refs())?;
            writeln!(draft, "{digest}")?;
            draft.publish(&path)
        };
        write().map_err(failed("write", &path))
    }

    /// The snapshot that `name` refers to, if it refers to any.
    ///
    /// # Errors
    /// [`StoreError::DamagedRef`] or [`StoreError::Io`].
    pub fn get_ref(&self, name: &RefName) -> Result<Option<Digest>, StoreError> {
        let path = self.refs().join(name.as_str());
        match fs::read_to_string(&path) {
            Ok(text) => {
                let digest = text.strip_suffix('\n').and_then(|text| text.parse().ok());
                digest.map(Some).ok_or_else(|| StoreError::DamagedRef(name.clone()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }
    }

    /// Removes a reference; says what it referred to.
    ///
    /// # Errors
    /// [`StoreError::MissingRef`], [`StoreError::Io`].
    pub fn remove_ref(&self, name: &RefName) -> Result<Option<Digest>, StoreError> {
        let _guard = self.lock(FlockOperation::LockShared)?;
        // A damaged one is removed like any other.
        let digest = self.get_ref(name).unwrap_or(None);
        let path = self.refs().join(name.as_str());
        match fs::remove_file(&path).and_then(|()| publish::sync_directory(&self.refs())) {
            Ok(()) => Ok(digest),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::MissingRef(name.clone())),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }

    /// All references, sorted by name.
    ///
    /// # Errors
    /// [`StoreError::DamagedRef`] or [`StoreError::Io`].
    pub fn refs_to_digests(&self) -> Result<Vec<(RefName, Digest)>, StoreError> {
        let mut all = Vec::new();
        for name in names(&self.refs())?.iter().filter_map(|name| name.parse::<RefName>().ok()) {
            // One that was removed since is none.
            if let Some(digest) = self.get_ref(&name)? {
                all.push((name, digest));
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// The snapshot that a person means: a reference's name, a digest, or the beginning of one that no other
    /// digest begins with (at least four digits).
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Ambiguous`], or those of reading the store.
    pub fn find(&self, text: &str) -> Result<Digest, StoreError> {
        if let Ok(name) = text.parse::<RefName>()
            && let Some(digest) = self.get_ref(&name)?
        {
            return Ok(digest);
        }
        let digests = if text.len() < 4 { Vec::new() } else { self.digests()? };
        let mut matches = digests.into_iter().filter(|digest| digest.to_string().starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(digest), None) => Ok(digest),
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(text.to_owned())),
            _ => Err(StoreError::Unknown(text.to_owned())),
        }
    }
}

/// Makes `file` the most recently used, unless it was used just now. Failing is harmless: a reader who does
/// not own the store may not do this.
fn note_use(file: &File, last: Option<SystemTime>) {
    if last.and_then(|last| last.elapsed().ok()).is_none_or(|ago| ago >= USE_GRAIN) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let _ = rustix::fs::futimens(file, &Timestamps { last_access: keep, last_modification: now });
    }
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let read =
        || fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let names = read().map_err(failed("list", directory))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}
