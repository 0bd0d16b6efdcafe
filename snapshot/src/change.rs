//! Pages that changed after they were written: each takes its place in the data area anew, and its chunk another tag.
//!
//! ```text
//! guest page ── in a run ────────> its page of the data area
//!            ── in none, or zero ─> a page behind the others, in a run of its own or at the end of the last
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::data::tag_of;
use crate::format::CHUNK_PAGES;
use crate::image::Image;
use crate::index::{Place, RegionRecord, Run};
use crate::seal::{Salt, Tag};
use crate::writer::WriteError;

impl Image {
    /// Writes `changes`, (guest address, bytes) of whole pages, over what was written, in `file`.
    pub(crate) fn change<'a>(
        &mut self,
        file: &File,
        salt: &Salt,
        page_size: usize,
        changes: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), WriteError> {
        let mut chunks: BTreeMap<u64, Vec<(u64, &[u8])>> = BTreeMap::new();
        for (address, bytes) in changes {
            let place = self.place(address, page_size as u64);
            let place = place.filter(|_| bytes.len() == page_size).ok_or(WriteError::Alignment(address))?;
            chunks.entry(place / CHUNK_PAGES).or_default().push((place, bytes));
        }
        for (chunk, pages) in chunks {
            self.rewrite(file, salt, page_size, chunk, &pages).map_err(WriteError::Write)?;
        }
        Ok(())
    }

    /// The page of the data area that holds the guest's page at `address`, from now on at least.
    fn place(&mut self, address: u64, page_size: u64) -> Option<u64> {
        let within = |region: &&mut RegionRecord| {
            address.checked_sub(region.guest_address).is_some_and(|offset| offset < region.len)
        };
        let region = self.regions.iter_mut().find(within)?;
        let offset = address - region.guest_address;
        if !offset.is_multiple_of(page_size) {
            return None;
        }
        Some(place(&mut region.runs, offset / page_size, &mut self.pages))
    }

    fn rewrite(
        &mut self,
        file: &File,
        salt: &Salt,
        page_size: usize,
        chunk: u64,
        pages: &[(u64, &[u8])],
    ) -> io::Result<()> {
        let first = chunk * CHUNK_PAGES;
        let offset = |page: u64| (page + 1) * page_size as u64;
        let mut bytes = vec![0; CHUNK_PAGES.min(self.pages - first) as usize * page_size];
        read_what_is_there(file, &mut bytes, offset(first))?;
        for (page, content) in pages {
            bytes[(page - first) as usize * page_size..][..page_size].copy_from_slice(content);
            file.write_all_at(content, offset(*page))?;
        }
        let at = chunk as usize * Tag::LEN;
        self.tags.resize(self.tags.len().max(at + Tag::LEN), 0);
        self.tags[at..at + Tag::LEN].copy_from_slice(tag_of(salt, page_size, chunk, &bytes).as_bytes());
        Ok(())
    }
}

/// Where `page` of a region with these runs, sorted and apart, is stored; `end` of the data area is where it goes otherwise.
fn place(runs: &mut Vec<Run>, page: u64, end: &mut u64) -> u64 {
    let index = runs.partition_point(|run| run.page + run.pages <= page);
    if let Some(run) = runs.get(index).copied().filter(|run| run.page <= page) {
        match run.place {
            Place::Data(first) => return first + (page - run.page),
            Place::Zero => cut(runs, index, page),
        }
    }
    let index = runs.partition_point(|run| run.page + run.pages <= page);
    let new = *end;
    *end += 1;
    match index.checked_sub(1).and_then(|before| runs.get_mut(before)) {
        Some(Run { page: at, pages, place: Place::Data(first) })
            if *at + *pages == page && *first + *pages == new =>
        {
            *pages += 1
        }
        _ => runs.insert(index, Run { page, pages: 1, place: Place::Data(new) }),
    }
    new
}

/// Takes `page` out of the zero run at `index`.
fn cut(runs: &mut Vec<Run>, index: usize, page: u64) {
    let Run { page: start, pages, place } = runs[index];
    let parts = [(start, page), (page + 1, start + pages)];
    let parts = parts.into_iter().filter(|(from, to)| from < to);
    runs.splice(index..=index, parts.map(|(from, to)| Run { page: from, pages: to - from, place }));
}

/// Fills `bytes` as far as the file goes; behind its end all is zero.
fn read_what_is_there(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use crate::{Host, Layout, ReadMemory, Region, Snapshot, Source, Store, Writer};

    const PAGE: usize = 4096;
    const PAGES: u64 = 200;
    const START: u64 = 1 << 20;

    #[derive(Debug)]
    struct Memory(Mutex<Vec<u8>>);

    impl ReadMemory for Memory {
        fn len(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }

        fn read(&self, offset: u64, into: &mut [u8]) {
            into.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..into.len()]);
        }
    }

    impl Memory {
        fn of(pages: &[u8]) -> Self {
            Self(Mutex::new(pages.iter().flat_map(|byte| [*byte; PAGE]).collect()))
        }

        fn set(&self, page: u64, byte: u8) {
            self.0.lock().unwrap()[page as usize * PAGE..][..PAGE].fill(byte);
        }
    }

    /// A snapshot of `memory`, of which `changes` (page, byte) happen after it was written.
    fn snapshot(
        store: &Store,
        parent: Option<&Snapshot>,
        memory: &Memory,
        changes: &[(u64, u8)],
    ) -> Snapshot {
        let host = Host::new(["x"]);
        let mut writer = match parent {
            None => Writer::base(store, host).unwrap(),
            Some(parent) => Writer::diff(store, host, parent).unwrap(),
        };
        let layout = Layout { min_gap_pages: 2, max_runs: 8 };
        writer.memory(&[Region::new(START, Source::Changing(memory))], &layout).unwrap();
        changes.iter().for_each(|(page, byte)| memory.set(*page, *byte));
        let bytes: Vec<_> = changes
            .iter()
            .map(|(page, _)| (*page, memory.0.lock().unwrap()[*page as usize * PAGE]))
            .collect();
        let bytes: Vec<_> =
            bytes.into_iter().map(|(page, byte)| (START + page * PAGE as u64, vec![byte; PAGE])).collect();
        writer.memory_changed(bytes.iter().map(|(address, bytes)| (*address, bytes.as_slice()))).unwrap();
        Snapshot::open(store, &writer.publish().unwrap()).unwrap()
    }

    fn check(snapshot: &Snapshot, memory: &Memory) {
        snapshot.verify().unwrap();
        let mut read = vec![0; PAGES as usize * PAGE];
        snapshot.read(START, &mut read).unwrap();
        assert!(read == *memory.0.lock().unwrap(), "the memory is not what it was at last");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_snapshot_of_memory_that_changes_is_as_it_was_at_last(
            pages in proptest::collection::vec(0u8..3, PAGES as usize),
            first in proptest::collection::vec((0..PAGES, 0u8..3), 0..60),
            second in proptest::collection::vec((0..PAGES, 0u8..4), 0..60),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let memory = Memory::of(&pages);
            let base = snapshot(&store, None, &memory, &first);
            check(&base, &memory);
            // Some of these differ before the diff is begun, the others after.
            let (before, after) = second.split_at(second.len() / 2);
            before.iter().for_each(|(page, byte)| memory.set(*page, *byte));
            let diff = snapshot(&store, Some(&base), &memory, after);
            check(&diff, &memory);
        }
    }

    #[test]
    fn what_is_no_page_of_the_memory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let memory = Memory::of(&[1; 4]);
        let mut writer = Writer::base(&store, Host::new(["x"])).unwrap();
        assert!(writer.memory_changed([(START, &[0; PAGE][..])]).is_err(), "no memory was given");
        writer.memory(&[Region::new(START, Source::Changing(&memory))], &Layout::default()).unwrap();
        for address in [0, START + 1, START + 4 * PAGE as u64] {
            assert!(writer.memory_changed([(address, &[0; PAGE][..])]).is_err());
        }
        assert!(writer.memory_changed([(START, &[0; 100][..])]).is_err());
    }
}
