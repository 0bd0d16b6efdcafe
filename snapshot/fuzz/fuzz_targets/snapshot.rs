//! Opens, reads and verifies whatever bytes there are: as they come, and with their checksums put right.
#![no_main]

use std::fs::File;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use novum_snapshot::sys::Mapping;
use novum_snapshot::{Snapshot, State};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

#[path = "../../snapshot/tests/common/reseal.rs"]
mod reseal;

/// A state with everything that a decoder can stumble over.
#[derive(Serialize, Deserialize)]
struct Cpu {
    rip: u64,
    xsave: Vec<u8>,
    names: Vec<(String, Option<u32>)>,
}

impl State for Cpu {
    const KIND: &'static str = "cpu";
    const VERSION: u32 = 1;
}

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

fn exercise(files: impl IntoIterator<Item = File>) {
    let Ok(snapshot) = Snapshot::from_files(files) else { return };
    for section in snapshot.sections() {
        let _ = snapshot.take::<Cpu>(section.owner);
    }
    let regions = &snapshot.mapping_plan().regions;
    for region in regions {
        let _ = snapshot.read(region.guest_address, &mut [0; 4096]);
        let _ = snapshot.verify_range(region.guest_address..region.guest_address + region.len);
    }
    // Address space is not what is tested.
    if regions.iter().map(|region| region.len).sum::<u64>() < 1 << 30 {
        let _ = Mapping::new(&snapshot);
    }
    let _ = snapshot.verify();
}

fuzz_target!(|bytes: &[u8]| {
    exercise([file(bytes)]);
    let mut sealed = bytes.to_vec();
    reseal::reseal(&mut sealed);
    exercise([file(&sealed)]);
    // As a diff over the base that the golden diff names.
    let base = include_bytes!("../../snapshot/tests/golden/base.snap");
    exercise([file(&sealed), file(base)]);
});
