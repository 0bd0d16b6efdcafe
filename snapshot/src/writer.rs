//! Writing snapshots.
//!
//! A [`Writer`] collects sections and streams pages into a draft inside the store; [`Writer::publish`] makes
//! it a snapshot. Dropped before that, it leaves nothing.
//!
//! Pages are read twice: once to see which are zero (or, in a diff without a list of changed pages, equal to
//! the parent's), once to hash and write them in the order of the layout. Only pages worth storing are read
//! the second time. They go straight from the caller's memory into the page cache, in writes of up to 256 KiB.
//! copy_file_range and vmsplice would save nothing: the bytes must pass through the processor for their tags anyway.

use std::collections::BTreeMap;
use std::io;

use crate::Digest;
use crate::data::DataWriter;
use crate::format::{FORMAT_VERSION, FormatError, HEADER_LEN, Header, MAX_META};
use crate::host::Host;
use crate::index::{Body, Index, MAX_DEPTH, Place, RegionRecord, Run, SectionRecord};
use crate::layout::Layout;
use crate::pages::PageSet;
use crate::publish::Draft;
use crate::refs::RefName;
use crate::region::{Contents, Region};
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
    #[error("the snapshot is too large for its format")]
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
    memory: Option<Memory>,
}

/// What the data area holds.
#[derive(Debug, Default)]
struct Memory {
    regions: Vec<RegionRecord>,
    pages: u64,
    first_pages: u64,
    tags: Vec<u8>,
}

impl Writer {
    /// Starts a base: a snapshot that stands alone. `host` is what it demands of machines that restore it.
    ///
    /// # Errors
    /// Those of creating a file in the store and of getrandom(2).
    pub fn base(store: &Store, host: Host) -> Result<Self, WriteError> {
        let salt = Salt::random().map_err(WriteError::Write)?;
        Ok(Self {
            store: store.clone(),
            draft: store.draft()?,
            host,
            salt,
            parent: None,
            sections: BTreeMap::new(),
            memory: None,
        })
    }

    /// Starts a diff: a snapshot that stores only what differs from `parent`, which is kept from being
    /// removed until the diff is published or dropped.
    ///
    /// # Errors
    /// As [`Writer::base`]; [`WriteError::TooDeep`] and [`WriteError::PageSize`].
    pub fn diff(store: &Store, host: Host, parent: &Snapshot) -> Result<Self, WriteError> {
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
        if self.memory.is_some() {
            return Err(WriteError::MemoryTwice);
        }
        let mut regions: Vec<&Region<'_>> = regions.iter().collect();
        regions.sort_unstable_by_key(|region| region.guest_address);
        check(&regions, u64::from(self.host.page_size))?;
        let page_size = self.host.page_size as usize;
        let contents: Vec<Contents> = regions
            .iter()
            .map(|region| region.classify(page_size, self.parent.as_ref()))
            .collect::<Result<_, _>>()?;
        let arranged: Vec<(PageSet, PageSet)> = regions
            .iter()
            .zip(&contents)
            .map(|(region, contents)| layout.arrange(&contents.data, &region.first))
            .collect();
        let mut data = DataWriter::new(self.salt, page_size);
        let mut memory =
            Memory { regions: regions.iter().map(|r| r.record()).collect(), ..Memory::default() };
        let first = arranged.iter().map(|(first, _)| first);
        self.write_runs(&mut data, &mut memory, &regions, first)?;
        memory.first_pages = data.pages();
        let rest = arranged.iter().map(|(_, rest)| rest);
        self.write_runs(&mut data, &mut memory, &regions, rest)?;
        for ((record, contents), (first, rest)) in memory.regions.iter_mut().zip(&contents).zip(&arranged) {
            let zero = contents.zero.subtract(first).subtract(rest);
            record.runs.extend(zero.runs().map(|run| make_run(&run, Place::Zero)));
            record.runs.sort_unstable_by_key(|run| run.page);
        }
        let stored = data.stored();
        memory.pages = data.pages();
        memory.tags = data.finish();
        self.memory = Some(memory);
        Ok(stored)
    }

    /// Appends one set of pages of each region to the data area, and to the region's runs.
    fn write_runs<'s>(
        &mut self,
        data: &mut DataWriter,
        memory: &mut Memory,
        regions: &[&Region<'_>],
        sets: impl Iterator<Item = &'s PageSet>,
    ) -> Result<(), WriteError> {
        let page_size = self.host.page_size as usize;
        let file = &*self.draft.file();
        for ((region, record), set) in regions.iter().zip(&mut memory.regions).zip(sets) {
            for run in set.runs() {
                record.runs.push(make_run(&run, Place::Data(data.pages())));
                region
                    .for_each(run, page_size, |_, bytes| data.push(file, bytes).map_err(WriteError::Write))?;
            }
        }
        Ok(())
    }

    /// Makes it a snapshot: complete, durable, never to change. Returns its name.
    ///
    /// # Errors
    /// [`WriteError`]; the store is then as it was.
    pub fn publish(self) -> Result<Digest, WriteError> {
        self.finish(None)
    }

    /// The same, and lets `name` refer to it, so that nothing can remove it in between.
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn publish_as(self, name: &RefName) -> Result<Digest, WriteError> {
        self.finish(Some(name))
    }

    fn finish(mut self, name: Option<&RefName>) -> Result<Digest, WriteError> {
        let memory = self.memory.take().unwrap_or_else(|| inherited(self.parent.as_ref()));
        let (records, mut meta) = self.lay_out_sections();
        let index = Index {
            features: std::mem::take(&mut self.host.features),
            parent: self.parent.as_ref().map(Snapshot::digest),
            depth: self.parent.as_ref().map_or(0, |parent| parent.depth() + 1),
            sections: records,
            regions: memory.regions,
            first_pages: memory.first_pages,
            tags: (memory.pages > 0).then(|| Sealer::tag(&self.salt, Domain::Tags, 0, &memory.tags)),
        };
        let raw_index = index.encode().map_err(WriteError::Index)?;
        let data_end = (memory.pages + 1) * u64::from(self.host.page_size);
        let index_offset = data_end + (memory.tags.len() + meta.len()) as u64;
        let header = Header {
            page_size: self.host.page_size,
            file_len: index_offset + raw_index.len() as u64,
            data_pages: memory.pages,
            index_offset,
            salt: self.salt,
            index_tag: Sealer::tag(&self.salt, Domain::Index, 0, &raw_index),
        };
        // Nothing is published that could not be opened.
        if (meta.len() + raw_index.len()) as u64 > MAX_META {
            return Err(WriteError::Format(FormatError::Malformed(
                "sections and index are longer than 256 MiB",
            )));
        }
        Header::decode(&header.encode(), header.file_len).map_err(WriteError::Format)?;
        Index::decode(&raw_index, &header).map_err(WriteError::Format)?;
        meta.splice(0..0, memory.tags);
        meta.extend_from_slice(&raw_index);
        self.write_meta(&header, data_end, &meta).map_err(WriteError::Write)?;
        let digest = header.digest();
        self.store.adopt(self.draft, &digest, name)?;
        Ok(digest)
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

const _: () = assert!(HEADER_LEN == 104 && FORMAT_VERSION == 1, "the drawing in format.rs says so");

fn make_run(pages: &std::ops::Range<u64>, place: Place) -> Run {
    Run { page: pages.start, pages: pages.end - pages.start, place }
}

/// The regions of a diff that says nothing about memory.
fn inherited(parent: Option<&Snapshot>) -> Memory {
    let regions = parent.iter().flat_map(|parent| &parent.mapping_plan().regions);
    let record = |region: &crate::plan::PlannedRegion| RegionRecord {
        guest_address: region.guest_address,
        len: region.len,
        flags: region.flags,
        runs: Vec::new(),
    };
    Memory { regions: regions.map(record).collect(), ..Memory::default() }
}

/// Whole pages, sorted and apart.
fn check(regions: &[&Region<'_>], page: u64) -> Result<(), WriteError> {
    let mut end = 0;
    for region in regions {
        let (start, len) = (region.guest_address, region.source.len());
        if start % page != 0 || len % page != 0 || len == 0 {
            return Err(WriteError::Alignment(start));
        }
        if start < end {
            return Err(WriteError::Overlap(start));
        }
        end = start.checked_add(len).ok_or(WriteError::Alignment(start))?;
    }
    Ok(())
}
