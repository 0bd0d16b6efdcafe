//! A reset leads back to the image: byte for byte.

mod stored;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use super::*;
use crate::function::{Artifact, ArtifactFormat, Function, Manifest, Share};
use crate::kvm::layout::SYSTEM_SIZE;
use crate::kvm::sys::{Advice, Pages};
use crate::process::files::{Console, ConsoleRead, ConsoleWrite, Stream};
use crate::process::run::AtReply;
use crate::process::run::Ended;
use crate::process::setup::Setup;

/// Gives `input` once and then its end; keeps what is said.
struct Script {
    input: Vec<u8>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Console for Script {
    fn read(&mut self, max: usize) -> ConsoleRead {
        let rest = self.input.split_off(max.min(self.input.len()));
        let now = std::mem::replace(&mut self.input, rest);
        if now.is_empty() { ConsoleRead::End } else { ConsoleRead::Data(now.into()) }
    }

    fn pending(&mut self) -> Option<usize> {
        Some(self.input.len()).filter(|&n| n > 0)
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> ConsoleWrite {
        if stream != Stream::Output {
            return ConsoleWrite::Taken(bytes.len());
        }
        let mut said = self.said.lock();
        let room = (64 << 10) - said.len().min(64 << 10);
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        ConsoleWrite::Taken(bytes.len())
    }

    fn gathers(&self, _: Stream) -> bool {
        true
    }

    fn writable(&mut self, _: Stream) -> bool {
        true
    }
}

/// The program of `source`; `None` where the test cannot run here.
fn image(test: &str, source: &str) -> Option<Arc<Image>> {
    if let Err(reason) = crate::kvm::vm::probe() {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
        eprintln!("SKIPPED: {test}: {reason}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("program.c"), dir.path().join("program"));
    std::fs::write(&file, source).unwrap();
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-O1", "-w", "-static", "-pthread", "-o"]).arg(&program).arg(&file);
    assert!(gcc.status().expect("gcc runs").success(), "gcc refuses the program");
    Some(image_of(&program, &[], &[]))
}

fn image_of(program: &std::path::Path, args: &[&str], shares: &[&str]) -> Arc<Image> {
    let setup = setup_of(program, args, shares);
    Arc::new(prepare(&setup, Duration::from_secs(20)).unwrap())
}

fn setup_of(program: &std::path::Path, args: &[&str], shares: &[&str]) -> Setup {
    let mut manifest = Manifest::new("restless".parse().unwrap());
    manifest.memory_bytes = 256 << 20;
    manifest.args = args.iter().map(|&arg| arg.to_owned()).collect();
    let share = |&dir: &&str| Share { source: dir.into(), target: dir.into(), read_only: true };
    manifest.shares = shares.iter().map(share).collect();
    let digest = novum_snapshot::Digest::of(b"not looked at");
    let artifact = Artifact { format: ArtifactFormat::File, digest, path: program.to_owned() };
    Setup::new(&Function { version: 1, manifest, artifact }).unwrap()
}

/// Everything that a program could find out about its state, but for clocks and the bytes of `AT_RANDOM`.
fn describe(process: &mut Process) -> String {
    let mut text = String::new();
    for (start, vma) in process.memory.vmas().iter() {
        let file = vma.file.as_ref().map(|part| (part.file.name.as_str(), part.offset, part.shared));
        let flags = (vma.placed, vma.grows_down, vma.stack, vma.label);
        let digest = digest(process, start, vma.end, vma.prot.accessible());
        // Pages that the tables let be executed although the mapping does not.
        let executable = if vma.prot.exec { 0 } else { process.memory.executable_pages(start, vma.end) };
        writeln!(
            text,
            "{start:#x}-{:#x} {:?} {file:?} {flags:?} {digest:x?} {executable}",
            vma.end, vma.prot
        )
        .unwrap();
    }
    for thread in process.threads.iter() {
        let mut thread = thread.clone();
        let vectors = thread.state.xsave.take().map(|area| hash(&area.bytes(4096)));
        if let Status::Blocked(pending) = &mut thread.status {
            (pending.wait.until, pending.wait.deadline) = (None, None);
        }
        writeln!(text, "{vectors:x?} {thread:?}").unwrap();
    }
    writeln!(text, "{:?} {:?} {:?}", process.actions, process.pending, process.futexes).unwrap();
    writeln!(text, "{:?} {:?}", process.timers, process.memory.heap()).unwrap();
    writeln!(text, "{:?} {}", process.credentials, process.nice).unwrap();
    process.files.set_clock_shift(0);
    writeln!(text, "{}", process.files.inventory()).unwrap();
    process.files.set_clock_shift(process.clock.shift_ns());
    text
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Of each page: its bytes as the host has them behind it, or `None` where they cannot be had.
fn digest(process: &Process, start: u64, end: u64, accessible: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut page = [0; 4096];
    for at in (start..end).step_by(4096) {
        let got = process.memory.peek(at, &mut page);
        assert!(accessible || !got, "{at:#x} is not to be reached");
        let random = process.stack.random;
        let clocks = process.memory.vmas().at(at).is_some_and(|(_, vma)| vma.label == "[vvar]");
        if clocks {
            continue;
        }
        for byte in (random..random + 16).filter(|byte| (at..at + 4096).contains(byte)) {
            page[(byte - at) as usize] = 0;
        }
        hasher.write_u8(u8::from(got));
        hasher.write(if got { &page } else { &[] });
    }
    hasher.finish()
}

/// Runs one call and returns what was said.
fn run(machine: &mut Machine, input: &str) -> (Ended, Vec<u8>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    machine.process.files.set_console(Box::new(Script { input: input.into(), said: said.clone() }));
    machine.wake_console();
    let ended = machine.run(Instant::now() + Duration::from_millis(100)).unwrap();
    let said = std::mem::take(&mut *said.lock());
    (ended, said)
}

/// The first line in which two texts differ.
fn difference(old: &str, new: &str) -> Option<String> {
    let mut pairs = old.lines().zip(new.lines());
    let line = pairs.find(|(old, new)| old != new).map(|(old, new)| format!("was {old}\nis  {new}"));
    line.or_else(|| (old != new).then(|| "more or fewer lines".to_owned()))
}

#[test]
fn after_a_reset_everything_is_as_in_the_image() {
    let Some(image) = image("after_a_reset_everything_is_as_in_the_image", include_str!("restless.c")) else {
        return;
    };
    let control = Control::new().unwrap();
    let mut machine = image.start(control.clone()).unwrap();
    let fresh = describe(&mut machine.process);
    let mut ends = std::collections::BTreeSet::new();
    run(&mut machine, "0");
    for seed in 1..30 {
        if !image.reset(&mut machine).unwrap() {
            ends.insert("worn");
            drop(machine);
            machine = image.start(control.clone()).unwrap();
        }
        if let Some(what) = difference(&fresh, &describe(&mut machine.process)) {
            panic!("after seed {}: {what}", seed - 1);
        }
        let (ended, said) = run(&mut machine, &seed.to_string());
        // On a busy machine the time may be over before the program says anything.
        let silent = said.is_empty() && matches!(ended, Ended::Deadline);
        let said = String::from_utf8_lossy(&said);
        assert!(silent || said == "3f80 37f 0 800000 0 1 0\n", "seed {seed}: {said}");
        ends.insert(match ended {
            Ended::Code(_) => "exit",
            Ended::Fault(_) => "fault",
            Ended::Deadline => "deadline",
            _ => "other",
        });
    }
    assert!(!ends.contains("other"), "{ends:?}");
}

#[test]
fn a_wait_for_ever_goes_on_in_every_sandbox() {
    // Both ends of the clock: one more second would not fit.
    let source = r#"
        #include <limits.h>
        #include <linux/futex.h>
        #include <pthread.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static int word;
        static void *wait(void *arg) {
            struct timespec now, left = {0};
            clock_gettime(CLOCK_MONOTONIC, &now);
            left.tv_sec = LONG_MAX - now.tv_sec - 1;
            for (;;) syscall(SYS_futex, &word, FUTEX_WAIT, 0, &left, 0, 0);
        }
        int main(void) {
            pthread_t thread;
            char c[9];
            pthread_create(&thread, 0, wait, 0);
            if (read(0, c, 9) > 0) write(1, "here", 4);
            _exit(0);
        }"#;
    let Some(image) = image("a_wait_for_ever_goes_on_in_every_sandbox", source) else { return };
    // The image's age is what is added.
    std::thread::sleep(Duration::from_millis(1100));
    let mut machine = image.start(Control::new().unwrap()).unwrap();
    for _ in 0..2 {
        machine.process.files.set_console(Box::new(Script { input: b"x".to_vec(), said: Arc::default() }));
        machine.wake_console();
        let ended = machine.run(Instant::now() + Duration::from_secs(10)).unwrap();
        assert!(matches!(ended, Ended::Code(0)), "{ended:?}");
        image.reset(&mut machine).unwrap();
    }
}

#[test]
fn the_pages_of_answers_hold_nothing_of_the_last_call() {
    use crate::kvm::layout::{ANSWERS_GPA, ANSWERS_SIZE};
    let source = r#"
        #include <sys/stat.h>
        #include <unistd.h>
        int main(void) {
            char c[9];
            struct stat found;
            read(0, c, 9);
            for (int i = 0; i < 3; i++) stat("/tmp/of-this-request-only", &found);
            chdir("/proc");
            getcwd(c, 9);
            getcwd(c, 9);
            _exit(0);
        }"#;
    let Some(image) = image("the_pages_of_answers_hold_nothing_of_the_last_call", source) else { return };
    let mut machine = image.start(Control::new().unwrap()).unwrap();
    let pages = |machine: &Machine| {
        let mut bytes = vec![0; ANSWERS_SIZE as usize];
        machine.process.memory.region().read(ANSWERS_GPA, &mut bytes);
        bytes
    };
    let fresh = pages(&machine);
    run(&mut machine, "x");
    assert!(image.reset(&mut machine).unwrap());
    assert!(pages(&machine) == fresh, "a trace of the last call is left");
}

#[test]
#[ignore = "a measurement; prints figures"]
fn figures_of_a_reset() {
    let hello = r#"
        #include <unistd.h>
        int main(void) { char c[100]; long n = read(0, c, 100); if (c[0] == 'w') write(1, c, n); _exit(0); }"#;
    let Some(image) = image("figures_of_a_reset", hello) else { return };
    let control = Control::new().unwrap();
    let mut machine = image.start(control).unwrap();
    for input in ["x", "w"] {
        let (mut resets, mut runs) = (vec![], vec![]);
        for _ in 0..2000 {
            run(&mut machine, input);
            let at = Instant::now();
            image.reset(&mut machine).unwrap();
            resets.push(at.elapsed());
            let at = Instant::now();
            run(&mut machine, input);
            runs.push(at.elapsed());
            image.reset(&mut machine).unwrap();
        }
        for times in [&mut resets, &mut runs] {
            times.sort();
            println!("{input}: min {:?} p50 {:?} p90 {:?}", times[0], times[1000], times[1800]);
        }
    }
    let process = &mut machine.process;
    let clocks = process.time.page().cloned();
    let time = |name: &str, work: &mut dyn FnMut()| {
        let mut all: Vec<_> = (0..1000)
            .map(|_| {
                let at = Instant::now();
                work();
                at.elapsed()
            })
            .collect();
        all.sort();
        println!("{name}: min {:?} p50 {:?}", all[0], all[500]);
    };
    time("renew", &mut || drop(process.memory.renew(clocks.as_ref())));
    time("files", &mut || process.files.reset());
    time("threads", &mut || process.threads = image.threads.clone());
    time("actions", &mut || process.actions = image.actions.clone());
    time("freshen", &mut || image.freshen(process).unwrap());
    time("resume_time", &mut || process.resume_time(&image.moment));
    time("forget_cpu", &mut || machine.forget_cpu());
    let state = image.threads.current().state.clone();
    time("load", &mut || machine.load_for_test(&state));
}

#[test]
#[ignore = "a measurement; prints figures"]
fn figures_of_a_start() {
    let hello = r#"
        #include <unistd.h>
        int main(void) { char c[100]; long n = read(0, c, 100); if (c[0] == 'w') write(1, c, n); _exit(0); }"#;
    let Some(hello) = image("figures_of_a_start", hello) else { return };
    let usual = "#include <unistd.h>\nint main(void) { char c[4096]; while (read(0, c, 4096) > 0) {} return write(1, \"hello\\n\", 6) != 6; }";
    let Some(usual) = image("figures_of_a_start", usual) else { return };
    let dirs = ["/usr", "/lib", "/lib64", "/etc"];
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let json = "import json, sys; print(json.dumps(json.load(sys.stdin)))";
    let quick = "import json, sys, os; print(json.dumps(json.load(sys.stdin)), flush=True); os._exit(0)";
    let python = |script| image_of(&python, &["-I", "-c", script], &dirs);
    for (name, image) in
        [("hello", hello), ("usual", usual), ("python", python(json)), ("python, quick", python(quick))]
    {
        figures(name, &image, 200, &[]);
        let mut machine = image.start(Control::new().unwrap()).unwrap();
        machine.at_reply(AtReply::Note);
        run(&mut machine, "[1]");
        image.learn(&mut machine);
        let region = machine.process.memory.region();
        let present = region.pages(SYSTEM_SIZE, 64 << 20, Pages::Present).unwrap();
        let set = image.working_set.get().unwrap();
        let present_bytes: u64 = present.iter().map(|range| range.end - range.start).sum();
        println!(
            "learnt: {} bytes first, {} then; {present_bytes} present",
            set.first.bytes(),
            set.rest.bytes()
        );
        drop(machine);
        figures(&format!("{name}, working set"), &image, 200, &[]);
        figures(&format!("{name}, working set and what is read"), &image, 200, &present);
    }
}

/// The thread's own time: what others do on the machine is not in it.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `read`: memory that is populated besides the working set.
fn figures(name: &str, image: &Arc<Image>, rounds: usize, read: &[std::ops::Range<u64>]) {
    println!("{name}: {} pieces, {} KiB", image.memory.pieces(), image.shared_bytes() >> 10);
    let mut all: std::collections::BTreeMap<&str, Vec<Duration>> = Default::default();
    for _ in 0..rounds {
        let (shell, region) = Shell::blank().unwrap();
        let mut at = now();
        let mut note = |name| {
            all.entry(name).or_default().push(now() - at);
            at = now();
        };
        let mut machine = image.start_in(shell, region, Control::new().unwrap()).unwrap();
        note("start in shell");
        image.populate(&mut machine);
        for range in read {
            let region = machine.process.memory.region();
            let _ = region.advise(range.start, range.end - range.start, Advice::PopulateRead);
        }
        note("populate");
        run(&mut machine, "[1]");
        note("first run");
        image.reset(&mut machine).unwrap();
        note("reset");
        run(&mut machine, "[1]");
        note("second run");
        drop(machine);
        note("drop");
        let mut machine = image.start(Control::new().unwrap()).unwrap();
        note("start with everything");
        run(&mut machine, "[1]");
        note("first run 2");
    }
    for (name, mut times) in all {
        times.sort();
        println!(
            "    {name}: min {:?} p50 {:?} p90 {:?}",
            times[0],
            times[rounds / 2],
            times[rounds * 9 / 10]
        );
    }
}
