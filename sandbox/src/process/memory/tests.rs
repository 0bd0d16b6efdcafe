//! The address space under a program that asks for anything.

use proptest::prelude::*;

use super::*;
use crate::kvm::sys::Advice;

#[derive(Clone, Debug)]
enum Step {
    Map(At, u64, u8),
    Unmap(u64, u64),
    Protect(u64, u64, u8),
    Remap(u64, u64, u64, Option<u64>),
    Advise(u64, u64),
    Break(u64),
    Touch(u64),
}

/// Addresses that meet each other, and some that nobody could mean.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..64).prop_map(|page| 0x7000_0000 + page * PAGE),
        2 => (0u64..8).prop_map(|granule| 0x7000_0000 + granule * GRANULE - 2 * PAGE),
        1 => any::<u64>(),
        1 => Just(u64::MAX - 4095),
    ]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0u64..20).prop_map(|n| n * PAGE), 2 => 0u64..(40 << 20), 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        address().prop_map(At::Fixed),
        address().prop_map(At::FixedFree),
        address().prop_map(At::Hint),
        Just(At::Low),
    ];
    prop_oneof![
        4 => (at, len(), 0u8..8).prop_map(|(at, len, prot)| Step::Map(at, len, prot)),
        2 => (address(), len()).prop_map(|(at, len)| Step::Unmap(at, len)),
        2 => (address(), len(), 0u8..8).prop_map(|(at, len, prot)| Step::Protect(at, len, prot)),
        1 => (address(), len(), len(), proptest::option::of(address()))
            .prop_map(|(at, old, new, to)| Step::Remap(at, old, new, to)),
        1 => (address(), len()).prop_map(|(at, len)| Step::Advise(at, len)),
        1 => address().prop_map(Step::Break),
        2 => address().prop_map(Step::Touch),
    ]
}

fn apply(memory: &mut AddressSpace, step: Step) {
    let prot = |bits: u8| Prot::from_bits(u64::from(bits)).unwrap();
    // Refusals are fine; what must hold is checked afterwards.
    match step {
        Step::Map(at, len, bits) => drop(memory.map(Request::anonymous(at, len, prot(bits)))),
        Step::Unmap(at, len) => drop(memory.unmap(at, len)),
        Step::Protect(at, len, bits) => drop(memory.protect(at, len, prot(bits))),
        Step::Remap(at, old, new, to) => drop(memory.remap(at, old, new, to.map_or(Move::May, Move::To))),
        Step::Advise(at, len) => {
            let start = at & !(PAGE - 1);
            let _ = memory.advise(start, start.saturating_add(len) & !(PAGE - 1), Advice::DontNeed);
        }
        Step::Break(end) => {
            memory.set_break(end);
        }
        Step::Touch(at) => {
            let _ = memory.touch(at, Access::Write);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was asked for: rights are those of the mappings, for the host's copies and for the tables.
    #[test]
    fn rights_hold_after_any_steps(steps in proptest::collection::vec(step(), 1..40)) {
        let mut memory = AddressSpace::new(64 << 20, Placement::random([3; 16])).unwrap();
        memory.start_heap(0x7100_0000);
        for step in steps {
            apply(&mut memory, step);
        }
        memory.commit().unwrap();
        let ends: Vec<(u64, Prot)> = memory.vmas().iter().map(|(at, vma)| (at, vma.prot)).collect();
        for (at, prot) in ends {
            prop_assert_eq!(memory.write(at, b"x").is_ok(), prot.write);
            prop_assert_eq!(memory.read(at, &mut [0]).is_ok(), prot.accessible());
            let found = memory.tables.find(&memory.region, at);
            if prot.accessible() {
                prop_assert_eq!(found.map(|(gpa, _)| gpa), memory.gpa_page(at));
            }
            if prot.exec {
                prop_assert!(found.is_some_and(|(_, exec)| exec));
            }
        }
    }
}

#[test]
fn a_page_of_data_where_code_was_cannot_be_executed() {
    let mut memory = AddressSpace::new(64 << 20, Placement::random([3; 16])).unwrap();
    let code = Prot { read: true, write: true, exec: true };
    let at = memory.map(Request::anonymous(At::Hint(0), PAGE, code)).unwrap();
    memory.commit().unwrap();
    memory.unmap(at, PAGE).unwrap();
    memory.map(Request::anonymous(At::Fixed(at), PAGE, Prot::READ_WRITE)).unwrap();
    memory.commit().unwrap();
    assert_eq!(memory.tables.find(&memory.region, at).map(|(_, exec)| exec), Some(false));
    assert!(memory.take_stale(), "the VM is told");
}

fn mapped_file(bytes: u64, own: bool) -> Arc<MappedFile> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    Arc::new(MappedFile { own, ..MappedFile::new(Arc::new(file.into()), "file".into()) })
}

fn of_file(file: Arc<MappedFile>, len: u64, shared: bool) -> Request {
    let part = FilePart { file, offset: 0, shared };
    Request { file: Some(part), ..Request::anonymous(At::Hint(0), len, Prot::READ_WRITE) }
}

fn space() -> AddressSpace {
    AddressSpace::new(64 << 20, Placement::random([3; 16])).unwrap()
}

#[test]
fn pages_of_a_file_count_once_they_are_stored_into() {
    const LEN: u64 = 8 << 20;
    let mut memory = space();
    let at = memory.map(of_file(mapped_file(LEN, false), LEN, false)).unwrap();
    memory.read_vec(at, LEN as usize).unwrap();
    assert_eq!(memory.resident_bytes(), 0);
    memory.write(at + 5 * PAGE - 4, &[1; 8]).unwrap();
    assert_eq!(memory.resident_bytes(), 2 * PAGE);
}

#[test]
fn what_was_stored_counts_under_any_later_rights_and_place() {
    const LEN: u64 = 4 << 20;
    let mut memory = space();
    let at = memory.map(Request::anonymous(At::Hint(0), LEN, Prot::READ_WRITE)).unwrap();
    memory.write(at, &vec![1; LEN as usize]).unwrap();
    memory.protect(at, LEN, Prot::READ).unwrap();
    assert_eq!((memory.resident_bytes(), memory.vmas().charged()), (LEN, LEN));
    let elsewhere = memory.map(Request::anonymous(At::Hint(0), LEN, Prot::NONE)).unwrap();
    memory.remap(at, LEN, LEN, Move::To(elsewhere)).unwrap();
    assert_eq!((memory.resident_bytes(), memory.vmas().charged()), (LEN, LEN));
    memory.unmap(elsewhere, LEN).unwrap();
    assert_eq!((memory.resident_bytes(), memory.vmas().charged()), (0, 0));
}

#[test]
fn shared_memory_without_a_file_counts() {
    const LEN: u64 = 4 << 20;
    let mut memory = space();
    let file = mapped_file(LEN, true);
    let at = memory.map(of_file(file.clone(), LEN, true)).unwrap();
    memory.map(of_file(file, LEN, true)).unwrap();
    memory.write(at, &vec![1; LEN as usize]).unwrap();
    // The file system of a temporary file counts its own blocks with it.
    assert!((LEN..LEN + (64 << 10)).contains(&memory.resident_bytes()), "{}", memory.resident_bytes());
    assert_eq!(memory.vmas().charged(), 2 * LEN);
}

#[test]
fn one_program_cannot_use_up_the_mappings_of_its_host() {
    const PAGES: u64 = 40_000;
    let mut memory = AddressSpace::new(64 << 20, Placement::random([7; 16])).unwrap();
    let read = Prot { read: true, write: false, exec: false };
    let mut request = Request::anonymous(At::Hint(0), PAGES * PAGE, read);
    request.no_reserve = true;
    let at = memory.map(request).unwrap();
    let refused =
        (0..PAGES / 2).find_map(|i| memory.protect(at + 2 * i * PAGE, PAGE, Prot::READ_WRITE).err());
    assert_eq!(refused, Some(Errno::NOMEM));
    let count = memory.vmas().iter().count();
    assert!((5_000..10_000).contains(&count), "{count}");
    assert_eq!(memory.unmap(at + PAGES * PAGE - 8 * PAGE, PAGE), Err(Errno::NOMEM), "a hole makes one more");
    memory.unmap(at, PAGES * PAGE).unwrap();
}

/// More addresses than memory.
fn overcommitted() -> (AddressSpace, u64) {
    const LEN: u64 = 256 << 20;
    let mut memory = space();
    let mut request = Request::anonymous(At::Hint(0), LEN, Prot::READ_WRITE);
    request.no_reserve = true;
    let at = memory.map(request).unwrap();
    assert!(memory.is_overcommitted());
    (memory, at)
}

#[test]
fn populating_ends_at_the_memory_limit() {
    let (mut memory, at) = overcommitted();
    let limit = memory.limit_bytes();
    assert_eq!(memory.advise(at, at + (256 << 20), Advice::PopulateWrite), Err(Errno::NOMEM));
    let held = memory.resident_bytes();
    assert!((limit / 2..=limit).contains(&held), "{held}");
    assert_eq!(memory.advise(at, at + (32 << 20), Advice::PopulateWrite), Ok(()), "it is there already");
    memory.unmap(at, 256 << 20).unwrap();
    let mut request = Request::anonymous(At::Hint(0), 256 << 20, Prot::READ_WRITE);
    (request.no_reserve, request.populate) = (true, true);
    memory.map(request).unwrap();
    assert!((limit / 2..=limit).contains(&memory.resident_bytes()), "{}", memory.resident_bytes());
}

#[test]
fn one_call_fills_no_more_than_the_memory_limit() {
    let (memory, at) = overcommitted();
    let mut buffers =
        [Buffer { address: at, len: 40 << 20 }, Buffer { address: at + (40 << 20), len: 200 << 20 }];
    memory.clip(&mut buffers);
    assert_eq!(buffers.map(|buffer| buffer.len), [40 << 20, 24 << 20]);
    memory.write(at, &vec![1; 60 << 20]).unwrap();
    let mut buffers = [Buffer { address: at, len: 1 << 30 }];
    memory.clip(&mut buffers);
    assert_eq!(buffers[0].len, 16 << 20, "a piece that is smaller than what may always be filled");
}

#[test]
fn mappings_of_the_host_are_counted_where_the_programs_own_look_like_one() {
    const PAGES: u64 = 8000;
    let mut memory = space();
    let base = 0x10_0000_0000;
    let refused = (0..3).find_map(|round| {
        let page = |i: u64| At::Fixed(base + (round * 2 * PAGES + i) * PAGE);
        // Each is written before it gets its neighbour: the host does not join them then.
        let apart = (0..PAGES).try_for_each(|i| {
            let at = memory.map(Request::anonymous(page(2 * i), PAGE, Prot::READ_WRITE))?;
            memory.write(at, b"x")
        });
        let filled = apart.and_then(|()| {
            (0..PAGES).try_for_each(|i| {
                memory.map(Request::anonymous(page(2 * i + 1), PAGE, Prot::READ_WRITE)).map(drop)
            })
        });
        filled.err()
    });
    assert_eq!(refused, Some(Errno::NOMEM));
    assert!(memory.vmas().len() < 8_190 && memory.region().mappings(100_000).unwrap() < 17_000);
    memory.unmap(base, 6 * PAGES * PAGE).unwrap();
    memory.map(Request::anonymous(At::Hint(0), PAGE, Prot::READ_WRITE)).unwrap();
}

/// A sandbox of an image in which `bytes` are mapped.
fn from_image(bytes: &[u8]) -> (AddressSpace, u64) {
    let mut memory = space();
    let at = memory.map(Request::anonymous(At::Hint(0), bytes.len() as u64, Prot::READ_WRITE)).unwrap();
    memory.write(at, bytes).unwrap();
    let region = Region::reserve(region_bytes(memory.limit_bytes())).unwrap();
    let image = Arc::new(MemoryImage::take(&mut memory, None).unwrap());
    (AddressSpace::from_image(&image, Arc::new(region), None, false).unwrap(), at)
}

#[test]
fn what_a_reset_and_the_tables_must_look_at_is_bounded() {
    let (mut memory, at) = from_image(&[7; 4 * 4096]);
    let other = 0x20_0000_0000;
    for i in 0..20_000 {
        let page = other + 2 * i * PAGE;
        memory.map(Request::anonymous(At::Fixed(page), PAGE, Prot::NONE)).unwrap();
        memory.unmap(page, PAGE).unwrap();
    }
    assert!(memory.touched.len() <= MOST_RANGES, "{}", memory.touched.len());
    let file = mapped_file(PAGE, false);
    for _ in 0..5000 {
        let read = Request { prot: Prot::READ, ..of_file(file.clone(), PAGE, false) };
        memory.map(Request { at: At::Fixed(other), ..read }).unwrap();
        memory.settle().unwrap();
    }
    assert!(memory.pending.len() <= MOST_PENDING + 1, "{}", memory.pending.len());
    memory.write(at, b"x").unwrap();
    assert!(matches!(memory.renew(None).unwrap(), Renewed::Clean(_)));
    assert_eq!(memory.read_vec(at, 4 * 4096).unwrap(), [7; 4 * 4096]);
    assert_eq!(memory.read(other, &mut [0]), Err(Errno::FAULT));
}

#[test]
fn what_was_moved_and_given_up_is_zeroes() {
    let (mut memory, at) = from_image(&[7; 8 * 4096]);
    let to = memory.map(Request::anonymous(At::Hint(0), 8 * PAGE, Prot::NONE)).unwrap();
    assert_eq!(memory.remap(at, 8 * PAGE, 8 * PAGE, Move::To(to)), Ok(to));
    assert_eq!(memory.read_vec(to, 8 * 4096).unwrap(), [7; 8 * 4096]);
    memory.advise(to, to + 2 * PAGE, Advice::DontNeed).unwrap();
    assert_eq!(memory.advise(to + 2 * PAGE, to + 3 * PAGE, Advice::Free), Ok(()));
    assert_eq!(memory.read_vec(to, 2 * 4096).unwrap(), [0; 2 * 4096]);
    assert_eq!(memory.read_vec(to + 3 * PAGE, 5 * 4096).unwrap(), [7; 5 * 4096]);
    memory.renew(None).unwrap();
    assert_eq!(memory.read_vec(at, 8 * 4096).unwrap(), [7; 8 * 4096]);
}

#[test]
fn what_cannot_be_moved_in_one_piece_is_moved_whatever_its_rights() {
    for prot in [Prot::READ, Prot::NONE] {
        let (mut memory, at) = from_image(&[7; 8 * 4096]);
        memory.advise(at + PAGE, at + 2 * PAGE, Advice::DontNeed).unwrap();
        memory.protect(at, 8 * PAGE, prot).unwrap();
        let to = memory.remap(at, 8 * PAGE, 64 * PAGE, Move::May).unwrap();
        assert_eq!(memory.write(to, b"x"), Err(Errno::FAULT));
        memory.protect(to, 64 * PAGE, Prot::READ).unwrap();
        let bytes = memory.read_vec(to, 8 * 4096).unwrap();
        assert!(
            bytes[..4096] == [7; 4096] && bytes[4096..8192] == [0; 4096] && bytes[8192..] == [7; 6 * 4096]
        );
    }
}

#[test]
fn data_in_a_part_of_a_large_page_of_code_cannot_be_executed() {
    for len in [PAGE, LARGE_PAGE] {
        let mut memory = space();
        let code = Prot { read: true, write: true, exec: true };
        let at = memory.map(Request::anonymous(At::Fixed(0x10_0000_0000), 2 * LARGE_PAGE, code)).unwrap();
        memory.commit().unwrap();
        assert_eq!(memory.tables.find(&memory.region, at + len).map(|(_, exec)| exec), Some(true));
        memory.map(Request::anonymous(At::Fixed(at), len, Prot::READ_WRITE)).unwrap();
        memory.commit().unwrap();
        assert_eq!(memory.executable_pages(at, at + len), 0);
        let rest = 2 * LARGE_PAGE - len;
        assert_eq!(memory.executable_pages(at + len, at + 2 * LARGE_PAGE) as u64, rest / PAGE);
        assert!(memory.take_stale(), "the VM is told");
    }
}

#[test]
fn news_can_come_through_shared_mappings_that_are_stored_into_by_whomever() {
    let mut memory = space();
    let mut map = |shared, own, outside, write| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        let file = MappedFile { own, outside, ..MappedFile::new(Arc::new(file.into()), "file".into()) };
        let request = of_file(Arc::new(file), PAGE, shared);
        let prot = Prot { read: true, write, exec: false };
        let at = memory.map(Request { prot, ..request }).unwrap();
        let shares = memory.shares_file();
        memory.unmap(at, PAGE).unwrap();
        shares
    };
    assert!(map(true, false, true, true) && map(true, false, true, false), "a writable share's");
    assert!(map(true, false, false, true), "another descriptor or mapping of it shows what is stored");
    assert!(!map(true, false, false, false), "the root's");
    assert!(!map(false, false, true, true) && !map(true, true, false, true), "nobody else's");
}

#[test]
fn files_that_are_mapped_are_counted() {
    let memory = space();
    let fd = mapped_file(PAGE, false).fd.clone();
    let again = || MappedFile::new(fd.clone(), "file".into());
    let mut held: Vec<_> = (0..MOST_FILES).map(|_| memory.count_file(again()).unwrap()).collect();
    assert_eq!(memory.count_file(again()).err(), Some(Errno::NFILE));
    held.pop();
    memory.count_file(again()).unwrap();
}

#[test]
fn addresses_cost_what_the_host_keeps_for_them() {
    let mut memory = space();
    let mut map =
        |len| memory.map(Request { no_reserve: true, ..Request::anonymous(At::Hint(0), len, Prot::READ) });
    map(1 << 30).unwrap();
    let large = map(40 << 30).unwrap();
    assert!(memory.is_overcommitted() && memory.resident_bytes() == 0);
    assert!(memory.held_bytes() > memory.limit_bytes());
    assert_eq!(memory.map(Request::anonymous(At::Hint(0), PAGE, Prot::READ_WRITE)), Err(Errno::NOMEM));
    memory.unmap(large, 40 << 30).unwrap();
    let mut usual = space();
    usual.map(Request::anonymous(At::Hint(0), usual.limit_bytes(), Prot::READ_WRITE)).unwrap();
    assert!(!usual.is_overcommitted());
}
