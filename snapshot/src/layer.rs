//! One open snapshot file, checked as far as opening checks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::Digest;
use crate::data::chunk_tag;
use crate::format::{CHUNK_PAGES, FormatError, Header, MIN_PAGE};
use crate::index::{Index, SectionRecord};
use crate::seal::{Domain, Sealer, Tag};
use crate::sys::is_zero;

/// Why a file could not be read as a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The bytes are not those of a snapshot.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file could not be read.
    #[error("the file could not be read")]
    Read(#[from] io::Error),
}

/// What a layer says about a section.
pub(crate) enum Lookup<'a> {
    /// Nothing: ask the parent.
    Inherited,
    /// It is not there any more.
    Dropped,
    /// Its version and bytes.
    Here(u32, &'a [u8]),
}

/// A file whose header, index and sections are as they were written. Its pages have not been looked at.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) header: Header,
    pub(crate) index: Index,
    file: File,
    /// The bytes of the section area, then those of the index.
    meta: Vec<u8>,
}

impl Layer {
    /// Two reads and the checksums of everything but the pages.
    pub(crate) fn read(file: File) -> Result<Self, LayerError> {
        let file_len = file.metadata()?.len();
        let mut first = [0; MIN_PAGE as usize];
        let n = read_up_to(&file, &mut first)?;
        let header = Header::decode(&first[..n], file_len)?;
        if !is_zero(&first[crate::format::HEADER_LEN..n]) {
            return Err(FormatError::Malformed("bytes behind the header").into());
        }
        let mut meta = vec![0; (file_len - header.sections_offset()) as usize];
        file.read_exact_at(&mut meta, header.sections_offset())?;
        let raw_index = &meta[(header.index_offset - header.sections_offset()) as usize..];
        if Sealer::tag(&header.salt, Domain::Index, 0, raw_index) != header.index_tag {
            return Err(FormatError::Checksum { what: "the index".into() }.into());
        }
        let index = Index::decode(raw_index, &header)?;
        let layer = Self { digest: header.digest(), header, index, file, meta };
        layer.check_sections()?;
        Ok(layer)
    }

    fn check_sections(&self) -> Result<(), FormatError> {
        for (number, section) in (0..).zip(&self.index.sections) {
            let Some(body) = &section.body else { continue };
            let tag = Sealer::tag(&self.header.salt, Domain::Section, number, self.bytes(section));
            if tag != body.tag {
                let what = format!("section {} of {:?}", section.kind, section.owner);
                return Err(FormatError::Checksum { what });
            }
        }
        Ok(())
    }

    /// The content of a section of this layer's index, which has been checked to lie in the area.
    fn bytes(&self, section: &SectionRecord) -> &[u8] {
        section.body.map_or(&[], |body| &self.meta[body.offset as usize..(body.offset + body.len) as usize])
    }

    pub(crate) fn section(&self, kind: &str, owner: &str) -> Lookup<'_> {
        let found = self.index.sections.iter().find(|s| s.kind == kind && s.owner == owner);
        match found.map(|section| (section, section.body)) {
            None => Lookup::Inherited,
            Some((_, None)) => Lookup::Dropped,
            Some((section, Some(body))) => Lookup::Here(body.version, self.bytes(section)),
        }
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Reads pages at a file offset that came out of this layer's index.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Checks the pages of some chunks against their tags.
    pub(crate) fn verify_chunks(&self, chunks: Range<u64>) -> Result<(), LayerError> {
        let tags = self.tags()?;
        let mut buf = vec![0; (CHUNK_PAGES * self.header.page()) as usize];
        for chunk in chunks {
            let first = chunk * CHUNK_PAGES;
            let pages = CHUNK_PAGES.min(self.header.data_pages.saturating_sub(first));
            let bytes = &mut buf[..(pages * self.header.page()) as usize];
            self.read_at(bytes, self.header.data_offset(first))?;
            let expected = tags.get(chunk as usize * Tag::LEN..(chunk as usize + 1) * Tag::LEN);
            if expected != Some(chunk_tag(&self.header, chunk, bytes).as_bytes()) {
                let what = format!("data pages {first} to {}", first + pages);
                return Err(FormatError::Checksum { what }.into());
            }
        }
        Ok(())
    }

    /// The whole data area and what lies around it.
    pub(crate) fn verify(&self) -> Result<(), LayerError> {
        let mut padding = vec![0; self.header.page_size as usize];
        self.read_at(&mut padding, 0)?;
        let (header, padding) = padding.split_at(crate::format::HEADER_LEN);
        if Digest::of(header) != self.digest {
            return Err(FormatError::Checksum { what: "the header".into() }.into());
        }
        if !is_zero(padding) {
            return Err(FormatError::Malformed("bytes behind the header").into());
        }
        self.verify_chunks(0..self.header.chunks())
    }

    fn tags(&self) -> Result<Vec<u8>, LayerError> {
        // Bounded by the length of the file, which `Header::decode` compared.
        let mut tags = vec![0; self.header.tags_len() as usize];
        self.read_at(&mut tags, self.header.tags_offset())?;
        let found = Sealer::tag(&self.header.salt, Domain::Tags, 0, &tags);
        match self.index.tags {
            Some(expected) if expected != found => {
                Err(FormatError::Checksum { what: "the table of tags".into() }.into())
            }
            _ => Ok(tags),
        }
    }
}

/// Fills `buf` from the start of `file` as far as the file goes.
fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read_at(&mut buf[n..], n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}
