//! Making one layer out of many, and choosing its order anew.

use std::ops::Range;

use crate::Digest;
use crate::layout::Layout;
use crate::pages::PageSet;
use crate::plan::PlannedRegion;
use crate::refs::RefName;
use crate::region::{Region, Source};
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::writer::{WriteError, Writer};

/// Writes a base that restores to the same sections and memory as `snapshot`, whatever its layers: fewer
/// runs to map, no parent to keep. `working_set` (ranges of guest addresses, widened to whole pages) is stored
/// first; without one, the working sets of the layers are. So this is also how a working set that was learnt
/// after a snapshot was taken gets into a file.
///
/// # Errors
/// [`WriteError`]
pub fn flatten(
    store: &Store,
    snapshot: &Snapshot,
    working_set: Option<&[Range<u64>]>,
    layout: &Layout,
    name: Option<&RefName>,
) -> Result<Digest, WriteError> {
    let host = snapshot.host();
    let page = u64::from(host.page_size);
    let mut writer = Writer::base(store, host)?;
    for section in snapshot.sections() {
        writer.put_bytes(section.kind, section.owner, section.version, section.bytes.to_vec())?;
    }
    let regions = snapshot.mapping_plan().regions.iter();
    let regions: Vec<Region<'_>> = regions.map(|r| region(snapshot, r, working_set, page)).collect();
    writer.memory(&regions, layout)?;
    match name {
        Some(name) => writer.publish_as(name),
        None => writer.publish(),
    }
}

fn region<'a>(
    snapshot: &'a Snapshot,
    planned: &PlannedRegion,
    working_set: Option<&[Range<u64>]>,
    page: u64,
) -> Region<'a> {
    let PlannedRegion { guest_address, len, flags, .. } = *planned;
    let pages = |range: Range<u64>| {
        let within = |address: u64| address.clamp(guest_address, guest_address + len) - guest_address;
        within(range.start) / page..within(range.end).div_ceil(page)
    };
    let runs = || planned.runs.iter().map(|run| (run, run.guest_address..run.guest_address + run.len));
    let first: PageSet = match working_set {
        Some(ranges) => ranges.iter().cloned().map(pages).collect(),
        None => runs().filter(|(run, _)| run.first).map(|(_, range)| pages(range)).collect(),
    };
    let stored = runs().map(|(_, range)| pages(range)).collect();
    let source = Source::Snapshot { snapshot, guest_address, len };
    Region { guest_address, flags, source, pages: Some(stored), first, whole: false }
}
