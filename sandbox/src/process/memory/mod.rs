//! The program's memory: its mappings, the guest-physical memory behind them, and the page tables in between.
//!
//! ```text
//! guest-virtual ──granule table (16 MiB)──> guest-physical ──base +──> host-virtual ──host's kernel──> pages
//!      mappings (`vma`): what the program asked for          reservation (`Region`): mmap, mprotect, munmap
//! ```
//! A mapping of the program becomes the same mapping of the host at the address that the granules give, with the
//! same rights and the same file; the host's kernel does demand paging, copy-on-write and sharing. The guest's tables
//! ([`tables`]) only translate, and say what may be executed. This module knows no KVM: the run loop
//! takes what the VM must learn ([`AddressSpace::take_slots`], [`AddressSpace::take_stale`]).

mod change;
mod extents;
mod image;
mod place;
mod renew;
mod saved;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
pub(crate) mod user;
pub(crate) mod vma;
mod working_set;

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::kvm::entry;
use crate::kvm::layout::{
    ANSWERS_GPA, ANSWERS_GVA, ANSWERS_SIZE, CALL_STUB_GPA, CALL_STUB_GVA, DESCRIPTORS_GPA, FAULT_STUBS_GPA,
    GRANULE, LARGE_PAGE, PAGE, PIE_BASE, RANDOM_GRANULES, RING0_STACK_GPA, SCRATCH_GPA, SCRATCH_GVA,
    STACK_BASE, STACK_GUARD, STACK_SIZE, SYSTEM_GVA, SYSTEM_SIZE, TABLES_GPA,
};
use crate::kvm::sys::{Backing, Protection, Region};

pub(crate) use change::{Move, Refusal};
pub(crate) use extents::{Run, Slot, first_slot};
pub(crate) use image::{MemoryImage, Unfit};
pub(crate) use place::{At, Request};
pub(crate) use renew::Renewed;
pub(crate) use saved::{BackFile, BadMemory, MemoryState};
pub(crate) use user::{Access, Buffer, MAX_TRANSFER};
pub(crate) use vma::{FilePart, MappedFile, Prot};
pub(crate) use working_set::{Touched, WorkingSet};

use extents::Extents;
use tables::{Rights, Tables};
use vma::VmaMap;

/// Where the parts of a program lie; random for each deployment, the same for all its sandboxes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// Where a position-independent program is loaded.
    pub(crate) pie: u64,
    /// First address above the main stack.
    pub(crate) stack_top: u64,
}

impl Placement {
    /// From 16 random bytes.
    pub(crate) fn random(bytes: [u8; 16]) -> Self {
        let number = u128::from_le_bytes(bytes);
        let (a, b) = (number as u64, (number >> 64) as u64);
        let granule = |n: u64| n % RANDOM_GRANULES * GRANULE;
        // Some pages inside the first and last MiB of the granule; Linux randomises the page as well.
        Self {
            pie: PIE_BASE + granule(a) + (a >> 32) % 256 * PAGE,
            stack_top: STACK_BASE + granule(b) + GRANULE - (1 + (b >> 32) % 255) * PAGE,
        }
    }

    /// Highest end of a mapping whose place we choose.
    pub(crate) fn mappings_top(&self) -> u64 {
        self.stack_top - STACK_SIZE - STACK_GUARD
    }
}

/// What the CPU pushed when it raised an exception.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// The error code; 0 where the exception has none.
    pub(crate) error: u64,
    /// Where it happened.
    pub(crate) rip: u64,
    /// The flags there.
    pub(crate) rflags: u64,
    /// The stack pointer there.
    pub(crate) rsp: u64,
}

/// The heap that `brk` moves.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Heap {
    /// Its first address.
    pub(crate) start: u64,
    /// First address after it, in bytes.
    pub(crate) end: u64,
}

/// The address space of one program.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    region: Arc<Region>,
    vmas: VmaMap,
    extents: Extents,
    tables: Tables,
    /// Ranges that were entered as executable, and may still be so in the tables when the program has other rights there.
    executable: Vec<Range<u64>>,
    /// Ranges whose pages are not entered in the tables yet.
    pending: Vec<Range<u64>>,
    heap: Heap,
    placement: Placement,
    limit_bytes: u64,
    flush: bool,
    /// What a reset goes back to.
    image: Option<Arc<MemoryImage>>,
    /// Ranges whose mappings may differ from the image's.
    touched: Vec<Range<u64>>,
    /// Pages of the image's picture were moved elsewhere.
    moved: bool,
    /// Held by every file that the program has mapped.
    files: Arc<()>,
}

/// Guest-physical memory beyond the limit, for mappings that cost the host no memory of the program (files, reservations that
/// were touched).
const PHYSICAL_SLACK: u64 = 64 << 30;

/// Bytes of addresses that the memory of a program with this limit needs. Small programs share one size, so that a region
/// can be reserved before its program is known.
pub(crate) fn region_bytes(limit_bytes: u64) -> u64 {
    let limit = limit_bytes.max(COMMON_LIMIT);
    (PHYSICAL_SLACK + limit.saturating_mul(4)).next_multiple_of(GRANULE)
}

/// Ranges of changed mappings that are kept apart, and ranges that wait to be entered: a program can make any number.
const MOST_RANGES: usize = 8192;
const MOST_PENDING: usize = 1024;
/// Files that a program may have mapped, one for each call that mapped one.
const MOST_FILES: usize = 2048;

/// Programs with at most this limit use regions of one size.
pub(crate) const COMMON_LIMIT: u64 = 1 << 30;

/// Another number for every change of [`system_area`]: memory that was kept with another one is of no use.
pub(crate) const SYSTEM_AREA_FORM: u32 = 4;

/// The system area of an empty address space: descriptors, stubs, and the tables that enter them, for ring 0 except for
/// the system-call stub.
///
/// Nothing is entered before it, so that these tables stand at the same places in every program's memory: a vCPU that ran on
/// them before its program was known may go on with any program's.
pub(crate) fn system_area(region: &Region) -> std::io::Result<Tables> {
    let mut tables = Tables::new(region, SYSTEM_SIZE)?;
    region.map(0, TABLES_GPA, Protection::READ_WRITE, Backing::Anonymous)?;
    for (gpa, bytes) in entry::system_pages() {
        if region.write(gpa, &bytes) != bytes.len() {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
    }
    let kernel = |exec, write| Rights { user: false, write, exec };
    let pages = [
        (SYSTEM_GVA + DESCRIPTORS_GPA, DESCRIPTORS_GPA, PAGE, kernel(false, true)),
        (SYSTEM_GVA + FAULT_STUBS_GPA, FAULT_STUBS_GPA, PAGE, kernel(true, false)),
        (SYSTEM_GVA + RING0_STACK_GPA, RING0_STACK_GPA, PAGE, kernel(false, true)),
        (CALL_STUB_GVA, CALL_STUB_GPA, PAGE, Rights { user: true, write: false, exec: true }),
        (SCRATCH_GVA, SCRATCH_GPA, PAGE, Rights { user: true, write: true, exec: false }),
        (ANSWERS_GVA, ANSWERS_GPA, ANSWERS_SIZE, Rights { user: true, write: false, exec: false }),
    ];
    for (gva, gpa, len, rights) in pages {
        let entered = tables.enter(region, gva, gpa, len, rights);
        entered.map_err(|tables::NoRoom| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
    }
    Ok(tables)
}

impl AddressSpace {
    /// An empty one for at most `limit_bytes` of memory.
    pub(crate) fn new(limit_bytes: u64, placement: Placement) -> std::io::Result<Self> {
        let region = Arc::new(Region::reserve(region_bytes(limit_bytes))?);
        let tables = system_area(&region)?;
        let extents = Extents::new(region.len());
        let (vmas, heap) = (VmaMap::default(), Heap::default());
        let (executable, pending) = (Vec::new(), Vec::new());
        Ok(Self {
            region,
            vmas,
            extents,
            tables,
            executable,
            pending,
            heap,
            placement,
            limit_bytes,
            flush: false,
            image: None,
            touched: Vec::new(),
            moved: false,
            files: Arc::default(),
        })
    }

    /// Counts a file that is about to be mapped: each keeps a descriptor of the host's process for as long as it is mapped.
    ///
    /// # Errors
    /// `ENFILE` where there are too many.
    pub(crate) fn count_file(&self, file: MappedFile) -> Result<Arc<MappedFile>, Errno> {
        if Arc::strong_count(&self.files) > MOST_FILES {
            return Err(Errno::NFILE);
        }
        Ok(Arc::new(MappedFile { _count: Some(self.files.clone()), ..file }))
    }

    /// The mappings of `start..end` change.
    fn touch_mappings(&mut self, start: u64, end: u64) {
        if self.image.is_none() {
            return;
        }
        match self.touched.last_mut() {
            Some(last) if last.start <= start && end <= last.end => return,
            _ => self.touched.push(start..end),
        }
        if self.touched.len() > MOST_RANGES {
            let mut joined = renew::merged(std::mem::take(&mut self.touched));
            if let (Some(first), Some(last)) = (joined.first(), joined.last())
                && joined.len() > MOST_RANGES / 2
            {
                // More is laid anew than need be.
                joined = std::iter::once(first.start..last.end).collect();
            }
            self.touched = joined;
        }
    }

    /// Whether stores of others to a file may be seen without a call, also where the program itself only reads, and the
    /// program's by others. Files of the root and of read-only shares are taken for what nobody changes
    /// while it runs, as everywhere here; glibc maps some of them shared.
    pub(crate) fn shares_file(&self) -> bool {
        let shares = |vma: &vma::Vma, part: &vma::FilePart| {
            part.shared && !part.file.own && (vma.written || part.file.outside)
        };
        self.vmas.iter().any(|(_, vma)| vma.file.as_ref().is_some_and(|part| shares(vma, part)))
    }

    /// The host memory behind.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The mappings.
    pub(crate) fn vmas(&self) -> &VmaMap {
        &self.vmas
    }

    /// Where the parts lie.
    pub(crate) fn placement(&self) -> Placement {
        self.placement
    }

    /// The memory limit.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The heap.
    #[cfg(test)]
    pub(crate) fn heap(&self) -> Heap {
        self.heap
    }

    /// How many pages of `start..end` the tables let be executed.
    #[cfg(test)]
    pub(crate) fn executable_pages(&self, start: u64, end: u64) -> usize {
        let found = |page| self.tables.find(&self.region, page).is_some_and(|(_, exec)| exec);
        (start..end).step_by(PAGE as usize).filter(|&page| found(page)).count()
    }

    /// What the host has behind a page, whatever the mappings say.
    #[cfg(test)]
    pub(crate) fn peek(&self, page: u64, bytes: &mut [u8]) -> bool {
        self.extents.find(page).is_some_and(|gpa| self.region.read(gpa, bytes) == bytes.len())
    }

    /// The pieces of `start..end` that lie in one piece of guest-physical memory. Granules without any are left out.
    pub(crate) fn runs(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        self.extents.runs(start, end)
    }

    /// The exception frame to which ring 0's stack pointer points (Intel SDM vol. 3A §6.14.2).
    pub(crate) fn exception_frame(&self, stack_pointer: u64, with_error: bool) -> Frame {
        let page = RING0_STACK_GPA;
        let offset = stack_pointer.wrapping_sub(SYSTEM_GVA + page);
        // The pointer is the CPU's, one page; masking keeps a wrong one inside.
        let word = |n: u64| self.region.word(page + (offset.wrapping_add(n * 8) & (PAGE - 8)));
        let first = u64::from(with_error);
        let error = if with_error { word(0) } else { 0 };
        Frame { error, rip: word(first), rflags: word(first + 2), rsp: word(first + 3) }
    }

    /// The guest-physical page of `address`, where it has one.
    pub(crate) fn gpa_page(&self, address: u64) -> Option<u64> {
        self.extents.find(address & !(PAGE - 1))
    }

    /// Memslots that the VM does not know yet.
    pub(crate) fn take_slots(&mut self) -> Vec<Slot> {
        self.extents.take_new()
    }

    /// Whether the VM must throw away what it knows of the tables.
    pub(crate) fn take_stale(&mut self) -> bool {
        self.tables.take_stale()
    }

    /// Enters everything that was mapped since into the tables, unless only files were mapped that the program
    /// cannot have touched yet (`ld.so` maps a whole library for reading and then its parts with their real rights: entering
    /// the first would have to be undone).
    pub(crate) fn settle(&mut self) -> Result<(), Errno> {
        let many = self.pending.len() > MOST_PENDING;
        if std::mem::take(&mut self.flush) || many { self.commit() } else { Ok(()) }
    }

    /// Enters everything that is pending.
    pub(crate) fn commit(&mut self) -> Result<(), Errno> {
        self.flush = false;
        for range in renew::merged(std::mem::take(&mut self.pending)) {
            self.enter(range.start, range.end)?;
        }
        Ok(())
    }

    /// Enters the accessible pages of `start..end`.
    fn enter(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let pieces: Vec<(u64, u64, bool, u64, u64)> = self
            .vmas
            .touching(start, end)
            .filter(|(_, vma)| vma.prot.accessible() && vma.placed)
            .map(|(at, vma)| (at.max(start), vma.end.min(end), vma.prot.exec, at, vma.end))
            .collect();
        for (from, to, exec, vma_start, vma_end) in pieces {
            if exec && !self.executable.iter().any(|range| range.start <= from && to <= range.end) {
                self.executable.push(from..to);
            }
            let mut at = from;
            while at < to {
                let chunk = at & !(LARGE_PAGE - 1);
                let next = (chunk + LARGE_PAGE).min(to);
                let whole = vma_start <= chunk && vma_end >= chunk + LARGE_PAGE;
                let whole = whole || (!exec && self.is_data_only(chunk));
                self.enter_chunk(at, next, exec, whole)?;
                at = next;
            }
        }
        Ok(())
    }

    /// Whether only data can ever be mapped in the large page at `chunk`: heap and stack keep their places free.
    fn is_data_only(&self, chunk: u64) -> bool {
        let end = chunk + LARGE_PAGE;
        let heap = chunk >= self.heap.start && end <= self.heap.end.next_multiple_of(LARGE_PAGE);
        let stack = self.placement.stack_top - STACK_SIZE;
        heap || (chunk >= stack && end <= self.placement.stack_top)
    }

    fn enter_chunk(&mut self, start: u64, end: u64, exec: bool, whole: bool) -> Result<(), Errno> {
        let chunk = start & !(LARGE_PAGE - 1);
        let gpa = self.extents.find(start).ok_or(Errno::NOMEM)?;
        let rights = tables::Rights::program(exec);
        loop {
            let done = if whole && self.tables.is_empty(&self.region, chunk) == Ok(true) {
                self.tables.enter_large(&self.region, chunk, gpa - (start - chunk), rights)
            } else {
                self.tables.enter(&self.region, start, gpa, end - start, rights)
            };
            match done {
                Ok(()) => return Ok(()),
                Err(tables::NoRoom) => self.add_table_room()?,
            }
        }
    }

    fn add_table_room(&mut self) -> Result<(), Errno> {
        let room = self.extents.allocate(GRANULE)?;
        self.tables.add_room(&self.region, room, GRANULE).map_err(|_| Errno::NOMEM)
    }
}
