//! What a run leaves behind: raw JSON for machines, a Markdown table for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Aim, Results, Row, Side, Unit, percentile};

/// Writes `process.json` and `process.md` into a directory.
///
/// # Errors
/// Where a file cannot be written.
pub fn write(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("process.json", &(serde_json::to_string_pretty(results)? + "\n"))?;
    put("process.md", &markdown(results))
}

/// The table, and where it was measured.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let mut text = String::from(
        "| what | by | unit | p50 | p99 | best | CPU p50 ms | CPU best ms | of it, start ms | exits | samples | novum to this | its CPU to this | aim |\n\
         |---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
    );
    for row in &results.rows {
        line(&mut text, results, row).expect("a string takes text");
    }
    floors(&mut text, results).expect("a string takes text");
    writeln!(text, "\n{} rounds; {}", results.rounds, results.host.line()).expect("a string takes text");
    text
}

fn line(text: &mut String, results: &Results, row: &Row) -> std::fmt::Result {
    let decimals = if row.unit == Unit::MibPerSecond { 0 } else { 2 };
    let novum = results.row(&row.case, Side::Novum).filter(|_| row.side != Side::Novum);
    let ratio = novum.map(|novum| format!("{:.2}", novum.percentile(0.5) / row.percentile(0.5)));
    let cpu_ratio =
        novum.map(|novum| format!("{:.2}", percentile(&novum.cpu_ms, 0.5) / percentile(&row.cpu_ms, 0.5)));
    let cpu = percentile(&row.cpu_ms, 0.5);
    let start = percentile(&row.start_ms, 0.5);
    writeln!(
        text,
        "| {} | {} | {} | {:.decimals$} | {:.decimals$} | {:.decimals$} | {} | {} | {} | {} | {} | {} | {} | {} |",
        row.case,
        by(row.side),
        unit(row.unit),
        row.percentile(0.5),
        row.percentile(0.99),
        row.percentile(0.0),
        if cpu > 0.0 { format!("{cpu:.2}") } else { String::new() },
        if cpu > 0.0 { format!("{:.2}", percentile(&row.cpu_ms, 0.0)) } else { String::new() },
        if row.side == Side::Novum { format!("{start:.2}") } else { String::new() },
        if row.side == Side::Novum { exits(row).to_string() } else { String::new() },
        row.values.len(),
        ratio.unwrap_or_default(),
        cpu_ratio.unwrap_or_default(),
        if row.side == Side::Novum { row.aim.map(aim).unwrap_or_default() } else { String::new() },
    )
}

/// How often a program left its VM in the middle one of the samples.
fn exits(row: &Row) -> u64 {
    let mut sorted = row.exits.clone();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// What a program that mostly makes calls can come to here: its exits at the price of bare KVM, and the work that it is natively.
/// Processor time, the best of the samples: other work on the machine only adds to it.
fn floors(text: &mut String, results: &Results) -> std::fmt::Result {
    const CASE: &str = "python3 -c json";
    let (Some(bare), Some(native), Some(novum)) =
        (results.row("getpid", Side::Floor), results.row(CASE, Side::Native), results.row(CASE, Side::Novum))
    else {
        return Ok(());
    };
    let exit_ms = bare.percentile(0.0) / 1e3;
    let best = |row: &Row| percentile(&row.cpu_ms, 0.0);
    let (left, own) = (exits(novum) as f64 * exit_ms, best(native));
    writeln!(
        text,
        "\n{CASE}, best processor time: {} exits at {:.1} us of bare KVM are {left:.1} ms, the native run is {own:.1} ms, \
         together {:.1} ms; novum takes {:.1} ms, {:.2} of that.",
        exits(novum),
        exit_ms * 1e3,
        left + own,
        best(novum),
        best(novum) / (left + own),
    )
}

fn by(side: Side) -> &'static str {
    match side {
        Side::Native => "native",
        Side::LargePages => "native, large pages",
        Side::Novum => "novum",
        Side::Floor => "bare KVM",
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Micros => "us",
        Unit::Millis => "ms",
        Unit::MibPerSecond => "MiB/s",
    }
}

fn aim(aim: Aim) -> String {
    match aim {
        Aim::OfNative(times) => format!("<= {times} of native"),
        Aim::OfFloor(times) => format!("<= {times} of bare KVM"),
        Aim::Absolute(most) => format!("<= {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn the_table_sets_novum_against_the_others() {
        let row = |side, value: f64| Row {
            case: "getpid".into(),
            side,
            unit: Unit::Micros,
            aim: Some(Aim::OfFloor(1.2)),
            values: vec![value],
            cpu_ms: vec![1.0],
            start_ms: vec![0.0],
            exits: vec![7],
        };
        let rows = vec![row(Side::Native, 0.1), row(Side::Novum, 30.0), row(Side::Floor, 20.0)];
        let text = markdown(&Results { host: Host::now(), rounds: 1, rows });
        assert!(
            text.contains(
                "| getpid | bare KVM | us | 20.00 | 20.00 | 20.00 | 1.00 | 1.00 |  |  | 1 | 1.50 | 1.00 |  |"
            ),
            "{text}"
        );
        assert!(text.contains(
            "| getpid | novum | us | 30.00 | 30.00 | 30.00 | 1.00 | 1.00 | 0.00 | 7 | 1 |  |  | <= 1.2 of bare KVM |"
        ));
    }
}
