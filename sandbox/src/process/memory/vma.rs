//! The program's mappings as an interval map: which addresses exist, with which rights, backed by what.
//!
//! Source: Linux `mm/vma.c` for when neighbours merge and where a mapping is cut; `mmap(2)`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::process::files::{Hold, Mapping};

/// A page.
pub(crate) const PAGE: u64 = 4096;

/// What the program may do with a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prot {
    /// Loads.
    pub(crate) read: bool,
    /// Stores.
    pub(crate) write: bool,
    /// Instruction fetches.
    pub(crate) exec: bool,
}

impl Prot {
    /// Nothing.
    pub(crate) const NONE: Self = Self { read: false, write: false, exec: false };
    /// Data.
    pub(crate) const READ_WRITE: Self = Self { read: true, write: true, exec: false };
    /// Constants.
    #[cfg(test)]
    pub(crate) const READ: Self = Self { read: true, write: false, exec: false };

    /// From `PROT_*` bits; `None` where a bit is unknown.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let known = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let has = |bit: i32| bits & bit as u64 != 0;
        (bits & !known == 0).then(|| Self {
            read: has(libc::PROT_READ),
            write: has(libc::PROT_WRITE),
            exec: has(libc::PROT_EXEC),
        })
    }

    /// Any access at all. x86 cannot allow stores or fetches without loads, and Linux does not pretend to.
    pub(crate) fn accessible(self) -> bool {
        self.read || self.write || self.exec
    }
}

/// A file that is mapped.
#[derive(Debug)]
pub(crate) struct MappedFile {
    /// The host's descriptor.
    pub(crate) fd: Arc<OwnedFd>,
    /// The program's path of it, as `/proc/self/maps` shows it.
    pub(crate) name: String,
    /// It is memory of this program and nothing else (`MAP_SHARED | MAP_ANONYMOUS`).
    pub(crate) own: bool,
    /// A shared mapping of it can never be stored into.
    pub(crate) read_only: bool,
    /// Others than this program may store into it.
    pub(crate) outside: bool,
    /// Lets a private file of the program go on costing.
    pub(crate) _hold: Option<Hold>,
    /// Counts it among those that the program has mapped.
    pub(crate) _count: Option<Arc<()>>,
}

impl MappedFile {
    /// A file that is called `name`.
    pub(crate) fn new(fd: Arc<OwnedFd>, name: String) -> Self {
        Self { fd, name, own: false, read_only: false, outside: false, _hold: None, _count: None }
    }

    /// What the program's files give to be mapped.
    pub(crate) fn of(mapping: Mapping, name: String) -> Self {
        let Mapping { fd, hold, read_only, outside } = mapping;
        Self { fd, name, own: false, read_only, outside, _hold: hold, _count: None }
    }
}

/// A part of a file behind a mapping.
#[derive(Clone, Debug)]
pub(crate) struct FilePart {
    /// The file.
    pub(crate) file: Arc<MappedFile>,
    /// The byte of it at the mapping's start.
    pub(crate) offset: u64,
    /// Stores go to the file.
    pub(crate) shared: bool,
}

/// One mapping; its start is the key in the map.
#[derive(Clone, Debug)]
pub(crate) struct Vma {
    /// First address after it.
    pub(crate) end: u64,
    /// The rights.
    pub(crate) prot: Prot,
    /// The file; `None` for zeroes.
    pub(crate) file: Option<FilePart>,
    /// The program may have stored here, now or under earlier rights: its pages count as its own.
    pub(crate) written: bool,
    /// The host has pages for it. A reservation that nobody may touch has none.
    pub(crate) placed: bool,
    /// It grows towards lower addresses when the page below it is touched.
    pub(crate) grows_down: bool,
    /// It is used from its end, a little at a time.
    pub(crate) stack: bool,
    /// What `/proc/self/maps` calls it where there is no file: `[heap]`, `[stack]`.
    pub(crate) label: &'static str,
}

impl Vma {
    /// Private zeroes.
    pub(crate) fn anonymous(end: u64, prot: Prot) -> Self {
        let written = prot.write;
        Self { end, prot, file: None, written, placed: false, grows_down: false, stack: false, label: "" }
    }

    fn continues(&self, start: u64, next: &Self) -> bool {
        let files = match (&self.file, &next.file) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                Arc::ptr_eq(&a.file, &b.file)
                    && a.shared == b.shared
                    && a.offset + (self.end - start) == b.offset
            }
            _ => false,
        };
        files
            && self.prot == next.prot
            && self.written == next.written
            && self.placed == next.placed
            && self.grows_down == next.grows_down
            && self.stack == next.stack
            && self.label == next.label
    }

    /// Bytes that may become this program's own memory.
    pub(crate) fn charged(&self, start: u64) -> u64 {
        let own = match &self.file {
            // A mere load takes memory here.
            Some(part) if part.file.own => true,
            Some(part) => self.written && !part.shared,
            None => self.written,
        };
        if own { self.end - start } else { 0 }
    }

    /// The part `from..to` of the mapping, which begins at `start`.
    pub(crate) fn part(&self, start: u64, from: u64, to: u64) -> Self {
        Self { end: to, ..self.cut_front(start, from) }
    }

    fn cut_front(&self, start: u64, at: u64) -> Self {
        let mut rest = self.clone();
        if let Some(part) = &mut rest.file {
            part.offset += at - start;
        }
        rest
    }
}

/// All mappings. Starts and ends are page-aligned; none is empty; none overlaps another.
#[derive(Clone, Debug, Default)]
pub(crate) struct VmaMap {
    map: BTreeMap<u64, Vma>,
    charged: u64,
}

impl VmaMap {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes in writable private mappings.
    pub(crate) fn charged(&self) -> u64 {
        self.charged
    }

    /// The mapping that holds `address`.
    pub(crate) fn at(&self, address: u64) -> Option<(u64, &Vma)> {
        let (&start, vma) = self.map.range(..=address).next_back()?;
        (address < vma.end).then_some((start, vma))
    }

    /// The first mapping at or above `address`.
    pub(crate) fn above(&self, address: u64) -> Option<(u64, &Vma)> {
        self.map.range(address..).next().map(|(&start, vma)| (start, vma))
    }

    /// The last mapping that begins below `address`.
    pub(crate) fn below(&self, address: u64) -> Option<(u64, &Vma)> {
        self.map.range(..address).next_back().map(|(&start, vma)| (start, vma))
    }

    /// Every mapping.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Vma)> {
        self.map.iter().map(|(&start, vma)| (start, vma))
    }

    /// Every mapping that touches `start..end`, whole.
    pub(crate) fn touching(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Vma)> {
        let first = self.at(start).map_or(start, |(at, _)| at);
        self.map.range(first..end.max(first)).map(|(&start, vma)| (start, vma))
    }

    /// Whether no mapping touches `start..end`.
    pub(crate) fn is_free(&self, start: u64, end: u64) -> bool {
        self.touching(start, end).next().is_none()
    }

    /// Whether every address of `start..end` is mapped.
    pub(crate) fn is_whole(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for (from, vma) in self.touching(start, end) {
            if from > at {
                return false;
            }
            at = vma.end;
        }
        at >= end
    }

    /// Cuts the mapping at `address` in two.
    fn split(&mut self, address: u64) {
        let Some((start, vma)) = self.at(address) else { return };
        if start == address {
            return;
        }
        let back = vma.cut_front(start, address);
        self.map.insert(address, back);
        if let Some(front) = self.map.get_mut(&start) {
            front.end = address;
        }
    }

    /// Takes `start..end` out and returns what was there, cut at the two ends.
    pub(crate) fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, Vma)> {
        self.split(start);
        self.split(end);
        let keys: Vec<u64> = self.map.range(start..end).map(|(&at, _)| at).collect();
        let removed: Vec<_> = keys.into_iter().filter_map(|at| Some((at, self.map.remove(&at)?))).collect();
        self.charged -= removed.iter().map(|(at, vma)| vma.charged(*at)).sum::<u64>();
        removed
    }

    /// Puts a mapping where nothing is (the caller has removed what was), and joins it with equal neighbours.
    pub(crate) fn insert(&mut self, start: u64, vma: Vma) {
        debug_assert!(start < vma.end && self.is_free(start, vma.end), "mappings overlap");
        self.charged += vma.charged(start);
        let (mut start, mut vma) = (start, vma);
        if let Some(next) = self.map.get(&vma.end)
            && vma.continues(start, next)
        {
            let next_start = vma.end;
            vma.end = next.end;
            self.map.remove(&next_start);
        }
        if let Some((before, previous)) = self.below(start)
            && previous.end == start
            && previous.continues(before, &vma)
        {
            let mut joined = previous.clone();
            joined.end = vma.end;
            start = before;
            vma = joined;
        }
        self.map.insert(start, vma);
    }

    /// Puts one file in the place of another, wherever that is mapped.
    pub(crate) fn replace_file(&mut self, old: &Arc<MappedFile>, new: &Arc<MappedFile>) {
        for part in self.map.values_mut().filter_map(|vma| vma.file.as_mut()) {
            if Arc::ptr_eq(&part.file, old) {
                part.file = new.clone();
            }
        }
    }

    /// The highest free `len` bytes that end at or below `top` and begin at or above `bottom`.
    pub(crate) fn free_below(&self, len: u64, bottom: u64, top: u64) -> Option<u64> {
        let mut end = top;
        loop {
            let lower = self.map.range(..end).next_back();
            let floor = lower.map_or(bottom, |(_, vma)| vma.end.max(bottom));
            if end >= floor && end - floor >= len {
                return Some(end - len);
            }
            let (&start, _) = lower?;
            if start <= bottom {
                return None;
            }
            end = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_neighbours_join_and_a_hole_cuts() {
        let mut map = VmaMap::default();
        map.insert(PAGE, Vma::anonymous(2 * PAGE, Prot::READ));
        map.insert(3 * PAGE, Vma::anonymous(4 * PAGE, Prot::READ));
        map.insert(2 * PAGE, Vma::anonymous(3 * PAGE, Prot::READ));
        assert_eq!(map.len(), 1);
        let removed = map.remove(2 * PAGE, 3 * PAGE);
        assert_eq!((removed.len(), map.len()), (1, 2));
        assert!(!map.is_whole(PAGE, 4 * PAGE) && map.is_free(2 * PAGE, 3 * PAGE));
    }

    #[test]
    fn the_highest_gap_is_found() {
        let mut map = VmaMap::default();
        map.insert(8 * PAGE, Vma::anonymous(10 * PAGE, Prot::READ));
        assert_eq!(map.free_below(PAGE, PAGE, 10 * PAGE), Some(7 * PAGE));
        assert_eq!(map.free_below(PAGE, PAGE, 12 * PAGE), Some(11 * PAGE));
        assert_eq!(map.free_below(8 * PAGE, PAGE, 10 * PAGE), None);
    }

    proptest! {
        /// Against a plain array of pages.
        #[test]
        fn the_map_agrees_with_an_array_of_pages(
            steps in proptest::collection::vec((0u64..40, 1u64..12, 0u8..3), 1..60)
        ) {
            let mut map = VmaMap::default();
            let mut pages = [None; 64];
            for (start, len, what) in steps {
                map.remove(start * PAGE, (start + len) * PAGE);
                let prot = [None, Some(Prot::READ), Some(Prot::READ_WRITE)][what as usize];
                if let Some(prot) = prot {
                    map.insert(start * PAGE, Vma::anonymous((start + len) * PAGE, prot));
                }
                pages[start as usize..(start + len) as usize].fill(prot);
            }
            for (i, page) in pages.iter().enumerate() {
                let at = map.at(i as u64 * PAGE + 17).map(|(_, vma)| vma.prot);
                prop_assert_eq!(at, *page);
            }
            let writable = pages.iter().filter(|p| **p == Some(Prot::READ_WRITE)).count() as u64;
            prop_assert_eq!(map.charged(), writable * PAGE);
        }
    }
}
