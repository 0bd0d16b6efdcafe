//! `cargo run --release -p novum-benches -- gateway` (or `process`): see docs/benchmarks.md.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use novum_benches::process;

/// Measures novum beside floors that are measured in the same run
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The gateway over loopback: requests per second and latency of an empty and an echo function, each
    /// invocation in a fresh Wasm instance, loaded by h2load
    #[cfg(feature = "gateway")]
    Gateway(over_loopback::GatewayArguments),
    /// Cold starts, restores and resets of several programs in every engine, beside native spawn and fork, bare KVM and bare
    /// wasmtime; memory of many sandboxes; the same through the gateway
    #[cfg(feature = "gateway")]
    ColdStart(novum_benches::cold_start::cli::Arguments),
    /// Serve one of the floors until killed
    #[cfg(feature = "gateway")]
    Floor(over_loopback::FloorArguments),
    /// The process engine beside native processes and bare KVM: start of a hello and of Python, work on the CPU, system
    /// calls, reading files
    Process(ProcessArguments),
}

#[derive(clap::Args)]
struct ProcessArguments {
    /// How often everything is measured
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Only measurements whose name holds this
    #[arg(long)]
    only: Option<String>,
    /// Where process.json and process.md go
    #[arg(long, default_value = "target/bench-results")]
    out: PathBuf,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        #[cfg(feature = "gateway")]
        Command::Gateway(arguments) => arguments.measure(),
        #[cfg(feature = "gateway")]
        Command::ColdStart(arguments) => arguments.run(&["cold-start"], None),
        #[cfg(feature = "gateway")]
        Command::Floor(arguments) => arguments.serve(),
        Command::Process(arguments) => measure_process(arguments),
    }
}

fn warn_of_development_build() {
    if cfg!(debug_assertions) {
        eprintln!("warning: built without --release; these numbers say nothing about novum");
    }
}

fn measure_process(arguments: ProcessArguments) -> Result<()> {
    warn_of_development_build();
    let options = process::Options { rounds: arguments.rounds.max(1), only: arguments.only };
    let results = process::measure(&options)?;
    process::report::write(&results, &arguments.out)?;
    println!("{}\nwritten to {}", process::report::markdown(&results), arguments.out.display());
    Ok(())
}

#[cfg(feature = "gateway")]
mod over_loopback {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use anyhow::Result;
    use clap::ValueEnum;
    use novum_benches::floors::{self, Work};
    use novum_benches::{gateway, report};

    #[derive(clap::Args)]
    pub(super) struct GatewayArguments {
        /// How often each cell is measured; medians are reported
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Timed seconds of one measurement
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Numbers of callers
        #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
        callers: Vec<u32>,
        /// Threads of each server
        #[arg(long, default_value_t = cores())]
        workers: usize,
        /// The gateway's program; built when not given
        #[arg(long)]
        novum: Option<PathBuf>,
        /// Where gateway.json, gateway.md and gateway.svg go
        #[arg(long, default_value = "target/bench-results")]
        out: PathBuf,
    }

    #[derive(clap::Args)]
    pub(super) struct FloorArguments {
        name: Floor,
        /// Threads
        #[arg(long, default_value_t = cores())]
        workers: usize,
    }

    #[derive(Clone, Copy, ValueEnum)]
    enum Floor {
        Tonic,
        Wasmtime,
    }

    fn cores() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    impl FloorArguments {
        pub(super) fn serve(self) -> Result<()> {
            let work: Arc<dyn Work> = match self.name {
                Floor::Tonic => Arc::new(floors::tonic_echo::TonicEcho),
                Floor::Wasmtime => Arc::new(floors::wasmtime_call::WasmtimeCall::new()?),
            };
            floors::serve(work, self.workers)
        }
    }

    impl GatewayArguments {
        pub(super) fn measure(self) -> Result<()> {
            super::warn_of_development_build();
            let options = gateway::Options {
                rounds: self.rounds.max(1),
                time: Duration::from_secs_f64(self.seconds),
                callers: self.callers,
                workers: self.workers,
                novum: self.novum,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let results = runtime.block_on(gateway::measure(options))?;
            report::write(&results, &self.out)?;
            println!("{}\nwritten to {}", report::markdown(&results), self.out.display());
            Ok(())
        }
    }
}
