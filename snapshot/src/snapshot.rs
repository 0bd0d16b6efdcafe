//! Reading snapshots.
//!
//! What is checked when:
//!
//! | when | what | cost |
//! |---|---|---|
//! | [`Snapshot::open`] | name, header, index, all sections, for every layer; that the chain is whole | microseconds, whatever the size of the memory |
//! | [`Snapshot::verify_range`] | the pages behind some guest addresses | reads those chunks |
//! | [`Snapshot::verify`] | every byte of every layer | reads everything |
//!
//! Opening does not read the pages: between writing and mapping stands the store, in which files are
//! immutable. A damaged disk is found by `verify`, not by a start.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::format::CHUNK_PAGES;
use crate::host::{Host, Incompatible};
use crate::index::MAX_DEPTH;
use crate::layer::{Layer, LayerError, Lookup};
use crate::plan::{Plan, resolve};
use crate::state::{self, SectionError, State};
use crate::store::{Store, StoreError};
use crate::{Digest, plan::PlannedRun};

/// Why a snapshot could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store has none of that name: never written, removed, or evicted.
    #[error("there is no snapshot {0}")]
    Missing(Digest),
    /// A layer is there, the one it changes is not.
    #[error("snapshot {child} needs its parent {parent}, which is missing")]
    MissingParent {
        /// The layer that is there.
        child: Digest,
        /// The one that is not.
        parent: Digest,
    },
    /// A file that is not a readable snapshot.
    #[error("snapshot {name} cannot be read")]
    Layer {
        /// Its name, or its place in the list of files.
        name: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// The content belongs to another name.
    #[error("asked for snapshot {asked}, found the content of {found}")]
    WrongName {
        /// The name asked for.
        asked: Digest,
        /// The name of what was found.
        found: Digest,
    },
    /// Layers that do not count down to a base.
    #[error("the chain of snapshot {0} does not end in a base within {MAX_DEPTH} layers")]
    Chain(Digest),
    /// It cannot be mapped on a machine with other pages.
    #[error(transparent)]
    Host(#[from] Incompatible),
    /// No file was given.
    #[error("a snapshot has at least one layer, none was given")]
    Empty,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why pages could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No region holds all of the range.
    #[error("guest addresses {start:#x} to {end:#x} are not in one region")]
    Unmapped {
        /// The first address.
        start: u64,
        /// The one behind the last.
        end: u64,
    },
    /// The file could not be read.
    #[error("the file could not be read")]
    Read(#[from] io::Error),
}

/// One of the sections in effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section<'a> {
    /// The state's kind.
    pub kind: &'a str,
    /// Whose state it is.
    pub owner: &'a str,
    /// The version it was written in.
    pub version: u32,
    /// The encoded state.
    pub bytes: &'a [u8],
    /// The layer that holds it; 0 is the top.
    pub layer: u32,
}

/// An open snapshot: a chain of layers, the top one first. Cloning it is cheap. While it is open, the store
/// does not remove its files; memory mapped from it outlives it.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Chain>);

#[derive(Debug)]
struct Chain {
    layers: Vec<Layer>,
    plan: Plan,
}

impl Snapshot {
    /// Opens a snapshot and all layers below it.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(store: &Store, digest: &Digest) -> Result<Self, OpenError> {
        let mut layers: Vec<Layer> = Vec::new();
        let mut next = Some(*digest);
        while let Some(asked) = next {
            let file = match store.open_file(&asked) {
                Ok(file) => file,
                Err(StoreError::Missing(_)) => return Err(missing(asked, layers.last())),
                Err(e) => return Err(e.into()),
            };
            let layer = read(file, &asked.to_string())?;
            if layer.digest != asked {
                return Err(OpenError::WrongName { asked, found: layer.digest });
            }
            next = layer.index.parent;
            push(&mut layers, layer)?;
        }
        Self::from_chain(layers)
    }

    /// Opens a snapshot from files handed over by another process, the top layer first.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn from_files(files: impl IntoIterator<Item = File>) -> Result<Self, OpenError> {
        let mut layers: Vec<Layer> = Vec::new();
        for (number, file) in files.into_iter().enumerate() {
            let layer = read(file, &format!("file {number}"))?;
            if let Some(child) = layers.last() {
                let asked = child.index.parent.ok_or(OpenError::Chain(child.digest))?;
                if layer.digest != asked {
                    return Err(OpenError::WrongName { asked, found: layer.digest });
                }
            }
            push(&mut layers, layer)?;
        }
        Self::from_chain(layers)
    }

    fn from_chain(layers: Vec<Layer>) -> Result<Self, OpenError> {
        let bottom = layers.last().ok_or(OpenError::Empty)?;
        if let Some(parent) = bottom.index.parent {
            return Err(missing(parent, Some(bottom)));
        }
        let here = Host::new([""; 0]);
        let alien = layers.iter().find(|layer| layer.header.page_size != here.page_size);
        if let Some(layer) = alien {
            let (snapshot, host) = (layer.header.page_size, here.page_size);
            return Err(Incompatible::PageSize { snapshot, host }.into());
        }
        let plan = resolve(layers.iter().map(|layer| (&layer.header, &layer.index)));
        Ok(Self(Arc::new(Chain { layers, plan })))
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.0.layers
    }

    fn top(&self) -> &Layer {
        // `from_chain` refuses an empty chain.
        &self.0.layers[0]
    }

    /// Its name.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.top().digest
    }

    /// The layer below, if this is a diff.
    #[must_use]
    pub fn parent(&self) -> Option<Digest> {
        self.top().index.parent
    }

    /// How many layers are below.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.top().index.depth
    }

    /// What a host must offer: the page size, and the features of all layers.
    #[must_use]
    pub fn host(&self) -> Host {
        let features = self.layers().iter().flat_map(|layer| layer.index.features.iter().cloned());
        Host { page_size: self.top().header.page_size, features: features.collect() }
    }

    /// Whether it can run on a host that offers `offer`.
    ///
    /// # Errors
    /// [`Incompatible`], which names what is missing.
    pub fn require(&self, offer: &Host) -> Result<(), Incompatible> {
        self.host().require(offer)
    }

    /// The state of `owner`, from the uppermost layer that has it.
    ///
    /// # Errors
    /// [`SectionError`]
    pub fn take<S: State>(&self, owner: &str) -> Result<S, SectionError> {
        let (version, bytes) = self
            .section(S::KIND, owner)
            .ok_or_else(|| SectionError::Missing { kind: S::KIND, owner: owner.into() })?;
        state::decode(owner, version, bytes)
    }

    pub(crate) fn section(&self, kind: &str, owner: &str) -> Option<(u32, &[u8])> {
        for layer in self.layers() {
            match layer.section(kind, owner) {
                Lookup::Here(version, bytes) => return Some((version, bytes)),
                Lookup::Dropped => return None,
                Lookup::Inherited => {}
            }
        }
        None
    }

    /// All sections in effect, the top layer's first.
    #[must_use]
    pub fn sections(&self) -> Vec<Section<'_>> {
        let mut seen = HashSet::new();
        let mut sections = Vec::new();
        for (number, layer) in (0..).zip(self.layers()) {
            for record in &layer.index.sections {
                let (kind, owner) = (record.kind.as_str(), record.owner.as_str());
                if !seen.insert((kind, owner)) {
                    continue;
                }
                if let Lookup::Here(version, bytes) = layer.section(kind, owner) {
                    sections.push(Section { kind, owner, version, bytes, layer: number });
                }
            }
        }
        sections
    }

    /// Which bytes of which file belong where in guest memory.
    #[must_use]
    pub fn mapping_plan(&self) -> &Plan {
        &self.0.plan
    }

    /// The files that the plan's layer numbers mean.
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.layers().iter().map(|layer| layer.file().as_fd()).collect()
    }

    /// Reads guest memory out of the files.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn read(&self, guest_address: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let end = guest_address.saturating_add(buf.len() as u64);
        let mut regions = self.0.plan.regions.iter();
        if !regions.any(|r| r.guest_address <= guest_address && end <= r.guest_address + r.len) {
            return Err(ReadError::Unmapped { start: guest_address, end });
        }
        buf.fill(0);
        for run in self.0.plan.runs_within(guest_address..end) {
            let at = (run.guest_address - guest_address) as usize;
            self.layer_of(&run).read_at(&mut buf[at..at + run.len as usize], run.offset)?;
        }
        Ok(())
    }

    fn layer_of(&self, run: &PlannedRun) -> &Layer {
        &self.0.layers[run.layer as usize]
    }

    /// Checks every byte of every layer.
    ///
    /// # Errors
    /// The first damage found, and in which layer.
    pub fn verify(&self) -> Result<(), OpenError> {
        self.layers().iter().try_for_each(|layer| layer.verify().map_err(|e| damaged(layer, e)))
    }

    /// Checks every byte of the top layer only, for who goes through all layers anyway.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify_layer(&self) -> Result<(), OpenError> {
        self.top().verify().map_err(|e| damaged(self.top(), e))
    }

    /// Checks the pages behind some guest addresses, those of a working set for example.
    ///
    /// # Errors
    /// The first damage found, and in which layer.
    pub fn verify_range(&self, guest_addresses: Range<u64>) -> Result<(), OpenError> {
        for run in self.0.plan.runs_within(guest_addresses) {
            let layer = self.layer_of(&run);
            let chunk = |offset: u64| (offset / layer.header.page() - 1) / CHUNK_PAGES;
            let chunks = chunk(run.offset)..chunk(run.offset + run.len - 1) + 1;
            layer.verify_chunks(chunks).map_err(|e| damaged(layer, e))?;
        }
        Ok(())
    }
}

fn read(file: File, name: &str) -> Result<Layer, OpenError> {
    Layer::read(file).map_err(|source| OpenError::Layer { name: name.to_owned(), source })
}

fn damaged(layer: &Layer, source: LayerError) -> OpenError {
    OpenError::Layer { name: layer.digest.to_string(), source }
}

fn missing(asked: Digest, child: Option<&Layer>) -> OpenError {
    match child {
        Some(child) => OpenError::MissingParent { child: child.digest, parent: asked },
        None => OpenError::Missing(asked),
    }
}

/// Adds the next layer down, which must be one nearer to a base.
fn push(layers: &mut Vec<Layer>, layer: Layer) -> Result<(), OpenError> {
    if let Some(child) = layers.last()
        && child.index.depth != layer.index.depth + 1
    {
        return Err(OpenError::Chain(child.digest));
    }
    layers.push(layer);
    Ok(())
}
