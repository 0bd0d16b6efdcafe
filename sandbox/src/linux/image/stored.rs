//! A function's image in the gateway's store: found again after a restart, or made anew.
//!
//! ```text
//! reference linux.FUNCTION.vVERSION ──> snapshot ┬ origin               the key: what the image is made of
//!                                                ├ linux-dependencies   files of the host that the guest's kernel knows
//!                                                └ the guest            sections and memory (guest/snapshot.rs)
//! ```
//! The guest is saved into a store of its own first, because what it knows of the host's files can be read from its
//! sections only; a layer says what it depends on, and both become one snapshot in the gateway's store.
//!
//! An image that cannot be used is never handed out: it is looked at byte for byte, its files are compared, and a guest is
//! restored from it once, before the first caller gets one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use novum_snapshot::{
    Digest, Layout, OpenError, SectionError, Snapshot, State, Store, StoreError, WriteError, Writer,
    flatten::flatten,
};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Template;
use crate::kept::{self, Origin};
use crate::linux::guest::{self, BootError, Directory, GuestConfig, Kernel, Known, Root};
use crate::linux::{StateError, with_cause};
use crate::share::{Attr, Identity, Links, Time};

/// Of the image as a whole: another form is another image.
const FORM: u32 = 1;

/// Where an image is kept over restarts, and under which name.
#[derive(Debug)]
pub(in crate::linux) struct Kept {
    pub(in crate::linux) store: Store,
    pub(in crate::linux) origin: Origin,
}

/// Why an image stays in memory.
#[derive(Debug, thiserror::Error)]
pub(in crate::linux) enum NotStored {
    /// What the guest knows of the host cannot be read from its snapshot.
    #[error(transparent)]
    Section(#[from] StateError),
    /// A shared directory cannot be looked at.
    #[error(transparent)]
    Share(#[from] BootError),
    /// The guest may have read what a file held before, or after.
    #[error("{0} has changed while the image was made")]
    Changed(String),
    /// The store does not take it.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The layer cannot be read back.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why a stored image is of no use.
#[derive(Debug, thiserror::Error)]
pub(in crate::linux) enum NotLoaded {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged, or not whole.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A section is missing, of another version, or does not decode.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A device's section.
    #[error(transparent)]
    Device(#[from] StateError),
    /// Made of something else.
    #[error(
        "it was made of another program, manifest, directory, guest kernel or agent, or by another version of novum ({0})"
    )]
    Stale(String),
    /// A shared directory cannot be looked at.
    #[error(transparent)]
    Share(#[from] BootError),
    /// The guest's kernel has pages of what was in it.
    #[error("{0} has changed since")]
    Changed(String),
}

/// What tells whether a file of the host is the same, with the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    id: Identity,
    mode: u32,
    size: u64,
    modified: Time,
}

impl Stamp {
    fn of(attr: &Attr) -> Self {
        // What is in a directory is not compared: a read-only root does not change under a guest in other ways either.
        let (size, modified) =
            if attr.kind().is_dir() { Default::default() } else { (attr.size, attr.mtime) };
        Self { id: attr.id, mode: attr.mode, size, modified }
    }
}

/// Files of the host that the guest's kernel may have pages of: each device's, by their paths; `None` for what is gone.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Dependencies(Vec<(u32, Vec<u8>, Option<Stamp>)>);

impl State for Dependencies {
    const KIND: &'static str = "linux-dependencies";
    const VERSION: u32 = 1;
}

impl Kept {
    /// The image that is kept, if there is one that fits.
    ///
    /// # Errors
    /// Why it is of no use.
    pub(super) fn load(&self, guest: &GuestConfig) -> Result<Option<Snapshot>, NotLoaded> {
        let Some(digest) = self.store.get_ref(&self.origin.reference())? else { return Ok(None) };
        let snapshot = Snapshot::open(&self.store, &digest)?;
        let found: Origin = snapshot.take("")?;
        if found.key != self.origin.key {
            return Err(NotLoaded::Stale(found.novum));
        }
        // Every page: what is mapped from here on is not looked at again.
        snapshot.verify()?;
        let then: Dependencies = snapshot.take("")?;
        let (now, _) = look(&guest::known(&snapshot, &guest.root, &guest.directories)?, None);
        match then.0.iter().zip(&now.0).find(|(then, now)| then != now) {
            Some(((_, path, _), _)) => Err(NotLoaded::Changed(String::from_utf8_lossy(path).into_owned())),
            None if then.0.len() != now.0.len() => Err(NotLoaded::Changed("a shared directory".into())),
            None => Ok(Some(snapshot)),
        }
    }

    /// Keeps `snapshot`, which is in `store`, of a guest that was booted at `begun`.
    ///
    /// # Errors
    /// Why it cannot be kept; the snapshot itself is as before.
    pub(super) fn store(
        &self,
        store: &Store,
        snapshot: &Snapshot,
        guest: &GuestConfig,
        begun: Time,
    ) -> Result<Digest, NotStored> {
        let (dependencies, changed) =
            look(&guest::known(snapshot, &guest.root, &guest.directories)?, Some(begun));
        if let Some(path) = changed {
            return Err(NotStored::Changed(path));
        }
        let mut layer = Writer::diff(store, snapshot.host(), snapshot)?;
        layer.put("", &self.origin)?;
        layer.put("", &dependencies)?;
        let whole = Snapshot::open(store, &layer.publish()?)?;
        Ok(flatten(&self.store, &whole, None, &Layout::default(), Some(&self.origin.reference()))?)
    }

    /// Nothing that is kept under this name is of use any more.
    pub(super) fn forget(&self) {
        let Origin { engine, function, version, .. } = &self.origin;
        if let Err(error) = kept::release(&self.store, *engine, function, *version) {
            tracing::warn!(%function, reason = with_cause(&error), "a useless image stays in the store");
        }
    }
}

/// What the files are now, and one that has changed after `begun` and that the guest cannot have changed itself.
fn look(known: &[Known], begun: Option<Time>) -> (Dependencies, Option<String>) {
    let (mut all, mut changed) = (Vec::new(), None);
    for Known { device, share, read_only, paths } in known {
        for path in paths {
            let attr = share.stat(path, Links::Refuse, false).ok();
            let late = |attr: &Attr| !attr.kind().is_dir() && begun.is_some_and(|begun| attr.ctime > begun);
            if *read_only && attr.as_ref().is_some_and(late) {
                changed = Some(String::from_utf8_lossy(path).into_owned());
            }
            all.push((*device, path.clone(), attr.as_ref().map(Stamp::of)));
        }
    }
    (Dependencies(all), changed)
}

/// What changed before is not later than this. File systems' own clock ticks: what changes within some milliseconds from
/// now on may seem earlier, but no guest has booted by then.
pub(super) fn now() -> Time {
    let now = clock_gettime(ClockId::Realtime);
    Time { seconds: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or_default() }
}

/// Everything that an image depends on and that can be known without it.
///
/// # Errors
/// Where the kernel or a shared directory cannot be read.
pub(in crate::linux) fn key(template: &Template, artifact: &Digest) -> std::io::Result<Digest> {
    // Functions have no network card, and their machine-id is their guests' own.
    let GuestConfig {
        kernel,
        memory_bytes,
        vcpus,
        root,
        directories,
        hostname,
        machine_id: _,
        network: _,
        balloon: _,
        patience: _,
    } = &template.guest;
    let Kernel { image, modules } = kernel;
    let kernel = (file(image)?, modules.as_deref().map(file).transpose()?);
    let agent = Digest::of(novum_agent_image::initramfs());
    let (writable, layers) = match root {
        // A guest with `Kept` is no image: it cannot be saved.
        Root::Layers(layers) | Root::Kept { layers, .. } => (false, layers.as_slice()),
        Root::Writable(path) => (true, std::slice::from_ref(path)),
    };
    let layers = layers.iter().map(|path| directory(path)).collect::<Result<Vec<_>, _>>()?;
    let shared = |Directory { source, target, read_only }: &Directory| {
        Ok((directory(source)?, target.clone(), *read_only))
    };
    let shared = directories.iter().map(shared).collect::<std::io::Result<Vec<_>>>()?;
    let novum = (FORM, env!("CARGO_PKG_VERSION"), kernel, agent, guest::COMMAND_LINE);
    let guest = (memory_bytes, vcpus, hostname, writable, layers, shared);
    let command = &template.command;
    let all = (novum, guest, artifact, &command.args, &command.env);
    // Into memory, of types that only hold what postcard knows: cannot fail.
    Ok(Digest::of(&postcard::to_stdvec(&all).unwrap_or_default()))
}

/// Which directory it is: its path, device, inode.
fn directory(path: &Path) -> std::io::Result<(Vec<u8>, u64, u64)> {
    let found = std::fs::metadata(path)?;
    Ok((path.as_os_str().as_bytes().to_vec(), found.dev(), found.ino()))
}

/// Path, inode, size and time of change (seconds, nanoseconds) of a file.
type Which = (PathBuf, u64, u64, (i64, i64));

/// What is in a file; read once as long as it does not change.
fn file(path: &Path) -> std::io::Result<Digest> {
    static KNOWN: Mutex<BTreeMap<Which, Digest>> = Mutex::new(BTreeMap::new());
    let mut open = File::open(path)?;
    let found = open.metadata()?;
    let which = (path.to_owned(), found.ino(), found.size(), (found.ctime(), found.ctime_nsec()));
    if let Some(digest) = KNOWN.lock().get(&which) {
        return Ok(*digest);
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut bytes)?;
    let digest = Digest::of(&bytes);
    KNOWN.lock().insert(which, digest);
    Ok(digest)
}

#[cfg(test)]
mod tests;
