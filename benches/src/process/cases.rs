//! What is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;

use super::run::{Deployed, Program, Took, native, native_with};
use super::sys::cpu_time;
use super::{Aim, Case, Measure, Sample, Side, Unit, floor};

/// Python of the system.
const PYTHON: &str = "/usr/bin/python3";
const PYTHON_JSON: &str = "import json; print(json.dumps({'a': [1, 2.5, None]}, indent=1))";
/// The file that is read, and how often in one sample.
const FILE_BYTES: usize = 64 << 20;
const READ_TIMES: u64 = 2;
const CALLS: u32 = 20_000;

/// Every case whose name is wanted.
pub(super) fn all(scratch: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    if wanted("hello") {
        cases.push(hello(scratch)?);
    }
    if wanted("getpid") {
        cases.push(getpid(scratch)?);
    }
    for (name, part) in [("work in C", "compute"), ("memory in C", "memory")] {
        if wanted(name) {
            let program = compile(scratch, "work", include_str!("programs/work.c"))?;
            cases.push(work(name, &Program::alone(&program, &[part]), scratch)?);
        }
    }
    if wanted("work in Python") {
        let program = Program::of_system(PYTHON, &["-c", include_str!("programs/work.py")]);
        cases.push(work("work in Python", &program, scratch)?);
    }
    if wanted("python3 -c json") {
        cases.push(python_start(scratch)?);
    }
    for (bytes, name) in [(4 << 10, "read 4 KiB"), (64 << 10, "read 64 KiB"), (1 << 20, "read 1 MiB")] {
        if wanted(name) {
            cases.push(read(name, bytes, scratch)?);
        }
    }
    Ok(cases)
}

/// The least program there is: spawned, and started in a sandbox of its own; and a VM that does nothing.
fn hello(scratch: &Path) -> Result<Case> {
    let program = Program::alone(&compile(scratch, "hello", include_str!("programs/hello.c"))?, &[]);
    let kvm = Kvm::new()?;
    let bare = move || with_cpu(|| floor::one_exit(&kvm));
    let mut sides = whole_runs(&program, scratch, micros)?;
    sides.push((Side::Floor, Box::new(bare) as Measure));
    Ok(Case { name: "hello".into(), unit: Unit::Micros, aim: None, per_round: 20, sides })
}

/// A system call that does nothing.
fn getpid(scratch: &Path) -> Result<Case> {
    let path = compile(scratch, "calls", include_str!("programs/calls.c"))?;
    let program = Program::alone(&path, &[&CALLS.to_string()]);
    let kvm = Kvm::new()?;
    let bare = move || with_cpu(|| floor::round_trip(&kvm, CALLS));
    let mut sides = self_timed(&program, scratch, |nanos, _| nanos / 1e3)?;
    sides.push((Side::Floor, Box::new(bare) as Measure));
    let aim = Some(Aim::OfFloor(1.2));
    Ok(Case { name: "getpid".into(), unit: Unit::Micros, aim, per_round: 1, sides })
}

fn work(name: &str, program: &Program, scratch: &Path) -> Result<Case> {
    let mut sides = self_timed(program, scratch, |nanos, _| nanos / 1e6)?;
    let program = program.clone();
    let large = move || {
        let (took, output) = native_with(&program, &[("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")])?;
        Ok(sample(own_time(&output)?.0 / 1e6, took.cpu))
    };
    sides.push((Side::LargePages, Box::new(large) as Measure));
    let aim = Some(Aim::OfNative(1.02));
    Ok(Case { name: name.into(), unit: Unit::Millis, aim, per_round: 2, sides })
}

fn python_start(scratch: &Path) -> Result<Case> {
    let program = Program::of_system(PYTHON, &["-c", PYTHON_JSON]);
    let sides = whole_runs(&program, scratch, millis)?;
    let aim = Some(Aim::Absolute(32.0));
    Ok(Case { name: "python3 -c json".into(), unit: Unit::Millis, aim, per_round: 5, sides })
}

fn read(name: &str, block_bytes: usize, scratch: &Path) -> Result<Case> {
    let dir = scratch.join("shared");
    let file = dir.join("file");
    if !file.exists() {
        fs::create_dir_all(&dir)?;
        fs::write(&file, vec![7; FILE_BYTES])?;
    }
    let path = compile(scratch, "read", include_str!("programs/read.c"))?;
    let args = [file.to_string_lossy().into_owned(), block_bytes.to_string(), READ_TIMES.to_string()];
    let program = Program { path, args: args.to_vec(), shares: vec![dir] };
    let rate = |nanos: f64, bytes: f64| bytes / f64::from(1 << 20) / (nanos / 1e9);
    let sides = self_timed(&program, scratch, rate)?;
    Ok(Case { name: name.into(), unit: Unit::MibPerSecond, aim: None, per_round: 1, sides })
}

/// The whole of a run, from before the start to after the end.
fn whole_runs(program: &Program, scratch: &Path, unit: fn(Duration) -> f64) -> Result<Vec<(Side, Measure)>> {
    let deployed = Deployed::new(program, scratch)?;
    let expected = native(program)?.1;
    ensure!(deployed.run()?.1 == expected, "it prints something else than natively");
    let expected = Rc::new(expected);
    let check = move |(took, output): (Took, Vec<u8>)| {
        ensure!(output == *expected, "it prints something else than natively");
        Ok(Sample { start_ms: millis(took.start), exits: took.exits, ..sample(unit(took.wall), took.cpu) })
    };
    let (program, also) = (program.clone(), check.clone());
    Ok(vec![
        (Side::Native, Box::new(move || also(native(&program)?)) as Measure),
        (Side::Novum, Box::new(move || check(deployed.run()?))),
    ])
}

/// What the program measures itself: it prints nanoseconds in the first line, and what follows must be the same on both
/// sides; `value` makes a sample of the two.
fn self_timed(program: &Program, scratch: &Path, value: fn(f64, f64) -> f64) -> Result<Vec<(Side, Measure)>> {
    let deployed = Deployed::new(program, scratch)?;
    let expected = Rc::new(own_time(&native(program)?.1)?.1);
    let check = move |(took, output): (Took, Vec<u8>)| {
        let (nanos, rest) = own_time(&output)?;
        ensure!(rest == *expected, "its result is {rest:?}, natively {expected:?}");
        let second = rest.parse().unwrap_or(0.0);
        Ok(Sample {
            start_ms: millis(took.start),
            exits: took.exits,
            ..sample(value(nanos, second), took.cpu)
        })
    };
    let (program, also) = (program.clone(), check.clone());
    Ok(vec![
        (Side::Native, Box::new(move || also(native(&program)?)) as Measure),
        (Side::Novum, Box::new(move || check(deployed.run()?))),
    ])
}

/// The nanoseconds that a program prints first, and the rest.
fn own_time(output: &[u8]) -> Result<(f64, String)> {
    let text = String::from_utf8_lossy(output).into_owned();
    let (nanos, rest) = text.split_once('\n').context("it prints no time")?;
    Ok((nanos.parse()?, rest.trim().to_owned()))
}

/// A floor's time, and the processor time meanwhile.
fn with_cpu(measure: impl FnOnce() -> Result<Duration>) -> Result<Sample> {
    let before = cpu_time();
    let time = measure()?;
    Ok(sample(micros(time), cpu_time() - before))
}

fn sample(value: f64, cpu: Duration) -> Sample {
    Sample { value, cpu_ms: millis(cpu), start_ms: 0.0, exits: 0 }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Compiles one of the C programs, statically.
fn compile(scratch: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (file, program) = (scratch.join(format!("{name}.c")), scratch.join(name));
    if program.exists() {
        return Ok(program);
    }
    fs::write(&file, source)?;
    let done = Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(&file).status();
    ensure!(done.context("gcc does not start; Debian's package is gcc")?.success(), "gcc refuses {name}.c");
    Ok(program)
}
