//! An address space from an image, and back to the image.
//!
//! A reset costs in what changed. Written pages are found by the host ([`Pages::Private`]), get the image's bytes back
//! and stay where they are, so that the next run finds them at full speed. Ranges whose mappings changed are laid anew.
//!
//! What a reset does *not* take back: the addresses' places in guest-physical memory, memslots, and entries of the page
//! tables, because a software KVM does not see a present entry change. None of that can be used: what is behind
//! an entry is the host's mapping, which is the image's again (an access to anything else is refused by the host and
//! becomes the program's own fault), and the right to execute is settled before the program runs
//! ([`AddressSpace::settle_execution`]). A program that uses up places or tables gets a new VM instead
//! ([`Renewed::Worn`]).

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use super::image::{MemoryImage, Piece, Source};
use super::{AddressSpace, MappedFile};
use crate::kvm::layout::{GRANULE, SYSTEM_SIZE};
use crate::kvm::sys::{Advice, Pages, Region};

/// What became of an address space that was brought back to its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// It is as the image, after this many pages were copied.
    Clean(u64),
    /// It has grown so much that another is the better choice; it must not be used.
    Worn,
}

/// Guest-physical memory that a sandbox may use beyond its image and be kept.
const WEAR: u64 = 64 * GRANULE;
/// Tables that it may have beyond its image's.
const TABLE_WEAR: u64 = 4 << 20;
/// Executable ranges that it may have made.
const RANGES: usize = 1024;
/// Written zeroes in one piece of this size are given back rather than kept and cleared: clearing costs more.
const LARGE: u64 = 2 << 20;

impl AddressSpace {
    /// The image's memory, mapped into `region`; `slots_made`: the VM has its first memslot.
    pub(crate) fn from_image(
        image: &Arc<MemoryImage>,
        region: Arc<Region>,
        clocks: Option<&Arc<MappedFile>>,
        slots_made: bool,
    ) -> std::io::Result<Self> {
        for piece in &image.plan {
            image.lay(&region, piece, clocks)?;
        }
        let mut extents = image.extents.for_new_vm();
        if slots_made {
            extents.has_first_slot();
        }
        let mut memory = Self {
            region,
            vmas: image.vmas.clone(),
            extents,
            tables: image.tables.clone(),
            executable: image.executable.clone(),
            pending: Vec::new(),
            heap: image.heap,
            placement: image.placement,
            limit_bytes: image.limit_bytes,
            flush: false,
            image: Some(image.clone()),
            touched: Vec::new(),
            moved: false,
            files: Arc::default(),
        };
        memory.adopt_clocks(image, clocks);
        Ok(memory)
    }

    fn adopt_clocks(&mut self, image: &MemoryImage, clocks: Option<&Arc<MappedFile>>) {
        if let (Some(old), Some(new)) = (&image.clocks, clocks) {
            self.vmas.replace_file(old, new);
        }
    }

    /// Back to the image.
    ///
    /// # Errors
    /// Those of mapping; the address space must not be used then.
    pub(crate) fn renew(&mut self, clocks: Option<&Arc<MappedFile>>) -> std::io::Result<Renewed> {
        let Some(image) = self.image.clone() else { return Ok(Renewed::Worn) };
        let grown = self.extents.used() - image.extents.used();
        let tables = self.tables.bytes() - image.tables.bytes();
        let cut = self.check_host_cuts().is_err();
        if cut
            || grown > WEAR
            || tables > TABLE_WEAR
            || self.executable.len() > image.executable.len() + RANGES
        {
            return Ok(Renewed::Worn);
        }
        let touched = merged(std::mem::take(&mut self.touched));
        for range in &touched {
            self.lay_anew(&image, range, clocks)?;
        }
        let copied = self.copy_back(&image)?;
        self.moved = false;
        self.heap = image.heap;
        self.limit_bytes = image.limit_bytes;
        if !touched.is_empty() {
            self.vmas = image.vmas.clone();
            self.adopt_clocks(&image, clocks);
            self.settle_execution(&image, &touched).map_err(std::io::Error::from)?;
        }
        Ok(Renewed::Clean(copied))
    }

    /// Maps what the image has in `range`, and nothing else there.
    fn lay_anew(
        &self,
        image: &MemoryImage,
        range: &Range<u64>,
        clocks: Option<&Arc<MappedFile>>,
    ) -> std::io::Result<()> {
        for run in self.extents.runs(range.start, range.end) {
            let (start, end) = (run.gpa, run.gpa + run.len);
            let mut at = start;
            for piece in image.touching(start, end).filter_map(|piece| piece.part(start, end)) {
                if at < piece.gpa {
                    self.region.unmap(at, piece.gpa - at)?;
                }
                image.lay(&self.region, &piece, clocks)?;
                at = piece.end();
            }
            if at < end {
                self.region.unmap(at, end - at)?;
            }
        }
        Ok(())
    }

    /// Gives every written page its bytes of the image; how many pages. The system area holds nothing of the program's.
    fn copy_back(&self, image: &MemoryImage) -> std::io::Result<u64> {
        let mut copied = 0;
        let used = self.extents.used() - SYSTEM_SIZE;
        let written = self.region.pages(SYSTEM_SIZE, used, Pages::Private)?;
        for range in written {
            let mut at = range.start;
            for piece in image.touching(range.start, range.end) {
                let Some(part) = piece.part(range.start, range.end) else { continue };
                self.leave_nothing(at, part.gpa)?;
                at = part.end();
                copied += self.restore(image, &part)?;
            }
            self.leave_nothing(at, range.end)?;
        }
        Ok(copied)
    }

    /// Written pages where the image has nothing: tables in rooms of their own stay, all else must have been unmapped.
    fn leave_nothing(&self, from: u64, to: u64) -> std::io::Result<()> {
        let mut at = from;
        for (start, _, end) in self.tables.rooms().filter(|&(start, _, end)| start < to && from < end) {
            if at < start {
                self.region.unmap(at, start - at)?;
            }
            at = end;
        }
        if at < to { self.region.unmap(at, to - at) } else { Ok(()) }
    }

    /// Restores the written pages of `part`, which lie in one piece.
    fn restore(&self, image: &MemoryImage, part: &Piece) -> std::io::Result<u64> {
        // Nobody could write what neither the image nor a change since (it would be laid anew) lets be written.
        if part.tables || !part.protection.write {
            return Ok(0);
        }
        match part.source {
            Source::Picture(at) => image.picture.copy_to(at, &self.region, part.gpa, part.len),
            Source::Zeroes { .. } if part.len < LARGE => self.region.zero(part.gpa, part.len),
            Source::Zeroes { .. } | Source::File { shared: false, .. } => {
                self.region.advise(part.gpa, part.len, Advice::DontNeed)?;
            }
            Source::File { .. } | Source::Clocks(_) => {}
        }
        Ok(part.len / crate::kvm::layout::PAGE)
    }

    /// After the mappings are the image's again: what the image executes can be executed, and none of the image's data.
    fn settle_execution(&mut self, image: &MemoryImage, touched: &[Range<u64>]) -> Result<(), Errno> {
        let now = std::mem::take(&mut self.executable);
        for range in outside(&now, &image.executable) {
            // Mappings begin and end at pages; the ranges do as well.
            let data: Vec<(u64, u64)> = self
                .vmas
                .touching(range.start, range.end)
                .filter(|(_, vma)| !vma.prot.exec)
                .map(|(at, vma)| (at.max(range.start), vma.end.min(range.end)))
                .collect();
            for (from, to) in data {
                self.forbid_pages(from, to)?;
            }
        }
        // Kept where nothing is mapped now: a mapping made there later loses the right then.
        self.executable = now;
        self.pending = touched.to_vec();
        self.commit()
    }

    /// Takes the image's pages out of `start..end`, so that what comes back there is what the mapping itself says.
    pub(super) fn forget_image(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let Some(image) = self.image.clone() else { return Ok(()) };
        let Some((at, vma)) = self.vmas.at(start) else { return Ok(()) };
        let vma = vma.clone();
        if self.moved {
            // Where the picture is now is not known; what is mapped anew is as the advice wants it.
            let here = vma.part(at, start, end.min(vma.end));
            self.map_host(start, &here).map_err(|_| Errno::NOMEM)?;
            self.touch_mappings(start, end);
            return Ok(());
        }
        let mut forgotten = false;
        for run in self.extents.runs(start, end) {
            for piece in image.touching(run.gpa, run.gpa + run.len) {
                let Some(part) = piece.part(run.gpa, run.gpa + run.len) else { continue };
                if matches!(part.source, Source::Picture(_)) {
                    let from = run.gva + (part.gpa - run.gpa);
                    self.map_host(from, &vma.part(at, from, from + part.len)).map_err(|_| Errno::NOMEM)?;
                    forgotten = true;
                }
            }
        }
        if forgotten {
            self.touch_mappings(start, end);
        }
        Ok(())
    }

    /// Notes that what is at `gpa..gpa + len` comes to stand elsewhere.
    pub(super) fn note_moved(&mut self, gpa: u64, len: u64) {
        let pictured = |piece: &Piece| matches!(piece.source, Source::Picture(_));
        self.moved |= self.image.as_ref().is_some_and(|image| image.touching(gpa, gpa + len).any(pictured));
    }

    /// How much of `gpa..gpa + len` is one mapping of the host, as far as the image goes.
    pub(super) fn same_backing(&self, gpa: u64, len: u64) -> u64 {
        let Some(image) = &self.image else { return len };
        let piece = image.touching(gpa, gpa + len).next();
        match piece {
            Some(piece) if piece.gpa <= gpa => len.min(piece.end() - gpa),
            Some(piece) => len.min(piece.gpa - gpa),
            None => len,
        }
    }
}

/// The parts of `ranges` that none of `others` holds.
pub(super) fn outside(ranges: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let others = merged(others.to_vec());
    let mut rest = Vec::new();
    for range in ranges {
        let mut at = range.start;
        for other in others.iter().filter(|other| other.start < range.end && range.start < other.end) {
            rest.push(at..other.start.max(at));
            at = other.end;
        }
        rest.push(at.min(range.end)..range.end);
    }
    rest.retain(|range| !range.is_empty());
    rest
}

/// Sorted, and joined where they touch.
pub(super) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    if ranges.len() < 2 {
        return ranges;
    }
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn what_no_other_range_holds_is_outside() {
        assert_eq!(outside(&[0..10, 20..30], &[8..22, 24..26]), [0..8, 22..24, 26..30]);
        assert_eq!(outside(&[5..6], &[0..10]), []);
        assert_eq!(outside(&[0..4], &[]), [0..4]);
        assert_eq!(merged(vec![4..6, 0..2, 2..3, 5..9]), [0..3, 4..9]);
    }
}
