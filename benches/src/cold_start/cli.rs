//! The arguments of the cold-start benchmark, and the whole run.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Child, Options, measure, report};

/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Samples of each program in each way; fewer where they would take longer than 8 s
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Threads that take samples at once, besides one alone [default: one for each CPU]
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,
    /// Only these engines: process, wasm, linux
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["wasm", "process", "linux"])]
    engine: Vec<String>,
    /// Only these engines and programs: wasm, process, linux; hello, rust, python, large
    #[arg(long, value_name = "NAME", value_delimiter = ',',
          value_parser = ["wasm", "process", "linux", "hello", "rust", "python", "large"])]
    only: Vec<String>,
    /// Numbers of sandboxes whose memory is measured; 0: none
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,100,1000")]
    sandboxes: Vec<usize>,
    /// Numbers of callers through the gateway; 0: none. Needs h2load (Debian's nghttp2-client)
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16,64")]
    callers: Vec<u32>,
    /// Timed seconds through the gateway, for each server and number of callers
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Without the working sets that the process engine copies in bulk: what they are worth
    #[arg(long)]
    no_working_set: bool,
    /// Where cold-start.json, cold-start.md and cold-start.svg go
    #[arg(long, value_name = "DIR", default_value = "target/bench-results")]
    out: PathBuf,
    /// What a child of this benchmark does
    #[arg(long, hide = true)]
    child: Option<String>,
}

impl Arguments {
    /// Measures, writes the results and prints the tables. `again`: the arguments that lead here; `novum`: the gateway's
    /// program, built when absent.
    ///
    /// # Errors
    /// Where the results cannot be written.
    pub fn run(&self, again: &[&str], novum: Option<PathBuf>) -> Result<()> {
        if let Some(child) = &self.child {
            return serde_json::from_str::<Child>(child).context("--child")?.run();
        }
        if cfg!(debug_assertions) {
            eprintln!("warning: built without --release; these numbers say nothing about novum");
        }
        novum_sandbox::process::use_working_sets(!self.no_working_set);
        let results = measure(&self.options(again, novum))?;
        report::write(&results, &self.out)?;
        println!("{}\nwritten to {}", report::markdown(&results), self.out.display());
        Ok(())
    }

    fn options(&self, again: &[&str], novum: Option<PathBuf>) -> Options {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Options {
            samples: self.samples as usize,
            parallel: self.parallel.map_or(cores, |n| n.max(1) as usize),
            only: self.only.iter().chain(&self.engine).cloned().collect(),
            sandboxes: self.sandboxes.iter().copied().filter(|n| *n > 0).collect(),
            callers: self.callers.iter().copied().filter(|n| *n > 0).collect(),
            seconds: self.seconds.clamp(0.1, 600.0),
            workers: cores,
            novum,
            again: again.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }
}
