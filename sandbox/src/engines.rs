//! The table of engines: one row each.

use std::path::PathBuf;
use std::sync::Arc;

use novum_snapshot::Store;

use crate::engine::Engine;
use crate::error::Error;
use crate::function::EngineKind;

/// What every engine is made with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where an engine keeps what it made from artifacts (compiled code, snapshots), private to this user.
    /// Each engine uses a folder of its own below it.
    pub cache: PathBuf,
    /// Where `novum kernel` keeps kernels of Linux guests.
    pub kernels: PathBuf,
    /// Most sandboxes of one engine at once.
    pub max_sandboxes: u32,
    /// Largest memory of one sandbox.
    pub max_memory_bytes: u64,
    /// Where images of functions are kept over restarts; `None`: in memory only.
    pub snapshots: Option<Store>,
}

/// One engine.
pub struct Row {
    /// Which one.
    pub kind: EngineKind,
    /// Whether an artifact that begins with these bytes (at least 16, or all of it) is one for this engine when the
    /// manifest says `auto`.
    pub recognises: fn(&[u8]) -> bool,
    /// What this machine lacks for it; `Err` says why and what to do.
    pub probe: fn() -> Result<(), String>,
    /// Makes it.
    pub make: fn(&EngineConfig) -> Result<Arc<dyn Engine>, Error>,
}

/// Every engine of this build, in the order in which `auto` asks them.
pub const TABLE: &[Row] = &[
    #[cfg(feature = "wasm")]
    Row {
        kind: EngineKind::Wasm,
        recognises: crate::wasm::recognises,
        probe: || Ok(()),
        make: |config| Ok(Arc::new(crate::wasm::WasmEngine::new(config)?)),
    },
    #[cfg(feature = "vm")]
    Row {
        kind: EngineKind::Process,
        recognises: crate::process::recognises,
        probe: crate::process::probe,
        make: |config| Ok(Arc::new(crate::process::ProcessEngine::new(config)?)),
    },
    // Nothing is taken for it unasked: a root directory looks like one for the process engine.
    #[cfg(feature = "vm")]
    Row {
        kind: EngineKind::Linux,
        recognises: |_| false,
        probe: crate::linux::probe,
        make: |config| Ok(Arc::new(crate::linux::LinuxEngine::new(config)?)),
    },
];

/// The row of `kind`, or `None` where this build was made without it.
#[must_use]
pub fn row(kind: EngineKind) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.kind == kind)
}

/// Why [`row`] has nothing for `kind`, and what to do about it.
#[must_use]
pub fn absence(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Wasm => "this build was made without the cargo feature `wasm`; use a build that has it",
        EngineKind::Process | EngineKind::Linux => {
            "this build was made without the cargo feature `vm`; use a build that has it"
        }
    }
}
