//! `novum stats`.

use std::time::Duration;

use novum_proto::gateway::v1;
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::output::{self, duration, engine_name};
use crate::units::{format_duration, format_size};

/// Show what the gateway has done since its start
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum stats
  novum stats --json | jq '.functions[] | {function, succeeded, latency_p99_us}'")]
pub(super) struct Args {}

pub(super) async fn run(global: &Global, _args: &Args) -> Result<u8, Error> {
    let mut admin = global.connect().await?.admin();
    let stats = admin.stats(v1::StatsRequest {}).await.map_err(Error::status("read the statistics"))?;
    let stats = stats.into_inner();
    match global.json {
        true => output::json_line(&stats_json(&stats))?,
        false => show(&stats)?,
    }
    Ok(0)
}

fn show(stats: &v1::StatsResponse) -> Result<(), Error> {
    output::line(format_args!(
        "novum {}, up {}, {} resident; sandboxes hold {} of {}{}",
        stats.version,
        format_duration(duration(stats.uptime.as_ref())),
        format_size(stats.resident_bytes),
        format_size(stats.sandbox_bytes),
        format_size(stats.memory_budget_bytes),
        if stats.draining { ", draining" } else { "" },
    ))?;
    for engine in &stats.engines {
        let name = engine_name(engine.engine);
        match engine.available {
            true => {
                output::line(format_args!("engine {name}: {}", output::styled(output::GREEN, "available")))?
            }
            false => output::line(format_args!("engine {name}: {}", engine.reason))?,
        }
    }
    if stats.functions.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let heading = [
        "FUNCTION", "VERSION", "RUNNING", "QUEUED", "IDLE", "MEMORY", "OK", "FAILED", "STOPPED", "REFUSED",
        "COLD", "EVICTED", "P50", "P99",
    ];
    output::table(&heading, &stats.functions.iter().map(row).collect::<Vec<_>>())
}

fn row(f: &v1::FunctionStats) -> Vec<String> {
    let latency =
        |d: Option<&prost_types::Duration>| d.map_or("-".into(), |d| format_duration(duration(Some(d))));
    let mut cells = vec![f.function.clone(), f.version.to_string()];
    cells.extend([f.running, f.queued, f.idle].map(|n| n.to_string()));
    cells.push(format_size(f.sandbox_bytes));
    cells.extend([f.succeeded, f.failed, f.stopped, f.refused, f.cold, f.evicted].map(|n| n.to_string()));
    cells.extend([latency(f.latency_p50.as_ref()), latency(f.latency_p99.as_ref())]);
    cells
}

fn stats_json(stats: &v1::StatsResponse) -> Value {
    let us = |d: &prost_types::Duration| Duration::try_from(*d).unwrap_or_default().as_nanos() as f64 / 1e3;
    let function = |f: &v1::FunctionStats| {
        json!({
            "function": f.function, "version": f.version, "running": f.running, "queued": f.queued,
            "idle": f.idle, "succeeded": f.succeeded, "failed": f.failed, "stopped": f.stopped,
            "refused": f.refused, "cold": f.cold, "evicted": f.evicted, "sandbox_bytes": f.sandbox_bytes,
            "latency_p50_us": f.latency_p50.as_ref().map(us), "latency_p99_us": f.latency_p99.as_ref().map(us),
        })
    };
    let engine = |e: &v1::EngineStats| json!({ "engine": engine_name(e.engine), "available": e.available, "reason": e.reason });
    json!({
        "version": stats.version,
        "uptime_s": duration(stats.uptime.as_ref()).as_secs_f64(),
        "resident_bytes": stats.resident_bytes,
        "sandbox_bytes": stats.sandbox_bytes,
        "memory_budget_bytes": stats.memory_budget_bytes,
        "draining": stats.draining,
        "functions": stats.functions.iter().map(function).collect::<Vec<_>>(),
        "engines": stats.engines.iter().map(engine).collect::<Vec<_>>(),
    })
}
