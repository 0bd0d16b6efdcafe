//! A run on the host.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::work::Plan;
use super::{Run, tree};

/// Runs `plan` in `/`, where a sandbox begins too.
pub(super) fn run(plan: &Plan, work: &Path) -> Result<Run> {
    let started = Instant::now();
    let mut child = Command::new(&plan.program)
        .arg0(&plan.program)
        .args(&plan.args)
        .env_clear()
        .envs(&plan.env)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", plan.program))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = plan.input.clone();
    // A program that does not read its input breaks the pipe, which is no failure.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let done = child.wait_with_output()?;
    let time = started.elapsed();
    // It cannot fail: it does not panic.
    let _ = writer.join();
    Ok(Run {
        exit: describe(done.status),
        stdout: done.stdout,
        stderr: done.stderr,
        tree: tree::read(work)?,
        time,
        remarks: Vec::new(),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.to_string(),
        (None, signal) => signal.and_then(signal_name).map_or_else(|| status.to_string(), str::to_owned),
    }
}

/// The signals by which a program that fails ends.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [(i32, &str); 8] = [
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGTERM, "SIGTERM"),
    ];
    NAMES.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}
