//! How a run ended, in the contract's words.

use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};
use wasmtime_wasi::I32Exit;

use super::settings::host;
use super::stdio::{Halt, Stdout};
use super::tenant::{DeadlinePassed, Tenant};
use crate::engine::{ExitStatus, Fault};
use crate::error::Error;

/// Most bytes of a fault's message.
const MESSAGE_BYTES: usize = 8 << 10;

/// The sandbox has served its one invocation.
pub(super) fn used() -> Error {
    Error::host("reusing a wasm sandbox", "an instance serves one invocation; start another")
}

/// Why an instance could not be made.
pub(super) fn start_failed<W>(store: &Store<Tenant<W>>, error: wasmtime::Error) -> Error {
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Capacity { reason: error.to_string() };
    }
    if store.data().limits.refused {
        return Error::MemoryLimit { limit_bytes: store.data().limits.memory_bytes() };
    }
    host("making an instance", error)
}

/// The exit status of a run that ended with `ended`.
pub(super) fn exit<W>(
    ended: wasmtime::Result<()>,
    stdout: &Stdout,
    store: &Store<Tenant<W>>,
    after: Duration,
) -> Result<ExitStatus, Error> {
    let Err(error) = ended else { return Ok(ExitStatus::Code(0)) };
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Ok(ExitStatus::Code(*code));
    }
    match stdout.halt() {
        Some(Halt::OutputLimit { limit_bytes }) => return Err(Error::OutputLimit { limit_bytes }),
        Some(Halt::Cancelled) => return Err(Error::Cancelled),
        None => {}
    }
    if error.is::<DeadlinePassed>() {
        return Err(Error::Deadline { after });
    }
    let limits = &store.data().limits;
    if limits.refused && error.is::<Trap>() {
        return Err(Error::MemoryLimit { limit_bytes: limits.memory_bytes() });
    }
    Ok(ExitStatus::Fault(Fault { kind: "trap".into(), message: bounded(format!("{error:?}")) }))
}

fn bounded(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message.truncate(end);
        message.push_str("\n[cut]");
    }
    message
}
