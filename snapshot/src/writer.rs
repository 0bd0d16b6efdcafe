//! Writing snapshots.
//!
//! A [`Writer`] collects sections and streams pages into a draft inside the store; [`Writer::publish`] makes
//! it a snapshot. Dropped before that, it leaves nothing.

use std::collections::BTreeMap;
use std::io;

use crate::Digest;
use crate::format::{FormatError, Header, MIN_PAGE};
use crate::host::Host;
use crate::image::{Image, ImageWriter};
use crate::index::{Body, Index, MAX_DEPTH, RegionRecord, SectionRecord};
use crate::layout::Layout;
use crate::publish::Draft;
use crate::refs::RefName;
use crate::region::Region;
use crate::seal::{Domain, Salt, Sealer};
use crate::snapshot::{ReadError, Snapshot};
use crate::state::State;
use crate::store::{Store, StoreError};

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A state that postcard cannot encode.
    #[error("section {kind} of {owner:?} cannot be encoded")]
    Encode {
        /// The state's kind.
        kind: String,
        /// Its owner.
        owner: String,
        /// What the encoder said.
        #[source]
        source: postcard::Error,
    },
    /// Two states of one name.
    #[error("section {kind} of {owner:?} is put twice")]
    Twice {
        /// The state's kind.
        kind: String,
        /// Its owner.
        owner: String,
    },
    /// Memory is given once, all regions together.
    #[error("memory is given twice")]
    MemoryTwice,
    /// A region's address or length is no multiple of the page size, or its length is zero or too long.
    #[error("the region at {0:#x} is empty or not made of whole pages")]
    Alignment(u64),
    /// Two regions share an address.
    #[error("two regions overlap at {0:#x}")]
    Overlap(u64),
    /// The layers below are as many as there may be: flatten one.
    #[error("the parent has {} layers already, at most {MAX_DEPTH} are allowed: flatten it first", MAX_DEPTH)]
    TooDeep,
    /// The parent's pages have another size.
    #[error("the parent has pages of {parent} bytes, the new snapshot of {new}")]
    PageSize {
        /// The parent's page size.
        parent: u32,
        /// The new one.
        new: u32,
    },
    /// What came out cannot be read back.
    #[error("the format does not allow such a snapshot")]
    Format(#[source] FormatError),
    /// The index cannot be encoded.
    #[error("the index cannot be encoded")]
    Index(#[source] postcard::Error),
    /// The memory could not be read.
    #[error("the memory could not be read")]
    Source(#[source] io::Error),
    /// The parent's memory could not be read.
    #[error("the parent's memory could not be read")]
    Parent(#[from] ReadError),
    /// The file could not be written.
    #[error("the snapshot could not be written")]
    Write(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A section to be: its version and bytes, or that the parent's goes away.
type Pending = Option<(u32, Vec<u8>)>;

/// A snapshot under construction.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    draft: Draft,
    host: Host,
    salt: Salt,
    parent: Option<Snapshot>,
    sections: BTreeMap<(String, String), Pending>,
    image: Option<Image>,
    name: Option<RefName>,
}

impl Writer {
    /// Starts a base: a snapshot that stands alone. `host` is what it demands of machines that restore it.
    ///
    /// # Errors
    /// Those of creating a file in the store and of getrandom(2); [`FormatError::PageSize`].
    pub fn base(store: &Store, host: Host) -> Result<Self, WriteError> {
        if !host.page_size.is_power_of_two() || host.page_size < MIN_PAGE {
            return Err(WriteError::Format(FormatError::PageSize(host.page_size)));
        }
        let salt = Salt::random().map_err(WriteError::Write)?;
        Ok(Self {
            store: store.clone(),
            draft: store.draft()?,
            host,
            salt,
            parent: None,
            sections: BTreeMap::new(),
            image: None,
            name: None,
        })
    }

    /// Starts a diff: a snapshot that stores only what differs from `parent`, which is kept from being
    /// removed until the diff is published or dropped.
    ///
    /// # Errors
    /// As [`Writer::base`]; [`WriteError::TooDeep`], [`WriteError::PageSize`], and [`StoreError::Missing`] if
    /// the parent is in another store.
    pub fn diff(store: &Store, host: Host, parent: &Snapshot) -> Result<Self, WriteError> {
        if !store.contains(&parent.digest()) {
            return Err(StoreError::Missing(parent.digest()).into());
        }
        if parent.depth() + 1 >= MAX_DEPTH {
            return Err(WriteError::TooDeep);
        }
        let page_size = parent.host().page_size;
        if page_size != host.page_size {
            return Err(WriteError::PageSize { parent: page_size, new: host.page_size });
        }
        Ok(Self { parent: Some(parent.clone()), ..Self::base(store, host)? })
    }

    /// Chooses the salt, for snapshots that must come out the same every time. See [`Salt::fixed`].
    #[must_use]
    pub fn with_salt(mut self, salt: Salt) -> Self {
        self.salt = salt;
        self
    }

    /// Adds a state. In a diff, one that is as the parent has it takes no room.
    ///
    /// # Errors
    /// [`WriteError::Encode`], [`WriteError::Twice`].
    pub fn put<S: State>(&mut self, owner: &str, state: &S) -> Result<(), WriteError> {
        let bytes = postcard::to_stdvec(state).map_err(|source| {
            let (kind, owner) = (S::KIND.to_owned(), owner.to_owned());
            WriteError::Encode { kind, owner, source }
        })?;
        self.put_bytes(S::KIND, owner, S::VERSION, bytes)
    }

    pub(crate) fn put_bytes(
        &mut self,
        kind: &str,
        owner: &str,
        version: u32,
        bytes: Vec<u8>,
    ) -> Result<(), WriteError> {
        let unchanged = self.parent.as_ref().and_then(|parent| parent.section(kind, owner))
            == Some((version, bytes.as_slice()));
        if unchanged { Ok(()) } else { self.insert(kind, owner, Some((version, bytes))) }
    }

    /// Leaves out a state that the parent has.
    ///
    /// # Errors
    /// [`WriteError::Twice`]
    pub fn drop_section(&mut self, kind: &str, owner: &str) -> Result<(), WriteError> {
        let inherited = self.parent.as_ref().is_some_and(|parent| parent.section(kind, owner).is_some());
        if inherited { self.insert(kind, owner, None) } else { Ok(()) }
    }

    fn insert(&mut self, kind: &str, owner: &str, pending: Pending) -> Result<(), WriteError> {
        let name = (kind.to_owned(), owner.to_owned());
        match self.sections.insert(name, pending) {
            None => Ok(()),
            Some(_) => Err(WriteError::Twice { kind: kind.to_owned(), owner: owner.to_owned() }),
        }
    }

    /// Adds the memory, all of its regions. It must not change while this runs: if it does, the snapshot
    /// will not verify. Without this call a base has no memory and a diff its parent's.
    ///
    /// Returns how many pages were stored, those that are zero not counted.
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn memory(&mut self, regions: &[Region<'_>], layout: &Layout) -> Result<u64, WriteError> {
        if self.image.is_some() {
            return Err(WriteError::MemoryTwice);
        }
        let writer = ImageWriter {
            file: self.draft.file(),
            salt: self.salt,
            page_size: self.host.page_size as usize,
            parent: self.parent.as_ref(),
            layout,
        };
        let image = self.image.insert(writer.write(regions)?);
        Ok(image.stored)
    }

    /// Lets `name` refer to the snapshot from the moment of its publishing on.
    pub fn refer(&mut self, name: &RefName) {
        self.name = Some(name.clone());
    }

    /// Pages that changed after they were written by [`Writer::memory`]: (guest address, all bytes of the page) of each, best
    /// in the order of addresses.
    ///
    /// # Errors
    /// [`WriteError::Alignment`] for what is no page of the memory that was given; those of reading and writing the file.
    pub fn memory_changed<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), WriteError> {
        let mut none = Image::default();
        let image = self.image.as_mut().unwrap_or(&mut none);
        image.change(self.draft.file(), &self.salt, self.host.page_size as usize, changes)
    }

    /// Says what the snapshot demands of machines, for who knows it only after the memory.
    ///
    /// # Errors
    /// [`WriteError::PageSize`] where that is another one now.
    pub fn demand(&mut self, host: Host) -> Result<(), WriteError> {
        let (parent, new) = (self.host.page_size, host.page_size);
        if parent != new {
            return Err(WriteError::PageSize { parent, new });
        }
        self.host = host;
        Ok(())
    }

    /// Makes it a snapshot: complete, durable, never to change. Returns its name.
    ///
    /// # Errors
    /// [`WriteError`]; the store is then as it was.
    pub fn publish(mut self) -> Result<Digest, WriteError> {
        let name = self.name.take();
        self.finish(name.as_ref())
    }

    /// The same, and lets `name` refer to it, so that nothing can remove it in between.
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn publish_as(self, name: &RefName) -> Result<Digest, WriteError> {
        self.finish(Some(name))
    }

    fn finish(mut self, name: Option<&RefName>) -> Result<Digest, WriteError> {
        let mut image = self.image.take().unwrap_or_else(|| Image::inherited(self.parent.as_ref()));
        let (records, sections) = self.lay_out_sections();
        let mut meta = std::mem::take(&mut image.tags);
        let raw_index = self.index(image.regions, image.first_pages, records, &meta)?;
        meta.extend_from_slice(&sections);
        let data_end = (image.pages + 1) * u64::from(self.host.page_size);
        let index_offset = data_end + meta.len() as u64;
        let header = Header {
            page_size: self.host.page_size,
            file_len: index_offset + raw_index.len() as u64,
            data_pages: image.pages,
            index_offset,
            salt: self.salt,
            index_tag: Sealer::tag(&self.salt, Domain::Index, 0, &raw_index),
        };
        // Nothing is published that could not be opened.
        Header::decode(&header.encode(), header.file_len).map_err(WriteError::Format)?;
        Index::decode(&raw_index, &header).map_err(WriteError::Format)?;
        meta.extend_from_slice(&raw_index);
        self.write_meta(&header, data_end, &meta).map_err(WriteError::Write)?;
        let digest = header.digest();
        self.store.adopt(self.draft, &digest, name)?;
        Ok(digest)
    }

    fn index(
        &mut self,
        regions: Vec<RegionRecord>,
        first_pages: u64,
        sections: Vec<SectionRecord>,
        tags: &[u8],
    ) -> Result<Vec<u8>, WriteError> {
        let index = Index {
            features: std::mem::take(&mut self.host.features),
            parent: self.parent.as_ref().map(Snapshot::digest),
            depth: self.parent.as_ref().map_or(0, |parent| parent.depth() + 1),
            sections,
            regions,
            first_pages,
            tags: (!tags.is_empty()).then(|| Sealer::tag(&self.salt, Domain::Tags, 0, tags)),
        };
        index.encode().map_err(WriteError::Index)
    }

    /// The table of sections, and their bytes one after the other.
    fn lay_out_sections(&mut self) -> (Vec<SectionRecord>, Vec<u8>) {
        let mut area = Vec::new();
        let mut records = Vec::new();
        for (number, ((kind, owner), pending)) in (0..).zip(std::mem::take(&mut self.sections)) {
            let body = pending.map(|(version, bytes)| {
                let tag = Sealer::tag(&self.salt, Domain::Section, number, &bytes);
                let body = Body { version, offset: area.len() as u64, len: bytes.len() as u64, tag };
                area.extend_from_slice(&bytes);
                body
            });
            records.push(SectionRecord { kind, owner, body });
        }
        (records, area)
    }

    /// The header goes last: what has none is no snapshot.
    fn write_meta(&mut self, header: &Header, at: u64, meta: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = self.draft.file();
        file.write_all_at(meta, at)?;
        file.write_all_at(&header.encode(), 0)
    }
}
