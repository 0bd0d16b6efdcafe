//! The load generator: h2load from Debian's `nghttp2-client`, with a gRPC message as the prepared body.
//!
//! h2load counts HTTP statuses, and a gRPC failure is HTTP 200 too. h2load cannot show trailers; but a failed unary
//! call has only one block of headers and no message ("Trailers-Only", gRPC over HTTP/2), so its `grpc-status` stands
//! where h2load shows it. [`Load::verify`] looks for that in a first small run and counts the messages' bytes; the caller
//! then compares what the server counted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// "Compressed" flag and length before each message (gRPC over HTTP/2, Length-Prefixed-Message).
const MESSAGE_PREFIX_BYTES: usize = 5;

/// How many requests are under way at once, and over how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// Requests under way.
    pub total: u32,
    /// Connections that share them evenly.
    pub connections: u32,
}

impl Callers {
    /// Spread over at most 8 connections: enough that the kernel's spreading of connections over the server's
    /// listeners evens out, few enough that multiplexing is what is measured.
    #[must_use]
    pub fn new(total: u32) -> Self {
        let connections = (1..=8).rev().find(|n| total.is_multiple_of(*n)).unwrap_or(1);
        Self { total, connections: if total < 8 { total } else { connections } }
    }
}

/// One URL and one body.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// `http://HOST:PORT/package.Service/Method`
    pub url: &'a str,
    /// A file with one length-prefixed gRPC message.
    pub body: &'a Path,
}

/// One timed run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Replies within the timed seconds.
    pub requests: u64,
    /// Timed seconds.
    pub seconds: f64,
    /// Microseconds from request to end of reply.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Slowest.
    pub max_us: u64,
}

impl Run {
    /// Replies per second.
    #[must_use]
    pub fn rps(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

impl Load<'_> {
    /// Sends `count` requests and looks at every reply's headers and at the bytes of all messages.
    ///
    /// # Errors
    /// Where one reply is not OK, or messages are missing. A message has at least `reply_bytes`.
    pub fn verify(&self, callers: Callers, count: u32, reply_bytes: usize) -> Result<()> {
        let output = self.h2load(callers, &["-v".into(), format!("-n{count}")])?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(line) = text.lines().find(|line| line.contains("grpc-status: ") && !line.ends_with(": 0"))
        {
            bail!("{}: a reply has {line}", self.url);
        }
        let ok = text.lines().filter(|line| line.ends_with(":status: 200")).count();
        ensure!(ok == count as usize, "{}: {ok} of {count} replies have HTTP status 200", self.url);
        let bytes = data_bytes(&text).context("h2load printed no traffic line")?;
        let least = count as usize * (MESSAGE_PREFIX_BYTES + reply_bytes);
        ensure!(bytes >= least, "{}: {bytes} bytes in {count} replies; at least {least} expected", self.url);
        Ok(())
    }

    /// Keeps all callers busy for `time`.
    ///
    /// # Errors
    /// Where h2load fails or a request did.
    pub fn run(&self, callers: Callers, time: Duration) -> Result<Run> {
        let log = tempfile::NamedTempFile::new().context("a file for h2load's log")?;
        let arguments = [format!("-D{}ms", time.as_millis()), format!("--log-file={}", log.path().display())];
        let output = self.h2load(callers, &arguments)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let latencies = latencies(BufReader::new(fs::File::open(log.path())?))?;
        check_counts(&text, latencies.len())?;
        Ok(Run {
            requests: latencies.len(),
            seconds: time.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5),
            p90_us: latencies.value_at_quantile(0.9),
            p99_us: latencies.value_at_quantile(0.99),
            max_us: latencies.max(),
        })
    }

    fn h2load(&self, callers: Callers, arguments: &[String]) -> Result<Output> {
        let output = Command::new("h2load")
            .arg(format!("-c{}", callers.connections))
            .arg(format!("-m{}", callers.total / callers.connections))
            .args(["-t1", "-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
            .arg(self.body)
            .args(arguments)
            .arg(self.url)
            .output()
            .context("h2load does not start; install Debian's nghttp2-client")?;
        if !output.status.success() {
            bail!("h2load failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output)
    }
}

/// The last number of `traffic: 167B (167) total, 41B (41) headers (space savings 71.13%), 10B (10) data`
fn data_bytes(summary: &str) -> Option<usize> {
    let line = summary.lines().find(|line| line.starts_with("traffic:"))?;
    line.strip_suffix(") data")?.rsplit_once('(')?.1.parse().ok()
}

/// The log's third column: microseconds of one request. Only HTTP status 200 may be there.
fn latencies(log: impl BufRead) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    for line in log.lines() {
        let line = line?;
        let mut columns = line.split('\t').skip(1);
        let (Some(status), Some(latency)) = (columns.next(), columns.next()) else {
            bail!("h2load wrote an unknown log line: {line:?}");
        };
        ensure!(status == "200", "a request ended with HTTP status {status}");
        histogram.record(latency.parse::<u64>()?.max(1))?;
    }
    Ok(histogram)
}

/// Holds the log against h2load's own summary:
/// `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout`
fn check_counts(summary: &str, logged: u64) -> Result<()> {
    let line =
        summary.lines().find(|line| line.starts_with("requests:")).context("h2load printed no summary")?;
    let count = |name: &str| -> Option<u64> {
        line.split([',', ':']).find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok())
    };
    let (Some(done), Some(failed)) = (count("succeeded"), count("failed")) else {
        bail!("h2load printed an unknown summary: {line:?}");
    };
    ensure!(failed == 0 && done > 0, "h2load: {line}");
    ensure!(done == logged, "h2load counted {done} replies and logged {logged}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_spread_evenly() {
        for (total, connections) in [(1, 1), (4, 4), (16, 8), (64, 8), (9, 3), (11, 1)] {
            assert_eq!(Callers::new(total), Callers { total, connections });
        }
    }

    #[test]
    fn message_bytes_are_read_from_the_summary() {
        let line = "traffic: 167B (167) total, 41B (41) headers (space savings 71.13%), 10B (10) data";
        assert_eq!(data_bytes(&format!("requests: 1\n{line}\n")), Some(10));
        assert_eq!(data_bytes("traffic: 0B"), None);
    }

    #[test]
    fn the_log_gives_latencies() {
        let latencies = latencies(&b"1\t200\t50\n2\t200\t70\n3\t200\t90\n"[..]).unwrap();
        assert_eq!((latencies.len(), latencies.value_at_quantile(0.5)), (3, 70));
        assert!(super::latencies(&b"1\t503\t50\n"[..]).is_err());
    }

    #[test]
    fn a_summary_that_disagrees_is_refused() {
        let line = "requests: 3 total, 3 started, 3 done, 3 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(check_counts(line, 3).is_ok());
        assert!(check_counts(line, 2).is_err());
        assert!(check_counts(&line.replace("0 failed", "1 failed"), 3).is_err());
        assert!(check_counts("", 0).is_err());
    }
}
