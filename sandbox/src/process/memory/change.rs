//! Changes to mappings that exist: `munmap`, `mprotect`, `mremap`, `madvise`, and growth of stacks.
//!
//! Source: the manual pages of these names; Linux `mm/mprotect.c`, `mm/mremap.c`, `mm/madvise.c`.

use rustix::io::Errno;

use super::place::{At, host_errno, host_protection, pages};
use super::vma::{Prot, Vma};
use super::{Access, AddressSpace, Request};
use crate::kvm::layout::{PAGE, STACK_GUARD, STACK_SIZE, USER_END, USER_START};
use crate::kvm::sys::{Advice, Protection};

/// How `mremap` may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Not at all.
    Never,
    /// Where it does not fit.
    May,
    /// To this address.
    To(u64),
}

/// Why an access is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing is mapped there (`SEGV_MAPERR`).
    Unmapped,
    /// The mapping does not allow it (`SEGV_ACCERR`).
    Forbidden,
}

impl AddressSpace {
    /// `munmap(2)`.
    pub(crate) fn unmap(&mut self, start: u64, len: u64) -> Result<(), Errno> {
        let end = range(start, len)?;
        self.check_cuts(start, end)?;
        self.touch_mappings(start, end);
        let removed = self.vmas.remove(start, end);
        for (at, vma) in removed.iter().filter(|(_, vma)| vma.placed) {
            self.unmap_host(*at, vma.end)?;
        }
        Ok(())
    }

    /// `mprotect(2)`: up to the first hole, then `ENOMEM`.
    pub(crate) fn protect(&mut self, start: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        if !start.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        let len = pages(len).ok_or(Errno::NOMEM)?;
        if len == 0 {
            return Ok(());
        }
        let end = start.checked_add(len).ok_or(Errno::NOMEM)?;
        let mut at = start;
        let parts: Vec<(u64, u64)> =
            self.vmas.touching(start, end).map(|(s, v)| (s.max(start), v.end.min(end))).collect();
        for (from, to) in parts {
            if from > at {
                break;
            }
            self.protect_part(from, to, prot)?;
            at = to;
        }
        if at < end { Err(Errno::NOMEM) } else { Ok(()) }
    }

    fn protect_part(&mut self, start: u64, end: u64, prot: Prot) -> Result<(), Errno> {
        let Some((at, old)) = self.vmas.at(start) else { return Err(Errno::NOMEM) };
        let fixed = old.file.as_ref().is_some_and(|part| part.shared && part.file.read_only);
        if fixed && prot.write {
            return Err(Errno::ACCESS);
        }
        let mut changed = old.clone();
        changed.prot = prot;
        changed.written |= prot.write;
        let more = changed.charged(at).saturating_sub(old.charged(at)).min(end - start);
        if !old.placed && more > self.limit_bytes {
            return Err(Errno::NOMEM);
        }
        self.check_room(more, true)?;
        self.check_cuts(start, end)?;
        self.check_host_cuts()?;
        let placed = old.placed;
        self.touch_mappings(start, end);
        if placed {
            for run in self.extents.runs(start, end) {
                self.region.protect(run.gpa, run.len, host_protection(prot)).map_err(host_errno)?;
            }
        }
        for (at, mut vma) in self.vmas.remove(start, end) {
            let back = vma.clone();
            vma.prot = prot;
            vma.written |= prot.write;
            match self.place(at, &mut vma) {
                Ok(()) => self.vmas.insert(at, vma),
                Err(errno) => {
                    self.vmas.insert(at, back);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// `mremap(2)` without `MREMAP_DONTUNMAP`.
    pub(crate) fn remap(&mut self, old: u64, old_len: u64, new_len: u64, to: Move) -> Result<u64, Errno> {
        if !old.is_multiple_of(PAGE) || new_len == 0 {
            return Err(Errno::INVAL);
        }
        let old_len = pages(old_len).ok_or(Errno::INVAL)?;
        let new_len = pages(new_len).filter(|&len| len <= USER_END).ok_or(Errno::NOMEM)?;
        let (start, vma) = self.vmas.at(old).ok_or(Errno::FAULT)?;
        let vma = vma.clone();
        let old_end = old.checked_add(old_len).ok_or(Errno::INVAL)?;
        if old_len == 0 {
            // Linux copies shared mappings so; nothing we know of uses it.
            return Err(Errno::INVAL);
        }
        if old_end > vma.end {
            return Err(Errno::FAULT);
        }
        if let Move::To(target) = to {
            return self.remap_to(old, old_len, new_len, target);
        }
        if new_len <= old_len {
            if new_len < old_len {
                self.unmap(old + new_len, old_len - new_len)?;
            }
            return Ok(old);
        }
        let more = new_len - old_len;
        if old_end == vma.end && old + new_len <= USER_END && self.vmas.is_free(old_end, old + new_len) {
            self.map(self.like(start, &vma, At::FixedFree(old_end), old_end, more))?;
            return Ok(old);
        }
        if to == Move::Never {
            return Err(Errno::NOMEM);
        }
        let target = self.map(Request::anonymous(At::Hint(0), new_len, Prot::NONE))?;
        self.remap_to(old, old_len, new_len, target)
    }

    /// A request for memory like `vma` has it at `from`.
    fn like(&self, start: u64, vma: &Vma, at: At, from: u64, len: u64) -> Request {
        let file = vma.file.clone().map(|mut part| {
            part.offset += from - start;
            part
        });
        let mut request = Request::anonymous(at, len, vma.prot);
        (request.file, request.label, request.stack) = (file, vma.label, vma.stack);
        (request.no_reserve, request.written) = (true, vma.written);
        request
    }

    fn remap_to(&mut self, old: u64, old_len: u64, new_len: u64, target: u64) -> Result<u64, Errno> {
        let end = range(target, new_len)?;
        let kept = old_len.min(new_len);
        if target < old + old_len && old < end {
            return Err(Errno::INVAL);
        }
        let (start, vma) = self.vmas.at(old).ok_or(Errno::FAULT)?;
        let vma = vma.clone();
        // A mapping of the same kind at the target, over which the pages are then moved.
        let request = self.like(start, &vma, At::Fixed(target), old, new_len);
        self.map(request)?;
        if vma.placed && (vma.file.is_none() || vma.file.as_ref().is_some_and(|part| !part.shared)) {
            self.move_pages(old, target, kept, vma.prot)?;
        }
        self.unmap(old, old_len)?;
        Ok(target)
    }

    /// Moves private pages, in pieces that are contiguous on both sides.
    fn move_pages(&mut self, old: u64, new: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let from = self.runs(old + done, old + len).next().ok_or(Errno::FAULT)?;
            let to = self.runs(new + done, new + len).next().ok_or(Errno::FAULT)?;
            let piece = self.same_backing(from.gpa, from.len.min(to.len));
            self.note_moved(from.gpa, piece);
            if self.region.move_pages(from.gpa, to.gpa, piece).is_err() {
                // Several mappings of the host: a reset or an advice has cut the image's.
                self.copy_pages(from.gpa, to.gpa, piece, prot)?;
            }
            done += piece;
        }
        Ok(())
    }

    /// Copies what the program itself may not be allowed to read or write; the original is unmapped next.
    fn copy_pages(&self, from: u64, to: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        self.region.protect(from, len, Protection { read: true, write: false }).map_err(host_errno)?;
        self.region.protect(to, len, Protection::READ_WRITE).map_err(host_errno)?;
        let copied = self.copy_bytes(from, to, len);
        self.region.protect(to, len, host_protection(prot)).map_err(host_errno)?;
        copied
    }

    fn copy_bytes(&self, from: u64, to: u64, len: u64) -> Result<(), Errno> {
        let mut buffer = vec![0; (256 << 10).min(len as usize)];
        for at in (0..len).step_by(buffer.len().max(1)) {
            let piece = &mut buffer[..(len - at).min(256 << 10) as usize];
            if self.region.read(from + at, piece) != piece.len()
                || self.region.write(to + at, piece) != piece.len()
            {
                return Err(Errno::FAULT);
            }
        }
        Ok(())
    }

    /// `madvise(2)` with an advice that does something: applied to all that is mapped, `ENOMEM` where a part is not.
    pub(crate) fn advise(&mut self, start: u64, end: u64, advice: Advice) -> Result<(), Errno> {
        let parts: Vec<(u64, u64)> = self
            .vmas
            .touching(start, end)
            .filter(|(_, vma)| vma.placed)
            .map(|(at, vma)| (at.max(start), vma.end.min(end)))
            .collect();
        for (from, to) in parts {
            if matches!(advice, Advice::DontNeed | Advice::Free) && self.image.is_some() {
                self.check_host_cuts()?;
                self.forget_image(from, to)?;
            }
            for run in self.extents.runs(from, to) {
                let done = match advice {
                    Advice::PopulateRead | Advice::PopulateWrite => self.fault_in(run, advice),
                    _ => self.region.advise(run.gpa, run.len, advice),
                };
                done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
            }
        }
        if self.vmas.is_whole(start, end) { Ok(()) } else { Err(Errno::NOMEM) }
    }

    /// `msync(2)` of the shared parts.
    pub(crate) fn sync(&self, start: u64, end: u64) -> Result<(), Errno> {
        for (at, vma) in self.vmas.touching(start, end) {
            if vma.placed && vma.file.as_ref().is_some_and(|part| part.shared) {
                for run in self.extents.runs(at.max(start), vma.end.min(end)) {
                    self.region.sync(run.gpa, run.len).map_err(host_errno)?;
                }
            }
        }
        Ok(())
    }

    /// One byte for each page of `start..end`, as `mincore` wants it.
    pub(crate) fn resident_pages(&self, start: u64, end: u64) -> Vec<u8> {
        let mut pages = vec![0; ((end - start) / PAGE) as usize];
        for run in self.extents.runs(start, end) {
            let first = ((run.gva - start) / PAGE) as usize;
            let part = &mut pages[first..first + (run.len / PAGE) as usize];
            // Reserved addresses count as absent whatever the host says.
            let _ = self.region.resident_pages(run.gpa, part);
        }
        pages
    }

    /// A program touched `address`: enters its page and grows a stack where the mappings allow the access.
    pub(crate) fn touch(&mut self, address: u64, access: Access) -> Result<(), Refusal> {
        if !(USER_START..USER_END).contains(&address) {
            return Err(Refusal::Unmapped);
        }
        if self.vmas.at(address).is_none() {
            self.grow_stack(address)?;
        }
        if self.reachable(address, 1, access) == 0 {
            return Err(Refusal::Forbidden);
        }
        let page = address & !(PAGE - 1);
        self.commit().and_then(|()| self.enter(page, page + PAGE)).map_err(|_| Refusal::Unmapped)
    }

    /// Takes the page of `address` away from the program until [`Self::release`]: an access leaves the VM.
    pub(crate) fn hold(&self, address: u64) -> Result<(), Errno> {
        self.protect_page(address, Prot::NONE)
    }

    /// Gives it back.
    pub(crate) fn release(&self, address: u64) -> Result<(), Errno> {
        let (_, vma) = self.vmas.at(address).ok_or(Errno::FAULT)?;
        self.protect_page(address, vma.prot)
    }

    fn protect_page(&self, address: u64, prot: Prot) -> Result<(), Errno> {
        let gpa = self.gpa_page(address).ok_or(Errno::FAULT)?;
        self.region.protect(gpa & !(PAGE - 1), PAGE, host_protection(prot)).map_err(host_errno)
    }

    fn grow_stack(&mut self, address: u64) -> Result<(), Refusal> {
        let (start, vma) = self.vmas.above(address).ok_or(Refusal::Unmapped)?;
        let page = address & !(PAGE - 1);
        let fits = vma.grows_down && vma.end - page <= STACK_SIZE;
        let clear = self.vmas.below(address).is_none_or(|(_, below)| below.end + STACK_GUARD <= page);
        if !fits || !clear {
            return Err(Refusal::Unmapped);
        }
        let (prot, label) = (vma.prot, vma.label);
        let mut request = Request::anonymous(At::FixedFree(page), start - page, prot);
        (request.grows_down, request.stack, request.label) = (true, true, label);
        self.map(request).map(drop).map_err(|_| Refusal::Unmapped)
    }
}

/// The end of a range as `munmap` checks it.
fn range(start: u64, len: u64) -> Result<u64, Errno> {
    if !start.is_multiple_of(PAGE) || len == 0 {
        return Err(Errno::INVAL);
    }
    let len = pages(len).ok_or(Errno::INVAL)?;
    start.checked_add(len).filter(|&end| end <= USER_END).ok_or(Errno::INVAL)
}
