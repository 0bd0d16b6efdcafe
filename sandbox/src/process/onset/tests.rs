//! Which programs have an onset, and what is in it.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::function::{Artifact, ArtifactFormat, Function, Manifest, Share};

fn gcc(args: &[&str], source: &str, into: &Path) {
    let file = into.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let mut gcc = Command::new("gcc");
    let done = gcc.args(["-w", "-O1"]).arg("-o").arg(into).arg(&file).args(args).status();
    assert!(done.expect("gcc runs").success(), "gcc refuses {}", file.display());
}

fn has_kvm(test: &str) -> bool {
    let Err(reason) = crate::kvm::vm::probe() else { return true };
    assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    false
}

/// Of a dynamic program whose library has this code besides `value`; the setup, and where the library is.
fn program(test: &str, library: &str) -> Option<(tempfile::TempDir, Setup)> {
    if !has_kvm(test) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    let source =
        format!("#include <time.h>\n#include <unistd.h>\n{library}\nint value(void) {{ return 1; }}");
    gcc(&["-shared", "-fPIC"], &source, &dir.path().join("libvalue.so"));
    let main = "int value(void); int main(void) { return value(); }";
    let program = dir.path().join("program");
    gcc(&["-L", here, "-lvalue", &format!("-Wl,-rpath,{here}")], main, &program);
    let setup = setup(&program, &["/usr", "/lib", "/lib64", "/etc", here]);
    Some((dir, setup))
}

fn setup(program: &Path, shares: &[&str]) -> Setup {
    let mut manifest = Manifest::new("onset".parse().unwrap());
    manifest.memory_bytes = 256 << 20;
    let share = |dir: &&str| Share { source: dir.into(), target: (*dir).into(), read_only: true };
    manifest.shares = shares.iter().map(share).collect();
    let digest = novum_snapshot::Digest::of(b"not looked at");
    let artifact = Artifact { format: ArtifactFormat::File, digest, path: program.to_owned() };
    Setup::new(&Function { version: 1, manifest, artifact }).unwrap()
}

/// On a thread of its own, whose signals nobody else gets.
fn prepare(setup: &Setup) -> Option<Onset> {
    std::thread::scope(|scope| scope.spawn(|| Onset::prepare(setup).unwrap()).join().unwrap())
}

#[test]
fn an_onset_knows_the_files_that_decided_it() {
    let Some((dir, setup)) = program("an_onset_knows_the_files_that_decided_it", "") else { return };
    let onset = prepare(&setup).expect("a program that only links has an onset");
    let library = dir.path().join("libvalue.so");
    for path in [library.as_os_str().as_encoded_bytes(), b"/etc/ld.so.preload"] {
        assert!(onset.looks.0.contains_key(path), "{} was looked at", String::from_utf8_lossy(path));
    }
    let mut files = Files::new(setup.files()).unwrap();
    assert!(onset.is_current(&mut files));
    let begun = std::thread::scope(|scope| {
        let start = || {
            let mut machine = onset.start(Control::new().unwrap(), &setup.foresight).unwrap();
            onset.looks.changed(&mut machine.process.files).map(<[u8]>::to_vec)
        };
        scope.spawn(start).join().unwrap()
    });
    assert_eq!(begun.map(|path| String::from_utf8_lossy(&path).into_owned()), None);
    // The same bytes in the same place, but written since.
    std::fs::write(&library, std::fs::read(&library).unwrap()).unwrap();
    assert!(!onset.is_current(&mut files));
}

#[test]
fn what_asks_for_more_than_files_before_it_begins_has_none() {
    const TEST: &str = "what_asks_for_more_than_files_before_it_begins_has_none";
    for body in [
        "getentropy((char[8]){0}, 8);",
        "write(1, \"!\", 1);",
        "struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now);",
        "read(0, (char[1]){0}, 1);",
        "_exit(0);",
    ] {
        let library = format!("__attribute__((constructor)) static void early(void) {{ {body} }}");
        let Some((_dir, setup)) = program(TEST, &library) else { return };
        assert!(prepare(&setup).is_none(), "{body}");
    }
}

#[test]
fn python_has_an_onset() {
    const PYTHON: &str = "/usr/bin/python3";
    if !has_kvm("python_has_an_onset") {
        return;
    }
    if !Path::new(PYTHON).exists() {
        eprintln!("SKIPPED: python_has_an_onset: {PYTHON} is not installed");
        return;
    }
    let setup = setup(Path::new(PYTHON), &["/usr", "/lib", "/lib64", "/etc"]);
    let onset = prepare(&setup).expect("python only links before it begins");
    std::thread::scope(|scope| {
        let start = || {
            let mut machine = onset.start(Control::new().unwrap(), &setup.foresight).unwrap();
            let changed = onset.looks.changed(&mut machine.process.files).map(String::from_utf8_lossy);
            assert_eq!(changed, None);
        };
        scope.spawn(start).join().unwrap();
    });
}
