//! New mappings: where they go, what is refused, how the host is told. And the heap.
//!
//! Source: `mmap(2)`, `brk(2)`; Linux `mm/mmap.c` for the order of the checks.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::vma::{FilePart, Prot, Vma};
use super::{AddressSpace, Buffer, Heap, Run};
use crate::kvm::layout::{LARGE_PAGE, PAGE, SCRATCH_GVA, STUB_DATA_END, USER_END, USER_START};
use crate::kvm::sys::{Advice, Backing, Pages, Protection};

/// Most mappings of a program: an eighth of Linux's default for `vm.max_map_count`, because each is one of the host's, whose
/// limit counts for all sandboxes of this process together.
const MAX_MAPPINGS: usize = 8_190;
/// Bytes that are faulted in by one call of the host, and that a call of the program may always fill.
const FILL_PIECE: u64 = 16 << 20;
/// First address that `MAP_32BIT` does not use.
const END_32BIT: u64 = 0x8000_0000;
const START_32BIT: u64 = 0x4000_0000;

/// Where a mapping is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Anywhere; this address if it is free (0: no wish).
    Hint(u64),
    /// Anywhere below 2 GiB.
    Low,
    /// Exactly here, in place of what is there.
    Fixed(u64),
    /// Exactly here, or `EEXIST`.
    FixedFree(u64),
}

/// A mapping to make.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Where.
    pub(crate) at: At,
    /// Bytes; rounded up to pages.
    pub(crate) len: u64,
    /// The rights.
    pub(crate) prot: Prot,
    /// The file, or zeroes.
    pub(crate) file: Option<FilePart>,
    /// `MAP_GROWSDOWN`.
    pub(crate) grows_down: bool,
    /// `MAP_STACK`, or the main stack: used from its end, a little at a time.
    pub(crate) stack: bool,
    /// `MAP_NORESERVE`: more than could ever be there may be mapped.
    pub(crate) no_reserve: bool,
    /// `MAP_POPULATE`.
    pub(crate) populate: bool,
    /// Pages that the program stored into are moved here, whatever its rights now.
    pub(crate) written: bool,
    /// For `/proc/self/maps`.
    pub(crate) label: &'static str,
}

impl Request {
    /// Private zeroes.
    pub(crate) fn anonymous(at: At, len: u64, prot: Prot) -> Self {
        Self {
            at,
            len,
            prot,
            file: None,
            grows_down: false,
            stack: false,
            no_reserve: false,
            populate: false,
            written: false,
            label: "",
        }
    }
}

/// Bytes at the mapping's start that are faulted in at once, in bulk. That costs 0.3 us a page; a page that is there
/// costs the program under 1 us at its first touch, because KVM takes its writable neighbours along, and one that is not 5 to 9 us
/// or, if it is to be copied from a file, three faults. Only where most of it is used soon: the data of a program or
/// library, which the loader relocates; the heap's growth; mappings of zeroes up to the size of a Python arena.
fn fill_at_once(vma: &Vma, start: u64) -> u64 {
    const DATA: u64 = 4 << 20;
    const HEAP: u64 = 1 << 20;
    const ZEROES: u64 = 1 << 20;
    let len = vma.end - start;
    let most = match &vma.file {
        _ if !vma.prot.write || vma.stack => 0,
        Some(part) if part.shared => 0,
        Some(_) => DATA,
        None if vma.label == "[heap]" => HEAP,
        // Large ones get large pages instead.
        None if len >= LARGE_PAGE => 0,
        None => return len.min(ZEROES),
    };
    if len <= most { len } else { 0 }
}

/// Rounds up to pages; `None` where that overflows.
pub(crate) fn pages(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE)
}

/// Whether a range touches the pages that the call stub uses.
fn is_stub_data(start: u64, end: u64) -> bool {
    start < STUB_DATA_END && end > SCRATCH_GVA
}

/// What the host lets happen to a page with these rights: it need not know about fetches.
pub(crate) fn host_protection(prot: Prot) -> Protection {
    Protection { read: prot.accessible(), write: prot.write }
}

impl AddressSpace {
    /// Makes a mapping and returns its address.
    pub(crate) fn map(&mut self, request: Request) -> Result<u64, Errno> {
        if request.len == 0 {
            return Err(Errno::INVAL);
        }
        let len = pages(request.len).filter(|&len| len <= USER_END).ok_or(Errno::NOMEM)?;
        if let Some(part) = &request.file {
            if !part.offset.is_multiple_of(PAGE) {
                return Err(Errno::INVAL);
            }
            part.offset.checked_add(len).ok_or(Errno::OVERFLOW)?;
        }
        let start = self.choose(request.at, len)?;
        if self.vmas.len() >= MAX_MAPPINGS || self.region.has_more_mappings(MAX_MAPPINGS) {
            return Err(Errno::NOMEM);
        }
        let mut vma = Vma::anonymous(start + len, request.prot);
        vma.file = request.file;
        vma.written |= request.written;
        (vma.grows_down, vma.stack) = (request.grows_down, request.stack);
        vma.label = request.label;
        self.check_room(vma.charged(start), request.no_reserve)?;
        self.replace(start, vma)?;
        if request.populate {
            // As with Linux, populating is an attempt.
            let _ = self.populate(start, start + len);
        }
        Ok(start)
    }

    /// Refuses to cut mappings at `start` and `end` into more pieces than there may be.
    pub(super) fn check_cuts(&self, start: u64, end: u64) -> Result<(), Errno> {
        let cuts = |at: &u64| self.vmas.at(*at).is_some_and(|(begin, _)| begin < *at);
        let pieces = [start, end].iter().filter(|at| cuts(at)).count();
        if pieces > 0 && self.vmas.len() + pieces > MAX_MAPPINGS { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// Refuses to cut the host's mappings, which can be more than the program's, any further.
    pub(super) fn check_host_cuts(&self) -> Result<(), Errno> {
        if self.region.has_more_mappings(MAX_MAPPINGS) { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// Refuses what the memory limit does not allow: one mapping larger than all memory (unless the program said that it
    /// only wants addresses), or any more once the memory really in use has reached the limit.
    pub(super) fn check_room(&self, more: u64, no_reserve: bool) -> Result<(), Errno> {
        let all = self.vmas.charged() + self.overhead() + more;
        if all <= self.limit_bytes || more == 0 {
            return Ok(());
        }
        if more > self.limit_bytes && !no_reserve {
            return Err(Errno::NOMEM);
        }
        if self.held_bytes() >= self.limit_bytes { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// Whether the program could use more memory than its limit without another call, so that someone must watch it.
    pub(crate) fn is_overcommitted(&self) -> bool {
        self.vmas.charged() + self.overhead() > self.limit_bytes
    }

    /// What the program's addresses take of the host beside its memory: page tables, and what KVM keeps for memslots and the host
    /// for its own tables. A usual program is charged nothing for it.
    fn overhead(&self) -> u64 {
        const SLOTS: u64 = 4 << 10;
        const FREE: u64 = 4 << 20;
        let bytes = self.extents.covered() / (1 << 20) * SLOTS + self.tables.bytes();
        bytes.saturating_sub(FREE + self.limit_bytes / 64)
    }

    /// Everything that counts against the limit.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.resident_bytes() + self.overhead()
    }

    /// Bytes of the program's own pages that the host holds now: anonymous memory, copies of a file's pages that were
    /// stored into, and shared memory that has no file. Pages of files do not count, they are the host's.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let mut bytes = 0;
        let mut shared = BTreeMap::new();
        for (start, vma) in self.vmas.iter().filter(|(at, vma)| vma.placed && vma.charged(*at) > 0) {
            match &vma.file {
                Some(part) if part.shared => drop(shared.insert(Arc::as_ptr(&part.file), &part.file.fd)),
                _ => bytes += self.runs(start, vma.end).map(|run| self.private_bytes(run)).sum::<u64>(),
            }
        }
        // All of such a file counts, also what is unmapped: it lives as long as a part of it is mapped.
        let blocks = shared.values().filter_map(|fd| rustix::fs::fstat(fd).ok()).map(|stat| stat.st_blocks);
        bytes + blocks.map(|blocks| blocks as u64 * 512).sum::<u64>()
    }

    fn private_bytes(&self, run: Run) -> u64 {
        let found = self.region.pages(run.gpa, run.len, Pages::Private);
        found.map_or(run.len, |ranges| ranges.iter().map(|range| range.end - range.start).sum())
    }

    fn choose(&self, at: At, len: u64) -> Result<u64, Errno> {
        match at {
            At::Fixed(start) | At::FixedFree(start) => {
                let end = start.checked_add(len).ok_or(Errno::NOMEM)?;
                if !start.is_multiple_of(PAGE) {
                    return Err(Errno::INVAL);
                }
                if end > USER_END || is_stub_data(start, end) {
                    return Err(Errno::NOMEM);
                }
                if start < USER_START {
                    return Err(Errno::PERM);
                }
                let taken = matches!(at, At::FixedFree(_)) && !self.vmas.is_free(start, end);
                if taken { Err(Errno::EXIST) } else { Ok(start) }
            }
            At::Low => self.vmas.free_below(len, START_32BIT, END_32BIT).ok_or(Errno::NOMEM),
            At::Hint(hint) => {
                let hint = hint & !(PAGE - 1);
                let end = hint.saturating_add(len);
                let free = self.vmas.is_free(hint, end) && !is_stub_data(hint, end);
                if hint >= USER_START && end <= USER_END && free {
                    return Ok(hint);
                }
                self.find_place(len).ok_or(Errno::NOMEM)
            }
        }
    }

    /// From the top down; what is large and could use large pages is aligned to them where that is free.
    fn find_place(&self, len: u64) -> Option<u64> {
        let top = self.placement().mappings_top();
        if len >= LARGE_PAGE
            && let Some(found) = self.vmas.free_below(len + LARGE_PAGE - PAGE, USER_START, top)
        {
            let end = (found + len + LARGE_PAGE - PAGE) & !(LARGE_PAGE - 1);
            return Some((end - len).max(found));
        }
        self.vmas
            .free_below(len, USER_START, top)
            .or_else(|| self.vmas.free_below(len, USER_START, SCRATCH_GVA))
    }

    /// Puts `vma` at `start` in place of what is there.
    fn replace(&mut self, start: u64, mut vma: Vma) -> Result<(), Errno> {
        let end = vma.end;
        let had = !self.vmas.is_free(start, end);
        self.touch_mappings(start, end);
        vma.placed = vma.prot.accessible() || vma.file.is_some();
        if vma.placed {
            self.extents.ensure(start, end)?;
            if let Err(errno) = self.map_host(start, &vma) {
                // A part may be replaced already. Linux has unmapped by now as well.
                let _ = self.unmap(start, end - start);
                return Err(errno);
            }
        } else if had {
            self.unmap_host(start, end)?;
        }
        self.vmas.remove(start, end);
        if !vma.prot.exec {
            self.forbid_execute(start, end)?;
        }
        self.note(start, &vma);
        let fill = fill_at_once(&vma, start);
        self.vmas.insert(start, vma);
        if fill > 0 {
            // Only an attempt: what it cannot get, the program's own touch reports.
            let _ = self.populate(start, start + fill);
        }
        Ok(())
    }

    /// A new mapping without code must not be executable where code was.
    fn forbid_execute(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let mut kept = Vec::with_capacity(self.executable.len());
        for range in std::mem::take(&mut self.executable) {
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from >= to {
                kept.push(range);
                continue;
            }
            self.forbid_pages(from, to)?;
            kept.extend([range.start..from, to..range.end].into_iter().filter(|part| !part.is_empty()));
        }
        self.executable = kept;
        Ok(())
    }

    pub(super) fn forbid_pages(&mut self, from: u64, to: u64) -> Result<(), Errno> {
        // A large page that keeps the right in a part is cut, which takes a table.
        while self.tables.forbid_execute(&self.region, from, to - from).is_err() {
            self.add_table_room()?;
        }
        Ok(())
    }

    /// Remembers that the pages are to be entered, and whether that must happen before the program runs on.
    fn note(&mut self, start: u64, vma: &Vma) {
        if vma.prot.accessible() {
            self.pending.push(start..vma.end);
            self.flush |= vma.file.is_none() || vma.prot.write;
        }
    }

    pub(super) fn map_host(&self, start: u64, vma: &Vma) -> Result<(), Errno> {
        for run in self.extents.runs(start, vma.end) {
            let backing = match &vma.file {
                None => Backing::Anonymous,
                Some(FilePart { file, offset, shared }) => {
                    let at = offset + (run.gva - start);
                    if *shared {
                        Backing::Shared(file.fd.as_fd(), at)
                    } else {
                        Backing::Private(file.fd.as_fd(), at)
                    }
                }
            };
            self.region.map(run.gpa, run.len, host_protection(vma.prot), backing).map_err(host_errno)?;
            if vma.file.is_none() && vma.prot.write && run.len >= LARGE_PAGE && !vma.stack {
                // Large pages cut the cost of first touches by a hundred; without them all still works.
                let _ = self.region.advise(run.gpa, run.len, Advice::HugePage);
            }
        }
        Ok(())
    }

    /// Takes the host's pages of `start..end` away.
    pub(super) fn unmap_host(&self, start: u64, end: u64) -> Result<(), Errno> {
        for run in self.extents.runs(start, end) {
            self.region.unmap(run.gpa, run.len).map_err(host_errno)?;
        }
        Ok(())
    }

    /// Makes a reserved mapping real: the first time that it becomes accessible.
    pub(super) fn place(&mut self, start: u64, vma: &mut Vma) -> Result<(), Errno> {
        if vma.prot.accessible() && !vma.placed {
            self.extents.ensure(start, vma.end)?;
            self.map_host(start, vma)?;
            vma.placed = true;
        }
        self.note(start, vma);
        Ok(())
    }

    /// Faults pages in, in bulk.
    pub(crate) fn populate(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let parts: Vec<(u64, u64, bool)> = self
            .vmas
            .touching(start, end)
            .filter(|(_, vma)| vma.placed && vma.prot.accessible())
            .map(|(at, vma)| (at.max(start), vma.end.min(end), vma.prot.write))
            .collect();
        for (from, to, write) in parts {
            let advice = if write { Advice::PopulateWrite } else { Advice::PopulateRead };
            for run in self.extents.runs(from, to) {
                self.fault_in(run, advice).map_err(host_errno)?;
            }
        }
        Ok(())
    }

    /// One call of the host could take all of its memory and cannot be stopped: it is made in pieces, up to the limit.
    pub(super) fn fault_in(&self, run: Run, advice: Advice) -> std::io::Result<()> {
        let mut room = self.room();
        for at in (0..run.len).step_by(FILL_PIECE as usize) {
            let piece = Run { gva: run.gva + at, gpa: run.gpa + at, len: FILL_PIECE.min(run.len - at) };
            if piece.len > room {
                room = self.room();
                if piece.len - self.private_bytes(piece).min(piece.len) > room {
                    return Err(Errno::NOMEM.into());
                }
            }
            self.region.advise(piece.gpa, piece.len, advice)?;
            room = room.saturating_sub(piece.len);
        }
        Ok(())
    }

    /// How much of its own memory the program may still take in one call.
    fn room(&self) -> u64 {
        if self.is_overcommitted() { self.limit_bytes.saturating_sub(self.held_bytes()) } else { u64::MAX }
    }

    /// Cuts what one call may store into `buffers` to what the limit allows; the next look at the memory comes after it.
    pub(crate) fn clip(&self, buffers: &mut [Buffer]) {
        let len: u64 = buffers.iter().map(|buffer| buffer.len).sum();
        if len <= FILL_PIECE || !self.is_overcommitted() {
            return;
        }
        let mut room = self.room().max(FILL_PIECE);
        for buffer in buffers {
            buffer.len = buffer.len.min(room);
            room -= buffer.len;
        }
    }

    /// Says where the heap begins, once, after the program was loaded.
    pub(crate) fn start_heap(&mut self, start: u64) {
        self.heap = Heap { start, end: start };
    }

    /// `brk(2)` as the kernel has it: the new end, or the old one where that is refused.
    pub(crate) fn set_break(&mut self, end: u64) -> u64 {
        if self.try_break(end).is_ok() {
            self.heap.end = end;
        }
        self.heap.end
    }

    fn try_break(&mut self, end: u64) -> Result<(), Errno> {
        if end < self.heap.start {
            return Err(Errno::INVAL);
        }
        let old = pages(self.heap.end).ok_or(Errno::NOMEM)?;
        let new = pages(end).ok_or(Errno::NOMEM)?;
        if new < old {
            return self.unmap(new, old - new);
        }
        if new > old {
            let mut request = Request::anonymous(At::FixedFree(old), new - old, Prot::READ_WRITE);
            request.label = "[heap]";
            self.map(request)?;
        }
        Ok(())
    }
}

/// The host's refusal as the program's. What only the VMM could have done wrong looks like a lack of memory.
pub(super) fn host_errno(error: std::io::Error) -> Errno {
    match Errno::from_io_error(&error) {
        Some(errno @ (Errno::ACCESS | Errno::NODEV | Errno::OVERFLOW | Errno::PERM | Errno::AGAIN)) => errno,
        _ => Errno::NOMEM,
    }
}
