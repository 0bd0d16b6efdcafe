//! Regions of memory on their way into a snapshot: where the bytes come from, and which pages count.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};

use crate::format::CHUNK_PAGES;
use crate::index::RegionRecord;
use crate::pages::PageSet;
use crate::snapshot::Snapshot;
use crate::sys::is_zero;
use crate::writer::WriteError;

/// One region of guest memory to be saved.
#[derive(Clone, Debug)]
pub struct Region<'a> {
    /// Where it starts for the guest.
    pub guest_address: u64,
    /// Protection, kind: what the engine wants to find again. Opaque here.
    pub flags: u64,
    /// Its bytes: all of them, as they are now, also in a diff.
    pub source: Source<'a>,
    /// Which pages count. The others are known to be zero in a base, and as in the parent in a diff (a dirty
    /// log); the source must have them so, because short gaps are stored from it all the same. Without a list
    /// every page is looked at, and in a diff compared with the parent's.
    pub pages: Option<PageSet>,
    /// The working set: stored first, and in one piece.
    pub first: PageSet,
    /// One run from the first page to the last, without a working set of its own: zero pages, also those at the ends, are holes in
    /// the file. For who maps a region with one call whatever it holds. Only in a base.
    pub whole: bool,
}

impl<'a> Region<'a> {
    /// A region of which every page is looked at, without a working set.
    #[must_use]
    pub fn new(guest_address: u64, source: Source<'a>) -> Self {
        Self { guest_address, flags: 0, source, pages: None, first: PageSet::default(), whole: false }
    }
}

/// Where a region's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// In memory.
    Slice(&'a [u8]),
    /// In memory that changes meanwhile: what changes after [`Writer::memory`](crate::Writer::memory) was called must be
    /// given to [`Writer::memory_changed`](crate::Writer::memory_changed).
    Changing(&'a dyn ReadMemory),
    /// In a file, a memfd for example. Its holes are not read. The file's own position moves.
    File {
        /// The file.
        file: BorrowedFd<'a>,
        /// Where in the file the region starts.
        offset: u64,
        /// The region's length.
        len: u64,
    },
    /// In another snapshot, which is how one is copied and flattened.
    Snapshot {
        /// The other snapshot.
        snapshot: &'a Snapshot,
        /// Where in its memory the region starts.
        guest_address: u64,
        /// The region's length.
        len: u64,
    },
}

/// Memory that is read by copying it.
pub trait ReadMemory: fmt::Debug {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what stands from `offset` on now. The range lies within the length.
    fn read(&self, offset: u64, into: &mut [u8]);
}

impl Source<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Slice(bytes) => bytes.len() as u64,
            Self::Changing(memory) => memory.len(),
            Self::File { len, .. } | Self::Snapshot { len, .. } => *len,
        }
    }
}

/// What a region's pages are; those in neither set are the parent's, or zero in a base.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) data: PageSet,
    pub(crate) zero: PageSet,
}

impl Region<'_> {
    pub(crate) fn record(&self) -> RegionRecord {
        let (guest_address, len, flags) = (self.guest_address, self.source.len(), self.flags);
        RegionRecord { guest_address, len, flags, runs: Vec::new() }
    }

    /// Looks at the pages that count.
    pub(crate) fn classify(
        &self,
        page_size: usize,
        parent: Option<&Snapshot>,
    ) -> Result<Contents, WriteError> {
        let all = PageSet::all(self.source.len() / page_size as u64);
        let counting = self.pages.as_ref().map_or_else(|| all.clone(), |pages| pages.intersect(&all));
        match parent {
            None => self.classify_base(page_size, &counting.intersect(&self.backed(page_size, all)?)),
            Some(parent) => self.classify_diff(page_size, &counting, parent),
        }
    }

    fn classify_base(&self, page_size: usize, counting: &PageSet) -> Result<Contents, WriteError> {
        let mut contents = Contents::default();
        for run in counting.runs() {
            self.for_each(run, page_size, |first, bytes| {
                for (page, bytes) in (first..).zip(bytes.chunks_exact(page_size)) {
                    if !is_zero(bytes) {
                        contents.data.push(page..page + 1);
                    }
                }
                Ok(())
            })?;
        }
        Ok(contents)
    }

    fn classify_diff(
        &self,
        page_size: usize,
        counting: &PageSet,
        parent: &Snapshot,
    ) -> Result<Contents, WriteError> {
        let below = self.stored_below(page_size, parent);
        let mut old = vec![0; page_size];
        let mut contents = Contents::default();
        for run in counting.runs() {
            self.for_each(run, page_size, |first, bytes| {
                for (page, bytes) in (first..).zip(bytes.chunks_exact(page_size)) {
                    let (zero, inherits) = (is_zero(bytes), below.contains(page));
                    if self.pages.is_none() && inherits {
                        parent.read(self.guest_address + page * page_size as u64, &mut old)?;
                        if old == bytes {
                            continue;
                        }
                    }
                    match (zero, inherits) {
                        (false, _) => contents.data.push(page..page + 1),
                        (true, true) => contents.zero.push(page..page + 1),
                        (true, false) => {}
                    }
                }
                Ok(())
            })?;
        }
        Ok(contents)
    }

    /// The pages for which the parent has something stored.
    fn stored_below(&self, page_size: usize, parent: &Snapshot) -> PageSet {
        let (start, page) = (self.guest_address, page_size as u64);
        let range = start..start.saturating_add(self.source.len());
        let runs = parent.mapping_plan().runs_within(range);
        runs.map(|run| (run.guest_address - start) / page..(run.guest_address + run.len - start) / page)
            .collect()
    }

    /// The pages that are not holes of the source's file.
    fn backed(&self, page_size: usize, all: PageSet) -> Result<PageSet, WriteError> {
        let Source::File { file, offset, len } = self.source else { return Ok(all) };
        let page = page_size as u64;
        let (mut at, end) = (offset, offset.saturating_add(len));
        let mut backed = PageSet::default();
        while at < end {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => break,
                // A file system that knows no holes.
                Err(rustix::io::Errno::INVAL) => return Ok(all),
                Err(e) => return Err(WriteError::Source(e.into())),
            };
            at = seek(file, SeekFrom::Hole(data)).map_err(|e| WriteError::Source(e.into()))?;
            let (from, to) = (data.max(offset) - offset, at.min(end).saturating_sub(offset));
            backed.push(from / page..to.div_ceil(page).max(from / page));
        }
        Ok(backed)
    }

    /// Hands over the bytes of some pages, in order, in pieces of up to 64 pages.
    pub(crate) fn for_each(
        &self,
        pages: Range<u64>,
        page_size: usize,
        mut f: impl FnMut(u64, &[u8]) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let mut buf = Vec::new();
        let mut next = pages.start;
        while next < pages.end {
            let n = CHUNK_PAGES.min(pages.end - next) as usize * page_size;
            let at = next * page_size as u64;
            match self.source {
                Source::Slice(bytes) => f(next, &bytes[at as usize..at as usize + n])?,
                Source::Changing(memory) => {
                    buf.resize(n, 0);
                    memory.read(at, &mut buf);
                    f(next, &buf)?;
                }
                Source::File { file, offset, .. } => {
                    buf.resize(n, 0);
                    read_exact_at(file, &mut buf, offset + at).map_err(WriteError::Source)?;
                    f(next, &buf)?;
                }
                Source::Snapshot { snapshot, guest_address, .. } => {
                    buf.resize(n, 0);
                    snapshot.read(guest_address + at, &mut buf)?;
                    f(next, &buf)?;
                }
            }
            next += CHUNK_PAGES;
        }
        Ok(())
    }
}

fn read_exact_at(file: BorrowedFd<'_>, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::pread(file, &mut *buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
