//! Cold starts: how long until a program answers, and what a sandbox costs, beside what the host itself can do.
//!
//! ```text
//! cli.rs        the arguments: of `novum bench cold-start` and of this package's own program
//! programs.rs   what is started: built here by gcc, rustc and clang, and the system's Python
//! sample.rs     samples, one after the other or at once
//!   sandbox.rs    through the engines' contract: everything made, restored, reset
//!   native.rs     as processes: spawned, forked from one that is warm
//!   floors.rs     bare KVM, wasmtime with its own WASI
//! density.rs    memory of many sandboxes, in a process and control group of their own
//! through.rs    through the gateway over gRPC
//! report.rs     raw JSON, the Markdown tables          chart.rs   the SVG chart
//! ```
//! Every cell is measured once, one after the other, in one run; a cell that cannot be measured here is in the report
//! with its reason. Cells whose samples take long have fewer of them ([`sample`]), and say so.
//!
//! **Another engine's rows** (linux): `programs.rs` says what it deploys for each program (`built`, below), `sandbox.rs` makes
//! its function; [`Way::ALL`] lists the ways, [`can_run`] asks the engine itself. Nothing else knows engines by name.

mod chart;
pub mod cli;
mod density;
mod floors;
mod native;
mod programs;
pub mod report;
mod sample;
mod sandbox;
mod through;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use novum_sandbox::EngineKind;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use density::{Density, PerSandbox};
pub use programs::Program;
pub use sample::Batch;
pub use through::Through;

use crate::floors::{self as servers, tonic_echo::TonicEcho};
use crate::host::Host;
use programs::Built;
use sample::Sampler;
use sandbox::Deployed;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of each cell.
    pub samples: usize,
    /// Threads that take samples at once, besides one alone.
    pub parallel: usize,
    /// Only engines and programs with such a name; empty: all.
    pub only: Vec<String>,
    /// Numbers of sandboxes whose memory is measured.
    pub sandboxes: Vec<usize>,
    /// Callers through the gateway.
    pub callers: Vec<u32>,
    /// Timed seconds through the gateway, for each server and number of callers.
    pub seconds: f64,
    /// Threads of the gateway and its floor.
    pub workers: usize,
    /// The gateway's program; built when absent.
    pub novum: Option<PathBuf>,
    /// The arguments that bring this program here again.
    pub again: Vec<String>,
}

impl Options {
    fn wants(&self, kind: &str, among: &[&str]) -> bool {
        let mut chosen = self.only.iter().filter(|only| among.contains(&only.as_str())).peekable();
        chosen.peek().is_none() || chosen.any(|only| only == kind)
    }

    fn wants_engine(&self, kind: EngineKind) -> bool {
        self.wants(kind.as_str(), &["wasm", "process", "linux"])
    }

    fn wants_program(&self, program: Program) -> bool {
        self.wants(program.name(), &Program::ALL.map(Program::name))
    }
}

/// What a child of the benchmark does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Child {
    /// Measures memory.
    Density(density::Order),
    /// Serves the floor of the gateway until it is killed.
    Floor {
        /// Threads.
        workers: usize,
    },
}

impl Child {
    /// Does it.
    ///
    /// # Errors
    /// Its own.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Density(order) => {
                println!("{}", serde_json::to_string(&density::run(order)?)?);
                Ok(())
            }
            Self::Floor { workers } => servers::serve(Arc::new(TonicEcho), *workers),
        }
    }
}

/// How a program comes to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Image, sandbox and call; the engine has never seen the program.
    Full(#[serde(with = "engine_name")] EngineKind),
    /// A new sandbox of a ready image, and a call. The process engine has a VM shell ready.
    Restore(#[serde(with = "engine_name")] EngineKind),
    /// The same without a shell: the VM is made on the way.
    Create(#[serde(with = "engine_name")] EngineKind),
    /// The warmed program, which its image is, forked into a new sandbox with everything made on the way, up to the
    /// moment when it can take a call.
    Branch(#[serde(with = "engine_name")] EngineKind),
    /// A used sandbox: reset, and a call.
    Reset(#[serde(with = "engine_name")] EngineKind),
    /// A call of a sandbox that was reset some time ago: what a pool's client waits for.
    Call(#[serde(with = "engine_name")] EngineKind),
    /// A new process of the host.
    Spawn,
    /// A fork of a warm process of the host.
    Fork,
    /// wasmtime and its own WASI: a fresh instance, and a call.
    Wasmtime,
    /// Bare KVM: a VM with a vCPU and a memslot, left once. No program.
    Kvm,
    /// Bare KVM: out of a guest and back into it.
    Exit,
}

/// Engines by their names in manifests.
mod engine_name {
    use novum_sandbox::EngineKind;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &EngineKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EngineKind, D::Error> {
        let name = String::deserialize(from)?;
        let kinds = [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux];
        kinds
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| serde::de::Error::custom(format!("no engine {name}")))
    }
}

impl Way {
    /// All of them, in the order of tables.
    const ALL: [Self; 16] = [
        Self::Full(EngineKind::Wasm),
        Self::Restore(EngineKind::Wasm),
        Self::Wasmtime,
        Self::Full(EngineKind::Process),
        Self::Restore(EngineKind::Process),
        Self::Create(EngineKind::Process),
        Self::Branch(EngineKind::Process),
        Self::Reset(EngineKind::Process),
        Self::Call(EngineKind::Process),
        Self::Full(EngineKind::Linux),
        Self::Restore(EngineKind::Linux),
        Self::Reset(EngineKind::Linux),
        Self::Spawn,
        Self::Fork,
        Self::Kvm,
        Self::Exit,
    ];

    /// For tables and charts.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Full(kind) => format!("{kind}: full cold start"),
            Self::Restore(EngineKind::Process) => "process: restore + call, shell ready".into(),
            Self::Restore(kind) => format!("{kind}: restore + call"),
            Self::Create(kind) => format!("{kind}: restore + call, all made"),
            Self::Branch(kind) => format!("{kind}: fork, all made, no call"),
            Self::Reset(kind) => format!("{kind}: reset + call"),
            Self::Call(kind) => format!("{kind}: call of a clean sandbox"),
            Self::Spawn => "native: spawn".into(),
            Self::Fork => "native: fork of a warm process".into(),
            Self::Wasmtime => "wasmtime with wasmtime-wasi".into(),
            Self::Kvm => "floor: bare KVM, no program".into(),
            Self::Exit => "floor: one exit of bare KVM".into(),
        }
    }

    /// The engine, of what is novum's.
    #[must_use]
    pub fn engine(self) -> Option<EngineKind> {
        match self {
            Self::Full(kind) | Self::Restore(kind) | Self::Create(kind) => Some(kind),
            Self::Branch(kind) | Self::Reset(kind) | Self::Call(kind) => Some(kind),
            Self::Spawn | Self::Fork | Self::Wasmtime | Self::Kvm | Self::Exit => None,
        }
    }

    /// Whether it is the same for every program.
    fn is_of_host(self) -> bool {
        matches!(self, Self::Kvm | Self::Exit)
    }
}

/// One program started in one way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The program.
    pub program: Program,
    /// The way.
    pub way: Way,
    /// One sample after the other.
    pub alone: Batch,
    /// Several at once.
    pub parallel: Batch,
}

/// What could not be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// The raw results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and when.
    pub host: Host,
    /// Asked for, of each cell.
    pub samples: usize,
    /// Without optimisation; then the numbers say nothing about novum.
    pub development_build: bool,
    /// Every program in every way.
    pub cells: Vec<Cell>,
    /// Memory.
    pub density: Vec<Density>,
    /// Through the gateway.
    pub through: Vec<Through>,
    /// What is missing.
    pub skipped: Vec<Skipped>,
}

/// Measures everything that can be measured here.
///
/// # Errors
/// Where there is no scratch directory. What cannot be measured is in the results.
pub fn measure(options: &Options) -> Result<Results> {
    let scratch = TempDir::new()?;
    let mut results = Results {
        host: Host::now(),
        samples: options.samples,
        development_build: cfg!(debug_assertions),
        cells: Vec::new(),
        density: Vec::new(),
        through: Vec::new(),
        skipped: Vec::new(),
    };
    for kind in [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux] {
        if let (true, Err(error)) = (options.wants_engine(kind), can_run(kind)) {
            results.skip(format!("{kind} engine"), &error);
        }
    }
    let programs = || Program::ALL.into_iter().filter(|program| options.wants_program(*program));
    for program in programs() {
        for way in Way::ALL {
            let wanted = way.engine().is_none_or(|kind| options.wants_engine(kind) && can_run(kind).is_ok());
            // Bare KVM knows no program: once is enough.
            if wanted && (!way.is_of_host() || program == Program::Hello) {
                results.cell(options, program, way, scratch.path());
            }
        }
    }
    for program in programs() {
        results.memory(options, program, scratch.path());
    }
    results.through(options, scratch.path())?;
    Ok(results)
}

impl Results {
    fn skip(&mut self, what: String, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        eprintln!("SKIPPED: {what}: {reason}");
        self.skipped.push(Skipped { what, reason });
    }

    fn cell(&mut self, options: &Options, program: Program, way: Way, scratch: &Path) {
        let what = format!("{}, {}", program.title(), way.title());
        match cell(options, program, way, scratch) {
            Ok(cell) => {
                let at = |q| cell.alone.quantile(q);
                let (p50, p99, rate) = (at(0.5), at(0.99), cell.parallel.per_second());
                eprintln!(
                    "{what}: p50 {p50:.1} us, p99 {p99:.1} us; {rate:.0}/s by {}",
                    cell.parallel.parallel
                );
                self.cells.push(cell);
            }
            Err(error) => self.skip(what, &error),
        }
    }

    fn memory(&mut self, options: &Options, program: Program, scratch: &Path) {
        for kind in [EngineKind::Wasm, EngineKind::Process] {
            let wanted = options.wants_engine(kind) && can_run(kind).is_ok();
            for sandboxes in options.sandboxes.iter().filter(|_| wanted) {
                let what = format!("{}, {kind}: memory of {sandboxes} sandboxes", program.title());
                let built = built(kind, program, scratch);
                let measure = |built| density::measure(&options.again, kind, (program, built), *sandboxes);
                match built.and_then(measure) {
                    Ok(density) => {
                        let kib = |bytes: f64| bytes / 1024.0;
                        let (idle, used) = (density.idle, density.used);
                        let [idle, used] = [idle, used].map(|each| kib(each.private + each.kernel));
                        eprintln!("{what}: {idle:.0} KiB idle, {used:.0} KiB used, each");
                        self.density.push(density);
                    }
                    Err(error) => self.skip(what, &error),
                }
            }
        }
    }

    fn through(&mut self, options: &Options, scratch: &Path) -> Result<()> {
        if options.callers.is_empty() || !options.wants_program(Program::Hello) {
            return Ok(());
        }
        let rows = sandbox::runtime()?.block_on(through::measure(options, scratch));
        let rows = rows.unwrap_or_else(|error| vec![("through the gateway".into(), Err(error))]);
        for (what, row) in rows {
            match row {
                Ok(row) => {
                    let (rate, p50, p99) = (row.run.rps(), row.run.p50_us, row.run.p99_us);
                    eprintln!("{what}: {rate:.0}/s, p50 {p50} us, p99 {p99} us");
                    self.through.push(row);
                }
                Err(error) => self.skip(what, &error),
            }
        }
        Ok(())
    }

    /// One cell.
    #[must_use]
    pub fn find(&self, program: Program, way: Way) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.program == program && cell.way == way)
    }
}

fn cell(options: &Options, program: Program, way: Way, scratch: &Path) -> Result<Cell> {
    let make = maker(program, way, scratch)?;
    // Only ready shells are waited for; where they are not wanted, none is made in the background either.
    let has_shells = !matches!(way, Way::Create(_) | Way::Branch(_));
    novum_sandbox::process::keep_shells(if has_shells { options.parallel.max(SHELLS) } else { 0 });
    let alone = sample::take(options.samples, 1, &*make)?;
    let parallel = sample::take(options.samples, options.parallel, &*make)?;
    Ok(Cell { program, way, alone, parallel })
}

/// VM shells that are kept.
const SHELLS: usize = 4;

/// What each sampling thread begins with; it is told how many there are.
type Maker = Box<dyn Fn(usize) -> Result<Sampler> + Sync>;

fn maker(program: Program, way: Way, scratch: &Path) -> Result<Maker> {
    let image = |kind| deployed(kind, program, scratch)?.image(&sandbox::runtime()?);
    Ok(match way {
        Way::Kvm => Box::new(|_| floors::kvm()),
        Way::Exit => Box::new(|_| floors::exit()),
        Way::Wasmtime => {
            let built = programs::wasm(program, scratch)?;
            Box::new(move |_| floors::wasmtime(&built.path))
        }
        Way::Spawn => {
            let built = programs::native(program, scratch)?;
            Box::new(move |_| Ok(native::spawn(&built)))
        }
        Way::Fork => {
            let built = programs::native(program, scratch)?;
            Box::new(move |_| native::fork(&built))
        }
        Way::Full(kind) => {
            let deployed = Arc::new(deployed(kind, program, scratch)?);
            Box::new(move |_| deployed.full())
        }
        Way::Restore(kind) => {
            let image = image(kind)?;
            Box::new(move |threads| match kind {
                EngineKind::Process => sandbox::restore(Arc::clone(&image), Some(threads)),
                _ => sandbox::restore(Arc::clone(&image), None),
            })
        }
        Way::Create(kind) => {
            let image = image(kind)?;
            Box::new(move |_| sandbox::restore(Arc::clone(&image), Some(0)))
        }
        Way::Branch(kind) => {
            let image = image(kind)?;
            Box::new(move |_| sandbox::branch(Arc::clone(&image)))
        }
        Way::Reset(kind) => {
            let image = image(kind)?;
            Box::new(move |_| sandbox::reset(Arc::clone(&image)))
        }
        Way::Call(kind) => {
            let image = image(kind)?;
            Box::new(move |_| sandbox::clean_call(Arc::clone(&image)))
        }
    })
}

/// Whether the engine is in this build and this machine can run it.
fn can_run(kind: EngineKind) -> Result<()> {
    let row = novum_sandbox::engines::row(kind);
    let row = row.with_context(|| novum_sandbox::engines::absence(kind))?;
    (row.probe)().map_err(anyhow::Error::msg)
}

fn built(kind: EngineKind, program: Program, scratch: &Path) -> Result<Built> {
    match kind {
        EngineKind::Wasm => programs::wasm(program, scratch),
        EngineKind::Process => programs::native(program, scratch),
        EngineKind::Linux => anyhow::bail!("this benchmark has no guest for the linux engine yet"),
    }
}

fn deployed(kind: EngineKind, program: Program, scratch: &Path) -> Result<Deployed> {
    Deployed::new(kind, built(kind, program, scratch)?, scratch)
        .with_context(|| format!("deploying {}", program.title()))
}
