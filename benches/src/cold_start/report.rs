//! What a run leaves behind: raw JSON for machines, Markdown tables and a chart for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use novum_sandbox::EngineKind;

use super::{Cell, PerSandbox, Program, Results, Way, chart};

/// Writes `cold-start.json`, `cold-start.md` and `cold-start.svg` into a directory.
///
/// # Errors
/// Where a file cannot be written or the chart not drawn.
pub fn write(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("cold-start.json", &(serde_json::to_string(results)? + "\n"))?;
    put("cold-start.md", &markdown(results))?;
    put("cold-start.svg", &chart::draw(results)?)
}

/// All tables, and where it was measured.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let parts = [
        starts(results),
        clocks(results),
        memory(results),
        through(results),
        aims(results),
        skipped(results),
        place(results),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn row(text: &mut String, cells: &[String]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("a string takes text");
}

/// Three digits that count: `4.13`, `57.2`, `1540`.
fn number(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".into(),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn starts(results: &Results) -> String {
    if results.cells.is_empty() {
        return String::new();
    }
    let parallel = results.cells.first().map_or(0, |cell| cell.parallel.parallel);
    let mut text = format!(
        "From nothing, or from the image, to the complete reply; microseconds.\n\n\
         | program | way | samples | fastest | p50 | p90 | p99 | max | page faults | of spawn | samples by {parallel} | p50 | p90 | p99 | max | per second by {parallel} |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for Cell { program, way, alone, parallel } in &results.cells {
        let spawn = results.find(*program, Way::Spawn).map_or(f64::NAN, |cell| cell.alone.quantile(0.5));
        let at = |q| number(alone.quantile(q));
        let of_spawn = if way.is_of_host() { f64::NAN } else { alone.quantile(0.5) / spawn };
        let program = if way.is_of_host() { "-" } else { program.title() };
        let mut cells = vec![program.to_owned(), way.title(), alone.micros.len().to_string()];
        cells.extend([0.0, 0.5, 0.9, 0.99, 1.0].map(at));
        cells.extend([alone.faults, of_spawn].map(number));
        cells.push(parallel.micros.len().to_string());
        cells.extend([0.5, 0.9, 0.99, 1.0].map(|q| number(parallel.quantile(q))));
        cells.push(number(parallel.per_second()));
        row(&mut text, &cells);
    }
    text
}

fn clocks(results: &Results) -> String {
    let mut text = String::from(
        "The clocks of the same samples, one after the other: medians in microseconds since the start.\n\n\
         | program | way | sandbox ready | guest resumed | first byte | complete reply |\n|---|---|---:|---:|---:|---:|\n",
    );
    let empty = text.len();
    for Cell { program, way, alone, .. } in &results.cells {
        let Some(clocks) = alone.clocks_p50 else { continue };
        let mut cells = vec![program.title().to_owned(), way.title()];
        cells.extend(clocks.map(number));
        cells.push(number(alone.quantile(0.5)));
        row(&mut text, &cells);
    }
    if text.len() > empty { text } else { String::new() }
}

fn memory(results: &Results) -> String {
    if results.density.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "Memory of one sandbox on average, KiB: private pages plus kernel memory.\n\n\
         | program | engine | sandboxes | idle | of it kernel | idle, PSS | called | used | of it kernel | used, PSS | kernel from |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
    );
    let kib = |bytes: f64| number(bytes / 1024.0);
    for density in &results.density {
        let state = |each: PerSandbox| [kib(each.private + each.kernel), kib(each.kernel), kib(each.pss)];
        let mut cells =
            vec![density.program.title().into(), density.engine.clone(), density.sandboxes.to_string()];
        cells.extend(state(density.idle));
        cells.push(density.called.to_string());
        cells.extend(state(density.used));
        cells.push(density.kernel_from.clone());
        row(&mut text, &cells);
    }
    text
}

fn through(results: &Results) -> String {
    if results.through.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "The hello program through the gateway over gRPC, a clean state for every request; h2load on the same machine.\n\n\
         | server | callers | requests/s | p50 us | p90 us | p99 us | max us | server CPU us/request | first call ms |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row_ in &results.through {
        let run = &row_.run;
        let mut cells =
            vec![row_.server.clone(), row_.callers.total.to_string(), format!("{:.0}", run.rps())];
        cells.extend([run.p50_us, run.p90_us, run.p99_us, run.max_us].map(|us| us.to_string()));
        cells.extend([row_.server_cpu_us, row_.first_call_ms].map(number));
        row(&mut text, &cells);
    }
    text
}

/// One aim.
struct Aim {
    what: &'static str,
    measured: Option<f64>,
    /// At most this, or at least.
    wanted: f64,
    at_least: bool,
    /// What no engine on this host can go below, measured in the same run.
    floor: Option<f64>,
}

impl Aim {
    fn at_most(what: &'static str, measured: Option<f64>, wanted: f64) -> Self {
        Self { what, measured, wanted, at_least: false, floor: None }
    }

    fn at_least(what: &'static str, measured: Option<f64>, wanted: f64) -> Self {
        Self { at_least: true, ..Self::at_most(what, measured, wanted) }
    }

    fn over(self, floor: Option<f64>) -> Self {
        Self { floor, ..self }
    }

    fn row(&self) -> Option<Vec<String>> {
        let measured = self.measured?;
        let met = if self.at_least { measured >= self.wanted } else { measured <= self.wanted };
        let wanted = format!("{} {:.0}", if self.at_least { "at least" } else { "at most" }, self.wanted);
        let floor = self.floor.map_or_else(String::new, number);
        let verdict = if met { "met" } else { "missed" };
        Some(vec![self.what.into(), number(measured), wanted, verdict.into(), floor])
    }
}

fn aims(results: &Results) -> String {
    let mut text = String::from(
        "Aims of the process engine. A floor is what bare KVM needs in the same run: for a VM that is made and left once, for two exits \
         (the write and the end of an empty call), or for the same program in a sandbox that has run it before.\n\n\
         | aim | measured | wanted | | floor |\n|---|---:|---:|---|---:|\n",
    );
    let empty = text.len();
    let all = [start_aims(results), memory_and_gateway_aims(results)];
    all.iter().flatten().filter_map(Aim::row).for_each(|cells| row(&mut text, &cells));
    if text.len() > empty { text } else { String::new() }
}

fn start_aims(results: &Results) -> Vec<Aim> {
    use Program::{Hello, Python, Rust};
    const PROCESS: EngineKind = EngineKind::Process;
    let at = |program, way, q| results.find(program, way).map(|cell| cell.alone.quantile(q));
    let restore = |program, q| at(program, Way::Restore(PROCESS), q);
    let first_byte = |program| {
        let cell = results.find(program, Way::Restore(PROCESS))?;
        cell.alone.clocks_p50.map(|clocks| clocks[2])
    };
    let faster = at(Python, Way::Spawn, 0.5).zip(restore(Python, 0.5));
    let (kvm, exit) = (at(Hello, Way::Kvm, 0.5), at(Hello, Way::Exit, 0.5));
    let two_exits = exit.map(|exit| 2.0 * exit);
    let all_made = kvm.zip(exit).map(|(kvm, exit)| kvm + exit);
    let again = at(Python, Way::Call(PROCESS), 0.5);
    vec![
        Aim::at_most("hello, restore + call, p50 us", restore(Hello, 0.5), 300.0).over(two_exits),
        Aim::at_most("hello, restore + call, p99 us", restore(Hello, 0.99), 1000.0),
        Aim::at_most("Rust, restore + call, p50 us", restore(Rust, 0.5), 300.0).over(two_exits),
        Aim::at_most("Rust, restore + call, p99 us", restore(Rust, 0.99), 1000.0),
        Aim::at_most("hello, restore + call, all made, p50 us", at(Hello, Way::Create(PROCESS), 0.5), 1000.0)
            .over(all_made),
        Aim::at_most("Rust, restore + call, all made, p50 us", at(Rust, Way::Create(PROCESS), 0.5), 1000.0)
            .over(all_made),
        Aim::at_most("hello, fork into a new sandbox, p50 us", at(Hello, Way::Branch(PROCESS), 0.5), 450.0)
            .over(kvm),
        Aim::at_most("Python, restore to the reply's first byte, p50 us", first_byte(Python), 2000.0),
        Aim::at_most("Python, restore + call to its end, p50 us", restore(Python, 0.5), 2000.0).over(again),
        Aim::at_least("Python, spawn over restore", faster.map(|(spawn, restore)| spawn / restore), 10.0),
        Aim::at_most("hello, reset + call, p50 us", at(Hello, Way::Reset(PROCESS), 0.5), 60.0)
            .over(two_exits),
    ]
}

fn memory_and_gateway_aims(results: &Results) -> Vec<Aim> {
    const PROCESS: EngineKind = EngineKind::Process;
    let idle = results.density.iter().filter(|d| d.engine == PROCESS.as_str() && d.sandboxes >= 1000);
    let idle = idle.map(|d| (d.idle.private + d.idle.kernel) / 1024.0).reduce(f64::max);
    let rows = || results.through.iter().filter(|row| row.server.contains(PROCESS.as_str()));
    let one = rows().find(|row| row.callers.total == 1).map(|row| row.run.p50_us as f64);
    let most = rows().map(|row| row.run.rps()).reduce(f64::max);
    vec![
        Aim::at_most("1,000 idle sandboxes, the largest program's, KiB each", idle, 512.0),
        Aim::at_most("gRPC, 1 caller, p50 us", one, 600.0),
        Aim::at_least("gRPC, requests/s", most, 3000.0),
    ]
}

fn skipped(results: &Results) -> String {
    if results.skipped.is_empty() {
        return String::new();
    }
    let mut text = String::from("Not measured:\n\n");
    for skipped in &results.skipped {
        writeln!(text, "- {}: {}", skipped.what, skipped.reason).expect("a string takes text");
    }
    text
}

fn place(results: &Results) -> String {
    let build = if results.development_build {
        " A development build: the numbers say nothing about novum."
    } else {
        ""
    };
    format!("{} samples in each cell. {}.{build}\n", results.samples, results.host.line())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cold_start::{Batch, Density, Skipped, Through};
    use crate::h2load::{Callers, Run};
    use crate::host::Host;

    /// Made-up numbers: way `i` takes `10^i` to `2 * 10^i` us.
    pub(crate) fn results() -> Results {
        let batch = |base: f64, parallel| Batch {
            parallel,
            micros: (0..=100).map(|n| base * (1.0 + f64::from(n) / 100.0)).collect(),
            clocks_p50: Some([0.25, 0.5, 0.75].map(|part| part * base)),
            seconds: 0.5,
            faults: 3.0,
        };
        let process = EngineKind::Process;
        let ways = [Way::Reset(process), Way::Restore(process), Way::Spawn];
        let exit =
            Cell { program: Program::Hello, way: Way::Exit, alone: batch(2.0, 1), parallel: batch(2.0, 2) };
        let cells = (1..).zip(ways).map(|(i, way)| {
            let base = 10f64.powi(i);
            Cell { program: Program::Hello, way, alone: batch(base, 1), parallel: batch(base, 2) }
        });
        let each = |kib: f64| PerSandbox { pss: kib * 1024.0, private: kib * 1024.0, kernel: 1024.0 * 300.0 };
        Results {
            host: Host::now(),
            samples: 101,
            development_build: true,
            cells: cells.chain([exit]).collect(),
            density: vec![Density {
                engine: "process".into(),
                program: Program::Hello,
                sandboxes: 1000,
                idle: each(100.0),
                used: each(140.0),
                called: 900,
                kernel_from: "cgroup".into(),
            }],
            through: vec![Through {
                server: "novum: process engine".into(),
                callers: Callers::new(1),
                run: Run {
                    requests: 4000,
                    seconds: 1.0,
                    p50_us: 700,
                    p90_us: 800,
                    p99_us: 900,
                    max_us: 1000,
                },
                server_cpu_us: 150.0,
                first_call_ms: 2.0,
            }],
            skipped: vec![Skipped { what: "python, wasm".into(), reason: "no build of it".into() }],
        }
    }

    #[test]
    fn the_tables_show_quantiles_ratios_memory_and_aims() {
        let text = markdown(&results());
        for line in [
            "| hello (C) | process: reset + call | 101 | 10.0 | 15.0 | 19.0 | 19.9 | 20.0 | 3.00 | 0.01 | 101 | 15.0 | 19.0 | 19.9 | 20.0 | 202 |",
            "| hello (C) | process: restore + call, shell ready | 25.0 | 50.0 | 75.0 | 150 |",
            "| hello (C) | process | 1000 | 400 | 300 | 100 | 900 | 440 | 300 | 140 | cgroup |",
            "| hello, reset + call, p50 us | 15.0 | at most 60 | met | 6.00 |",
            "| gRPC, 1 caller, p50 us | 700 | at most 600 | missed |  |",
            "| gRPC, requests/s | 4000 | at least 3000 | met |  |",
            "- python, wasm: no build of it",
            "A development build",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn raw_results_read_back_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let results = results();
        write(&results, directory.path()).unwrap();
        let text = fs::read_to_string(directory.path().join("cold-start.json")).unwrap();
        let again: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(markdown(&again), markdown(&results));
    }
}
