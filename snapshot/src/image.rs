//! The memory of a snapshot on its way into the file.
//!
//! Pages are read twice: once to see which are zero (or, in a diff without a list of changed pages, equal to
//! the parent's), once to hash and write them in the order of the layout. Only pages worth storing are read
//! the second time. They go straight from the caller's memory into the page cache, in writes of up to 256 KiB.
//! copy_file_range and vmsplice would save nothing: the bytes must pass through the processor for their tags anyway.

use std::fs::File;
use std::ops::Range;

use crate::data::DataWriter;
use crate::index::{Place, RegionRecord, Run};
use crate::layout::Layout;
use crate::pages::PageSet;
use crate::plan::PlannedRegion;
use crate::region::{Contents, Region};
use crate::seal::Salt;
use crate::snapshot::Snapshot;
use crate::writer::WriteError;

/// What the data area holds, once it is written.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) regions: Vec<RegionRecord>,
    /// Length of the data area.
    pub(crate) pages: u64,
    /// Pages that are not holes.
    pub(crate) stored: u64,
    /// Where the working set ends.
    pub(crate) first_pages: u64,
    pub(crate) tags: Vec<u8>,
}

impl Image {
    /// The regions of a diff that says nothing about memory.
    pub(crate) fn inherited(parent: Option<&Snapshot>) -> Self {
        let regions = parent.iter().flat_map(|parent| &parent.mapping_plan().regions);
        let record = |region: &PlannedRegion| {
            let PlannedRegion { guest_address, len, flags, .. } = *region;
            RegionRecord { guest_address, len, flags, runs: Vec::new() }
        };
        Self { regions: regions.map(record).collect(), ..Self::default() }
    }
}

/// A region, what is in it, and in which runs that is stored.
struct Arranged<'r, 's> {
    region: &'r Region<'s>,
    contents: Contents,
    first: PageSet,
    rest: PageSet,
    runs: Vec<Run>,
}

/// Writes an image into the data area of a file.
pub(crate) struct ImageWriter<'a> {
    pub(crate) file: &'a File,
    pub(crate) salt: Salt,
    pub(crate) page_size: usize,
    pub(crate) parent: Option<&'a Snapshot>,
    pub(crate) layout: &'a Layout,
}

impl ImageWriter<'_> {
    pub(crate) fn write(&self, regions: &[Region<'_>]) -> Result<Image, WriteError> {
        let mut sorted: Vec<&Region<'_>> = regions.iter().collect();
        sorted.sort_unstable_by_key(|region| region.guest_address);
        check(&sorted, self.page_size as u64)?;
        let mut regions = sorted.into_iter().map(|r| self.arrange(r)).collect::<Result<Vec<_>, _>>()?;
        let mut data = DataWriter::new(self.salt, self.page_size);
        for region in &mut regions {
            let first = std::mem::take(&mut region.first);
            self.store(&mut data, region, &first)?;
        }
        let first_pages = data.pages();
        for region in &mut regions {
            let rest = std::mem::take(&mut region.rest);
            self.store(&mut data, region, &rest)?;
        }
        let (pages, stored) = (data.pages(), data.stored());
        let regions = regions.into_iter().map(Arranged::record).collect();
        Ok(Image { regions, pages, stored, first_pages, tags: data.finish() })
    }

    fn arrange<'r, 's>(&self, region: &'r Region<'s>) -> Result<Arranged<'r, 's>, WriteError> {
        let contents = region.classify(self.page_size, self.parent)?;
        if region.whole && self.parent.is_none() {
            let rest = PageSet::all(region.source.len() / self.page_size as u64);
            return Ok(Arranged { region, contents, first: PageSet::default(), rest, runs: Vec::new() });
        }
        let (first, rest) = self.layout.arrange(&contents.data, &region.first);
        Ok(Arranged { region, contents, first, rest, runs: Vec::new() })
    }

    /// Appends some of a region's pages to the data area.
    fn store(
        &self,
        data: &mut DataWriter,
        to: &mut Arranged<'_, '_>,
        pages: &PageSet,
    ) -> Result<(), WriteError> {
        for run in pages.runs() {
            to.runs.push(make_run(&run, Place::Data(data.pages())));
            to.region.for_each(run, self.page_size, |_, bytes| {
                data.push(self.file, bytes).map_err(WriteError::Write)
            })?;
        }
        Ok(())
    }
}

impl Arranged<'_, '_> {
    /// The runs that were stored, and those that are zero where the parent is not.
    fn record(self) -> RegionRecord {
        let mut record = self.region.record();
        let stored: PageSet = self.runs.iter().map(|run| run.page..run.page + run.pages).collect();
        record.runs = self.runs;
        record
            .runs
            .extend(self.contents.zero.subtract(&stored).runs().map(|run| make_run(&run, Place::Zero)));
        record.runs.sort_unstable_by_key(|run| run.page);
        record
    }
}

fn make_run(pages: &Range<u64>, place: Place) -> Run {
    Run { page: pages.start, pages: pages.end - pages.start, place }
}

/// Whole pages, sorted and apart.
fn check(regions: &[&Region<'_>], page: u64) -> Result<(), WriteError> {
    let mut end = 0;
    for region in regions {
        let (start, len) = (region.guest_address, region.source.len());
        if start % page != 0 || len % page != 0 || len == 0 {
            return Err(WriteError::Alignment(start));
        }
        if start < end {
            return Err(WriteError::Overlap(start));
        }
        end = start.checked_add(len).ok_or(WriteError::Alignment(start))?;
    }
    Ok(())
}
