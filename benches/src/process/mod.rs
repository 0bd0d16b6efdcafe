//! The process engine beside native processes and beside bare KVM, in one run.
//!
//! ```text
//! cases.rs    what is measured: programs built here by gcc, and the system's Python
//!   run.rs      one program, natively and through the engine's contract
//!   floor.rs    bare KVM: make a VM and leave it once; one round trip of a call
//!   sys.rs      guest memory of the floor, processor time
//! report.rs   raw JSON, the Markdown table
//! ```
//! Every round takes a few samples of every side of every case, beginning with another side each time: what else
//! the machine does meanwhile then falls on all of them alike.

mod cases;
pub(crate) mod floor;
pub mod report;
mod run;
mod sys;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::host::Host;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times that everything is measured.
    pub rounds: usize,
    /// Only cases whose name holds this.
    pub only: Option<String>,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// A process of the host.
    Native,
    /// A process of the host whose memory comes in large pages, as a sandbox's does.
    LargePages,
    /// This engine.
    Novum,
    /// Bare KVM.
    Floor,
}

/// In what a case is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Microseconds; less is better.
    Micros,
    /// Milliseconds; less is better.
    Millis,
    /// Mebibytes a second; more is better.
    MibPerSecond,
}

/// What a case should come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// At most this many times the native number.
    OfNative(f64),
    /// At most this many times the floor.
    OfFloor(f64),
    /// At most this, in the case's unit.
    Absolute(f64),
}

/// One measured value.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// In the case's unit.
    value: f64,
    /// Milliseconds of processor time, the VMM's included.
    cpu_ms: f64,
    /// Milliseconds of the sandbox's start, where there is one.
    start_ms: f64,
    /// How often the program left its VM.
    exits: u64,
}

/// One side of a case, measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The case.
    pub case: String,
    /// Who did it.
    pub side: Side,
    /// What the values are in.
    pub unit: Unit,
    /// What novum should come to.
    pub aim: Option<Aim>,
    /// All samples.
    pub values: Vec<f64>,
    /// Processor time of each, milliseconds; the program's whole life, the VMM and the sandbox's start included.
    pub cpu_ms: Vec<f64>,
    /// Of novum: the sandbox's start in each, milliseconds.
    pub start_ms: Vec<f64>,
    /// Of novum: how often the program left its VM in each.
    pub exits: Vec<u64>,
}

/// The raw results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and when.
    pub host: Host,
    /// How often.
    pub rounds: usize,
    /// Every side of every case.
    pub rows: Vec<Row>,
}

type Measure = Box<dyn FnMut() -> Result<Sample>>;

/// One thing that several sides do.
struct Case {
    name: String,
    unit: Unit,
    aim: Option<Aim>,
    /// Samples of each side in one round.
    per_round: usize,
    sides: Vec<(Side, Measure)>,
}

/// Runs all rounds.
///
/// # Errors
/// Where KVM or gcc is missing, and where a program fails or comes to another result than natively.
pub fn measure(options: &Options) -> Result<Results> {
    novum_sandbox::process::probe().map_err(anyhow::Error::msg)?;
    let host = Host::now();
    let scratch = TempDir::new()?;
    let wanted = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut cases = cases::all(scratch.path(), &wanted)?;
    ensure!(!cases.is_empty(), "no measurement has such a name");
    let mut rows: Vec<Vec<Row>> = cases.iter().map(Case::rows).collect();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (case, rows) in cases.iter_mut().zip(&mut rows) {
            case.round(round, rows).with_context(|| case.name.clone())?;
        }
    }
    Ok(Results { host, rounds: options.rounds, rows: rows.into_iter().flatten().collect() })
}

impl Case {
    fn rows(&self) -> Vec<Row> {
        let row = |(side, _): &(Side, Measure)| Row {
            case: self.name.clone(),
            side: *side,
            unit: self.unit,
            aim: self.aim,
            values: Vec::new(),
            cpu_ms: Vec::new(),
            start_ms: Vec::new(),
            exits: Vec::new(),
        };
        self.sides.iter().map(row).collect()
    }

    fn round(&mut self, round: usize, rows: &mut [Row]) -> Result<()> {
        let count = self.sides.len();
        for step in 0..count {
            let at = (step + round) % count;
            for _ in 0..self.per_round {
                let sample = (self.sides[at].1)()?;
                rows[at].values.push(sample.value);
                rows[at].cpu_ms.push(sample.cpu_ms);
                rows[at].start_ms.push(sample.start_ms);
                rows[at].exits.push(sample.exits);
            }
        }
        Ok(())
    }
}

impl Row {
    /// The value below which this share of the samples lies; the best ones come first.
    #[must_use]
    pub fn percentile(&self, share: f64) -> f64 {
        let worst_last = self.unit != Unit::MibPerSecond;
        percentile(&self.values, if worst_last { share } else { 1.0 - share })
    }
}

/// The value below which this share of `values` lies.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    sorted[(last as f64 * share).round() as usize]
}

impl Results {
    /// One side of a case.
    #[must_use]
    pub fn row(&self, case: &str, side: Side) -> Option<&Row> {
        self.rows.iter().find(|row| row.case == case && row.side == side)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_take_the_nearest_sample_and_put_the_worst_last() {
        assert!((percentile(&[3.0, 1.0, 2.0], 0.5) - 2.0).abs() < 1e-9);
        let row = |unit| Row {
            case: "case".into(),
            side: Side::Novum,
            unit,
            aim: None,
            values: (0..101).map(f64::from).collect(),
            cpu_ms: Vec::new(),
            start_ms: Vec::new(),
            exits: Vec::new(),
        };
        assert!((row(Unit::Millis).percentile(0.99) - 99.0).abs() < 1e-9);
        assert!((row(Unit::MibPerSecond).percentile(0.99) - 1.0).abs() < 1e-9);
    }
}
