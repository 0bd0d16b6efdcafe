//! `cargo xtask test`: every test of the workspace, and those of the microVMs once more in the rig, with the skipped ones counted.
//!
//! A test that cannot run here (no /dev/kvm, no python3) writes a line `SKIPPED: <test>: <reason>` straight to
//! standard error, past libtest's capture, and returns. Those lines are counted here, so that a run that proved
//! less than it seems says so in its last line. `NOVUM_REQUIRE_KVM=1` turns a missing /dev/kvm into a failure.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what runs in the rig (some minutes).
    #[arg(long)]
    no_rig: bool,
    /// Passed on to `cargo test` (for example `-p novum-sandbox process`); only these tests run then, and none in the rig.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// What also runs on the rig's hardware-style KVM: words of `cargo xtask rig test`. Only what the workspace's tests
/// have built already.
const IN_THE_RIG: &[&[&str]] = &[
    &[
        "--only",
        "novum-sandbox",
        "--workspace",
        "--lib",
        "--test",
        "it",
        "kvm::measure",
        "process::run",
        "process::programs",
        "process::static_programs",
    ],
    &[
        "--timeout",
        "1800",
        "--only",
        "novum-sandbox",
        "--workspace",
        "--test",
        "linux_boot",
        "--test",
        "linux_device_state",
        "--test",
        "linux_devices",
        "--test",
        "linux_engine",
        "--test",
        "linux_guest",
        "--test",
        "linux_identity",
        "--test",
        "linux_kept_root",
        "--test",
        "linux_restore",
        "--test",
        "linux_sessions",
        "--test",
        "linux_snapshot",
        "--",
        "--test-threads=1",
    ],
];

/// Runs the tests; the exit code tells whether all passed.
///
/// # Errors
/// Where cargo or the rig could not be started or its output not read.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("test");
    if args.cargo.is_empty() {
        cargo.args(["--workspace", "--no-fail-fast"]);
    } else {
        cargo.args(&args.cargo);
    }
    let mut skipped = Vec::new();
    let mut passed = counted(cargo, &mut skipped).context("running `cargo test`")?;
    if args.cargo.is_empty() && !args.no_rig {
        for words in IN_THE_RIG {
            // Emulated on a busy machine, a guest may miss a limit of its own; what is broken fails twice.
            passed &= in_the_rig(words, &mut skipped)? || in_the_rig(words, &mut skipped)?;
        }
    }
    println!();
    if skipped.is_empty() {
        println!("no test was skipped");
    } else {
        println!("{} skipped:", skipped.len());
        skipped.iter().for_each(|line| println!("  {line}"));
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs tests in the rig; whether they passed.
fn in_the_rig(words: &[&str], skipped: &mut Vec<String>) -> anyhow::Result<bool> {
    println!("\nin the rig: {}", words.join(" "));
    // Building the tests may have put another xtask in the place of this one; its path would not be found.
    let mut rig = Command::new("/proc/self/exe");
    rig.args(["rig", "test"]).args(words);
    counted(rig, skipped).context("running tests in the rig")
}

/// Runs `command`, adds its `SKIPPED:` lines to `skipped`, and says whether it succeeded.
fn counted(mut command: Command, skipped: &mut Vec<String>) -> anyhow::Result<bool> {
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let lines = child.stderr.take().context("its standard error")?;
    skipped.extend(pass_through(BufReader::new(lines), std::io::stderr())?);
    Ok(child.wait()?.success())
}

/// Copies `lines` to `out`; returns the `SKIPPED:` ones.
fn pass_through(mut lines: impl BufRead, mut out: impl Write) -> anyhow::Result<Vec<String>> {
    let mut skipped = Vec::new();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        // libtest may have written the start of a line before it.
        let text = String::from_utf8_lossy(&line);
        if let Some(at) = text.find("SKIPPED: ") {
            skipped.push(text[at..].trim_end().to_owned());
        }
        line.clear();
    }
    Ok(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_lines_are_found_wherever_they_start() {
        let text = "SKIPPED: a: no kvm\nok\ntest b ... SKIPPED: b: no python3\n";
        let mut copied = Vec::new();
        let skipped = pass_through(text.as_bytes(), &mut copied).unwrap();
        assert_eq!(skipped, ["SKIPPED: a: no kvm", "SKIPPED: b: no python3"]);
        assert_eq!(copied, text.as_bytes());
    }
}
