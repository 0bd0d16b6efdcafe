//! Cold starts: how long until a program answers, and what a sandbox costs, beside what the host itself can do.
//!
//! ```text
//! cli.rs        the arguments: of `novum bench cold-start` and of this package's own program
//! programs.rs   what is started: built here by gcc, rustc and clang, and the system's Python
//! way.rs        in which ways it is started         engine.rs    what is told of each engine
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
//! **Another engine's rows**: an implementation of [`engine::Rows`] and its place in [`engine::ENGINES`]. Nothing else knows engines
//! by name.

mod chart;
pub mod cli;
mod density;
mod engine;
mod floors;
mod native;
mod programs;
pub mod report;
mod sample;
mod sandbox;
mod through;
mod way;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use novum_sandbox::EngineKind;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use density::{Density, PerSandbox};
pub use programs::Program;
pub use sample::Batch;
pub use through::Through;
pub use way::Way;

use crate::floors::{self as servers, tonic_echo::TonicEcho};
use crate::host::Host;
use engine::{ENGINES, Rows};
use sample::Sampler;

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
        self.wants(kind.as_str(), &ENGINES.map(|engine| engine.kind().as_str()))
    }

    /// Those that are wanted and can run here.
    fn engines(&self) -> impl Iterator<Item = &'static dyn Rows> {
        let wanted = |engine: &&dyn Rows| self.wants_engine(engine.kind()) && engine.can_run().is_ok();
        ENGINES.into_iter().filter(wanted)
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
    for engine in ENGINES {
        let kind = engine.kind();
        if let (true, Err(error)) = (options.wants_engine(kind), engine.can_run()) {
            results.skip(format!("{kind} engine"), &error);
        }
    }
    let kinds: Vec<_> = options.engines().map(Rows::kind).collect();
    let programs = || Program::ALL.into_iter().filter(|program| options.wants_program(*program));
    for program in programs() {
        for way in Way::all() {
            let wanted = way.engine().is_none_or(|kind| kinds.contains(&kind));
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
        for engine in options.engines() {
            let kind = engine.kind();
            for sandboxes in &options.sandboxes {
                let what = format!("{}, {kind}: memory of {sandboxes} sandboxes", program.title());
                let built = engine.build(program, scratch);
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
    let native = || programs::native(program, scratch);
    Ok(match way {
        Way::Kvm => Box::new(|_| floors::kvm()),
        Way::Exit => Box::new(|_| floors::exit()),
        Way::Wasmtime => {
            let built = programs::wasm(program, scratch)?;
            Box::new(move |_| floors::wasmtime(&built.path))
        }
        Way::Spawn => {
            let built = native()?;
            Box::new(move |_| Ok(native::spawn(&built)))
        }
        Way::Fork => {
            let built = native()?;
            Box::new(move |_| native::fork(&built))
        }
        Way::Full(kind)
        | Way::Restore(kind)
        | Way::Create(kind)
        | Way::Branch(kind)
        | Way::Start(kind)
        | Way::Reset(kind)
        | Way::Call(kind) => engine::maker(engine::find(kind), program, way, scratch)?,
    })
}
