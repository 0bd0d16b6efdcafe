//! Images in a store: what is read is what was written, and nothing that is read can harm.

use std::path::PathBuf;

use novum_snapshot::{Digest, Host, Snapshot, State, Store, Writer};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::super::stored::{NotLoaded, Trace, host, open};
use super::*;
use crate::function::EngineKind;
use crate::kept::Origin;
use crate::process::files::{Files, FilesState};
use crate::process::memory::{MappedFile, MemoryState};
use crate::process::signal::SignalState;
use crate::process::threads::saved::ThreadsState;

/// A program that holds something of every kind, its setup, and a store for its image.
struct Case {
    setup: Setup,
    origin: Origin,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, program) = (dir.path().join("program.c"), dir.path().join("program"));
        std::fs::write(&file, include_str!("../../../../tests/it/process/stored.c")).unwrap();
        let mut gcc = std::process::Command::new("gcc");
        gcc.args(["-O1", "-w", "-static", "-pthread", "-DBIG=5000", "-o"]).arg(&program).arg(&file);
        assert!(gcc.status().expect("gcc runs").success(), "gcc refuses the program");
        let setup = setup_of(&program, &[], &[]);
        let origin = Origin {
            engine: EngineKind::Process,
            function: "restless".parse().unwrap(),
            version: 1,
            artifact: Digest::of(b""),
            novum: "test".into(),
            made_at_ms: 0,
            key: setup.key(),
        };
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { setup, origin, store, _dir: dir }
    }

    fn load(&self) -> Result<Option<Image>, NotLoaded> {
        Image::load(&self.store, &self.origin, &self.setup)
    }
}

fn has_kvm(test: &str) -> bool {
    let probed = crate::kvm::vm::probe();
    if let Err(reason) = &probed {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
        eprintln!("SKIPPED: {test}: {reason}");
    }
    probed.is_ok()
}

#[test]
fn a_stored_image_is_the_image_byte_for_byte() {
    if !has_kvm("a_stored_image_is_the_image_byte_for_byte") {
        return;
    }
    let case = Case::new();
    assert!(case.load().unwrap().is_none());
    let image = Arc::new(prepare(&case.setup, Duration::from_secs(20)).unwrap());
    let digest = image.store(&case.store, &case.origin).unwrap();
    let loaded = Arc::new(case.load().unwrap().expect("it is kept"));
    let describe = |image: &Arc<Image>| describe(&mut image.start(Control::new().unwrap()).unwrap().process);
    if let Some(what) = difference(&without_fds(&describe(&image)), &without_fds(&describe(&loaded))) {
        panic!("{what}");
    }
    // An image that was read can be written again, and is the same then.
    let sections = |digest: &Digest| {
        let snapshot = Snapshot::open(&case.store, digest).unwrap();
        let all = snapshot.sections().into_iter().map(|s| (s.kind.to_owned(), s.version, s.bytes.to_vec()));
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    let first = sections(&digest);
    let second = sections(&loaded.store(&case.store, &case.origin).unwrap());
    for (first, second) in first.iter().zip(&second) {
        assert!(first == second || is_relative(&first.0), "{}", first.0);
    }
    if std::env::var_os("NOVUM_BLESS").is_some() {
        std::fs::write(golden_path(), postcard::to_stdvec(&first).unwrap()).unwrap();
    }
}

#[test]
fn a_working_set_is_kept_over_its_image_and_found_again() {
    if !has_kvm("a_working_set_is_kept_over_its_image_and_found_again") {
        return;
    }
    let case = Case::new();
    let taken = prepare(&case.setup, Duration::from_secs(20)).unwrap();
    taken.store(&case.store, &case.origin).unwrap();
    let image = Arc::new(case.load().unwrap().unwrap());
    let mut machine = image.start(Control::new().unwrap()).unwrap();
    assert!(!image.populate(&mut machine), "nothing is known before a run");
    machine.at_reply(AtReply::Note);
    run(&mut machine, "x");
    image.learn(&mut machine);
    drop(machine);
    // The image's thread does the same.
    image.keep_working_set().unwrap();
    let learnt = image.working_set.get().unwrap().clone();
    assert!(learnt.first.bytes() > 0);
    let again = Arc::new(case.load().unwrap().unwrap());
    assert_eq!(again.working_set.get(), Some(&learnt));
    // What starts from it is the image, populated or not.
    let state = |image: &Arc<Image>, populated: bool| {
        let mut machine = image.start(Control::new().unwrap()).unwrap();
        if populated {
            assert!(image.populate(&mut machine));
            let stored: u64 = machine.process.memory.stored_pages().unwrap().bytes();
            assert!(stored >= learnt.first.bytes(), "{stored}");
        }
        without_fds(&describe(&mut machine.process))
    };
    assert_eq!(difference(&state(&image, false), &state(&again, true)), None);
    drop((image, again));
    let Origin { engine, function, version, .. } = &case.origin;
    crate::kept::release(&case.store, *engine, function, *version).unwrap();
    assert_eq!(case.store.digests().unwrap(), [], "the image goes with what was learnt of it");
}

#[test]
fn no_working_set_comes_back_after_its_version_was_deleted() {
    if !has_kvm("no_working_set_comes_back_after_its_version_was_deleted") {
        return;
    }
    let case = Case::new();
    let taken = prepare(&case.setup, Duration::from_secs(20)).unwrap();
    taken.store(&case.store, &case.origin).unwrap();
    let image = case.load().unwrap().unwrap();
    image.working_set.set(Arc::default()).unwrap();
    case.store.remove_ref(&case.origin.reference()).unwrap();
    image.keep_working_set().unwrap();
    assert_eq!(case.store.get_ref(&case.origin.reference()).unwrap(), None);
    assert_eq!(case.store.digests().unwrap().len(), 1, "only the image is left");
}

#[test]
fn a_working_set_that_cannot_be_is_refused() {
    if !has_kvm("a_working_set_that_cannot_be_is_refused") {
        return;
    }
    /// Memory far beyond the image's, in the form of a working set.
    #[derive(Serialize, Deserialize)]
    struct Impossible([Vec<std::ops::Range<u64>>; 2]);
    impl State for Impossible {
        const KIND: &'static str = WorkingSet::KIND;
        const VERSION: u32 = WorkingSet::VERSION;
    }
    let case = Case::new();
    let taken = prepare(&case.setup, Duration::from_secs(20)).unwrap();
    let digest = taken.store(&case.store, &case.origin).unwrap();
    let parent = Snapshot::open(&case.store, &digest).unwrap();
    let mut writer = Writer::diff(&case.store, host(), &parent).unwrap();
    let beyond = vec![1 << 40..1 << 41, 1 << 42..1 << 43];
    writer.put("", &Impossible([beyond, vec![]])).unwrap();
    writer.publish_as(&case.origin.reference()).unwrap();
    let error = case.load().unwrap_err().to_string();
    assert!(error.contains("the working set cannot be"), "{error}");
}

/// Without the numbers of the host's descriptors.
fn without_fds(text: &str) -> String {
    let mut parts = text.split("OwnedFd { fd: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Waits are kept as distances, which are measured again.
fn is_relative(kind: &str) -> bool {
    kind == ThreadsState::KIND
}

#[test]
fn an_image_of_another_format_or_machine_is_refused_clearly() {
    if !has_kvm("an_image_of_another_format_or_machine_is_refused_clearly") {
        return;
    }
    #[derive(Serialize, Deserialize)]
    struct Other;
    impl State for Other {
        const KIND: &'static str = "process-files";
        const VERSION: u32 = 77;
    }
    #[derive(Serialize, Deserialize)]
    struct Older;
    impl State for Older {
        const KIND: &'static str = "process-files";
        const VERSION: u32 = 0;
    }
    let case = Case::new();
    let publish = |host: Host, put: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::base(&case.store, host).unwrap();
        put(&mut writer);
        writer.publish_as(&case.origin.reference()).unwrap();
        let error = case.load().unwrap_err();
        let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        text.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    let newer = publish(host(), &|w| {
        w.put("", &case.origin).unwrap();
        w.put("", &Other).unwrap();
    });
    assert!(newer.contains("version 77, this novum reads up to 1"), "{newer}");
    let older = publish(host(), &|w| {
        w.put("", &case.origin).unwrap();
        w.put("", &Older).unwrap();
    });
    assert!(older.contains("version 0, which could not be migrated to 1"), "{older}");
    let empty = publish(host(), &|w| w.put("", &case.origin).unwrap());
    assert!(empty.contains("no section process-files"), "{empty}");
    let alien = publish(Host::new(["cpu.z80"]), &|w| w.put("", &case.origin).unwrap());
    assert!(alien.contains("this host lacks cpu.z80"), "{alien}");
    let stale = Origin { key: Digest::of(b"another"), novum: "0.0.1".into(), ..case.origin.clone() };
    let stale = publish(host(), &|w| w.put("", &stale).unwrap());
    assert!(stale.contains("another version of novum (0.0.1)"), "{stale}");
}

/// Sections of an image of version 1: kind, version, bytes. Made with `NOVUM_BLESS=1`.
fn golden_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/process/image/tests/sections-v1.bin")
}

fn golden() -> Vec<(String, u32, Vec<u8>)> {
    postcard::from_bytes(&std::fs::read(golden_path()).unwrap()).unwrap()
}

fn section<S: State>() -> Vec<u8> {
    let golden = golden();
    let found = golden.iter().find(|(kind, version, _)| kind == S::KIND && *version == S::VERSION);
    found.unwrap_or_else(|| panic!("the golden file has {} {}", S::KIND, S::VERSION)).2.clone()
}

#[test]
fn sections_are_the_golden_ones() {
    /// When this fails, raise the section's VERSION, and read the old one or let it be refused.
    fn same<S: State + Serialize + DeserializeOwned>() {
        let bytes = section::<S>();
        let state: S = postcard::from_bytes(&bytes).unwrap();
        assert!(postcard::to_stdvec(&state).unwrap() == bytes, "{} is written as before", S::KIND);
    }
    same::<Origin>();
    same::<FilesState>();
    same::<MemoryState>();
    same::<ThreadsState>();
    same::<SignalState>();
    same::<Futexes>();
    same::<Credentials>();
    same::<ResourceLimits>();
    same::<Timers>();
    same::<Moment>();
    same::<Stack>();
    same::<Trace>();
    same::<Prologue>();
    assert_eq!(golden().len(), 13, "every section has a line above");
}

#[test]
fn the_working_set_s_section_is_the_golden_one() {
    let bytes = include_bytes!("working-set-v1.bin");
    let set: WorkingSet = postcard::from_bytes(bytes).unwrap();
    assert_eq!((set.first.bytes(), set.rest.bytes()), (3 << 12, 2 << 12));
    assert_eq!(postcard::to_stdvec(&set).unwrap(), bytes);
    assert_eq!(WorkingSet::VERSION, 1, "another form has another number, and a file of its own");
}

/// Bytes with some of them changed, left out or put in.
fn spoilt(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    prop::collection::vec(change, 1..6).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, value, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, value),
                2 => bytes[at] ^= 1 << (value % 8),
                _ => bytes[at] = value,
            }
        }
        bytes
    })
}

/// A setup whose root is the one of the golden file, without its program's content.
fn golden_setup() -> (tempfile::TempDir, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::write(&program, b"\x7fELF").unwrap();
    let setup = setup_of(&program, &[], &[]);
    (dir, setup)
}

/// A snapshot with the memory that the golden section expects, all zero.
fn golden_snapshot() -> Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut writer = Writer::base(&store, host()).unwrap();
        postcard::from_bytes::<MemoryState>(&section::<MemoryState>()).unwrap().write_zeroes(&mut writer);
        Snapshot::open(&store, &writer.publish().unwrap()).unwrap()
    };
    SNAPSHOT.get_or_init(make).clone()
}

/// The memory of a section, mapped for a sandbox; every file that is not there is the program.
fn memory_of(bytes: &[u8]) -> Option<AddressSpace> {
    let state = postcard::from_bytes::<MemoryState>(bytes).ok()?;
    let (dir, setup) = golden_setup();
    let mut files = Files::new(setup.files()).unwrap();
    let fd = Arc::new(std::fs::File::open(dir.path().join("program")).unwrap().into());
    let program = Arc::new(MappedFile::new(fd, "program".into()));
    let open = |file| open(&mut files, file).unwrap_or(program.clone());
    let mapped: Vec<_> = state.files().iter().map(open).collect();
    let memory = state.restore(&mapped, &golden_snapshot(), setup.memory_bytes).ok()?;
    let region = Arc::new(Region::reserve(region_bytes(setup.memory_bytes)).unwrap());
    let page = memory.has_clocks().then(|| Time::new_page().unwrap());
    let time = Time::restored(page);
    AddressSpace::from_image(&Arc::new(memory), region, time.page(), false).ok()
}

fn files_of(bytes: &[u8]) -> Option<Files> {
    let (_dir, setup) = golden_setup();
    Files::restore(setup.files(), postcard::from_bytes::<FilesState>(bytes).ok()?).ok()
}

#[test]
fn the_golden_sections_can_be_loaded() {
    assert!(memory_of(&section::<MemoryState>()).is_some());
    assert!(files_of(&section::<FilesState>()).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn spoilt_files_never_panic_the_loader(bytes in spoilt(section::<FilesState>())) {
        if let Some(files) = files_of(&bytes) {
            if let Ok(mut fork) = files.fork() {
                fork.inventory();
                fork.reset();
            }
            files.state().ok();
        }
    }

    #[test]
    fn spoilt_threads_never_panic_the_loader(bytes in spoilt(section::<ThreadsState>())) {
        if let Ok(state) = postcard::from_bytes::<ThreadsState>(&bytes)
            && let Ok(threads) = state.restore(Instant::now())
        {
            prop_assert!(threads.len() > 0);
        }
    }

    #[test]
    fn spoilt_memory_never_panics_the_loader(bytes in spoilt(section::<MemoryState>())) {
        memory_of(&bytes);
    }
}

#[test]
#[ignore = "a measurement; prints figures"]
fn figures_of_a_stored_image() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (file, hello) = (dir.path().join("hello.c"), dir.path().join("hello"));
    std::fs::write(&file, "#include <unistd.h>\nint main(void) { char c[9]; return read(0, c, 9) < 0; }")
        .unwrap();
    let built =
        std::process::Command::new("gcc").args(["-O1", "-static", "-o"]).arg(&hello).arg(&file).status();
    assert!(built.expect("gcc runs").success());
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let json = "import json, sys; print(json.dumps(json.load(sys.stdin)))";
    let dirs = ["/usr", "/lib", "/lib64", "/etc"];
    let store = Store::open(dir.path().join("store")).unwrap();
    let cases =
        [("hello", setup_of(&hello, &[], &[])), ("python", setup_of(&python, &["-I", "-c", json], &dirs))];
    for (version, (name, setup)) in (1..).zip(&cases) {
        let (engine, function, key) = (EngineKind::Process, "figures".parse().unwrap(), setup.key());
        let (artifact, novum) = (Digest::of(b""), String::new());
        let origin = Origin { engine, function, version, artifact, novum, made_at_ms: 0, key };
        let mut times = [vec![], vec![], vec![]];
        let mut images = None;
        for _ in 0..10 {
            let at = Instant::now();
            let taken = prepare(setup, Duration::from_secs(20)).unwrap();
            times[0].push(at.elapsed());
            let at = Instant::now();
            taken.store(&store, &origin).unwrap();
            times[1].push(at.elapsed());
            let at = Instant::now();
            let loaded = Image::load(&store, &origin, setup).unwrap().unwrap();
            times[2].push(at.elapsed());
            images = Some([Arc::new(taken), Arc::new(loaded)]);
        }
        for (what, mut times) in ["taken", "stored", "loaded"].into_iter().zip(times) {
            times.sort();
            println!("{name}: {what} in min {:?} p50 {:?}", times[0], times[5]);
        }
        let [taken, loaded] = images.unwrap();
        for _ in 0..2 {
            figures(&format!("{name}, memory"), &taken, 100, &[]);
            figures(&format!("{name}, store"), &loaded, 100, &[]);
        }
    }
}
