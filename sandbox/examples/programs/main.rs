//! Real programs, run natively and in the process engine, and compared byte for byte: see docs/programs.md.
//!
//! ```text
//! cargo run -p novum-sandbox --no-default-features --features vm --example programs -- --install --json target/programs.json
//! ```
//! The cases are data: `cases.toml`. The binary is small and needs nothing but what it runs, so that
//! `cargo xtask rig -- target/debug/examples/programs` runs the same cases on hardware-style KVM.

mod counters;
mod harness;
mod install;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use harness::{Case, Cases, Verdict, Work};
use report::{Column, Record, Report};

/// Runs unmodified programs natively and in the process engine and compares what they write and how they end
#[derive(Parser)]
struct Arguments {
    /// Only cases with one of these words in their name, package or program
    #[arg(long, value_delimiter = ',')]
    filter: Vec<String>,
    /// No cases with one of these words there
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Only the cases that the default tests run
    #[arg(long)]
    quick: bool,
    /// Show the cases' names instead of running them
    #[arg(long)]
    list: bool,
    /// Install missing Debian packages by apt-get first
    #[arg(long)]
    install: bool,
    /// Show everything that differs, not only the first difference
    #[arg(long)]
    verbose: bool,
    /// Write what was found here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the table here; with `--column` nothing is run
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// A column of the table: its title and files written by `--json`
    #[arg(long, value_name = "TITLE=FILE,...")]
    column: Vec<Column>,
    /// Multiplies every case's time limit, for machines that are emulated
    #[arg(long, default_value_t = 1)]
    patience: u32,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let cases = Cases::load()?;
    if let (Some(path), false) = (&arguments.markdown, arguments.column.is_empty()) {
        report::write_markdown(path, &cases, &arguments.column)?;
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Case> = cases.case.iter().filter(|case| is_chosen(case, &arguments)).collect();
    if arguments.list {
        chosen.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.install {
        install::missing(&cases, &chosen)?;
    }
    let report = run(&cases, &chosen, &arguments)?;
    println!("{}", report.summary());
    if let Some(path) = &arguments.markdown {
        report::write_markdown(
            path,
            &cases,
            &[Column { title: "result".to_owned(), report: report.clone() }],
        )?;
    }
    Ok(if report.all_same() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_chosen(case: &Case, arguments: &Arguments) -> bool {
    let has = |word: &String| [&case.name, &case.package, &case.run].iter().any(|of| of.contains(word));
    let Arguments { filter, without, quick, .. } = arguments;
    (filter.is_empty() || filter.iter().any(has)) && !without.iter().any(has) && (case.quick || !quick)
}

fn run(cases: &Cases, chosen: &[&Case], arguments: &Arguments) -> Result<Report> {
    novum_sandbox::process::probe().map_err(anyhow::Error::msg)?;
    let counters = counters::install();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut work = Work::lock(cases)?;
    work.patience = arguments.patience;
    let mut report = Report::new();
    for case in chosen {
        counters.clear();
        let mut verdict = work.build(cases, case)?;
        if verdict.is_none() {
            verdict = Some(runtime.block_on(work.compare(case))?);
        }
        let verdict = verdict.unwrap_or(Verdict::Missing(case.run.clone()));
        let record = Record::new(case, &verdict, counters.take());
        println!("{}", record.line(arguments.verbose));
        report.add(record);
        if let Some(path) = &arguments.json {
            // After every case: a run that is stopped has found something too.
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(report)
}
