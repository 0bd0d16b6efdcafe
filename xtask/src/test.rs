//! `cargo xtask test`: every test of the workspace, with the skipped ones counted.
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
    /// Passed on to `cargo test` (for example `-p novum-sandbox process`).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// Runs the tests; the exit code is cargo's.
///
/// # Errors
/// Where cargo could not be started or its output not read.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg("test");
    if args.cargo.is_empty() {
        command.args(["--workspace", "--no-fail-fast"]);
    } else {
        command.args(&args.cargo);
    }
    let mut child = command.stderr(Stdio::piped()).spawn().context("starting `cargo test`")?;
    let lines = child.stderr.take().context("the standard error of `cargo test`")?;
    let skipped = pass_through(BufReader::new(lines), std::io::stderr())?;
    let status = child.wait()?;
    println!();
    if skipped.is_empty() {
        println!("no test was skipped");
    } else {
        println!("{} skipped:", skipped.len());
        skipped.iter().for_each(|line| println!("  {line}"));
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
