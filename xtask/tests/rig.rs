//! The rig itself: a program's output and status come back, and a machine that dies is not taken for success.
//!
//! Each test boots L1 once, 4 s on an idle machine.

use std::io::Write;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

/// One machine at a time: the first one may have to build L1, and the emulation wants a core.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs `sh -c script` in the rig; `None` where QEMU is missing.
fn rig(test: &str, options: &[&str], script: &str) -> Option<Output> {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: qemu-system-x86_64 is not installed");
        return None;
    }
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .arg("rig")
        .args(options)
        .args(["--", "sh", "-c", script])
        .env("NOVUM_RIG_TEST", "it's \"passed\"");
    Some(command.output().unwrap())
}

#[test]
fn streams_status_environment_and_kvm_come_through() {
    let folder = tempfile::tempdir().unwrap();
    let share = folder.path().to_str().unwrap();
    let script = format!(
        "printf '%s' \"$NOVUM_RIG_TEST\"; echo words >&2; test -c /dev/kvm || exit 1
         pwd > {share}/pwd; touch /scratch-file; exit 7"
    );
    let name = "streams_status_environment_and_kvm_come_through";
    let Some(output) = rig(name, &["--share", share], &script) else { return };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "it's \"passed\"");
    assert!(errors.ends_with("words\n"), "{errors}");
    let here = std::env::current_dir().unwrap();
    let written = std::fs::read_to_string(folder.path().join("pwd")).unwrap();
    assert_eq!(written.trim(), here.to_str().unwrap(), "the share is written, in the same folder");
    assert!(!std::path::Path::new("/scratch-file").exists(), "the host's root is not written");
}

#[test]
fn a_machine_that_dies_is_not_a_success() {
    let Some(output) = rig("a_machine_that_dies_is_not_a_success", &[], "echo c > /proc/sysrq-trigger")
    else {
        return;
    };
    assert_eq!(output.status.code(), Some(125));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("sysrq_handle_crash"), "the report holds L1's last words: {errors}");
}
