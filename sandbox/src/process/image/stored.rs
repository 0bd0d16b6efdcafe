//! An image in the store of snapshots: written once, found again after a restart of the gateway.
//!
//! ```text
//! reference process.FUNCTION.vVERSION ──> snapshot ┬ origin                the key: what the image depends on
//!                                                  ├ process-memory        mappings, page tables, places; files behind them
//!                                                  ├ process-files         private tree, descriptors, pipes, timers ...
//!                                                  ├ process-threads       registers, vector state, calls in progress
//!                                                  ├ process-signals, -futexes, -timers, -clock, -credentials, -limits
//!                                                  ├ process-stack, process-trace, process-prologue
//!                                                  └ memory                the pages that the program wrote
//! over it, once a sandbox of it has run:           process-working-set     pages that the first run stored into
//! ```
//! An image that was just taken is written and then read like any other, so that all sandboxes map the store's file and
//! share the page cache. Each section is a [`State`] in the file of its part. What is not the same in two sandboxes
//! (random bytes, clocks, boot id) is not in here or made new at every start, see the module above.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use novum_snapshot::{
    Digest, Host, Incompatible, OpenError, SectionError, Snapshot, State, Store, StoreError, WriteError,
    Writer,
};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::learnt::Home;
use super::take::LONGEST_PROLOGUE;
use super::{Image, Prologue};
use crate::kept::Origin;
use crate::kvm::features::image_features;
use crate::kvm::layout::STACK_SIZE;
use crate::process::calls::credentials::Credentials;
use crate::process::calls::limits::ResourceLimits;
use crate::process::files::{BadFiles, Files, FilesState, Unstorable};
use crate::process::load::stack::Stack;
use crate::process::memory::{BackFile, BadMemory, MappedFile, MemoryImage, MemoryState, WorkingSet};
use crate::process::setup::Setup;
use crate::process::signal::SignalState;
use crate::process::threads::futex::Futexes;
use crate::process::threads::saved::{ThreadsState, WaitsForHost};
use crate::process::time::timers::Timers;
use crate::process::time::{self, Moment};
use crate::process::{Call, Process};

/// Most bytes of memory without a name that are kept as a section.
const MOST_NAMELESS: u64 = 64 << 20;

/// Why an image stays in memory.
#[derive(Debug, thiserror::Error)]
pub(in crate::process) enum NotStored {
    /// What a file or descriptor stands for cannot be had again.
    #[error(transparent)]
    Files(#[from] Unstorable),
    /// A thread's wait cannot be kept.
    #[error(transparent)]
    Threads(#[from] WaitsForHost),
    /// A mapped file is not at its path any more.
    #[error("{0} is mapped and cannot be found again by its path")]
    Mapped(String),
    /// Too much memory of that kind.
    #[error("more than {MOST_NAMELESS} bytes of memory without a name are mapped")]
    Nameless,
    /// A mapped file cannot be read.
    #[error("a mapped file cannot be read")]
    Read(#[source] Errno),
    /// The store does not take it.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why a stored image is of no use.
#[derive(Debug, thiserror::Error)]
pub(in crate::process) enum NotLoaded {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged, or not whole.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another machine's.
    #[error(transparent)]
    Host(#[from] Incompatible),
    /// A section is missing, of another version, or does not decode.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// Made by another novum, or of another program or manifest.
    #[error("it was made of another program or manifest, or by another version of novum ({0})")]
    Stale(String),
    /// The files of the host are others by now.
    #[error(transparent)]
    Files(#[from] BadFiles),
    /// A mapped file is another one by now.
    #[error("{0} has changed since")]
    Mapped(String),
    /// The memory cannot be.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// Something else cannot be.
    #[error("{0}")]
    Impossible(&'static str),
    /// The host failed.
    #[error("a file of memory cannot be made")]
    Make(#[source] Errno),
}

/// What has been noted about the calls that were made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Trace {
    recent: Vec<Call>,
    unserved: BTreeMap<u64, u64>,
    nice: i32,
}

impl State for Trace {
    const KIND: &'static str = "process-trace";
    const VERSION: u32 = 1;
}

impl State for Prologue {
    const KIND: &'static str = "process-prologue";
    const VERSION: u32 = 1;
}

/// What an image demands of a machine, and this machine offers.
pub(super) fn host() -> Host {
    static FEATURES: OnceLock<Vec<String>> = OnceLock::new();
    Host::new(FEATURES.get_or_init(image_features).iter().cloned())
}

impl Image {
    /// Writes the image into `store` under the name of `origin`.
    ///
    /// # Errors
    /// Why it cannot be kept there; the image itself is as before.
    pub(in crate::process) fn store(&self, store: &Store, origin: &Origin) -> Result<Digest, NotStored> {
        let mapped = self.memory.back_files();
        let back = self.back(&mapped)?;
        let mut writer = Writer::base(store, host())?;
        writer.put("", origin)?;
        writer.put("", &self.files.lock().state()?)?;
        writer.put("", &ThreadsState::of(&self.threads, self.taken)?)?;
        writer.put("", &SignalState { actions: self.actions.clone(), pending: self.pending.clone() })?;
        writer.put("", &self.futexes)?;
        writer.put("", &self.credentials)?;
        writer.put("", &self.limits)?;
        writer.put("", &self.timers)?;
        writer.put("", &self.moment)?;
        writer.put("", &self.stack)?;
        writer.put("", &self.prologue)?;
        let (recent, unserved) = (self.recent.iter().copied().collect(), self.unserved.clone());
        writer.put("", &Trace { recent, unserved, nice: self.nice })?;
        self.memory.write(&mut writer, &mapped, back)?;
        Ok(writer.publish_as(&origin.reference())?)
    }

    /// How each of the files behind the memory is found again.
    fn back(&self, mapped: &[Arc<MappedFile>]) -> Result<Vec<BackFile>, NotStored> {
        let vdso = time::object().ok();
        let mut room = MOST_NAMELESS;
        let mut files = self.files.lock();
        let mut back = |file: &Arc<MappedFile>| {
            if self.memory.is_clocks(file) {
                return Ok(BackFile::Clocks);
            }
            if vdso.as_ref().is_some_and(|vdso| Arc::ptr_eq(vdso, file)) {
                return Ok(BackFile::Vdso);
            }
            let stat = rustix::fs::fstat(&file.fd).map_err(NotStored::Read)?;
            if stat.st_nlink > 0 {
                let stamp = files.stamp_at(file.name.as_bytes(), &file.fd);
                let stamp = stamp.ok_or_else(|| NotStored::Mapped(file.name.clone()))?;
                return Ok(BackFile::Named { path: file.name.clone(), stamp });
            }
            let size = stat.st_size as u64;
            room = room.checked_sub(size).ok_or(NotStored::Nameless)?;
            let mut bytes = vec![0; size as usize];
            read_exact(&file.fd, &mut bytes).map_err(NotStored::Read)?;
            Ok(BackFile::Memory { name: file.name.clone(), bytes })
        };
        mapped.iter().map(&mut back).collect()
    }

    /// The image that `store` has under the name of `origin`, if it has one.
    ///
    /// # Errors
    /// Why that one is of no use.
    pub(in crate::process) fn load(
        store: &Store,
        origin: &Origin,
        setup: &Setup,
    ) -> Result<Option<Self>, NotLoaded> {
        let Some(digest) = store.get_ref(&origin.reference())? else { return Ok(None) };
        let snapshot = Snapshot::open(store, &digest)?;
        snapshot.require(&host())?;
        let found: Origin = snapshot.take("")?;
        if found.key != origin.key {
            return Err(NotLoaded::Stale(found.novum));
        }
        // Every page: what is mapped from here on is not looked at again.
        snapshot.verify()?;
        let image = Self::restore(&snapshot, setup)?;
        if image.working_set.get().is_none() {
            let home = Home { store: store.clone(), reference: origin.reference(), digest };
            image.home.get_or_init(|| home);
        }
        Ok(Some(image))
    }

    fn restore(snapshot: &Snapshot, setup: &Setup) -> Result<Self, NotLoaded> {
        let taken = Instant::now();
        let mut files = Files::restore(setup.files(), snapshot.take::<FilesState>("")?)?;
        let memory: MemoryState = snapshot.take("")?;
        let mapped =
            memory.files().iter().map(|file| open(&mut files, file)).collect::<Result<Vec<_>, _>>()?;
        // What was looked up for that belongs to every sandbox.
        files.checkpoint();
        let memory = memory.restore(&mapped, snapshot, setup.memory_bytes)?;
        let threads = snapshot.take::<ThreadsState>("")?.restore(taken).map_err(NotLoaded::Impossible)?;
        let SignalState { actions, pending } = snapshot.take("")?;
        let Trace { recent, unserved, nice } = snapshot.take("")?;
        let working_set = working_set(snapshot, &memory)?;
        let image = Self {
            memory: Arc::new(memory),
            files: Mutex::new(files),
            threads,
            actions,
            pending,
            futexes: snapshot.take::<Futexes>("")?,
            credentials: snapshot.take::<Credentials>("")?,
            limits: snapshot.take::<ResourceLimits>("")?,
            nice,
            timers: snapshot.take::<Timers>("")?,
            recent: recent.into_iter().take(Process::RECENT).collect::<VecDeque<_>>(),
            unserved,
            stack: snapshot.take::<Stack>("")?,
            moment: snapshot.take::<Moment>("")?,
            taken,
            working_set,
            home: OnceLock::new(),
            prologue: snapshot.take::<Prologue>("")?,
        };
        image.check()?;
        Ok(image)
    }

    /// What the sections do not say of themselves.
    fn check(&self) -> Result<(), NotLoaded> {
        let Prologue { output, log } = &self.prologue;
        let said = output.len().max(log.len()) <= LONGEST_PROLOGUE;
        let strings = |(from, to): (u64, u64)| from <= to && to - from <= STACK_SIZE;
        let stack = &self.stack;
        let stack = strings(stack.args) && strings(stack.env) && stack.auxv.1 <= STACK_SIZE;
        if said && stack && self.moment.is_possible() {
            Ok(())
        } else {
            Err(NotLoaded::Impossible("the stack, the clocks or what the program wrote cannot be"))
        }
    }
}

/// What the first run stored into, where a sandbox of the image has run already.
fn working_set(snapshot: &Snapshot, memory: &MemoryImage) -> Result<OnceLock<Arc<WorkingSet>>, NotLoaded> {
    match snapshot.take::<WorkingSet>("") {
        Ok(set) if memory.has(&set) => Ok(OnceLock::from(Arc::new(set))),
        Ok(_) => Err(NotLoaded::Impossible("the working set cannot be")),
        Err(SectionError::Missing { .. }) => Ok(OnceLock::new()),
        Err(error) => Err(error.into()),
    }
}

/// Opens what was mapped.
pub(super) fn open(files: &mut Files, file: &BackFile) -> Result<Arc<MappedFile>, NotLoaded> {
    match file {
        BackFile::Vdso => time::object().map_err(NotLoaded::Make),
        BackFile::Clocks => time::memory_file("[vvar]", &[]).map(Arc::new).map_err(NotLoaded::Make),
        BackFile::Named { path, stamp } => match files.host_file_at(path.as_bytes()) {
            Some((fd, there)) if there == *stamp => Ok(Arc::new(MappedFile::new(fd, path.clone()))),
            _ => Err(NotLoaded::Mapped(path.clone())),
        },
        BackFile::Memory { name, bytes } => {
            let fd = nameless(bytes).map_err(NotLoaded::Make)?;
            Ok(Arc::new(MappedFile::new(Arc::new(fd), name.clone())))
        }
    }
}

fn nameless(bytes: &[u8]) -> Result<std::os::fd::OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create(c"novum-file", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes.len() as u64)?;
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::pwrite(&fd, &bytes[done..], done as u64)?;
    }
    Ok(fd)
}

fn read_exact(fd: impl AsFd, bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&fd, &mut bytes[done..], done as u64)? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(())
}
