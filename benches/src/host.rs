//! What numbers were taken on: without it they mean nothing.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A machine, and the state of the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// The processor's own name.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// All memory.
    pub memory_bytes: u64,
    /// Release of the running kernel.
    pub kernel: String,
    /// The source's commit; `-dirty` follows where files differ from it.
    pub commit: String,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// Load average of the minute before: how busy others kept the machine.
    pub load_before: f64,
}

impl Host {
    /// This one, now.
    #[must_use]
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
                .map_or(0, |kib| kib << 10),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit(),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            load_before: read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0),
        }
    }

    /// One line for a report.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{}, {} cores, {} GiB, Linux {}, commit {}, load before {:.1}",
            self.cpu,
            self.cores,
            self.memory_bytes >> 30,
            self.kernel,
            self.commit,
            self.load_before
        )
    }
}

/// The value of the first `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn commit() -> String {
    let git =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nMemTotal:  100 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("AMD EPYC"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("100 kB"));
        assert_eq!(field(text, "absent"), None);
    }

    #[test]
    fn this_host_is_known() {
        let host = Host::now();
        assert!(host.cores > 0 && host.memory_bytes > 0 && !host.kernel.is_empty(), "{host:?}");
    }
}
