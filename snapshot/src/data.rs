//! Writing and checking the data area: pages in, holes for zeros, one tag for every 64 pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::format::{CHUNK_PAGES, Header};
use crate::seal::{Domain, Salt, Sealer, Tag};
use crate::sys::is_zero;

/// The tag of one chunk, page by page.
struct ChunkSealer {
    sealer: Sealer,
    present: u64,
    pages: u64,
}

impl ChunkSealer {
    fn new(salt: &Salt, chunk: u64) -> Self {
        Self { sealer: Sealer::new(salt, Domain::Pages, chunk), present: 0, pages: 0 }
    }

    fn zero_page(&mut self) {
        self.pages += 1;
    }

    /// Adds pages none of which is zero.
    fn pages(&mut self, bytes: &[u8], page_size: usize) {
        for _ in 0..bytes.len() / page_size {
            self.present |= 1 << self.pages;
            self.pages += 1;
        }
        self.sealer.update(bytes);
    }

    fn finish(mut self) -> Tag {
        self.sealer.update(&self.present.to_le_bytes());
        self.sealer.finish()
    }
}

/// How many leading pages of `bytes` are alike in being zero or not, and which.
fn leading(bytes: &[u8], page_size: usize) -> (usize, bool) {
    let mut pages = bytes.chunks_exact(page_size).map(is_zero);
    let zero = pages.next().unwrap_or(true);
    (1 + pages.take_while(|&other| other == zero).count(), zero)
}

/// Appends pages to the data area of a file.
pub(crate) struct DataWriter {
    salt: Salt,
    page_size: usize,
    pages: u64,
    stored: u64,
    chunk: Option<ChunkSealer>,
    tags: Vec<u8>,
}

impl DataWriter {
    pub(crate) fn new(salt: Salt, page_size: usize) -> Self {
        Self { salt, page_size, pages: 0, stored: 0, chunk: None, tags: Vec::new() }
    }

    /// Appends whole pages. Each chunk is hashed and written while it is still in the processor's cache.
    pub(crate) fn push(&mut self, file: &File, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = (CHUNK_PAGES - self.pages % CHUNK_PAGES) as usize * self.page_size;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.push_within_chunk(file, now)?;
            bytes = later;
        }
        Ok(())
    }

    fn push_within_chunk(&mut self, file: &File, mut bytes: &[u8]) -> io::Result<()> {
        let number = self.pages / CHUNK_PAGES;
        let chunk = self.chunk.get_or_insert_with(|| ChunkSealer::new(&self.salt, number));
        while !bytes.is_empty() {
            let (pages, zero) = leading(bytes, self.page_size);
            let (now, later) = bytes.split_at(pages * self.page_size);
            if zero {
                (0..pages).for_each(|_| chunk.zero_page());
            } else {
                chunk.pages(now, self.page_size);
                file.write_all_at(now, (self.pages + 1) * self.page_size as u64)?;
                self.stored += pages as u64;
            }
            self.pages += pages as u64;
            bytes = later;
        }
        if self.pages.is_multiple_of(CHUNK_PAGES) {
            self.close_chunk();
        }
        Ok(())
    }

    fn close_chunk(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            self.tags.extend_from_slice(chunk.finish().as_bytes());
        }
    }

    /// Pages appended so far, holes included.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that were not zero.
    pub(crate) const fn stored(&self) -> u64 {
        self.stored
    }

    /// The table of tags.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.close_chunk();
        self.tags
    }
}

/// The tag that pages read back from `chunk` have.
pub(crate) fn chunk_tag(header: &Header, chunk: u64, bytes: &[u8]) -> Tag {
    tag_of(&header.salt, header.page_size as usize, chunk, bytes)
}

/// The tag of all pages of `chunk`.
pub(crate) fn tag_of(salt: &Salt, page_size: usize, chunk: u64, mut bytes: &[u8]) -> Tag {
    let mut sealer = ChunkSealer::new(salt, chunk);
    while !bytes.is_empty() {
        let (pages, zero) = leading(bytes, page_size);
        let (now, later) = bytes.split_at((pages * page_size).min(bytes.len()));
        if zero {
            (0..pages).for_each(|_| sealer.zero_page());
        } else {
            sealer.pages(now, page_size);
        }
        bytes = later;
    }
    sealer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    const PAGE: usize = 4096;

    fn header(data_pages: u64) -> Header {
        Header {
            page_size: PAGE as u32,
            file_len: 0,
            data_pages,
            index_offset: 0,
            salt: Salt::fixed([5; 32]),
            index_tag: Tag::from_bytes([0; 32]),
        }
    }

    fn image(pages: &[u8]) -> Vec<u8> {
        pages.iter().flat_map(|&byte| [byte; PAGE]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_was_pushed_in_pieces_is_read_back_with_the_same_tags(
            pages in prop::collection::vec(0..3_u8, 1..200),
            cut in 1..70_usize,
        ) {
            let file = tempfile::tempfile().unwrap();
            let image = image(&pages);
            let mut writer = DataWriter::new(Salt::fixed([5; 32]), PAGE);
            for piece in image.chunks(cut * PAGE) {
                writer.push(&file, piece).unwrap();
            }
            prop_assert_eq!(writer.stored(), pages.iter().filter(|&&byte| byte != 0).count() as u64);
            let tags = writer.finish();
            file.set_len(((pages.len() + 1) * PAGE) as u64).unwrap();
            let mut read = vec![0; image.len()];
            file.read_exact_at(&mut read, PAGE as u64).unwrap();
            prop_assert!(read == image);
            let header = header(pages.len() as u64);
            let chunks = read.chunks(64 * PAGE).zip(0..).flat_map(|(c, i)| *chunk_tag(&header, i, c).as_bytes());
            prop_assert!(chunks.eq(tags));
        }
    }

    #[test]
    fn zero_pages_take_no_room_on_disk() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = DataWriter::new(Salt::fixed([5; 32]), PAGE);
        writer.push(&file, &image(&[0; 1000])).unwrap();
        writer.push(&file, &image(&[1])).unwrap();
        assert_eq!((writer.pages(), writer.stored()), (1001, 1));
        assert!(file.metadata().unwrap().blocks() * 512 < 100 * PAGE as u64);
    }

    #[test]
    fn a_page_that_moves_within_its_chunk_changes_the_tag() {
        let tag = |pages: &[u8]| chunk_tag(&header(3), 0, &image(pages));
        assert_ne!(tag(&[1, 0, 0]), tag(&[0, 1, 0]));
        assert_ne!(tag(&[1, 2]), tag(&[2, 1]));
        assert_eq!(tag(&[1, 2, 0]), tag(&[1, 2, 0]));
    }
}
