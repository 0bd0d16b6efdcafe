//! `cargo run --release -p novum-benches -- gateway`: see docs/benchmarks.md.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use novum_benches::floors::{self, Work};
use novum_benches::{gateway, report};

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
    Gateway(GatewayArguments),
    /// Serve one of the floors until killed
    Floor {
        name: Floor,
        /// Threads
        #[arg(long, default_value_t = cores())]
        workers: usize,
    },
}

#[derive(clap::Args)]
struct GatewayArguments {
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

#[derive(Clone, Copy, ValueEnum)]
enum Floor {
    Tonic,
    Wasmtime,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Gateway(arguments) => measure_gateway(arguments),
        Command::Floor { name, workers } => {
            let work: Arc<dyn Work> = match name {
                Floor::Tonic => Arc::new(floors::tonic_echo::TonicEcho),
                Floor::Wasmtime => Arc::new(floors::wasmtime_call::WasmtimeCall::new()?),
            };
            floors::serve(work, workers)
        }
    }
}

fn measure_gateway(arguments: GatewayArguments) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("warning: built without --release; these numbers say nothing about novum");
    }
    let options = gateway::Options {
        rounds: arguments.rounds.max(1),
        time: Duration::from_secs_f64(arguments.seconds),
        callers: arguments.callers,
        workers: arguments.workers,
        novum: arguments.novum,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(gateway::measure(options))?;
    report::write(&results, &arguments.out)?;
    println!("{}\nwritten to {}", report::markdown(&results), arguments.out.display());
    Ok(())
}
