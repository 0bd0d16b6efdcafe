//! What one invocation brings to WASI: arguments, environment, streams, shared directories. Nothing else of the
//! host is visible to a tenant; clocks and random numbers are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime_wasi::{FsPerms, HostMonotonicClock, WasiCtxBuilder};

use super::settings::host;
use super::stdout::{Stderr, Stdout};
use crate::error::Error;
use crate::function::Function;

/// Most bytes of randomness in one request: what a program can make the host allocate at a time.
const RANDOM_BYTES: u64 = 1 << 20;

/// One invocation, as WASI sees it.
pub(super) struct Call {
    pub(super) function: Arc<Function>,
    /// Added to the manifest's environment, later entries win.
    pub(super) env: Vec<(String, String)>,
    pub(super) stdout: Stdout,
    pub(super) stderr: Stderr,
    pub(super) started: Instant,
}

impl Call {
    /// `argv`: the entry's file name or else the function's name, then the manifest's arguments.
    pub(super) fn args(&self) -> impl Iterator<Item = &str> {
        let manifest = &self.function.manifest;
        let entry = manifest.entry.rsplit('/').next().filter(|name| !name.is_empty());
        let program = entry.unwrap_or(manifest.name.as_str());
        std::iter::once(program).chain(manifest.args.iter().map(String::as_str))
    }

    /// The environment, each name once.
    pub(super) fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        let fixed = self.function.manifest.env.iter();
        let fixed = fixed.filter(|(name, _)| !self.env.iter().any(|(added, _)| added == *name));
        let added = self.env.iter().enumerate();
        let added = added.filter(|(i, (name, _))| !self.env[i + 1..].iter().any(|(later, _)| later == name));
        let fixed = fixed.map(|(name, value)| (name.as_str(), value.as_str()));
        fixed.chain(added.map(|(_, (name, value))| (name.as_str(), value.as_str())))
    }

    /// Everything but standard input and output.
    ///
    /// # Errors
    /// A shared directory that does not open.
    pub(super) fn context(&self) -> Result<WasiCtxBuilder, Error> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(RANDOM_BYTES)
            .monotonic_clock(Since(self.started))
            .stderr(self.stderr.clone());
        for arg in self.args() {
            wasi.arg(arg);
        }
        for (name, value) in self.env() {
            wasi.env(name, value);
        }
        for share in &self.function.manifest.shares {
            let perms = if share.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            wasi.preopened_dir(&share.source, &share.target, perms)
                .map_err(|e| host(format!("opening the shared directory {}", share.source.display()), e))?;
        }
        Ok(wasi)
    }
}

/// Refuses shared directories that do not open now, while somebody waits for the deployment's outcome.
pub(super) fn check_shares(function: &Function) -> Result<(), Error> {
    for (i, share) in function.manifest.shares.iter().enumerate() {
        std::fs::read_dir(&share.source).map_err(|error| Error::Manifest {
            field: format!("share[{i}].source"),
            reason: format!("{} does not open as a directory: {error}", share.source.display()),
        })?;
    }
    Ok(())
}

/// A monotonic clock that counts from the invocation's start.
pub(super) struct Since(pub(super) Instant);

impl HostMonotonicClock for Since {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        nanoseconds(self.0.elapsed())
    }
}

/// Whole nanoseconds, as WASI counts time.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
