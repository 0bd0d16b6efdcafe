//! What sandboxes take of the gateway before they can be measured: memory of its budget, and file descriptors.

use std::time::{Duration, Instant};

use novum_sandbox::{EngineKind, FunctionName};

use super::Entry;
use crate::budget::Making;
use crate::core::Core;
use crate::descriptors;
use crate::error::Error;
use crate::units::format_size;

/// What a new sandbox will soon hold: a guest that boots, one that is restored, files.
const BOOTED_BYTES: u64 = 64 << 20;
const RESTORED_BYTES: u64 = 16 << 20;
const FILES_BYTES: u64 = 1 << 20;
/// Descriptors of a guest (measured: about 20), of a program with its files; each directory is one more.
const GUEST_DESCRIPTORS: u64 = 24;
const PROGRAM_DESCRIPTORS: u64 = 12;
/// When to try again where there is no memory.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What something that is to be made will take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takes {
    bytes: u64,
    descriptors: u64,
}

impl Takes {
    /// A new sandbox with this memory limit and so many directories.
    pub(super) fn made(engine: EngineKind, limit: u64, directories: u64) -> Self {
        let (bytes, descriptors) = match engine {
            EngineKind::Linux => (BOOTED_BYTES, GUEST_DESCRIPTORS),
            EngineKind::Process | EngineKind::Wasm => (FILES_BYTES, PROGRAM_DESCRIPTORS),
        };
        Self { bytes: bytes.min(limit), descriptors: descriptors + directories }
    }

    /// `count` sandboxes with this memory limit from a snapshot.
    pub(super) fn restored(engine: EngineKind, limit: u64, count: u64) -> Self {
        let (bytes, descriptors) = match engine {
            EngineKind::Linux => (RESTORED_BYTES, GUEST_DESCRIPTORS),
            EngineKind::Process | EngineKind::Wasm => (FILES_BYTES, PROGRAM_DESCRIPTORS),
        };
        Self { bytes: bytes.min(limit) * count, descriptors: descriptors * count }
    }

    /// A snapshot of this sandbox: a copy of a guest's memory while it is written, or files that are shared.
    pub(super) fn snapshot(of: &Entry) -> Self {
        let bytes = if of.engine == EngineKind::Linux { of.private_bytes() } else { 0 };
        Self { bytes: bytes.max(FILES_BYTES), descriptors: 2 }
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, descriptors: self.descriptors + other.descriptors }
    }
}

/// Room for what is being made, until its drop.
pub(super) struct Room {
    _memory: Making,
    _descriptors: descriptors::Promise,
}

impl Core {
    /// Room in the gateway's memory and for descriptors, until what it is for has been made.
    pub(super) async fn take_room(&self, name: &FunctionName, takes: Takes) -> Result<Room, Error> {
        let descriptors = descriptors::room_for(takes.descriptors)?;
        let patience = Instant::now() + RETRY_AFTER;
        let memory = self.budget.make(takes.bytes, patience).await.map_err(|full| Error::MemoryBudget {
            function: name.to_string(),
            held: format_size(full.held_bytes),
            limit: format_size(full.limit_bytes),
            retry_after: RETRY_AFTER,
        })?;
        Ok(Room { _memory: memory, _descriptors: descriptors })
    }
}
