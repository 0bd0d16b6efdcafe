//! A program's memory at one moment, from which any number of sandboxes start.
//!
//! ```text
//! plan, by guest-physical address:                        picture (one sealed memory file)
//!   ┌ system area, tables ┐┌ text ┐┌ data, heap ┐┌ rest of the stack ┐
//!   │ picture             ││ file ││ picture    ││ zeroes            │     [tables][data][heap]...
//!   └─────────────────────┘└──────┘└────────────┘└───────────────────┘
//! ```
//! Pages that the program has written lie in the picture, one behind the other, and are mapped privately by every
//! sandbox; what it has not written comes from where it came before: its file, or nowhere. Short gaps between written pages
//! are part of the picture, because each further mapping costs 1 to 3 us at every start.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::extents::Extents;
use super::place::host_protection;
use super::tables::Tables;
use super::vma::{MappedFile, Vma, VmaMap};
use super::{AddressSpace, Heap, Placement};
use crate::kvm::layout::{LARGE_PAGE, PAGE, TABLES_GPA};
use crate::kvm::sys::{Advice, Backing, Pages, Picture, PictureWriter, Protection, Region};

/// Longest gap between pages of the picture that becomes part of it: more costs more than a mapping saves.
const GAP: u64 = 16 * PAGE;

/// Why a program's memory cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// Memory that its copies would share with each other.
    #[error("the program has shared writable memory at {0:#x}")]
    Shared(u64),
    /// The host failed.
    #[error("the memory cannot be kept")]
    Host(#[from] std::io::Error),
}

/// Where a piece of memory comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The picture, from this byte.
    Picture(u64),
    /// Nothing; large pages where they help.
    Zeroes { large: bool },
    /// A file, from this byte.
    File { file: Arc<MappedFile>, offset: u64, shared: bool },
    /// The clocks' page, of which every sandbox has its own.
    Clocks(u64),
}

/// A piece of guest-physical memory.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) gpa: u64,
    pub(super) len: u64,
    pub(super) protection: Protection,
    pub(super) source: Source,
    /// The system area and page tables: a reset leaves them as they are.
    pub(super) tables: bool,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.gpa + self.len
    }

    /// The part of it in `from..to`.
    pub(super) fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (from, to) = (from.max(self.gpa), to.min(self.end()));
        if from >= to {
            return None;
        }
        let skip = from - self.gpa;
        let source = match self.source.clone() {
            Source::Picture(at) => Source::Picture(at + skip),
            Source::Clocks(at) => Source::Clocks(at + skip),
            Source::File { file, offset, shared } => Source::File { file, offset: offset + skip, shared },
            zeroes @ Source::Zeroes { .. } => zeroes,
        };
        Some(Self { gpa: from, len: to - from, source, ..*self })
    }

    /// Whether `next`, which follows in guest-physical memory, is the same mapping.
    fn continues(&self, next: &Self) -> bool {
        let sources = match (&self.source, &next.source) {
            (Source::Picture(a), Source::Picture(b)) => a + self.len == *b,
            (Source::Zeroes { large: a }, Source::Zeroes { large: b }) => a == b,
            // The header, text and constants of a program or library: one mapping of the host, whatever may be executed.
            (
                Source::File { file: a, offset: at, shared: false },
                Source::File { file: b, offset: next, shared: false },
            ) => at + self.len == *next && are_one_file(a, b),
            _ => false,
        };
        sources && self.end() == next.gpa && self.protection == next.protection && self.tables == next.tables
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryImage {
    pub(super) picture: Picture,
    /// By guest-physical address.
    pub(super) plan: Vec<Piece>,
    pub(super) vmas: VmaMap,
    pub(super) extents: Extents,
    pub(super) tables: Tables,
    pub(super) executable: Vec<Range<u64>>,
    pub(super) heap: Heap,
    pub(super) placement: Placement,
    pub(super) limit_bytes: u64,
    /// The clocks' page that the image was made with.
    pub(super) clocks: Option<Arc<MappedFile>>,
}

impl MemoryImage {
    /// The memory limit of its sandboxes.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Whether the program has a page of clocks.
    pub(crate) fn has_clocks(&self) -> bool {
        self.clocks.is_some()
    }

    #[cfg(test)]
    pub(crate) fn pieces(&self) -> usize {
        self.plan.len()
    }

    /// Bytes of the picture.
    pub(crate) fn picture_bytes(&self) -> u64 {
        self.picture.len()
    }

    /// Keeps `memory`, whose program does not run and will not run on. `clocks` is its page of clocks.
    pub(crate) fn take(memory: &mut AddressSpace, clocks: Option<&Arc<MappedFile>>) -> Result<Self, Unfit> {
        memory.commit().map_err(|errno| Unfit::Host(errno.into()))?;
        let mut pieces = memory.system_pieces();
        for (start, vma) in memory.vmas.iter().filter(|(_, vma)| vma.placed) {
            memory.pieces_of(start, vma, clocks, &mut pieces)?;
        }
        pieces.sort_by_key(|piece| piece.gpa);
        absorb(&mut pieces);
        let (picture, plan) = fill(&memory.region, pieces)?;
        Ok(Self {
            picture,
            plan,
            vmas: memory.vmas.clone(),
            extents: memory.extents.clone(),
            tables: memory.tables.clone(),
            executable: memory.executable.clone(),
            heap: memory.heap,
            placement: memory.placement,
            limit_bytes: memory.limit_bytes,
            clocks: clocks.cloned(),
        })
    }

    /// Maps a piece as the image has it.
    pub(super) fn lay(
        &self,
        region: &Region,
        piece: &Piece,
        clocks: Option<&Arc<MappedFile>>,
    ) -> std::io::Result<()> {
        let map = |backing| region.map(piece.gpa, piece.len, piece.protection, backing);
        match &piece.source {
            Source::Picture(at) => map(Backing::Private(self.picture.fd(), *at)),
            Source::Zeroes { large } => {
                map(Backing::Anonymous)?;
                if *large {
                    // Without large pages all still works.
                    let _ = region.advise(piece.gpa, piece.len, Advice::HugePage);
                }
                Ok(())
            }
            Source::File { file, offset, shared: true } => map(Backing::Shared(file.fd.as_fd(), *offset)),
            Source::File { file, offset, shared: false } => map(Backing::Private(file.fd.as_fd(), *offset)),
            Source::Clocks(at) => match clocks {
                Some(file) => map(Backing::Shared(file.fd.as_fd(), *at)),
                None => Err(std::io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// The pieces that touch `from..to`.
    pub(super) fn touching(&self, from: u64, to: u64) -> impl Iterator<Item = &Piece> {
        let first = self.plan.partition_point(|piece| piece.end() <= from);
        self.plan[first..].iter().take_while(move |piece| piece.gpa < to)
    }
}

impl AddressSpace {
    /// The system area and the page tables.
    fn system_pieces(&self) -> Vec<Piece> {
        let piece = |gpa, end, source, tables| Piece {
            gpa,
            len: end - gpa,
            protection: Protection::READ_WRITE,
            source,
            tables,
        };
        let mut pieces = vec![piece(0, TABLES_GPA, Source::Picture(0), true)];
        // With the room that is left: holes of the picture cost nothing, another mapping does.
        pieces.extend(self.tables.rooms().map(|(start, _, end)| piece(start, end, Source::Picture(0), true)));
        pieces
    }

    /// Where the memory of one mapping comes from; the picture's offsets are given later.
    fn pieces_of(
        &self,
        start: u64,
        vma: &Vma,
        clocks: Option<&Arc<MappedFile>>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Unfit> {
        let protection = host_protection(vma.prot);
        for run in self.extents.runs(start, vma.end) {
            let whole = |source| Piece { gpa: run.gpa, len: run.len, protection, source, tables: false };
            let base = match &vma.file {
                None => {
                    let large = vma.prot.write && run.len >= LARGE_PAGE && !vma.stack;
                    whole(Source::Zeroes { large })
                }
                Some(part) if clocks.is_some_and(|clocks| Arc::ptr_eq(clocks, &part.file)) => {
                    whole(Source::Clocks(part.offset + (run.gva - start)))
                }
                Some(part) => {
                    let offset = part.offset + (run.gva - start);
                    whole(Source::File { file: part.file.clone(), offset, shared: part.shared })
                }
            };
            match &base.source {
                Source::File { file, shared: true, .. } if is_nameless(file)? => {
                    return Err(Unfit::Shared(start));
                }
                Source::Zeroes { .. } | Source::File { shared: false, .. } => {
                    if !vma.prot.accessible() {
                        // Nobody runs here any more; it must be readable for us.
                        self.region.protect(run.gpa, run.len, Protection { read: true, write: false })?;
                    }
                    let zeroes = vma.file.is_none();
                    cut(&base, &joined(&self.written(run.gpa, run.len, zeroes)?), pieces);
                }
                _ => pieces.push(base),
            }
        }
        Ok(())
    }

    /// The pages of `gpa..gpa + len` that differ from what is mapped there.
    fn written(&self, gpa: u64, len: u64, zeroes: bool) -> std::io::Result<Vec<Range<u64>>> {
        let own = self.region.pages(gpa, len, Pages::Private)?;
        if !zeroes {
            return Ok(own);
        }
        let mut kept: Vec<Range<u64>> = Vec::new();
        let mut bytes = vec![0; PAGE as usize];
        for page in own.into_iter().flat_map(|range| range.step_by(PAGE as usize)) {
            if self.region.read(page, &mut bytes) == bytes.len() && bytes.iter().any(|&byte| byte != 0) {
                match kept.last_mut() {
                    Some(last) if last.end == page => last.end += PAGE,
                    _ => kept.push(page..page + PAGE),
                }
            }
        }
        Ok(kept)
    }
}

/// Whether only descriptors lead to a file: memory of this program, not a file of the host.
fn is_nameless(file: &MappedFile) -> std::io::Result<bool> {
    Ok(rustix::fs::fstat(&file.fd)?.st_nlink == 0)
}

fn are_one_file(a: &Arc<MappedFile>, b: &Arc<MappedFile>) -> bool {
    let id = |file: &MappedFile| rustix::fs::fstat(&file.fd).map(|stat| (stat.st_dev, stat.st_ino));
    Arc::ptr_eq(a, b) || matches!((id(a), id(b)), (Ok(a), Ok(b)) if a == b)
}

/// Ranges with short gaps between them become one.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start - last.end <= GAP => last.end = range.end,
            _ => all.push(range.clone()),
        }
    }
    all
}

/// Cuts `base` so that `ranges` of it come from the picture.
fn cut(base: &Piece, ranges: &[Range<u64>], pieces: &mut Vec<Piece>) {
    let mut at = base.gpa;
    for range in ranges {
        pieces.extend(base.part(at, range.start));
        let source = Source::Picture(0);
        pieces.push(Piece { gpa: range.start, len: range.end - range.start, source, ..base.clone() });
        at = range.end;
    }
    pieces.extend(base.part(at, base.end()));
}

/// Short stretches of zeroes beside a piece of the picture become part of it: one mapping fewer.
fn absorb(pieces: &mut [Piece]) {
    const SHORT: u64 = 64 * PAGE;
    let pictured = |piece: &Piece| matches!(piece.source, Source::Picture(_)) && !piece.tables;
    for at in 0..pieces.len() {
        let piece = &pieces[at];
        if !matches!(piece.source, Source::Zeroes { .. }) || piece.len > SHORT {
            continue;
        }
        let beside = |other: Option<&Piece>, touch: fn(&Piece, &Piece) -> bool| {
            other.is_some_and(|other| {
                pictured(other) && other.protection == piece.protection && touch(other, piece)
            })
        };
        let before = at.checked_sub(1).and_then(|at| pieces.get(at));
        if beside(before, |other, piece| other.end() == piece.gpa)
            || beside(pieces.get(at + 1), |other, piece| piece.end() == other.gpa)
        {
            pieces[at].source = Source::Picture(0);
        }
    }
}

/// Fills the picture from `region` and gives every piece its place there; neighbours that are one mapping become one.
fn fill(region: &Region, pieces: Vec<Piece>) -> std::io::Result<(Picture, Vec<Piece>)> {
    let mut writer = PictureWriter::new()?;
    let mut plan: Vec<Piece> = Vec::with_capacity(pieces.len());
    let mut bytes = vec![0; PAGE as usize];
    for mut piece in pieces {
        if let Source::Picture(at) = &mut piece.source {
            *at = writer.grow(piece.len)?;
            for page in (0..piece.len).step_by(PAGE as usize) {
                if region.read(piece.gpa + page, &mut bytes) != bytes.len() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                if bytes.iter().any(|&byte| byte != 0) {
                    writer.write(&bytes, *at + page)?;
                }
            }
        }
        match plan.last_mut() {
            Some(last) if last.continues(&piece) => last.len += piece.len,
            _ => plan.push(piece),
        }
    }
    Ok((writer.finish()?, plan))
}
