//! File calls through the engine, compared with the host's kernel.

use std::path::Path;
use std::process::Command;

use novum_sandbox::{ExitStatus, Share};

use super::{Run, compile, has_kvm, has_program, in_rig};

/// Runs the program on an empty directory natively.
fn native(program: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let stdin = std::process::Stdio::piped();
    let mut child = Command::new(program)
        .arg(dir.path())
        .env_clear()
        .stdin(stdin)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Both outputs, where they differ, line by line.
fn differences(got: &str, expected: &str) -> Vec<String> {
    let pairs = expected.lines().zip(got.lines()).filter(|(expected, got)| expected != got);
    let mut found: Vec<String> = pairs.map(|(expected, got)| format!("{expected}   here: {got}")).collect();
    if expected.lines().count() != got.lines().count() {
        found.push(format!("{} lines, here {}", expected.lines().count(), got.lines().count()));
    }
    found
}

#[tokio::test]
async fn hostile_and_odd_file_calls_give_what_linux_gives() {
    if !has_kvm("hostile_and_odd_file_calls_give_what_linux_gives") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("hostile_files.c"), &["-static"]);
    let expected = native(&program);
    let share = tempfile::tempdir().unwrap();
    for target in ["/tmp", "/mnt/share"] {
        let mut run = Run::new().args(&[target]);
        if target != "/tmp" {
            let source = share.path().to_owned();
            run.manifest.shares.push(Share { source, target: target.into(), read_only: false });
        }
        let log = run.log.clone();
        let reply = run.run(&program).await.unwrap();
        let got = String::from_utf8_lossy(&reply.output).into_owned();
        let found = differences(&got, &expected);
        assert!(found.is_empty(), "{target}: {:?} {}\n{}", reply.exit, log.text(), found.join("\n"));
        assert_eq!(reply.exit, ExitStatus::Code(0));
    }
}

#[tokio::test]
async fn python_works_on_files_as_it_does_natively() {
    const PYTHON: &str = "/usr/bin/python3";
    if !has_program("python_works_on_files_as_it_does_natively", PYTHON) {
        return;
    }
    let python = std::fs::canonicalize(PYTHON).unwrap();
    let script = include_str!("file_work.py");
    let dir = tempfile::tempdir().unwrap();
    let expected =
        Command::new(&python).args(["-I", "-c", script]).arg(dir.path()).env_clear().output().unwrap();
    let expected = String::from_utf8(expected.stdout).unwrap().replace("network\n", "no network\n");
    let expected = expected.replace("no no network", "no network");
    let share = tempfile::tempdir().unwrap();
    for target in ["/tmp", "/mnt/share"] {
        let mut run = Run::new().args(&["-I", "-c", script, target]).with_libraries();
        if target != "/tmp" {
            let source = share.path().to_owned();
            run.manifest.shares.push(Share { source, target: target.into(), read_only: false });
        }
        let log = run.log.clone();
        let reply = run.run(&python).await.unwrap();
        let got = String::from_utf8_lossy(&reply.output).into_owned();
        let found = differences(&got, &expected);
        assert!(found.is_empty(), "{target}: {:?} {}\n{}", reply.exit, log.text(), found.join("\n"));
        assert_eq!(reply.exit, ExitStatus::Code(0), "{}", log.text());
    }
}

#[tokio::test]
async fn random_file_calls_do_no_harm() {
    if !has_kvm("random_file_calls_do_no_harm") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("random_files.c"), &["-static"]);
    for seed in ["1", "2", "3"] {
        let host = tempfile::tempdir().unwrap();
        let (share, outside) = (host.path().join("share"), host.path().join("outside"));
        for dir in [&share, &share.join("d"), &outside] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(share.join("f"), "inside").unwrap();
        std::fs::write(outside.join("secret"), "SECRET").unwrap();
        std::os::unix::fs::symlink("../outside/secret", share.join("out")).unwrap();
        let calls = if in_rig() { "500" } else { "10000" };
        let mut run = Run::new().args(&[seed, calls]);
        run.manifest.shares.push(Share { source: share, target: "/mnt/share".into(), read_only: false });
        let log = run.log.clone();
        let reply = run.run(&program).await.unwrap();
        assert_eq!(reply.exit, ExitStatus::Code(42), "seed {seed}: {}", log.text());
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"SECRET");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 2);
    }
}
