//! How a run ended, in the contract's words.

use std::fmt::Write as _;
use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::settings::host;
use super::stdout::{Halt, Stdout};
use super::tenant::{DeadlinePassed, Tenant};
use crate::engine::{ExitStatus, Fault};
use crate::error::Error;
use crate::function::EngineKind;

/// Most bytes of a fault's message.
const MESSAGE_BYTES: usize = 8 << 10;

/// The sandbox has served its one invocation.
pub(super) fn used() -> Error {
    Error::host("reusing a wasm sandbox", "an instance serves one invocation; start another")
}

/// Refuses an artifact.
pub(super) fn artifact(reason: impl Into<String>) -> Error {
    Error::Artifact { engine: EngineKind::Wasm, reason: reason.into() }
}

/// Why the trial instance of [`prepare`](crate::Engine::prepare) could not be made.
pub(super) fn trial_failed<W>(tenant: &Tenant<W>, error: &wasmtime::Error) -> Error {
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Capacity { reason: error.to_string() };
    }
    if let Some(limit) = tenant.limits.met() {
        let reason = format!("the module's memory and tables do not start within {limit} bytes");
        return Error::Manifest { field: "memory".into(), reason };
    }
    artifact(format!("an instance of it cannot be made: {}", message(error)))
}

/// Why an instance could not be made.
pub(super) fn start_failed<W>(tenant: &Tenant<W>, error: wasmtime::Error) -> Error {
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Capacity { reason: error.to_string() };
    }
    match tenant.limits.met() {
        Some(limit_bytes) => Error::MemoryLimit { limit_bytes },
        None => host("making an instance", error),
    }
}

/// The exit status of a run of `after` that ended with `ended`.
pub(super) fn exit<W>(
    ended: wasmtime::Result<ExitStatus>,
    stdout: &Stdout,
    tenant: &Tenant<W>,
    after: Duration,
) -> Result<ExitStatus, Error> {
    let error = match (ended, stdout.halt()) {
        (_, Some(Halt::OutputLimit { limit_bytes })) => return Err(Error::OutputLimit { limit_bytes }),
        (_, Some(Halt::Cancelled)) => return Err(Error::Cancelled),
        (Ok(exit), None) => return Ok(exit),
        (Err(error), None) => error,
    };
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Ok(ExitStatus::Code(*code));
    }
    if error.is::<DeadlinePassed>() {
        return Err(Error::Deadline { after });
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Err(Error::Capacity { reason: error.to_string() });
    }
    match tenant.limits.met() {
        // It crashed after a refused growth: most likely because of it.
        Some(limit_bytes) => Err(Error::MemoryLimit { limit_bytes }),
        None => Ok(ExitStatus::Fault(Fault { kind: "trap".into(), message: message(&error) })),
    }
}

/// The cause and the program's own stack, bounded and fit for a terminal: names come from the module.
fn message(error: &wasmtime::Error) -> String {
    let mut text = error.root_cause().to_string();
    if let Some(stack) = error.downcast_ref::<WasmBacktrace>() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{stack}");
    }
    let clean = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    let mut clean: String = text.trim_end().chars().map(clean).collect();
    if clean.len() > MESSAGE_BYTES {
        clean.truncate(clean.floor_char_boundary(MESSAGE_BYTES));
        clean.push_str("\n[cut]");
    }
    clean
}
