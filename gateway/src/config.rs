//! What a gateway is started with: one validated structure. Flags and files are parsed elsewhere; nothing below
//! this reads the environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Less than this and no function of any size would run.
const LEAST_BUDGET_BYTES: u64 = 16 << 20;
/// Less than this and hardly one image would fit.
const LEAST_SNAPSHOT_BYTES: u64 = 16 << 20;

/// Where a gateway listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 lets the kernel choose one.
    Tcp(SocketAddr),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The text is not a listen address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a listen address; write IP:PORT (127.0.0.1:7070, [::1]:0) or unix:/absolute/path")]
pub struct ParseListenError(String);

impl FromStr for Listen {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseListenError(text.to_owned());
        match text.strip_prefix("unix:") {
            Some(path) if Path::new(path).is_absolute() => Ok(Self::Unix(path.into())),
            Some(_) => Err(refuse()),
            None => text.parse().map(Self::Tcp).map_err(|_| refuse()),
        }
    }
}

/// Everything that `serve` needs to know.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Addresses; at least one. All of them answer gRPC and plain HTTP.
    pub listen: Vec<Listen>,
    /// The bound addresses are written into this file, one a line, when the gateway is ready to answer.
    pub port_file: Option<PathBuf>,
    /// Registry, artifacts and engine caches; made when missing, private to this user.
    pub data_dir: PathBuf,
    /// Where `novum kernel` keeps kernels of Linux guests.
    pub kernel_dir: PathBuf,
    /// Only directories below these may be shared with functions. Empty: none.
    pub allow_shares: Vec<PathBuf>,
    /// Largest payload of one invocation, and largest message of a stream.
    pub max_payload_bytes: usize,
    /// Largest artifact of one deploy, and largest sum of files unpacked from one.
    pub max_artifact_bytes: u64,
    /// Most entries (files, directories, links) of one TAR artifact.
    pub max_artifact_entries: u64,
    /// Most functions.
    pub max_functions: usize,
    /// Versions of one function that stay invocable, the current one included.
    pub keep_versions: usize,
    /// Threads that serve connections and run Wasm; each has its own runtime and its own listeners.
    pub workers: usize,
    /// How long running invocations may go on after a shutdown was asked for.
    pub drain_timeout: Duration,
    /// Bytes of log lines kept in memory for each function.
    pub log_bytes: usize,
    /// Most sandboxes of one engine at once.
    pub max_sandboxes: u32,
    /// Most sandboxes that live between calls, and most snapshots of them.
    pub max_sessions: usize,
    /// Largest memory of one sandbox that a manifest may ask for.
    pub max_memory_bytes: u64,
    /// What all sandboxes together may hold: pages that only they have, and the kernel's part.
    pub memory_budget_bytes: u64,
    /// What the store of snapshots may take on the disk.
    pub max_snapshot_bytes: u64,
    /// How long a snapshot stays that nothing refers to and nobody uses.
    pub keep_snapshots: Duration,
}

impl ServeConfig {
    /// Every default, with this data directory, listening on 127.0.0.1:7070.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            listen: vec![Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 7070)))],
            port_file: None,
            kernel_dir: data_dir.join("kernels"),
            data_dir,
            allow_shares: Vec::new(),
            max_payload_bytes: 4 << 20,
            max_artifact_bytes: 256 << 20,
            max_artifact_entries: 100_000,
            max_functions: 10_000,
            keep_versions: 3,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            drain_timeout: Duration::from_secs(30),
            log_bytes: 256 << 10,
            max_sandboxes: 1000,
            max_sessions: 100,
            max_memory_bytes: 4 << 30,
            memory_budget_bytes: crate::budget::default_limit_bytes(),
            max_snapshot_bytes: 16 << 30,
            keep_snapshots: Duration::from_secs(24 * 3600),
        }
    }

    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first value that cannot be, with what can.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |option, reason: &str| Err(ConfigError { option, reason: reason.to_owned() });
        if self.listen.is_empty() {
            return refuse("listen", "at least one address is needed");
        }
        if self.workers == 0 || self.workers > 1024 {
            return refuse("workers", "must be from 1 to 1024");
        }
        if self.max_payload_bytes == 0 || self.max_payload_bytes > (1 << 30) {
            return refuse("max-payload", "must be from 1 byte to 1GiB");
        }
        if self.max_artifact_bytes == 0 {
            return refuse("max-artifact", "must be more than 0");
        }
        if self.keep_versions == 0 {
            return refuse("keep-versions", "must be at least 1");
        }
        if self.max_sandboxes == 0 {
            return refuse("max-sandboxes", "must be at least 1");
        }
        if self.memory_budget_bytes < LEAST_BUDGET_BYTES {
            return refuse("memory-budget", "must be at least 16MiB");
        }
        if self.max_snapshot_bytes < LEAST_SNAPSHOT_BYTES {
            return refuse("max-snapshots", "must be at least 16MiB");
        }
        if let Some(path) = self.allow_shares.iter().find(|path| !path.is_absolute()) {
            return refuse("allow-share", &format!("{} is not an absolute path", path.display()));
        }
        Ok(())
    }
}

/// A configuration value is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{option}: {reason}")]
pub struct ConfigError {
    /// The flag without its hyphens.
    pub option: &'static str,
    /// What is possible.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_read_back_as_they_print() {
        for text in ["127.0.0.1:0", "[::1]:7070", "unix:/run/novum.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "7070", "localhost:1", "unix:", "unix:relative"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn defaults_are_possible_and_impossible_values_name_their_flag() {
        let good = ServeConfig::new("/tmp/x");
        assert_eq!(good.check(), Ok(()));
        type Spoil = fn(&mut ServeConfig);
        let cases: [(&str, Spoil); 7] = [
            ("listen", |c| c.listen.clear()),
            ("workers", |c| c.workers = 0),
            ("max-payload", |c| c.max_payload_bytes = 0),
            ("keep-versions", |c| c.keep_versions = 0),
            ("memory-budget", |c| c.memory_budget_bytes = 1 << 20),
            ("max-snapshots", |c| c.max_snapshot_bytes = 0),
            ("allow-share", |c| c.allow_shares.push("x".into())),
        ];
        for (option, spoil) in cases {
            let mut config = good.clone();
            spoil(&mut config);
            assert_eq!(config.check().unwrap_err().option, option);
        }
    }
}
