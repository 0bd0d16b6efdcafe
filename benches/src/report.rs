//! What a run leaves behind: raw JSON for machines, a Markdown table and a chart for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::chart;
use crate::gateway::{Results, Target};

/// Writes `gateway.json`, `gateway.md` and `gateway.svg` into a directory.
///
/// # Errors
/// Where a file cannot be written or the chart not drawn.
pub fn write(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("gateway.json", &(serde_json::to_string_pretty(results)? + "\n"))?;
    put("gateway.md", &markdown(results))?;
    put("gateway.svg", &chart::draw(results)?)
}

/// The table, the ratios to the floors, and where it was measured.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let mut text = String::from(
        "| callers | target | requests/s | of floor (b) | p50 us | p90 us | p99 us | p50 over floor (a) | server CPU us/request |\n\
         |---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for cell in &results.cells {
        let callers = cell.callers.total;
        let rps = cell.median(|run| run.rps());
        let p50 = cell.median(|run| run.p50_us as f64);
        let floor_b =
            results.cell(Target::Wasmtime, callers).map_or(f64::NAN, |floor| floor.median(|run| run.rps()));
        let floor_a = results
            .cell(Target::Tonic, callers)
            .map_or(f64::NAN, |floor| floor.median(|run| run.p50_us as f64));
        writeln!(
            text,
            "| {callers} | {} | {rps:.0} | {:.2} | {p50:.0} | {:.0} | {:.0} | {:+.0} | {:.1} |",
            cell.target.title(),
            rps / floor_b,
            cell.median(|run| run.p90_us as f64),
            cell.median(|run| run.p99_us as f64),
            p50 - floor_a,
            cell.cpu_us(),
        )
        .expect("a string takes text");
    }
    let cell = &results.cells[0];
    let samples: Vec<u64> =
        results.cells.iter().flat_map(|cell| cell.rounds.iter().map(|run| run.requests)).collect();
    let seconds = cell.rounds.first().map_or(0.0, |run| run.seconds);
    writeln!(
        text,
        "\nMedians of {} rounds of {seconds} s, {} to {} requests each, {} B payload, {} threads per server; h2load on the same \
         machine. {}.",
        cell.rounds.len(),
        samples.iter().min().unwrap_or(&0),
        samples.iter().max().unwrap_or(&0),
        results.payload_bytes,
        results.workers,
        results.host.line()
    )
    .expect("a string takes text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::results;

    #[test]
    fn the_table_shows_ratios_to_the_floors() {
        let table = markdown(&results());
        assert!(
            table.contains("| 64 | novum: empty function | 320000 | 0.89 | 134 | 184 | 384 | +20 | 12.0 |"),
            "{table}"
        );
        assert!(
            table.contains("| 1 | floor (b): tonic + wasmtime instance | 45000 | 1.00 | 61 |"),
            "{table}"
        );
    }

    #[test]
    fn raw_results_read_back_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let results = results();
        write(&results, directory.path()).unwrap();
        let text = fs::read_to_string(directory.path().join("gateway.json")).unwrap();
        let again: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(markdown(&again), markdown(&results));
        assert!(fs::read_to_string(directory.path().join("gateway.svg")).unwrap().contains("<svg"));
    }
}
