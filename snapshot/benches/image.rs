//! What writing, opening, mapping and verifying an image costs.
//!
//! 64 MiB of which every fourth MiB is not zero, in the layout of a program that was loaded and has run. The store
//! lies in the temporary directory; publishing includes fsync, so its figure is the disk's more than ours.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use novum_snapshot::sys::{Access, MapOptions, Mapping};
use novum_snapshot::{Digest, Host, Layout, PageSet, Region, Snapshot, Source, State, Store, Writer};
use serde::{Deserialize, Serialize};

const MIB: usize = 1 << 20;
const IMAGE: usize = 64 * MIB;

#[derive(Serialize, Deserialize)]
struct Cpu(Vec<u8>);

impl State for Cpu {
    const KIND: &'static str = "cpu";
    const VERSION: u32 = 1;
}

fn image() -> Vec<u8> {
    let mut image = vec![0; IMAGE];
    for piece in image.chunks_mut(MIB).step_by(4) {
        for (i, byte) in piece.iter_mut().enumerate() {
            *byte = (i * 31 + i / 4093) as u8 | 1;
        }
    }
    image
}

fn host() -> Host {
    Host::new((0..60).map(|i| format!("cpu.feature{i}")))
}

fn base(store: &Store, image: &[u8]) -> Writer {
    let mut writer = Writer::base(store, host()).expect("a store in the temporary directory");
    writer.put("vcpu0", &Cpu(vec![1; 8000])).expect("a new name");
    let first = PageSet::all(100);
    let region = Region { first, ..Region::new(0, Source::Slice(image)) };
    writer.memory(&[region], &Layout::default()).expect("room on the disk");
    writer
}

/// A diff of 500 pages all over the image.
fn diff(store: &Store, parent: &Snapshot, image: &mut [u8]) -> Digest {
    let pages: Vec<u64> = (0..500).map(|i| i * 31).collect();
    for page in &pages {
        image[*page as usize * 4096] ^= 0x80;
    }
    let pages = pages.iter().map(|&page| page..page + 1).collect();
    let mut writer = Writer::diff(store, host(), parent).expect("a parent");
    let region = Region { pages: Some(pages), ..Region::new(0, Source::Slice(image)) };
    writer.memory(&[region], &Layout::diff()).expect("room on the disk");
    writer.publish().expect("room on the disk")
}

fn benchmarks(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(dir.path()).expect("a store in the temporary directory");
    let mut image = image();
    let digest = base(&store, &image).publish().expect("room on the disk");
    let snapshot = Snapshot::open(&store, &digest).expect("the snapshot just written");
    let diff = diff(&store, &snapshot, &mut image);
    let layered = Snapshot::open(&store, &diff).expect("the diff just written");

    let mut group = c.benchmark_group("image");
    group.bench_function("open", |b| b.iter(|| Snapshot::open(&store, black_box(&digest))));
    group.bench_function("map", |b| b.iter(|| Mapping::new(&snapshot)));
    group.bench_function("open and map", |b| {
        b.iter(|| Mapping::new(&Snapshot::open(&store, black_box(&digest)).expect("it is there")));
    });
    group.bench_function("map and populate 100 pages", |b| {
        b.iter(|| Mapping::new(&snapshot)?.populate_working_set(snapshot.mapping_plan(), Access::Read));
    });
    group.bench_function("open and map a diff of 500 pages", |b| {
        b.iter(|| Mapping::new(&Snapshot::open(&store, black_box(&diff)).expect("it is there")));
    });
    group.bench_function("map a diff of 500 pages, reading them", |b| {
        let options = MapOptions { read_up_to: 4096 };
        b.iter(|| Mapping::from_plan(layered.mapping_plan(), &layered.files(), options));
    });
    group.throughput(Throughput::Bytes(IMAGE as u64)).sample_size(20);
    group.bench_function("write without publishing", |b| b.iter(|| base(&store, &image)));
    group.bench_function("verify", |b| b.iter(|| snapshot.verify()));
    group.bench_function("verify a diff and its parent", |b| b.iter(|| layered.verify()));
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
