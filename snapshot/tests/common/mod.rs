//! What several tests need: a store that goes away, states, and memory whose pages are numbers.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod reseal;

use novum_snapshot::sys::Mapping;
use novum_snapshot::{Digest, Host, Layout, PageSet, Region, Salt, Snapshot, Source, State, Store, Writer};
use serde::{Deserialize, Serialize};

pub(crate) const PAGE: usize = 4096;

#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
pub(crate) struct Cpu {
    pub(crate) rip: u64,
    pub(crate) xsave: Vec<u8>,
}

impl State for Cpu {
    const KIND: &'static str = "cpu";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
pub(crate) struct Name(pub(crate) String);

impl State for Name {
    const KIND: &'static str = "name";
    const VERSION: u32 = 3;
}

pub(crate) struct TempStore {
    pub(crate) store: Store,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn temp_store() -> TempStore {
    let dir = tempfile::tempdir().unwrap();
    TempStore { store: Store::open(dir.path().join("store")).unwrap(), dir }
}

pub(crate) fn host() -> Host {
    Host::new(["cpu.avx2", "cpu.sse4.2"])
}

/// One page per number, filled with it.
pub(crate) fn image(pages: &[u8]) -> Vec<u8> {
    pages.iter().flat_map(|&byte| [byte; PAGE]).collect()
}

pub(crate) fn region(guest_address: u64, bytes: &[u8]) -> Region<'_> {
    Region { flags: 5, ..Region::new(guest_address, Source::Slice(bytes)) }
}

pub(crate) fn set(pages: &[u64]) -> PageSet {
    pages.iter().map(|&page| page..page + 1).collect()
}

/// A base of one state and one region.
pub(crate) fn base(store: &Store, memory: &[u8]) -> Digest {
    let mut writer = Writer::base(store, host()).unwrap().with_salt(Salt::random().unwrap());
    writer.put("vcpu0", &Cpu { rip: 1, xsave: vec![1; 100] }).unwrap();
    writer.memory(&[region(0x1000, memory)], &Layout::default()).unwrap();
    writer.publish().unwrap()
}

/// What the mapping of a snapshot holds, region by region.
pub(crate) fn mapped(snapshot: &Snapshot) -> Vec<Vec<u8>> {
    copies(&Mapping::new(snapshot).unwrap())
}

pub(crate) fn copies(mapping: &Mapping) -> Vec<Vec<u8>> {
    mapping.regions().iter().map(copy).collect()
}

#[allow(unsafe_code, reason = "a test looks into memory that it mapped")]
fn copy(region: &novum_snapshot::sys::MappedRegion) -> Vec<u8> {
    // SAFETY: the region is mapped for `len` bytes, lives, and nobody writes to it.
    unsafe { std::slice::from_raw_parts(region.as_ptr(), region.len() as usize) }.to_vec()
}
