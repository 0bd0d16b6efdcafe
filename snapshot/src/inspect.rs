//! What people and programs see of a store: [`list`] and [`inspect`], both to be printed and to be serialized.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::Digest;
use crate::collect::{Entry, Pruned, Removed};
use crate::host::Host;
use crate::layer::Layer;
use crate::snapshot::{OpenError, Snapshot};
use crate::store::{Store, StoreError};

/// Digits of a digest that a person is shown.
const SHORT: usize = 12;

/// The snapshots of a store.
///
/// # Errors
/// Those of reading the store.
pub fn list(store: &Store) -> Result<Listing, StoreError> {
    let now = SystemTime::now();
    let line = |entry: Entry| Line {
        digest: entry.digest,
        disk_bytes: entry.disk_bytes,
        unused_s: now.duration_since(entry.last_used).unwrap_or_default().as_secs(),
        parent: entry.parent,
        references: entry.refs.iter().map(ToString::to_string).collect(),
        kept: entry.reachable,
        damage: entry.damage,
    };
    Ok(Listing { snapshots: store.list()?.into_iter().map(line).collect() })
}

/// All snapshots of a store; displayed as a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listing {
    /// Sorted by digest.
    pub snapshots: Vec<Line>,
}

/// One snapshot in a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub digest: Digest,
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// Seconds since it was opened last, to the minute.
    pub unused_s: u64,
    /// The layer below.
    pub parent: Option<Digest>,
    /// Its references.
    pub references: Vec<String>,
    /// Whether a reference keeps it, its own or a child's.
    pub kept: bool,
    /// Why it cannot be read, if it cannot.
    pub damage: Option<String>,
}

impl Line {
    /// What it is there for.
    fn remark(&self) -> String {
        match &self.damage {
            Some(damage) => format!("damaged: {damage}"),
            None if !self.references.is_empty() => self.references.join(", "),
            None if self.kept => "(kept as a parent)".to_owned(),
            None => "(unreferenced)".to_owned(),
        }
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, cells: [&str; 5]| {
            let [digest, size, used, parent, refs] = cells;
            writeln!(f, "{digest:<SHORT$}  {size:>10}  {used:>9}  {parent:<SHORT$}  {refs}")
        };
        row(f, ["DIGEST", "SIZE", "USED", "PARENT", "REFERENCES"])?;
        for line in &self.snapshots {
            let parent = line.parent.as_ref().map_or_else(|| "-".to_owned(), short);
            let (size, used) = (bytes(line.disk_bytes), ago(Duration::from_secs(line.unused_s)));
            row(f, [&short(&line.digest), &size, &used, &parent, &line.remark()])?;
        }
        let total = self.snapshots.iter().map(|line| line.disk_bytes).sum();
        writeln!(f, "{} snapshots, {} on the disk", self.snapshots.len(), bytes(total))
    }
}

/// What one snapshot is made of.
///
/// # Errors
/// Those of opening it, or of reading the store.
pub fn inspect(store: &Store, digest: &Digest) -> Result<Inspection, OpenError> {
    let snapshot = Snapshot::open(store, digest)?;
    let refs = store.refs_to_digests()?;
    let references = refs.iter().filter(|(_, to)| to == digest).map(|(name, _)| name.to_string());
    let disk = |layer: &Layer| store.disk_bytes(&layer.digest).map(|bytes| LayerReport::of(layer, bytes));
    Ok(Inspection {
        digest: *digest,
        references: references.collect(),
        host: snapshot.host(),
        layers: snapshot.layers().iter().map(disk).collect::<Result<_, _>>()?,
        sections: sections(&snapshot),
        regions: regions(&snapshot),
    })
}

/// One snapshot in detail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Inspection {
    /// Its name.
    pub digest: Digest,
    /// Its references.
    pub references: Vec<String>,
    /// What it demands of the machine that restores it.
    pub host: Host,
    /// Its layers, the top one first.
    pub layers: Vec<LayerReport>,
    /// The sections in effect.
    pub sections: Vec<SectionReport>,
    /// Its memory.
    pub regions: Vec<RegionReport>,
}

/// One layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LayerReport {
    /// Its name.
    pub digest: Digest,
    /// The length of its file.
    pub file_bytes: u64,
    /// What the file takes on the disk.
    pub disk_bytes: u64,
    /// What its runs of pages hold, zero pages in between included.
    pub data_bytes: u64,
    /// How much of that is its working set.
    pub working_set_bytes: u64,
}

/// One section.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SectionReport {
    /// The state's kind.
    pub kind: String,
    /// Whose state it is.
    pub owner: String,
    /// The version it was written in.
    pub version: u32,
    /// Its length.
    pub bytes: u64,
    /// The layer that holds it; 0 is the top.
    pub layer: u32,
}

/// One region of memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RegionReport {
    /// Where it starts for the guest.
    pub guest_address: u64,
    /// Its length.
    pub bytes: u64,
    /// The engine's own.
    pub flags: u64,
    /// How much of it comes from files.
    pub mapped_bytes: u64,
    /// In how many runs.
    pub runs: usize,
}

impl LayerReport {
    fn of(layer: &Layer, disk_bytes: u64) -> Self {
        Self {
            digest: layer.digest,
            file_bytes: layer.header.file_len,
            disk_bytes,
            data_bytes: layer.header.data_pages * layer.header.page(),
            working_set_bytes: layer.index.first_pages * layer.header.page(),
        }
    }
}

fn sections(snapshot: &Snapshot) -> Vec<SectionReport> {
    let report = |section: crate::Section<'_>| SectionReport {
        kind: section.kind.to_owned(),
        owner: section.owner.to_owned(),
        version: section.version,
        bytes: section.bytes.len() as u64,
        layer: section.layer,
    };
    snapshot.sections().into_iter().map(report).collect()
}

fn regions(snapshot: &Snapshot) -> Vec<RegionReport> {
    let report = |region: &crate::plan::PlannedRegion| RegionReport {
        guest_address: region.guest_address,
        bytes: region.len,
        flags: region.flags,
        mapped_bytes: region.runs.iter().map(|run| run.len).sum(),
        runs: region.runs.len(),
    };
    snapshot.mapping_plan().regions.iter().map(report).collect()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "snapshot    {}", self.digest)?;
        let or_none = |list: &mut dyn Iterator<Item = &str>| {
            let text = list.collect::<Vec<_>>().join(", ");
            if text.is_empty() { "none".to_owned() } else { text }
        };
        writeln!(f, "references  {}", or_none(&mut self.references.iter().map(String::as_str)))?;
        writeln!(f, "page size   {}", self.host.page_size)?;
        writeln!(f, "needs       {}", or_none(&mut self.host.features.iter().map(String::as_str)))?;
        writeln!(f, "\nlayers, the top one first")?;
        for (n, layer) in self.layers.iter().enumerate() {
            let (disk, data) = (bytes(layer.disk_bytes), bytes(layer.data_bytes));
            let first = bytes(layer.working_set_bytes);
            writeln!(
                f,
                "  {n}  {}  {disk} on the disk, {data} of pages, {first} working set",
                short(&layer.digest)
            )?;
        }
        writeln!(f, "\nsections")?;
        for s in &self.sections {
            let name = format!("{} {:?}", printable(&s.kind), s.owner);
            writeln!(f, "  {name:<30}  version {}  {:>10}  layer {}", s.version, bytes(s.bytes), s.layer)?;
        }
        writeln!(f, "\nmemory")?;
        for r in &self.regions {
            let (len, mapped) = (bytes(r.bytes), bytes(r.mapped_bytes));
            write!(f, "  {:#014x}  {len:>10}  flags {:#x}  ", r.guest_address, r.flags)?;
            writeln!(f, "{mapped} mapped in {} runs", r.runs)?;
        }
        Ok(())
    }
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for digest in &self.removed {
            writeln!(f, "removed {}", short(digest))?;
        }
        write!(
            f,
            "{} removed, {} freed, {} kept",
            self.removed.len(),
            bytes(self.freed_bytes),
            bytes(self.kept_bytes)
        )?;
        if self.in_use > 0 {
            write!(f, ", {} in use", self.in_use)?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.reference {
            writeln!(f, "removed reference {name}")?;
        }
        if let Some(digest) = &self.snapshot {
            writeln!(f, "removed snapshot {}", short(digest))?;
        }
        self.kept.as_ref().map_or(Ok(()), |kept| writeln!(f, "{kept}"))
    }
}

/// The beginning of a digest, enough for a person.
fn short(digest: &Digest) -> String {
    let mut text = digest.to_string();
    text.truncate(SHORT);
    text
}

/// Files may come from elsewhere: nothing in them may steer a terminal.
fn printable(text: &str) -> String {
    text.escape_debug().collect()
}

/// A length for people.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if n < 1024 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A past moment for people.
fn ago(age: Duration) -> String {
    let minutes = age.as_secs() / 60;
    match minutes {
        0..2 => "just now".to_owned(),
        2..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_ages_are_given_in_words_of_their_size() {
        let texts = [0, 1023, 1024, 1536 << 10, 5 << 40, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 TiB", "16777216.0 TiB"]);
        let ages = [0, 119, 120, 7200, 172_800].map(|s| ago(Duration::from_secs(s)));
        assert_eq!(ages, ["just now", "just now", "2 min", "2 h", "2 days"]);
    }

    #[test]
    fn names_from_files_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J"), "a\\u{1b}[2J");
    }
}
