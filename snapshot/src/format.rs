//! The bytes of a snapshot file.
//!
//! ```text
//! offset                 what
//! ┌─ 0 ────────────────┬───────────────────────────────────────────────────────────────┐
//! │ header (104 bytes) │  0  8  magic "novumsnp"                                        │
//! │                    │  8  4  format version, 1                                       │
//! │                    │ 12  4  page size P, a power of two from 4096                   │
//! │                    │ 16  8  length of the file                                      │
//! │                    │ 24  8  pages in the data area, n                               │
//! │                    │ 32  8  offset of the index                                     │
//! │                    │ 40 32  salt, the key of all tags                               │
//! │                    │ 72 32  tag of the index                                        │
//! ├─ 104 ──────────────┼───────────────────────────────────────────────────────────────┤
//! │ zeros up to P      │                                                               │
//! ├─ P ────────────────┼───────────────────────────────────────────────────────────────┤
//! │ data: n pages      │  runs of guest pages, in the order of population;             │
//! │                    │  pages that are zero are holes in the file                    │
//! ├─ P + nP ───────────┼───────────────────────────────────────────────────────────────┤
//! │ tags               │  32 bytes for every 64 pages of data (a "chunk")              │
//! ├────────────────────┼───────────────────────────────────────────────────────────────┤
//! │ sections           │  postcard bytes of each state, one after the other            │
//! ├─ offset of index ──┼───────────────────────────────────────────────────────────────┤
//! │ index              │  postcard: host features, parent, section table,              │
//! │                    │  regions with their runs, tag of the tags                     │
//! └─ length ───────────┴───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Integers are little-endian. The **name** of a snapshot is the SHA-256 of its 104 header bytes, which cover
//! the index, which covers everything else ([`crate::seal`] says with which hash and why).
//!
//! A tag is HighwayHash-256 with the salt as key over: the domain (1 section, 2 pages, 3 tags, 4 index) and a
//! number (the section's place in the table, the chunk, 0, 0) as two u64, 16 zero bytes, then the content. The
//! content of a chunk of pages is its pages that are not zero, in order, then a u64 whose bit i says that
//! page i is one of them: holes cost nothing to check.
//!
//! The data lies inside the file, page-aligned, so that a region is mapped MAP_PRIVATE straight from it: all
//! sandboxes of one snapshot share its pages in the page cache, and one file is published, linked and removed
//! as one thing. The header is written last: a file that starts with zeros was never finished.

use crate::Digest;
use crate::seal::{Salt, Tag};

/// The version this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
/// The length of the header, all of which is hashed into the name.
pub const HEADER_LEN: usize = 104;
/// Pages under one tag.
pub(crate) const CHUNK_PAGES: u64 = 64;
/// Sections and index together may not be longer; they are read into memory when a snapshot is opened.
pub(crate) const MAX_META: u64 = 256 << 20;
/// The index alone may not be longer: decoded it takes several times its length.
pub(crate) const MAX_INDEX: u64 = 16 << 20;
/// Guest addresses and offsets stay below, so that sums of two cannot overflow.
pub(crate) const MAX_OFFSET: u64 = 1 << 62;

const MAGIC: &[u8; 8] = b"novumsnp";
/// The smallest page size the format allows.
pub(crate) const MIN_PAGE: u32 = 4096;

/// Why bytes are not a snapshot this crate can read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the header promises, or than a header has.
    #[error("truncated: {found} bytes where {expected} are needed")]
    Truncated {
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// More bytes than the header promises.
    #[error("{found} bytes where the header promises {expected}")]
    Trailing {
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The first eight bytes are something else's.
    #[error("not a novum snapshot: the file starts with {0:02x?}")]
    Magic([u8; 8]),
    /// Written by another version of novum.
    #[error("format version {found}; this novum reads version {FORMAT_VERSION}")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// Not a power of two, or below 4096.
    #[error("page size {0} is none")]
    PageSize(u32),
    /// The content does not match its checksum.
    #[error("corrupt: the checksum of {what} does not match")]
    Checksum {
        /// Which part.
        what: String,
    },
    /// The checksums match, but what is written makes no sense: a bug or malice, not damage.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The index is not postcard's encoding of one.
    #[error("malformed: the index cannot be decoded")]
    Index(#[source] postcard::Error),
}

/// The first bytes of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) page_size: u32,
    pub(crate) file_len: u64,
    pub(crate) data_pages: u64,
    pub(crate) index_offset: u64,
    pub(crate) salt: Salt,
    pub(crate) index_tag: Tag,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        raw[..8].copy_from_slice(MAGIC);
        raw[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        raw[12..16].copy_from_slice(&self.page_size.to_le_bytes());
        raw[16..24].copy_from_slice(&self.file_len.to_le_bytes());
        raw[24..32].copy_from_slice(&self.data_pages.to_le_bytes());
        raw[32..40].copy_from_slice(&self.index_offset.to_le_bytes());
        raw[40..72].copy_from_slice(self.salt.as_bytes());
        raw[72..104].copy_from_slice(self.index_tag.as_bytes());
        raw
    }

    /// Reads the header of a file that is `file_len` bytes long, and checks that its parts fit in there.
    pub(crate) fn decode(raw: &[u8], file_len: u64) -> Result<Self, FormatError> {
        let magic: [u8; 8] = field(raw, 0, file_len)?;
        if &magic != MAGIC {
            return Err(FormatError::Magic(magic));
        }
        let version = u32::from_le_bytes(field(raw, 8, file_len)?);
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { found: version });
        }
        let header = Self {
            page_size: u32::from_le_bytes(field(raw, 12, file_len)?),
            file_len: u64::from_le_bytes(field(raw, 16, file_len)?),
            data_pages: u64::from_le_bytes(field(raw, 24, file_len)?),
            index_offset: u64::from_le_bytes(field(raw, 32, file_len)?),
            salt: Salt::fixed(field(raw, 40, file_len)?),
            index_tag: Tag::from_bytes(field(raw, 72, file_len)?),
        };
        header.check(file_len)?;
        Ok(header)
    }

    fn check(&self, file_len: u64) -> Result<(), FormatError> {
        if !self.page_size.is_power_of_two() || self.page_size < MIN_PAGE {
            return Err(FormatError::PageSize(self.page_size));
        }
        if file_len < self.file_len {
            return Err(FormatError::Truncated { expected: self.file_len, found: file_len });
        }
        if file_len > self.file_len {
            return Err(FormatError::Trailing { expected: self.file_len, found: file_len });
        }
        if self.file_len > MAX_OFFSET || self.data_pages > self.file_len / self.page() {
            return Err(FormatError::Malformed("the data area is longer than the file"));
        }
        if self.sections_offset() > self.index_offset || self.index_offset > self.file_len {
            return Err(FormatError::Malformed("the index lies outside the file"));
        }
        if self.file_len - self.sections_offset() > MAX_META {
            return Err(FormatError::Malformed("sections and index are longer than 256 MiB"));
        }
        if self.file_len - self.index_offset > MAX_INDEX {
            return Err(FormatError::Malformed("the index is longer than 16 MiB"));
        }
        Ok(())
    }

    /// The page size as a length.
    pub(crate) const fn page(&self) -> u64 {
        self.page_size as u64
    }

    /// Where in the file data page `page` begins.
    pub(crate) const fn data_offset(&self, page: u64) -> u64 {
        self.page() + page * self.page()
    }

    pub(crate) const fn chunks(&self) -> u64 {
        self.data_pages.div_ceil(CHUNK_PAGES)
    }

    pub(crate) const fn tags_offset(&self) -> u64 {
        self.data_offset(self.data_pages)
    }

    pub(crate) const fn tags_len(&self) -> u64 {
        self.chunks() * Tag::LEN as u64
    }

    pub(crate) const fn sections_offset(&self) -> u64 {
        self.tags_offset() + self.tags_len()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }
}

fn field<const N: usize>(raw: &[u8], at: usize, file_len: u64) -> Result<[u8; N], FormatError> {
    raw.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(FormatError::Truncated { expected: HEADER_LEN as u64, found: file_len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            page_size: 4096,
            file_len: 4096 * 2 + 32 + 100,
            data_pages: 1,
            index_offset: 4096 * 2 + 32 + 40,
            salt: Salt::fixed([1; 32]),
            index_tag: Tag::from_bytes([2; 32]),
        }
    }

    #[test]
    fn a_header_is_read_back_as_it_is_written() {
        let raw = header().encode();
        assert_eq!(Header::decode(&raw, header().file_len).unwrap(), header());
    }

    #[test]
    fn a_header_that_is_cut_short_is_refused() {
        let raw = header().encode();
        for n in 0..HEADER_LEN {
            let error = Header::decode(&raw[..n], n as u64).unwrap_err();
            assert!(matches!(error, FormatError::Truncated { .. }), "{n}: {error}");
        }
    }

    #[test]
    fn each_wrong_field_has_its_own_error() {
        let len = header().file_len;
        let with = |at: usize, value: u8| {
            let mut raw = header().encode();
            raw[at] = value;
            Header::decode(&raw, len).unwrap_err()
        };
        assert!(matches!(with(0, b'x'), FormatError::Magic(_)));
        assert!(matches!(with(8, 2), FormatError::Version { found: 2 }));
        assert!(matches!(with(12, 1), FormatError::PageSize(4097)));
        assert!(matches!(with(20, 1), FormatError::Truncated { .. }));
        assert!(matches!(with(28, 1), FormatError::Malformed(_)));
        assert!(matches!(with(36, 1), FormatError::Malformed(_)));
        assert!(matches!(Header::decode(&header().encode(), len + 1), Err(FormatError::Trailing { .. })));
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused() {
        let end = header().index_offset;
        for (index_offset, file_len) in [(end, end + MAX_INDEX + 1), (end + MAX_META, end + MAX_META + 1)] {
            let header = Header { index_offset, file_len, ..header() };
            assert!(matches!(Header::decode(&header.encode(), file_len), Err(FormatError::Malformed(_))));
        }
    }

    #[test]
    fn lengths_that_would_overflow_are_refused() {
        for huge in [u64::MAX, u64::MAX / 4096, 1 << 62] {
            let header = Header { data_pages: huge, ..header() };
            assert!(Header::decode(&header.encode(), header.file_len).is_err());
            let header = Header { file_len: huge, data_pages: huge / 4096, ..header };
            assert!(Header::decode(&header.encode(), huge).is_err());
        }
    }
}
