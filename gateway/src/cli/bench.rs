//! `novum bench`: measurements that need nothing but this program.

use clap::Subcommand;

use super::error::Error;

/// Measure this machine: cold starts beside what the host itself can do
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum bench cold-start                                  everything; some minutes
  novum bench cold-start --only process,hello --samples 200 --sandboxes 0 --callers 0
  novum bench cold-start --out results && cat results/cold-start.md

docs/benchmarks.md says what is measured.")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How long until a program answers: everything made, restored, reset; beside native spawn and fork, bare KVM and
    /// wasmtime; memory of many sandboxes; the same through a gateway
    ColdStart(novum_benches::cold_start::cli::Arguments),
}

pub(super) fn run(args: &Args) -> Result<u8, Error> {
    let What::ColdStart(arguments) = &args.what;
    let own = std::env::current_exe().map_err(|source| Error::Io { doing: "find this program", source })?;
    let done = arguments.run(&["bench", "cold-start"], Some(own));
    done.map_err(|error| Error::Bench(format!("{error:#}")))?;
    Ok(0)
}
