//! What the benchmark knows of each engine beyond the engines' own contract.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use novum_sandbox::{EngineKind, engines};

use super::programs::{self, Built, Program};
use super::sandbox::{self, Deployed};
use super::{Maker, Way};

/// An engine's rows in the tables.
pub(super) trait Rows: Sync {
    /// Which engine.
    fn kind(&self) -> EngineKind;

    /// The ways in which its programs are started, with what it stands on, in the order of tables.
    fn ways(&self) -> &'static [Way];

    /// The program as this engine takes it.
    fn build(&self, program: Program, scratch: &Path) -> Result<Built>;

    /// Whether new sandboxes begin with a VM shell that is kept ready, which a sample waits for before its clock starts.
    fn has_shells(&self) -> bool {
        false
    }

    /// Whether it is in this build and this machine can run it.
    fn can_run(&self) -> Result<()> {
        let row = engines::row(self.kind()).with_context(|| engines::absence(self.kind()))?;
        (row.probe)().map_err(|reason| anyhow!(reason))
    }
}

/// Every engine, in the order of tables.
pub(super) const ENGINES: [&dyn Rows; 3] = [&Wasm, &Process, &Linux];

/// The rows of an engine.
pub(super) fn find(kind: EngineKind) -> &'static dyn Rows {
    let found = ENGINES.into_iter().find(|engine| engine.kind() == kind);
    found.expect("every engine has its rows")
}

struct Wasm;

impl Rows for Wasm {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    fn ways(&self) -> &'static [Way] {
        const KIND: EngineKind = EngineKind::Wasm;
        &[Way::Full(KIND), Way::Restore(KIND), Way::Start(KIND), Way::Call(KIND), Way::Wasmtime]
    }

    fn build(&self, program: Program, scratch: &Path) -> Result<Built> {
        programs::wasm(program, scratch)
    }
}

struct Process;

impl Rows for Process {
    fn kind(&self) -> EngineKind {
        EngineKind::Process
    }

    fn ways(&self) -> &'static [Way] {
        const KIND: EngineKind = EngineKind::Process;
        &[
            Way::Full(KIND),
            Way::Restore(KIND),
            Way::Create(KIND),
            Way::Branch(KIND),
            Way::Reset(KIND),
            Way::Call(KIND),
        ]
    }

    fn build(&self, program: Program, scratch: &Path) -> Result<Built> {
        programs::native(program, scratch)
    }

    fn has_shells(&self) -> bool {
        true
    }
}

struct Linux;

impl Rows for Linux {
    fn kind(&self) -> EngineKind {
        EngineKind::Linux
    }

    fn ways(&self) -> &'static [Way] {
        const KIND: EngineKind = EngineKind::Linux;
        &[Way::Full(KIND), Way::Restore(KIND), Way::Reset(KIND)]
    }

    fn build(&self, _: Program, _: &Path) -> Result<Built> {
        bail!("this benchmark has no guest for the linux engine yet")
    }
}

/// What samples a program in one of an engine's ways.
pub(super) fn maker(rows: &'static dyn Rows, program: Program, way: Way, scratch: &Path) -> Result<Maker> {
    let deployed = Deployed::new(rows.kind(), rows.build(program, scratch)?, scratch);
    let deployed = deployed.with_context(|| format!("deploying {}", program.title()))?;
    if let Way::Full(_) = way {
        let deployed = Arc::new(deployed);
        return Ok(Box::new(move |_| deployed.full()));
    }
    let image = deployed.image(&sandbox::runtime()?)?;
    Ok(Box::new(move |threads| {
        let image = Arc::clone(&image);
        match way {
            Way::Restore(_) => sandbox::restore(image, rows.has_shells().then_some(threads)),
            Way::Create(_) => sandbox::restore(image, Some(0)),
            Way::Branch(_) => sandbox::start(image, sandbox::QUIET),
            Way::Start(_) => sandbox::start(image, std::time::Duration::ZERO),
            Way::Reset(_) => sandbox::reset(image),
            Way::Call(_) => sandbox::clean_call(image),
            other => bail!("{} is no way of an engine", other.title()),
        }
    }))
}
