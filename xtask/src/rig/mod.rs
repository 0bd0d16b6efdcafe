//! `cargo xtask rig`: a machine with hardware-style KVM, made by QEMU's emulation of AMD SVM.
//!
//! ```text
//! host ── QEMU (TCG, no KVM needed) ── L1: Debian's kernel with kvm-amd ── our VMM ── L2: the guest under test
//!           root file system of L1 = the host's, read-only over 9p, with a private tmpfs overlay
//! ```
//!
//! So a program runs in L1 at the path that it has on the host, with the host's libraries, and what it writes is
//! gone afterwards, except below `--share`. docs/rig.md says more.

mod console;
mod initramfs;
mod job;
mod machine;
mod stock;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

pub(crate) use stock::cache_home;

/// Arguments of `cargo xtask rig`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    machine: MachineArgs,
    /// The program to run in L1 and its arguments.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Build tests of a crate (novum-sandbox with feature `vm` unless said otherwise) and run them in the rig.
    Test(suite::Args),
}

/// How the machine is made.
#[derive(clap::Args, Clone)]
pub(crate) struct MachineArgs {
    /// Virtual time counts instructions (1 ns each), so that costs can be compared. Slower.
    #[arg(long)]
    icount: bool,
    /// Give up after this many seconds of wall time.
    #[arg(long, value_name = "S", default_value_t = 900)]
    timeout: u64,
    /// A folder that L1 sees under the same path and can write; repeatable.
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Another variable to pass on: NAME (from here) or NAME=VALUE; repeatable.
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Memory of L1 in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Processors of L1. More are rarely faster: the emulation shares the host's.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Show L1's kernel messages on standard error.
    #[arg(long)]
    verbose: bool,
}

/// How a run in the rig ended.
pub(crate) enum Outcome {
    /// The program ended with this status, a shell's (128 + signal for a signal).
    Exit(u8),
    /// L1 or QEMU ended without reporting a status. Holds the last lines of L1's console.
    Died(String),
    /// The time was over.
    TimedOut,
}

/// Exit code of `cargo xtask rig` where the program was stopped by `--timeout`, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Exit code where L1 died.
const DIED: u8 = 125;

/// Runs a program, or tests, in the rig.
///
/// # Errors
/// Where the rig cannot be set up or started.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        Some(What::Test(test)) => suite::run(test),
        None => {
            anyhow::ensure!(!args.command.is_empty(), "say what to run: cargo xtask rig -- PROGRAM ARGS");
            let command = job::resolve(&args.command)?;
            let outcome = run_command(&args.machine, &command, &[])?;
            Ok(report(&outcome, Duration::from_secs(args.machine.timeout)))
        }
    }
}

/// Runs `command` in the rig with `env` added; streams its output to ours.
pub(crate) fn run_command(
    args: &MachineArgs,
    command: &[String],
    env: &[(String, String)],
) -> anyhow::Result<Outcome> {
    machine::require_qemu()?;
    let stock = stock::Stock::fetch().context("fetching the rig's kernel and busybox")?;
    let job = job::Job::new(args, command, env)?;
    machine::run(args, &stock, &job)
}

/// Says on standard error what went wrong; returns the exit code that stands for it.
fn report(outcome: &Outcome, timeout: Duration) -> ExitCode {
    match outcome {
        Outcome::Exit(status) => ExitCode::from(*status),
        Outcome::Died(console) => {
            eprintln!("rig: L1 died without a status; its console ended with:\n{console}");
            ExitCode::from(DIED)
        }
        Outcome::TimedOut => {
            eprintln!("rig: stopped after {} s", timeout.as_secs());
            ExitCode::from(TIMED_OUT)
        }
    }
}
