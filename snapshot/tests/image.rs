//! Snapshots as their users see them: written, opened, mapped, stacked, flattened.

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::*;
use novum_snapshot::flatten::flatten;
use novum_snapshot::sys::{Access, MapOptions, Mapping};
use novum_snapshot::*;
use proptest::prelude::*;

#[test]
fn what_was_written_is_read_back() {
    let t = temp_store();
    let (low, high) = (image(&[1, 0, 0, 4]), image(&[0, 0, 7]));
    let mut writer = Writer::base(&t.store, host()).unwrap();
    writer.put("vcpu0", &Cpu { rip: 1, xsave: vec![1; 5000] }).unwrap();
    writer.put("vcpu1", &Cpu { rip: 2, xsave: vec![] }).unwrap();
    writer.put("", &Name("é".into())).unwrap();
    // Given in any order, found by address.
    let stored = writer.memory(&[region(1 << 32, &high), region(0, &low)], &Layout::default()).unwrap();
    assert_eq!(stored, 3);
    let digest = writer.publish().unwrap();

    let snapshot = Snapshot::open(&t.store, &digest).unwrap();
    assert_eq!(snapshot.digest(), digest);
    assert_eq!(snapshot.take::<Cpu>("vcpu1").unwrap().rip, 2);
    assert_eq!(snapshot.take::<Cpu>("vcpu0").unwrap().xsave, vec![1; 5000]);
    assert_eq!(snapshot.take::<Name>("").unwrap(), Name("é".into()));
    assert!(matches!(snapshot.take::<Cpu>("vcpu2"), Err(SectionError::Missing { .. })));
    assert_eq!(mapped(&snapshot), [low, high]);
    assert_eq!(snapshot.mapping_plan().regions[1].flags, 5);
    snapshot.verify().unwrap();
}

#[test]
fn a_whole_region_is_one_run_with_holes() {
    let t = temp_store();
    let (first, last) = (image(&[0, 1, 0, 0, 2, 0, 0]), image(&[0, 0]));
    let mut writer = Writer::base(&t.store, host()).unwrap();
    let whole = |at, image| Region { whole: true, ..region(at, image) };
    let stored = writer.memory(&[whole(0, &first), whole(1 << 32, &last)], &Layout::default()).unwrap();
    assert_eq!(stored, 2);
    let snapshot = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    snapshot.verify().unwrap();
    for region in &snapshot.mapping_plan().regions {
        let runs: Vec<_> = region.runs.iter().map(|run| (run.guest_address, run.len)).collect();
        assert_eq!(runs, [(region.guest_address, region.len)]);
    }
    assert_eq!(mapped(&snapshot), [first, last]);
}

#[test]
fn a_snapshot_without_memory_is_one_too() {
    let t = temp_store();
    let mut writer = Writer::base(&t.store, host()).unwrap();
    writer.put("", &Name("n".into())).unwrap();
    let digest = writer.publish().unwrap();
    let snapshot = Snapshot::open(&t.store, &digest).unwrap();
    snapshot.verify().unwrap();
    assert!(Mapping::new(&snapshot).unwrap().regions().is_empty());
}

#[test]
fn equal_contents_get_different_names_and_a_fixed_salt_gets_the_same() {
    let t = temp_store();
    let memory = image(&[1, 2]);
    assert_ne!(base(&t.store, &memory), base(&t.store, &memory));
    let fixed = || {
        let mut writer = Writer::base(&t.store, host()).unwrap().with_salt(Salt::fixed([1; 32]));
        writer.memory(&[region(0, &memory)], &Layout::default()).unwrap();
        writer.publish().unwrap()
    };
    assert_eq!(fixed(), fixed());
}

#[test]
fn a_diff_stores_what_changed_and_restores_everything() {
    let t = temp_store();
    let old = image(&[1, 2, 3, 0, 5, 6]);
    let parent = Snapshot::open(&t.store, &base(&t.store, &old)).unwrap();
    // One changed, one new, one zeroed, and two pages more.
    let new = image(&[1, 9, 3, 4, 5, 0, 0, 8]);
    let mut writer = Writer::diff(&t.store, host(), &parent).unwrap();
    writer.put("vcpu0", &Cpu { rip: 1, xsave: vec![1; 100] }).unwrap();
    writer.put("", &Name("new".into())).unwrap();
    let stored = writer.memory(&[region(0x1000, &new)], &Layout { min_gap_pages: 0, max_runs: 99 }).unwrap();
    assert_eq!(stored, 3);
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();

    assert_eq!((diff.parent(), diff.depth()), (Some(parent.digest()), 1));
    assert_eq!(mapped(&diff), [new]);
    assert_eq!(mapped(&parent), [old]);
    // The unchanged state came from the parent.
    let layers: Vec<_> = diff.sections().iter().map(|s| (s.kind.to_owned(), s.layer)).collect();
    assert_eq!(layers, [("name".to_owned(), 0), ("cpu".to_owned(), 1)]);
    assert_eq!(diff.take::<Cpu>("vcpu0").unwrap().rip, 1);
    diff.verify().unwrap();
}

#[test]
fn a_dirty_log_decides_which_pages_a_diff_looks_at() {
    let t = temp_store();
    let parent = Snapshot::open(&t.store, &base(&t.store, &image(&[1, 2, 3]))).unwrap();
    let mut writer = Writer::diff(&t.store, host(), &parent).unwrap();
    let now = image(&[7, 8, 9]);
    let region = Region { pages: Some(PageSet::from_bitmap(&[0b010])), ..region(0x1000, &now) };
    assert_eq!(writer.memory(&[region], &Layout::diff()).unwrap(), 1);
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    assert_eq!(mapped(&diff), [image(&[1, 8, 3])]);
}

#[test]
fn a_diff_without_memory_has_its_parents() {
    let t = temp_store();
    let memory = image(&[1, 0, 3]);
    let parent = Snapshot::open(&t.store, &base(&t.store, &memory)).unwrap();
    let mut writer = Writer::diff(&t.store, host(), &parent).unwrap();
    writer.drop_section("cpu", "vcpu0").unwrap();
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    assert_eq!(mapped(&diff), [memory]);
    assert!(matches!(diff.take::<Cpu>("vcpu0"), Err(SectionError::Missing { .. })));
    assert!(diff.sections().is_empty());
}

#[test]
fn the_working_set_is_stored_first_and_populated_in_file_order() {
    let t = temp_store();
    let (a, b) = (image(&[1, 2, 3, 4]), image(&[5, 6]));
    let mut writer = Writer::base(&t.store, host()).unwrap();
    let regions =
        [Region { first: set(&[2]), ..region(0, &a) }, Region { first: set(&[0]), ..region(1 << 20, &b) }];
    writer.memory(&regions, &Layout { min_gap_pages: 1, max_runs: 9 }).unwrap();
    let snapshot = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    let plan = snapshot.mapping_plan();
    let mut first: Vec<_> =
        plan.runs().filter(|run| run.first).map(|r| (r.offset, r.guest_address)).collect();
    first.sort_unstable();
    assert_eq!(first, [(4096, 0x2000), (8192, 1 << 20)]);
    let mapping = Mapping::new(&snapshot).unwrap();
    assert_eq!(mapping.populate_working_set(plan, Access::Write).unwrap(), 8192);
    assert_eq!(mapped(&snapshot), [a, b]);
}

#[test]
fn flattening_keeps_everything_and_drops_the_layers() {
    let t = temp_store();
    let parent = Snapshot::open(&t.store, &base(&t.store, &image(&[1, 2, 3, 0, 5]))).unwrap();
    let now = image(&[1, 9, 3, 0, 0, 0, 7]);
    let mut writer = Writer::diff(&t.store, Host::new(["cpu.amx"]), &parent).unwrap();
    writer.put("", &Name("top".into())).unwrap();
    writer.memory(&[region(0x1000, &now)], &Layout::diff()).unwrap();
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();

    let digest =
        flatten(&t.store, &diff, Some(std::slice::from_ref(&(0x1fff..0x2001))), &Layout::default(), None)
            .unwrap();
    let flat = Snapshot::open(&t.store, &digest).unwrap();
    assert_eq!((flat.parent(), flat.depth()), (None, 0));
    assert_eq!(mapped(&flat), [now]);
    assert_eq!(flat.take::<Name>("").unwrap(), Name("top".into()));
    assert_eq!(flat.take::<Cpu>("vcpu0").unwrap().rip, 1);
    assert_eq!(flat.host(), diff.host());
    let first: Vec<_> =
        flat.mapping_plan().runs().filter(|r| r.first).map(|r| (r.guest_address, r.len)).collect();
    assert_eq!(first, [(0x1000, 0x2000)]);
    flat.verify().unwrap();
}

#[test]
fn a_memfd_is_saved_without_reading_its_holes() {
    let t = temp_store();
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&image(&[1]), 5 << 30).unwrap();
    let mut writer = Writer::base(&t.store, host()).unwrap();
    // A terabyte that is read would time out.
    let source = Source::File { file: file.as_fd(), offset: 1 << 30, len: (1 << 40) - (1 << 30) };
    let stored = writer.memory(&[Region::new(0, source)], &Layout::default()).unwrap();
    let snapshot = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    assert_eq!(
        snapshot.mapping_plan().runs().map(|r| (r.guest_address, r.len)).collect::<Vec<_>>(),
        [(4 << 30, 4096)]
    );
    assert_eq!(stored, 1);
}

#[test]
fn pages_of_the_processes_own_are_found_without_a_dirty_log() {
    let t = temp_store();
    let snapshot = Snapshot::open(&t.store, &base(&t.store, &image(&[1, 2, 3, 4, 0, 0, 0, 0]))).unwrap();
    let mapping = Mapping::new(&snapshot).unwrap();
    let region = &mapping.regions()[0];
    region.populate(0x1000, 0x4000, Access::Read).unwrap();
    assert_eq!(PageSet::private(region.as_ptr(), region.len() as usize).unwrap(), set(&[]));
    region.populate(0x2000, 0x1000, Access::Write).unwrap();
    region.populate(0x7000, 0x1000, Access::Write).unwrap();
    assert_eq!(PageSet::private(region.as_ptr(), region.len() as usize).unwrap(), set(&[1, 6]));
}

#[test]
fn an_open_snapshot_can_be_handed_over_as_files() {
    let t = temp_store();
    let memory = image(&[1, 2]);
    let parent = Snapshot::open(&t.store, &base(&t.store, &memory)).unwrap();
    let writer = Writer::diff(&t.store, host(), &parent).unwrap();
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    let files = || diff.files().into_iter().map(|fd| std::fs::File::from(fd.try_clone_to_owned().unwrap()));
    let received = Snapshot::from_files(files()).unwrap();
    assert_eq!(received.digest(), diff.digest());
    assert_eq!(mapped(&received), [memory]);
    assert!(matches!(Snapshot::from_files(files().take(1)), Err(OpenError::MissingParent { .. })));
    assert!(matches!(
        Snapshot::from_files(files().rev_order()),
        Err(OpenError::Chain(_) | OpenError::WrongName { .. })
    ));
    assert!(matches!(Snapshot::from_files([]), Err(OpenError::Empty)));
}

/// The files from base to top, which is the wrong order.
trait RevOrder: Iterator<Item = std::fs::File> + Sized {
    fn rev_order(self) -> Vec<std::fs::File> {
        let mut files: Vec<_> = self.collect();
        files.reverse();
        files
    }
}
impl<I: Iterator<Item = std::fs::File>> RevOrder for I {}

#[test]
fn too_many_layers_are_refused() {
    let t = temp_store();
    let mut top = Snapshot::open(&t.store, &base(&t.store, &image(&[1]))).unwrap();
    for _ in 1..MAX_DEPTH {
        let writer = Writer::diff(&t.store, host(), &top).unwrap();
        top = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    }
    assert!(matches!(Writer::diff(&t.store, host(), &top), Err(WriteError::TooDeep)));
    assert_eq!(mapped(&top), [image(&[1])]);
}

#[test]
fn a_parent_in_another_store_is_refused() {
    let (t, other) = (temp_store(), temp_store());
    let parent = Snapshot::open(&t.store, &base(&t.store, &image(&[1]))).unwrap();
    let refused = Writer::diff(&other.store, host(), &parent);
    assert!(matches!(refused, Err(WriteError::Store(StoreError::Missing(_)))));
}

#[test]
fn what_makes_no_sense_is_refused_when_it_is_written() {
    let t = temp_store();
    let memory = image(&[1, 2]);
    let memory = &memory[..];
    let write = |regions: &[Region<'_>]| {
        let mut writer = Writer::base(&t.store, host()).unwrap();
        writer.memory(regions, &Layout::default())
    };
    assert!(matches!(write(&[region(1, memory)]), Err(WriteError::Alignment(1))));
    assert!(matches!(write(&[region(0, &memory[..5000])]), Err(WriteError::Alignment(0))));
    assert!(matches!(write(&[region(0, &[])]), Err(WriteError::Alignment(0))));
    assert!(matches!(write(&[region(0, memory), region(4096, memory)]), Err(WriteError::Overlap(4096))));
    let mut writer = Writer::base(&t.store, host()).unwrap();
    writer.memory(&[region(0, memory)], &Layout::default()).unwrap();
    assert!(matches!(writer.memory(&[region(0, memory)], &Layout::default()), Err(WriteError::MemoryTwice)));
    writer.put("a", &Name("x".into())).unwrap();
    assert!(matches!(writer.put("a", &Name("x".into())), Err(WriteError::Twice { .. })));
    let odd = Writer::base(&t.store, Host { page_size: 0, ..host() });
    assert!(matches!(odd, Err(WriteError::Format(_))));
    drop(writer);
    assert_eq!(std::fs::read_dir(t.store.root().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn another_host_is_told_what_it_lacks() {
    let t = temp_store();
    let parent = Snapshot::open(&t.store, &base(&t.store, &image(&[1]))).unwrap();
    let writer = Writer::diff(&t.store, Host::new(["kvm.xsave=2696"]), &parent).unwrap();
    let diff = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
    let error = diff.require(&Host::new(["cpu.avx2"])).unwrap_err();
    assert_eq!(error.to_string(), "this host lacks cpu.sse4.2, kvm.xsave=2696");
    assert_eq!(diff.require(&Host::new(["cpu.avx2", "cpu.sse4.2", "kvm.xsave=2696", "more"])), Ok(()));
}

/// A layer as a test writes it: pages of small numbers, the pages that count, the working set.
fn any_layer() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u64>>, Vec<u64>, Layout)> {
    let pages = prop::collection::vec(0..3_u8, 1..150);
    let some = || prop::collection::vec(0..150_u64, 0..40);
    let layout =
        (0..6_u64, 1..8_usize).prop_map(|(min_gap_pages, max_runs)| Layout { min_gap_pages, max_runs });
    (pages, prop::option::of(some()), some(), layout)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn chains_of_layers_restore_exactly(layers in prop::collection::vec(any_layer(), 1..5)) {
        let t = temp_store();
        let mut expected: Vec<u8> = Vec::new();
        let mut top: Option<Snapshot> = None;
        for (now, counting, first, layout) in layers {
            let old = std::mem::take(&mut expected);
            let counts = |i: usize| counting.as_ref().is_none_or(|set| set.contains(&(i as u64)));
            expected = (0..now.len())
                .map(|i| if counts(i) { now[i] } else { old.get(i).copied().unwrap_or(0) })
                .collect();
            // What does not count must be as it was all the same: gaps are stored from the memory as it is.
            let memory = image(&expected);
            let mut writer = match &top {
                None => Writer::base(&t.store, host()).unwrap(),
                Some(parent) => Writer::diff(&t.store, host(), parent).unwrap(),
            };
            let region = Region { pages: counting.as_deref().map(set_of), first: set_of(&first), ..region(0x1000, &memory) };
            writer.memory(&[region], &layout).unwrap();
            let snapshot = Snapshot::open(&t.store, &writer.publish().unwrap()).unwrap();
            prop_assert!(mapped(&snapshot) == [memory.clone()]);
            let mut read = vec![1; memory.len()];
            snapshot.read(0x1000, &mut read).unwrap();
            prop_assert!(read == memory);
            let options = MapOptions { read_up_to: 2 * PAGE as u64 };
            let read = Mapping::from_plan(snapshot.mapping_plan(), &snapshot.files(), options).unwrap();
            prop_assert!(copies(&read) == [memory.clone()]);
            snapshot.verify().unwrap();
            snapshot.verify_range(0x1000..0x1000 + memory.len() as u64).unwrap();
            top = Some(snapshot);
        }
        let top = top.unwrap();
        let flat = flatten(&t.store, &top, None, &Layout::default(), None).unwrap();
        let flat = Snapshot::open(&t.store, &flat).unwrap();
        prop_assert!(mapped(&flat) == mapped(&top));
    }
}

fn set_of(pages: &[u64]) -> PageSet {
    pages.iter().map(|&page| page..page + 1).collect()
}
