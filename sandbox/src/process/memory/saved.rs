//! A program's memory in a stored image.
//!
//! ```text
//! section process-memory              memory of the snapshot, by guest-physical address
//!   files ─┐                            each piece that comes from the picture is one region, in one run, with
//!   vmas ──┤ number of a file           holes for its zero pages: mapped by one call, from the snapshot's file
//!   plan ──┘
//!   granules, slots, tables, heap
//! ```
//! Nothing that is read is trusted to be possible: [`MemoryState::restore`] looks at every number that the rest of the
//! engine takes for granted. The page tables are walked too, because the VMM reads and writes what they point to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use novum_snapshot::plan::PlannedRegion;
use novum_snapshot::{Layout, Region, Snapshot, Source as Bytes, State, WriteError, Writer};
use serde::{Deserialize, Serialize};

use super::extents::Extents;
use super::image::{MemoryImage, Piece, Source};
use super::tables::Tables;
use super::vma::{FilePart, MappedFile, Prot, Vma, VmaMap};
use super::{Heap, Placement, region_bytes};
use crate::kvm::layout::{
    GRANULE, PAGE, PIE_BASE, RANDOM_GRANULES, STACK_BASE, STACK_GUARD, STACK_SIZE, USER_END,
};
use crate::kvm::sys::{Picture, Protection};
use crate::process::files::Stamp;
use crate::process::time::vdso::PAGE_BYTES;

/// What `/proc/self/maps` calls mappings without a file.
const LABELS: [&str; 5] = ["", "[heap]", "[stack]", "[vvar]", "[vdso]"];

/// What stands behind mappings, so that it can be had again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum BackFile {
    /// A file of the root, of a share, or the program itself: its path in the sandbox.
    Named { path: String, stamp: Stamp },
    /// Memory without a name, with its bytes.
    Memory { name: String, bytes: Vec<u8> },
    /// The clocks' page, of which every sandbox has its own.
    Clocks,
    /// The vDSO.
    Vdso,
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemoryState {
    files: Vec<BackFile>,
    vmas: Vec<VmaState>,
    plan: Vec<PieceState>,
    granules: BTreeMap<u64, u64>,
    next: u64,
    covered: u64,
    next_table: u64,
    last_room_end: u64,
    rooms: Vec<(u64, u64)>,
    executable: Vec<Range<u64>>,
    heap: Heap,
    placement: Placement,
    limit_bytes: u64,
    clocks: Option<u32>,
}

impl State for MemoryState {
    const KIND: &'static str = "process-memory";
    /// 2: the call stub has pages of answers, and the tables begin behind them.
    const VERSION: u32 = 2;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PartState {
    file: u32,
    offset: u64,
    shared: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct VmaState {
    start: u64,
    end: u64,
    prot: Prot,
    file: Option<PartState>,
    written: bool,
    placed: bool,
    grows_down: bool,
    stack: bool,
    label: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum SourceState {
    Picture,
    Zeroes { large: bool },
    File(PartState),
    Clocks(u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PieceState {
    gpa: u64,
    len: u64,
    read: bool,
    write: bool,
    source: SourceState,
    tables: bool,
}

/// What was read cannot be the memory of a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMemory {
    /// A number is impossible.
    #[error("{0}")]
    Impossible(&'static str),
    /// The snapshot's memory is another than the section says.
    #[error("the snapshot's memory at {0:#x} is not what the image expects")]
    Memory(u64),
    /// The host failed.
    #[error("the snapshot's file cannot be mapped")]
    Host(#[from] std::io::Error),
}

fn demand(condition: bool, what: &'static str) -> Result<(), BadMemory> {
    if condition { Ok(()) } else { Err(BadMemory::Impossible(what)) }
}

impl MemoryImage {
    /// Every file behind the memory, once.
    pub(crate) fn back_files(&self) -> Vec<Arc<MappedFile>> {
        let vmas = self.vmas.iter().filter_map(|(_, vma)| vma.file.as_ref()).map(|part| &part.file);
        let pieces = self.plan.iter().filter_map(|piece| match &piece.source {
            Source::File { file, .. } => Some(file),
            _ => None,
        });
        let mut all: Vec<Arc<MappedFile>> = Vec::new();
        for file in vmas.chain(pieces).chain(&self.clocks) {
            if !all.iter().any(|other| Arc::ptr_eq(other, file)) {
                all.push(file.clone());
            }
        }
        all
    }

    /// Whether `file` is the clocks' page.
    pub(crate) fn is_clocks(&self, file: &Arc<MappedFile>) -> bool {
        self.clocks.as_ref().is_some_and(|clocks| Arc::ptr_eq(clocks, file))
    }

    /// Puts the section and the memory into a snapshot. `files` tells of each of `mapped`, which is [`Self::back_files`].
    pub(crate) fn write(
        &self,
        writer: &mut Writer,
        mapped: &[Arc<MappedFile>],
        files: Vec<BackFile>,
    ) -> Result<(), WriteError> {
        writer.put("", &self.state(mapped, files))?;
        let pictured = self.plan.iter().filter_map(|piece| match piece.source {
            Source::Picture(offset) => {
                let source = Bytes::File { file: self.picture.fd(), offset, len: piece.len };
                Some(Region { whole: true, ..Region::new(piece.gpa, source) })
            }
            _ => None,
        });
        writer.memory(&pictured.collect::<Vec<_>>(), &Layout::default()).map(drop)
    }

    fn state(&self, mapped: &[Arc<MappedFile>], files: Vec<BackFile>) -> MemoryState {
        let number = |file: &Arc<MappedFile>| {
            mapped.iter().position(|other| Arc::ptr_eq(other, file)).unwrap_or(usize::MAX) as u32
        };
        let part = |part: &FilePart| PartState {
            file: number(&part.file),
            offset: part.offset,
            shared: part.shared,
        };
        let vma = |(start, vma): (u64, &Vma)| VmaState {
            start,
            end: vma.end,
            prot: vma.prot,
            file: vma.file.as_ref().map(part),
            written: vma.written,
            placed: vma.placed,
            grows_down: vma.grows_down,
            stack: vma.stack,
            label: LABELS.iter().position(|label| *label == vma.label).unwrap_or(0) as u8,
        };
        let piece = |piece: &Piece| PieceState {
            gpa: piece.gpa,
            len: piece.len,
            read: piece.protection.read,
            write: piece.protection.write,
            source: match &piece.source {
                Source::Picture(_) => SourceState::Picture,
                Source::Zeroes { large } => SourceState::Zeroes { large: *large },
                Source::Clocks(at) => SourceState::Clocks(*at),
                Source::File { file, offset, shared } => {
                    SourceState::File(PartState { file: number(file), offset: *offset, shared: *shared })
                }
            },
            tables: piece.tables,
        };
        let (granules, next, covered) = self.extents.parts();
        let (next_table, last_room_end, rooms) = self.tables.parts();
        MemoryState {
            files,
            vmas: self.vmas.iter().map(vma).collect(),
            plan: self.plan.iter().map(piece).collect(),
            granules: granules.clone(),
            next,
            covered,
            next_table,
            last_room_end,
            rooms: rooms.to_vec(),
            executable: self.executable.clone(),
            heap: self.heap,
            placement: self.placement,
            limit_bytes: self.limit_bytes,
            clocks: self.clocks.as_ref().map(number),
        }
    }
}

impl MemoryState {
    /// What must be opened again.
    pub(crate) fn files(&self) -> &[BackFile] {
        &self.files
    }

    /// The memory, from the section and `snapshot`. `files` are [`Self::files`], opened.
    ///
    /// # Errors
    /// What cannot be.
    pub(crate) fn restore(
        self,
        files: &[Arc<MappedFile>],
        snapshot: &Snapshot,
        limit_bytes: u64,
    ) -> Result<MemoryImage, BadMemory> {
        demand(self.limit_bytes == limit_bytes, "the memory limit is another")?;
        let region = region_bytes(limit_bytes);
        let extents = Extents::from_parts(self.granules.clone(), self.next, self.covered, region)
            .ok_or(BadMemory::Impossible("the places of the memory cannot be"))?;
        let tables = Tables::from_parts(self.next_table, self.last_room_end, self.rooms.clone())
            .ok_or(BadMemory::Impossible("the places of the page tables cannot be"))?;
        self.check_rooms()?;
        self.check_addresses()?;
        let clocks = self.clocks.map(|number| file(files, number)).transpose()?;
        let vmas = self.vma_map(files)?;
        let base = snapshot.depth();
        let plan = self.pieces(files, &regions(snapshot), base, clocks.is_some())?;
        let picture = picture(snapshot)?;
        let image = MemoryImage {
            picture,
            plan,
            vmas,
            extents,
            tables,
            executable: self.executable,
            heap: self.heap,
            placement: self.placement,
            limit_bytes,
            clocks,
        };
        demand(image.tables.are_closed(|at| image.table_word(at)), "the page tables lead elsewhere")?;
        Ok(image)
    }

    /// Rooms for tables beyond the first are given away like any memory, and to nothing else.
    fn check_rooms(&self) -> Result<(), BadMemory> {
        let taken: BTreeSet<u64> = self.granules.values().copied().collect();
        let mut before = 0;
        for (i, &(start, end)) in self.rooms.iter().enumerate() {
            demand(start >= before && end <= self.next, "page tables lie outside of the memory")?;
            let apart = i == 0 || end - start == GRANULE && !taken.contains(&start);
            demand(apart, "page tables lie where the program's memory is")?;
            before = end;
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), BadMemory> {
        let Placement { pie, stack_top } = self.placement;
        let random = RANDOM_GRANULES * GRANULE;
        let least = STACK_BASE + STACK_SIZE + STACK_GUARD;
        let stack = (least..=STACK_BASE + random).contains(&stack_top) && stack_top.is_multiple_of(PAGE);
        let program = (PIE_BASE..=PIE_BASE + random).contains(&pie) && pie.is_multiple_of(PAGE);
        demand(stack && program, "the program's place cannot be")?;
        demand(self.heap.start <= self.heap.end && self.heap.end <= USER_END, "the heap cannot be")?;
        let pages = |range: &Range<u64>| is_pages(range.start, range.end) && range.end <= USER_END;
        demand(self.executable.iter().all(pages), "what may be executed cannot be")
    }

    fn vma_map(&self, files: &[Arc<MappedFile>]) -> Result<VmaMap, BadMemory> {
        let mut map = VmaMap::default();
        let mut before = 0;
        for state in &self.vmas {
            let whole = is_pages(state.start, state.end) && state.end <= USER_END;
            demand(whole && state.start >= before, "the mappings cannot be")?;
            before = state.end;
            let part = |part: &PartState| part.open(files, state.end - state.start);
            let label = LABELS.get(usize::from(state.label));
            let vma = Vma {
                end: state.end,
                prot: state.prot,
                file: state.file.as_ref().map(part).transpose()?,
                written: state.written,
                placed: state.placed,
                grows_down: state.grows_down,
                stack: state.stack,
                label: label.ok_or(BadMemory::Impossible("a mapping's name is unknown"))?,
            };
            map.insert(state.start, vma);
        }
        Ok(map)
    }

    fn pieces(
        &self,
        files: &[Arc<MappedFile>],
        regions: &BTreeMap<u64, &PlannedRegion>,
        base: u32,
        has_clocks: bool,
    ) -> Result<Vec<Piece>, BadMemory> {
        let mut plan = Vec::with_capacity(self.plan.len());
        let mut before = 0;
        for state in &self.plan {
            let end = state.gpa.checked_add(state.len);
            let end = end.filter(|end| is_pages(state.gpa, *end) && *end <= self.next);
            let end = end.ok_or(BadMemory::Impossible("a piece of memory lies outside"))?;
            demand(state.gpa >= before, "pieces of memory overlap")?;
            before = end;
            let source = state.source(files, regions, base, has_clocks)?;
            let protection = Protection { read: state.read, write: state.write };
            plan.push(Piece { gpa: state.gpa, len: state.len, protection, source, tables: state.tables });
        }
        let covered = |&(start, end): &(u64, u64)| {
            let within = |piece: &&Piece| piece.tables && piece.gpa <= start && end <= piece.end();
            plan.iter().find(within).is_some_and(Piece::is_writable_picture)
        };
        demand(self.rooms.iter().all(covered), "page tables are missing")?;
        let tables_only = |piece: &Piece| {
            !piece.tables || piece.gpa == 0 || self.rooms.iter().any(|room| room.0 == piece.gpa)
        };
        demand(plan.iter().all(tables_only), "memory of the program counts as page tables")?;
        Ok(plan)
    }
}

impl PieceState {
    fn source(
        &self,
        files: &[Arc<MappedFile>],
        regions: &BTreeMap<u64, &PlannedRegion>,
        base: u32,
        has_clocks: bool,
    ) -> Result<Source, BadMemory> {
        match &self.source {
            SourceState::Zeroes { large } => Ok(Source::Zeroes { large: *large }),
            SourceState::File(part) => {
                let FilePart { file, offset, shared } = part.open(files, self.len)?;
                Ok(Source::File { file, offset, shared })
            }
            SourceState::Clocks(at) => {
                let bytes = PAGE_BYTES as u64;
                let fits = at.is_multiple_of(PAGE) && *at < 2 * bytes && self.len <= 2 * bytes - at;
                demand(has_clocks && fits, "the clocks' page cannot be")?;
                Ok(Source::Clocks(*at))
            }
            SourceState::Picture => {
                let region = regions.get(&self.gpa).filter(|region| region.len == self.len);
                let run = match region.map(|region| region.runs.as_slice()) {
                    Some([run]) if run.len == self.len && run.layer == base => run,
                    _ => return Err(BadMemory::Memory(self.gpa)),
                };
                Ok(Source::Picture(run.offset))
            }
        }
    }
}

impl PartState {
    fn open(&self, files: &[Arc<MappedFile>], len: u64) -> Result<FilePart, BadMemory> {
        let end = self.offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        demand(self.offset.is_multiple_of(PAGE) && end.is_some(), "a part of a file cannot be")?;
        Ok(FilePart { file: file(files, self.file)?, offset: self.offset, shared: self.shared })
    }
}

impl Piece {
    fn is_writable_picture(&self) -> bool {
        matches!(self.source, Source::Picture(_)) && self.protection == Protection::READ_WRITE
    }
}

impl MemoryImage {
    /// A word of the page tables, as the picture has it.
    fn table_word(&self, gpa: u64) -> Option<u64> {
        let piece = self.touching(gpa, gpa + 8).next().filter(|piece| piece.tables)?;
        let Source::Picture(at) = piece.source else { return None };
        let at = usize::try_from(at + gpa.checked_sub(piece.gpa)?).ok()?;
        let bytes = self.picture.bytes().get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }
}

fn file(files: &[Arc<MappedFile>], number: u32) -> Result<Arc<MappedFile>, BadMemory> {
    files.get(number as usize).cloned().ok_or(BadMemory::Impossible("a file is missing"))
}

fn is_pages(start: u64, end: u64) -> bool {
    start < end && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE)
}

fn regions(snapshot: &Snapshot) -> BTreeMap<u64, &PlannedRegion> {
    snapshot.mapping_plan().regions.iter().map(|region| (region.guest_address, region)).collect()
}

/// The file with the memory, which is that of the lowest layer: what lies over it has sections only. The lock that keeps it in
/// the store goes with the descriptor.
fn picture(snapshot: &Snapshot) -> std::io::Result<Picture> {
    let file = snapshot.files().last().map(|file| file.try_clone_to_owned());
    let file = file.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()))?;
    let len = rustix::fs::fstat(&file)?.st_size as u64;
    Picture::of_snapshot(file, len)
}

#[cfg(test)]
impl MemoryState {
    /// Gives a snapshot the memory that this expects, all zero.
    pub(crate) fn write_zeroes(&self, writer: &mut Writer) {
        let pictured = self.plan.iter().filter(|piece| matches!(piece.source, SourceState::Picture));
        let zeroes: Vec<(u64, Vec<u8>)> =
            pictured.map(|piece| (piece.gpa, vec![0; piece.len.min(4 << 20) as usize])).collect();
        let regions = zeroes
            .iter()
            .map(|(gpa, bytes)| Region { whole: true, ..Region::new(*gpa, Bytes::Slice(bytes)) });
        // What cannot be written is missed at the load.
        let _ = writer.memory(&regions.collect::<Vec<_>>(), &Layout::default());
    }
}
