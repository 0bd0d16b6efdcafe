//! The gateway over loopback, beside its floors.
//!
//! Every round measures every cell (target x callers) once, in an order that moves on by one from round to round;
//! the rounds' medians are reported. What else the machine does meanwhile then falls on all targets alike.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use novum_proto::gateway::v1::InvokeRequest;
use prost::Message;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::h2load::{Callers, Load, Run};
use crate::host::Host;
use crate::target::{Server, novum_program};

const PAYLOAD_BYTES: usize = 100;
const METHOD: &str = "/novum.gateway.v1.Functions/Invoke";
/// Replies that are looked at one by one before each measurement; they warm everything up, too.
const VERIFIED: u32 = 2048;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times that each cell is measured.
    pub rounds: usize,
    /// Of one measurement.
    pub time: Duration,
    /// Numbers of callers.
    pub callers: Vec<u32>,
    /// Threads of each server.
    pub workers: usize,
    /// The gateway's program; built when absent.
    pub novum: Option<PathBuf>,
}

/// What is measured, in the order in which it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Floor (a).
    Tonic,
    /// Floor (b).
    Wasmtime,
    /// The gateway: a function that does nothing.
    Empty,
    /// The gateway: a function that echoes its input.
    Echo,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tonic, Self::Wasmtime, Self::Empty, Self::Echo];

    /// For tables and charts.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Tonic => "floor (a): tonic echo",
            Self::Wasmtime => "floor (b): tonic + wasmtime instance",
            Self::Empty => "novum: empty function",
            Self::Echo => "novum: echo function",
        }
    }

    /// The deployed function that is called. A floor takes any name.
    const fn function(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Tonic | Self::Wasmtime | Self::Empty => "empty",
        }
    }

    /// The reply's payload.
    const fn reply_bytes(self) -> usize {
        if matches!(self, Self::Empty) { 0 } else { PAYLOAD_BYTES }
    }
}

/// One target under one load, measured in every round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// What was called.
    pub target: Target,
    /// By how many.
    pub callers: Callers,
    /// One entry a round.
    pub rounds: Vec<Run>,
    /// Microseconds of processor time that the server used for one reply; one entry a round. On a machine with other
    /// work this moves less than what the callers see.
    pub server_cpu_us: Vec<f64>,
}

/// The raw results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and when.
    pub host: Host,
    /// Threads of each server.
    pub workers: usize,
    /// Bytes of one request's payload.
    pub payload_bytes: usize,
    /// Every cell.
    pub cells: Vec<Cell>,
}

struct Bench {
    options: Options,
    tonic: Server,
    wasmtime: Server,
    novum: Server,
    scratch: TempDir,
}

/// Runs all rounds.
///
/// # Errors
/// Where a server or h2load does not start, and where one reply of any of them is not OK.
pub async fn measure(options: Options) -> Result<Results> {
    let host = Host::now();
    let bench = Bench::start(options).await?;
    let mut cells = bench.cells();
    for round in 0..bench.options.rounds {
        let count = cells.len();
        for step in 0..count {
            let cell = &mut cells[(step + round) % count];
            let (run, server_cpu_us) = bench.measure(cell.target, cell.callers).await?;
            eprintln!(
                "round {} of {}: {:36} {:3} callers {:9.0}/s  p50 {:5} us  p99 {:5} us  server {:4.1} us CPU",
                round + 1,
                bench.options.rounds,
                cell.target.title(),
                cell.callers.total,
                run.rps(),
                run.p50_us,
                run.p99_us,
                server_cpu_us
            );
            cell.rounds.push(run);
            cell.server_cpu_us.push(server_cpu_us);
        }
    }
    Ok(Results { host, workers: bench.options.workers, payload_bytes: PAYLOAD_BYTES, cells })
}

impl Bench {
    async fn start(options: Options) -> Result<Self> {
        let program = novum_program(options.novum.clone())?;
        let scratch = TempDir::new()?;
        let novum = Server::novum(&program, scratch.path(), options.workers).await?;
        let tonic = Server::floor("tonic", options.workers)?;
        let wasmtime = Server::floor("wasmtime", options.workers)?;
        let bench = Self { options, tonic, wasmtime, novum, scratch };
        for target in Target::ALL {
            bench.prepare(target).await.with_context(|| target.title())?;
        }
        Ok(bench)
    }

    /// One call by a real client, and the body that h2load sends.
    async fn prepare(&self, target: Target) -> Result<()> {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        let request = InvokeRequest {
            function: target.function().into(),
            payload: payload.clone(),
            ..Default::default()
        };
        let reply = self.server(target).invoke(request.clone()).await?;
        ensure!(reply.payload == payload[..target.reply_bytes()], "it replied {:?}", reply.payload);
        std::fs::write(self.body(target), length_prefixed(&request))?;
        Ok(())
    }

    fn server(&self, target: Target) -> &Server {
        match target {
            Target::Tonic => &self.tonic,
            Target::Wasmtime => &self.wasmtime,
            Target::Empty | Target::Echo => &self.novum,
        }
    }

    fn body(&self, target: Target) -> PathBuf {
        self.scratch.path().join(target.function())
    }

    fn cells(&self) -> Vec<Cell> {
        let by_callers = |total: &u32| {
            let callers = Callers::new(*total);
            Target::ALL.map(|target| Cell { target, callers, rounds: Vec::new(), server_cpu_us: Vec::new() })
        };
        self.options.callers.iter().flat_map(by_callers).collect()
    }

    async fn measure(&self, target: Target, callers: Callers) -> Result<(Run, f64)> {
        let server = self.server(target);
        let url = format!("http://{}{METHOD}", server.address);
        let body = self.body(target);
        let load = Load { url: &url, body: &body };
        load.verify(callers, VERIFIED.next_multiple_of(callers.total), target.reply_bytes())?;
        let before = self.succeeded(target).await?;
        let cpu_before = server.cpu_time()?;
        let run = load.run(callers, self.options.time)?;
        let cpu = server.cpu_time()? - cpu_before;
        if let (Some(before), Some(after)) = (before, self.succeeded(target).await?) {
            let succeeded = after - before;
            ensure!(succeeded >= run.requests, "{} replies, {succeeded} invocations succeeded", run.requests);
        }
        let server_cpu_us = cpu.as_secs_f64() * 1e6 / run.requests as f64;
        Ok((run, server_cpu_us))
    }

    /// What the gateway has counted; the floors count nothing.
    async fn succeeded(&self, target: Target) -> Result<Option<u64>> {
        match target {
            Target::Tonic | Target::Wasmtime => Ok(None),
            Target::Empty | Target::Echo => self.novum.succeeded(target.function()).await.map(Some),
        }
    }
}

/// A gRPC message on the wire: not compressed, its length, itself (gRPC over HTTP/2, Length-Prefixed-Message).
pub(crate) fn length_prefixed(message: &impl Message) -> Vec<u8> {
    let length = u32::try_from(message.encoded_len()).expect("a benchmark's message is small");
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}

impl Cell {
    /// The median over the rounds of any number of a run.
    #[must_use]
    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.rounds.iter().map(of).collect())
    }

    /// The median of the server's processor time for one reply.
    #[must_use]
    pub fn cpu_us(&self) -> f64 {
        median(self.server_cpu_us.clone())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Results {
    /// The cell of a target and a number of callers.
    #[must_use]
    pub fn cell(&self, target: Target, callers: u32) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.target == target && cell.callers.total == callers)
    }

    /// The numbers of callers, in the order measured.
    #[must_use]
    pub fn callers(&self) -> Vec<u32> {
        let mut callers: Vec<u32> = self.cells.iter().map(|cell| cell.callers.total).collect();
        callers.dedup();
        callers
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One round of made-up numbers: target `i` with 1 or 64 callers.
    pub(crate) fn results() -> Results {
        let run = |i: u32, callers: u32| Run {
            requests: u64::from((10 - i) * 10_000 * callers.min(8)),
            seconds: 2.0,
            p50_us: u64::from(50 + 10 * i + callers),
            p90_us: u64::from(100 + 10 * i + callers),
            p99_us: u64::from(300 + 10 * i + callers),
            max_us: 2000,
        };
        let cell = |callers: u32| {
            (0..).zip(Target::ALL).map(move |(i, target)| Cell {
                target,
                callers: Callers::new(callers),
                rounds: vec![run(i, callers)],
                server_cpu_us: vec![f64::from(10 + i)],
            })
        };
        Results {
            host: Host::now(),
            workers: 2,
            payload_bytes: PAYLOAD_BYTES,
            cells: cell(1).chain(cell(64)).collect(),
        }
    }

    #[test]
    fn medians_ignore_outliers() {
        let mut cell = results().cells.remove(0);
        for p50_us in [10, 1_000_000] {
            cell.rounds.push(Run { p50_us, ..cell.rounds[0].clone() });
        }
        assert_eq!(cell.median(|run| run.p50_us as f64), 51.0);
    }

    #[test]
    fn a_message_is_prefixed_with_its_length() {
        let bytes = length_prefixed(&InvokeRequest { function: "ab".into(), ..Default::default() });
        assert_eq!(bytes, [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }
}
