//! The guest's page tables.
//!
//! ```text
//! PML4 ─> page-directory-pointer table ─> page directory ─> entry of a 2 MiB page
//!  512 GiB                         1 GiB          2 MiB └─> page table ─> entry of a 4 KiB page
//! ```
//! Entries only ever go from absent to present: a software KVM keeps a shadow of present ones and does not see them
//! change. The one exception, a page that must become executable (or lose it), sets [`Tables::take_stale`], and the VM
//! throws its shadow away before the program runs on. Which pages may be read and written is not said here
//! (every entry allows both) but by the host's protection of the memory behind, where a change takes effect at once.
//!
//! Source: Intel SDM vol. 3A §4.5, tables 4-15 to 4-20.

use std::collections::BTreeSet;

use super::vma::PAGE;
use crate::kvm::layout::{LARGE_PAGE, SYSTEM_SIZE, TABLES_GPA};
use crate::kvm::sys::{Backing, Protection, Region};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Accessed and dirty are preset, so that the CPU has nothing to write.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED;
const ENTRIES: u64 = 512;

/// How a page is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Ring 3 may use it.
    pub(crate) user: bool,
    /// Stores are possible as far as the tables go.
    pub(crate) write: bool,
    /// Instructions may be fetched.
    pub(crate) exec: bool,
}

impl Rights {
    /// A page of the program; stores are the host's to refuse.
    pub(crate) fn program(exec: bool) -> Self {
        Self { user: true, write: true, exec }
    }

    fn bits(self) -> u64 {
        let when = |condition, bit| if condition { bit } else { 0 };
        PRESENT
            | ACCESSED
            | DIRTY
            | when(self.write, WRITE)
            | when(self.user, USER)
            | when(!self.exec, NO_EXECUTE)
    }
}

/// No room for another table: the caller adds a stretch with [`Tables::add_room`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// The tables of one guest. They live in guest memory; this is where the next one goes.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    next: u64,
    end: u64,
    stale: bool,
    /// The stretches that hold tables: first address, end.
    rooms: Vec<(u64, u64)>,
}

impl Tables {
    /// An empty PML4 at [`TABLES_GPA`], with room for tables up to `end`.
    pub(crate) fn new(region: &Region, end: u64) -> std::io::Result<Self> {
        region.map(TABLES_GPA, end - TABLES_GPA, Protection::READ_WRITE, Backing::Anonymous)?;
        Ok(Self { next: TABLES_GPA + PAGE, end, stale: false, rooms: vec![(TABLES_GPA, end)] })
    }

    /// More room for tables.
    pub(crate) fn add_room(&mut self, region: &Region, gpa: u64, len: u64) -> std::io::Result<()> {
        region.map(gpa, len, Protection::READ_WRITE, Backing::Anonymous)?;
        (self.next, self.end) = (gpa, gpa + len);
        self.rooms.push((gpa, gpa + len));
        Ok(())
    }

    /// Every stretch that holds tables: first address, end of the tables in it, end of the room.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let used = |end| if end == self.end { self.next } else { end };
        self.rooms.iter().map(move |&(start, end)| (start, used(end), end))
    }

    /// Bytes of tables.
    pub(super) fn bytes(&self) -> u64 {
        self.rooms().map(|(start, used, _)| used - start).sum()
    }

    /// Where the next one goes, the end of that room, and all rooms.
    pub(super) fn parts(&self) -> (u64, u64, &[(u64, u64)]) {
        (self.next, self.end, &self.rooms)
    }

    /// Of such parts; `None` where they cannot be.
    pub(super) fn from_parts(next: u64, end: u64, rooms: Vec<(u64, u64)>) -> Option<Self> {
        let (first, last) = (rooms.first()?, rooms.last()?);
        let pages = |&(start, end): &(u64, u64)| {
            start < end && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE)
        };
        let good = *first == (TABLES_GPA, SYSTEM_SIZE) && rooms.iter().all(pages);
        let good = good && last.1 == end && (last.0..=end).contains(&next) && next.is_multiple_of(PAGE);
        (good && next > TABLES_GPA).then_some(Self { next, end, stale: false, rooms })
    }

    /// Whether every table that can be reached lies in a room. `word` reads guest-physical memory.
    pub(super) fn are_closed(&self, mut word: impl FnMut(u64) -> Option<u64>) -> bool {
        let mut seen = BTreeSet::new();
        let mut level = vec![TABLES_GPA];
        for _ in 0..3 {
            let mut below = Vec::new();
            for at in level.iter().flat_map(|table| (0..ENTRIES).map(move |i| table + i * 8)) {
                let Some(entry) = word(at) else { return false };
                if entry & PRESENT == 0 || entry & LARGE != 0 {
                    continue;
                }
                let table = entry & ADDRESS;
                let is_table = self.rooms().any(|(start, used, _)| (start..used).contains(&table));
                if !is_table || !seen.insert(table) {
                    return false;
                }
                below.push(table);
            }
            level = below;
        }
        true
    }

    /// Whether a present entry was changed since the last question.
    pub(crate) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    fn table(&mut self) -> Result<u64, NoRoom> {
        if self.next == self.end {
            return Err(NoRoom);
        }
        self.next += PAGE;
        Ok(self.next - PAGE)
    }

    /// The place of the page-directory entry of `gva`, with the tables above it.
    fn directory_entry(&mut self, region: &Region, gva: u64) -> Result<u64, NoRoom> {
        let mut table = TABLES_GPA;
        for shift in [39, 30] {
            let at = table + (gva >> shift) % ENTRIES * 8;
            let entry = region.word(at);
            table = if entry & PRESENT == 0 {
                let new = self.table()?;
                region.set_word(at, new | TABLE);
                new
            } else {
                entry & ADDRESS
            };
        }
        Ok(table + (gva >> 21) % ENTRIES * 8)
    }

    /// Whether nothing is entered for the 2 MiB around `gva` yet.
    pub(crate) fn is_empty(&mut self, region: &Region, gva: u64) -> Result<bool, NoRoom> {
        let at = self.directory_entry(region, gva)?;
        Ok(region.word(at) & PRESENT == 0)
    }

    /// Enters one large page; both addresses are multiples of 2 MiB and the place is empty.
    pub(crate) fn enter_large(
        &mut self,
        region: &Region,
        gva: u64,
        gpa: u64,
        rights: Rights,
    ) -> Result<(), NoRoom> {
        let at = self.directory_entry(region, gva)?;
        debug_assert_eq!(region.word(at) & PRESENT, 0);
        region.set_word(at, gpa | rights.bits() | LARGE);
        Ok(())
    }

    /// Enters the small pages of `gva..gva + len`, which lie in one 2 MiB stretch. A page that is present keeps its
    /// entry unless it must become executable.
    pub(crate) fn enter(
        &mut self,
        region: &Region,
        gva: u64,
        gpa: u64,
        len: u64,
        rights: Rights,
    ) -> Result<(), NoRoom> {
        let at = self.directory_entry(region, gva)?;
        let directory = region.word(at);
        let table = if directory & PRESENT == 0 {
            let new = self.table()?;
            region.set_word(at, new | TABLE);
            new
        } else if directory & LARGE == 0 {
            directory & ADDRESS
        } else if rights.exec && directory & NO_EXECUTE != 0 {
            self.shatter(region, at, directory)?
        } else {
            return Ok(());
        };
        for page in 0..len / PAGE {
            let at = table + ((gva >> 12) % ENTRIES + page) * 8;
            let entry = region.word(at);
            let wanted = (gpa + page * PAGE) | rights.bits();
            if entry & PRESENT == 0 {
                region.set_word(at, wanted);
            } else if rights.exec && entry & NO_EXECUTE != 0 {
                region.set_word(at, wanted);
                self.stale = true;
            }
        }
        Ok(())
    }

    /// Replaces a large page by 512 small ones with the same rights.
    fn shatter(&mut self, region: &Region, at: u64, large: u64) -> Result<u64, NoRoom> {
        let table = self.table()?;
        let bits = large & !LARGE & !(ADDRESS & !(LARGE_PAGE - 1));
        let base = large & ADDRESS & !(LARGE_PAGE - 1);
        for i in 0..ENTRIES {
            region.set_word(table + i * 8, (base + i * PAGE) | bits);
        }
        region.set_word(at, table | TABLE);
        self.stale = true;
        Ok(table)
    }

    /// Takes the right to execute from pages that are entered: new data at the place of old code.
    pub(crate) fn forbid_execute(&mut self, region: &Region, gva: u64, len: u64) -> Result<(), NoRoom> {
        let end = gva + len;
        let mut at = gva;
        while at < end {
            let next = ((at & !(LARGE_PAGE - 1)) + LARGE_PAGE).min(end);
            self.forbid_in_chunk(region, at, next)?;
            at = next;
        }
        Ok(())
    }

    /// The same in one stretch of 2 MiB.
    fn forbid_in_chunk(&mut self, region: &Region, start: u64, end: u64) -> Result<(), NoRoom> {
        let at = self.directory_entry(region, start)?;
        let directory = region.word(at);
        let executable_large = directory & LARGE != 0 && directory & NO_EXECUTE == 0;
        let table = match directory & PRESENT {
            0 => return Ok(()),
            _ if executable_large && end - start == LARGE_PAGE => {
                region.set_word(at, directory | NO_EXECUTE);
                self.stale = true;
                return Ok(());
            }
            _ if executable_large => self.shatter(region, at, directory)?,
            _ if directory & LARGE != 0 => return Ok(()),
            _ => directory & ADDRESS,
        };
        for gva in (start..end).step_by(PAGE as usize) {
            let at = table + (gva >> 12) % ENTRIES * 8;
            let entry = region.word(at);
            if entry & PRESENT != 0 && entry & NO_EXECUTE == 0 {
                region.set_word(at, entry | NO_EXECUTE);
                self.stale = true;
            }
        }
        Ok(())
    }

    /// What the guest would find at `gva`: the physical address and whether it may execute there.
    #[cfg(test)]
    pub(crate) fn find(&self, region: &Region, gva: u64) -> Option<(u64, bool)> {
        let mut table = TABLES_GPA;
        for shift in [39, 30, 21, 12] {
            let entry = region.word(table + (gva >> shift) % ENTRIES * 8);
            if entry & PRESENT == 0 {
                return None;
            }
            let size = 1u64 << shift;
            if shift == 12 || entry & LARGE != 0 {
                return Some((entry & ADDRESS & !(size - 1) | gva & (size - 1), entry & NO_EXECUTE == 0));
            }
            table = entry & ADDRESS;
        }
        None
    }
}
