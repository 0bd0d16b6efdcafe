//! `novum doctor`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Global;
use super::error::{Error, exit};
use super::output::{self, BOLD, CYAN, DIM, GREEN, RED, YELLOW, styled};
use crate::config::Listen;
use crate::doctor::{self, Context, Finding, Report, Verdict};

/// Say what this machine can run, and what to do about what it cannot
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum doctor
  novum doctor --json | jq '.engines[] | select(.verdict == \"good\").engine'

Exit code 0 if at least one engine runs, else 71.")]
pub(super) struct Args {
    /// The directory that a gateway would use
    #[arg(long, value_name = "DIR", env = "NOVUM_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// The address on which a gateway would listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: Listen,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let data_dir = args.data_dir.clone().map_or_else(super::serve::default_data_dir, Ok)?;
    let kernel_dir = super::kernel::default_dir().unwrap_or_else(|_| data_dir.join("kernels"));
    let report = doctor::examine(&Context { data_dir, listen: args.listen.clone(), kernel_dir });
    match global.json {
        true => output::json_line(&report_json(&report))?,
        false => show(&report)?,
    }
    Ok(if report.healthy() { 0 } else { exit::CANNOT_RUN })
}

fn show(report: &Report) -> Result<(), Error> {
    output::line(styled(BOLD, "engines"))?;
    for (kind, finding) in &report.engines {
        show_one(kind.as_str(), "", finding)?;
    }
    output::line(styled(BOLD, "this machine"))?;
    report.checks.iter().try_for_each(|(name, about, finding)| show_one(name, about, finding))?;
    match report.healthy() {
        true => Ok(()),
        false => output::line(styled(RED, "no engine can run here")),
    }
}

fn show_one(name: &str, about: &str, finding: &Finding) -> Result<(), Error> {
    let (style, word) = match finding.verdict {
        Verdict::Good => (GREEN, "ok"),
        Verdict::Poor => (YELLOW, "poor"),
        Verdict::Bad => (RED, "no"),
        Verdict::Info => (DIM, "-"),
    };
    let about = if about.is_empty() { String::new() } else { styled(DIM, format_args!("  ({about})")) };
    output::line(format_args!(
        "  {} {name:<16} {}{about}",
        styled(style, format_args!("{word:<4}")),
        finding.detail
    ))?;
    match &finding.advice {
        Some(advice) => output::line(format_args!("       {:<16} {} {advice}", "", styled(CYAN, "->"))),
        None => Ok(()),
    }
}

fn report_json(report: &Report) -> Value {
    let finding = |f: &Finding| json!({ "verdict": f.verdict.as_str(), "detail": f.detail, "advice": f.advice, "measured": f.measured });
    let with = |key: &str, name: &str, f: &Finding| {
        let mut object = finding(f);
        object[key] = name.into();
        object
    };
    let engines: Vec<_> = report.engines.iter().map(|(kind, f)| with("engine", kind.as_str(), f)).collect();
    let checks: Vec<_> = report.checks.iter().map(|(name, _, f)| with("check", name, f)).collect();
    json!({ "healthy": report.healthy(), "engines": engines, "checks": checks })
}
