//! The index: what a snapshot file holds and where.
//!
//! Encoded by postcard, tagged as a whole. [`Index::decode`] checks everything that later code relies on, so
//! that no other module has to doubt a range: sections and runs lie inside the file, regions and runs are
//! page-aligned, sorted and apart from each other.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::format::{FormatError, Header, MAX_OFFSET};
use crate::seal::Tag;

/// The longest chain of layers, the base counted.
pub const MAX_DEPTH: u32 = 8;

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Features the host must offer.
    pub(crate) features: BTreeSet<String>,
    /// The layer below, which this one changes.
    pub(crate) parent: Option<Digest>,
    /// Layers below: 0 for a base.
    pub(crate) depth: u32,
    pub(crate) sections: Vec<SectionRecord>,
    /// All regions of memory, also those of which this layer stores nothing.
    pub(crate) regions: Vec<RegionRecord>,
    /// The first pages of the data area are the working set.
    pub(crate) first_pages: u64,
    /// The tag of the table of tags.
    pub(crate) tags: Option<Tag>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SectionRecord {
    pub(crate) kind: String,
    pub(crate) owner: String,
    /// Where it is; `None` in a layer that drops its parent's section.
    pub(crate) body: Option<Body>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) version: u32,
    /// From the start of the section area.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) tag: Tag,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RegionRecord {
    pub(crate) guest_address: u64,
    pub(crate) len: u64,
    /// Protection, kind: the engine's own, opaque here.
    pub(crate) flags: u64,
    pub(crate) runs: Vec<Run>,
}

/// Pages of a region, by number within it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) page: u64,
    pub(crate) pages: u64,
    pub(crate) place: Place,
}

/// Where the pages of a run come from. Pages without a run are the parent's, or zero without a parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    /// All zero, whatever the parent has.
    Zero,
    /// The data area, from this page on.
    Data(u64),
}

impl Index {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    pub(crate) fn decode(raw: &[u8], header: &Header) -> Result<Self, FormatError> {
        let (index, rest) = postcard::take_from_bytes::<Self>(raw).map_err(FormatError::Index)?;
        if !rest.is_empty() {
            return Err(FormatError::Malformed("bytes behind the index"));
        }
        index.check_layer(header)?;
        index.check_sections(header.index_offset - header.sections_offset())?;
        index.check_regions(header)?;
        Ok(index)
    }

    fn check_layer(&self, header: &Header) -> Result<(), FormatError> {
        if self.depth >= MAX_DEPTH || (self.depth == 0) == self.parent.is_some() {
            return Err(FormatError::Malformed("the depth does not fit the parent"));
        }
        if self.first_pages > header.data_pages {
            return Err(FormatError::Malformed("the working set is longer than the data area"));
        }
        if self.tags.is_none() && header.data_pages > 0 {
            return Err(FormatError::Malformed("data without tags"));
        }
        Ok(())
    }

    fn check_sections(&self, area: u64) -> Result<(), FormatError> {
        let mut names = HashSet::new();
        // Back to back, in the order of the table: no byte of the area is left unchecked.
        let mut end = 0;
        for section in &self.sections {
            if !names.insert((&section.kind, &section.owner)) {
                return Err(FormatError::Malformed("two sections of one name"));
            }
            if let Some(body) = &section.body {
                if body.offset != end || body.len > area - end {
                    return Err(FormatError::Malformed("a section lies outside its area"));
                }
                end += body.len;
            }
        }
        if end == area { Ok(()) } else { Err(FormatError::Malformed("bytes behind the sections")) }
    }

    fn check_regions(&self, header: &Header) -> Result<(), FormatError> {
        let mut end = 0;
        for region in &self.regions {
            let aligned = region.guest_address % header.page() == 0 && region.len % header.page() == 0;
            let bounded = region.guest_address <= MAX_OFFSET && region.len <= MAX_OFFSET;
            if !aligned || !bounded || region.len == 0 || region.guest_address < end {
                return Err(FormatError::Malformed("regions overlap, are empty or not page-aligned"));
            }
            end = region.guest_address + region.len;
            region.check_runs(header)?;
        }
        Ok(())
    }
}

impl RegionRecord {
    fn check_runs(&self, header: &Header) -> Result<(), FormatError> {
        let total = self.len / header.page();
        let mut end = 0;
        for run in &self.runs {
            if run.page < end || run.pages == 0 || run.page > total || run.pages > total - run.page {
                return Err(FormatError::Malformed("runs overlap, are empty or leave their region"));
            }
            end = run.page + run.pages;
            if let Place::Data(first) = run.place
                && (first > header.data_pages || run.pages > header.data_pages - first)
            {
                return Err(FormatError::Malformed("a run leaves the data area"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Salt;

    const TAG: Tag = Tag::from_bytes([3; 32]);

    fn header() -> Header {
        Header {
            page_size: 4096,
            file_len: 4096 * 9 + 32 + 10 + 500,
            data_pages: 8,
            index_offset: 4096 * 9 + 32 + 10,
            salt: Salt::fixed([1; 32]),
            index_tag: TAG,
        }
    }

    fn section(owner: &str, offset: u64, len: u64) -> SectionRecord {
        let body = Some(Body { version: 1, offset, len, tag: TAG });
        SectionRecord { kind: "k".into(), owner: owner.into(), body }
    }

    fn region(guest_address: u64, len: u64, runs: &[(u64, u64, u64)]) -> RegionRecord {
        let run = |&(page, pages, first)| Run { page, pages, place: Place::Data(first) };
        RegionRecord { guest_address, len, flags: 0, runs: runs.iter().map(run).collect() }
    }

    fn index() -> Index {
        Index {
            sections: vec![section("a", 0, 4), section("b", 4, 6)],
            regions: vec![region(0, 16 * 4096, &[(0, 2, 0), (4, 6, 2)]), region(1 << 20, 4096, &[])],
            tags: Some(TAG),
            ..Index::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Index)) -> String {
        let mut index = index();
        change(&mut index);
        Index::decode(&index.encode().unwrap(), &header()).unwrap_err().to_string()
    }

    #[test]
    fn an_index_is_read_back_as_it_is_written() {
        let raw = index().encode().unwrap();
        assert_eq!(Index::decode(&raw, &header()).unwrap(), index());
        assert!(Index::decode(&raw[..raw.len() - 1], &header()).is_err());
        assert!(Index::decode(&[&raw[..], &[0]].concat(), &header()).is_err());
    }

    #[test]
    fn ranges_that_leave_their_area_are_refused() {
        assert!(refusal(|i| i.sections[1] = section("b", 4, 7)).contains("section"));
        assert!(refusal(|i| i.sections[1] = section("b", 4, u64::MAX)).contains("section"));
        assert!(refusal(|i| i.sections[1] = section("b", 3, 6)).contains("section"));
        assert!(refusal(|i| i.sections[1] = section("b", 4, 5)).contains("behind"));
        assert!(refusal(|i| i.regions[0] = region(0, 4096, &[(0, 2, 0)])).contains("region"));
        assert!(refusal(|i| i.regions[0] = region(0, 8 * 4096, &[(0, 2, 7)])).contains("data area"));
        assert!(refusal(|i| i.regions[0] = region(0, 8 * 4096, &[(1, u64::MAX, 0)])).contains("region"));
        assert!(refusal(|i| i.regions[0] = region(0, 8 * 4096, &[(0, 1, u64::MAX)])).contains("data area"));
        assert!(refusal(|i| i.first_pages = 9).contains("working set"));
    }

    #[test]
    fn overlaps_and_doubles_are_refused() {
        assert!(refusal(|i| i.sections[1] = section("a", 4, 6)).contains("one name"));
        assert!(refusal(|i| i.regions[1].guest_address = 4096).contains("overlap"));
        assert!(refusal(|i| i.regions[0] = region(0, 8 * 4096, &[(0, 2, 0), (1, 1, 4)])).contains("overlap"));
        assert!(refusal(|i| i.regions[0].guest_address = 1).contains("aligned"));
        assert!(refusal(|i| i.regions[1].len = u64::MAX - 4095).contains("region"));
    }

    #[test]
    fn depth_and_parent_must_agree() {
        assert!(refusal(|i| i.depth = 1).contains("depth"));
        assert!(refusal(|i| i.parent = Some(Digest::of(b""))).contains("depth"));
        assert!(refusal(|i| (i.parent, i.depth) = (Some(Digest::of(b"")), MAX_DEPTH)).contains("depth"));
        assert!(refusal(|i| i.tags = None).contains("tags"));
    }
}
