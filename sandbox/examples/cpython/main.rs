//! CPython's own regression tests, natively and in the process engine, compared test by test: see docs/cpython.md.
//!
//! ```text
//! cargo run -p novum-sandbox --no-default-features --features vm --example cpython -- --install \
//!     --json target/cpython.json --markdown docs/cpython.md
//! ```

mod compare;
mod harness;
mod report;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use compare::Compared;
use harness::modules::{MODULES, QUICK};
use harness::place::PYTHON;
use harness::{Module, Patience, Place, Ran, SUITE, Selection, Work};

/// Runs CPython's regression tests natively and in the process engine and compares the verdicts
#[derive(Parser)]
struct Arguments {
    /// Only these modules, with commas between them
    #[arg(long, value_delimiter = ',')]
    modules: Vec<String>,
    /// Only the modules that the default tests run
    #[arg(long)]
    quick: bool,
    /// Show the modules' names instead of running them
    #[arg(long)]
    list: bool,
    /// Install python3 and libpython3.11-testsuite by apt-get first
    #[arg(long)]
    install: bool,
    /// Show the whole traceback of tests that differ
    #[arg(long)]
    verbose: bool,
    /// Write every difference here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables here
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Run nothing: make the tables from files written by `--json`
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    from: Vec<PathBuf>,
    /// Longest time of one test in seconds
    #[arg(long, default_value_t = 60)]
    test_seconds: u64,
    /// Longest time of one module in seconds
    #[arg(long, default_value_t = 900)]
    module_seconds: u64,
    /// Where tests work
    #[arg(long, default_value = "/tmp/novum-cpython")]
    work: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let chosen = choose(&arguments)?;
    if arguments.list {
        chosen.iter().for_each(|module| println!("{}", module.name));
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.from.is_empty() {
        let path = arguments.markdown.as_ref().context("--from needs --markdown")?;
        return report::write_markdown(path, &read(&arguments.from, &chosen)?).map(|()| ExitCode::SUCCESS);
    }
    if arguments.install {
        install()?;
    }
    ensure!(Path::new(SUITE).exists(), "{SUITE} is not there: run with --install");
    novum_sandbox::process::probe().map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let work = Work::new(&arguments.work)?;
    let mut all = Vec::new();
    for module in chosen {
        let compared = runtime.block_on(run(&work, module, &arguments))?;
        report::print(&compared, arguments.verbose);
        all.push(compared);
        // After each module, so that what was found survives an interruption.
        if let Some(path) = &arguments.json {
            std::fs::write(path, serde_json::to_string_pretty(&all)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    if let Some(path) = &arguments.markdown {
        report::write_markdown(path, &all)?;
    }
    let unexplained = all.iter().any(|module| module.unexplained().next().is_some());
    Ok(if unexplained { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose(arguments: &Arguments) -> Result<Vec<&'static Module>> {
    let table = if arguments.quick { QUICK } else { MODULES };
    if arguments.modules.is_empty() {
        return Ok(table.iter().collect());
    }
    let find = |name: &String| table.iter().find(|module| module.name == name);
    arguments.modules.iter().map(|name| find(name).with_context(|| format!("no module {name}"))).collect()
}

/// What runs of `chosen` found, in the order of the list; of two runs of a module the later file's counts.
fn read(files: &[PathBuf], chosen: &[&Module]) -> Result<Vec<Compared>> {
    let mut all: Vec<Compared> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let more: Vec<Compared> = serde_json::from_str(&text)?;
        all.retain(|old| more.iter().all(|new| new.module != old.module));
        all.extend(more);
    }
    all.iter_mut().for_each(Compared::look_up);
    let place = |name: &str| chosen.iter().position(|module| module.name == name);
    all.retain(|compared| place(&compared.module).is_some());
    all.sort_by_key(|compared| place(&compared.module));
    Ok(all)
}

fn install() -> Result<()> {
    for args in [&["update", "-qq"][..], &["install", "-y", "-qq", "python3", "libpython3.11-testsuite"]] {
        let done = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").status()?;
        ensure!(done.success(), "apt-get {args:?}: {done}");
    }
    ensure!(Path::new(PYTHON).exists(), "{PYTHON} is not there");
    Ok(())
}

/// Both runs; what differs is run again, alone, because tests of time and of threads fail now and then on a busy machine.
async fn run(work: &Work, module: &'static Module, arguments: &Arguments) -> Result<Compared> {
    let patience = Patience {
        test: Duration::from_secs(arguments.test_seconds),
        module: Duration::from_secs(arguments.module_seconds),
    };
    let mut native = work.run(Place::Native, module, Selection::default(), patience).await?;
    let mut inside = work.run(Place::Inside, module, Selection::default(), patience).await?;
    for (place, ran) in [(Place::Native, &mut native), (Place::Inside, &mut inside)] {
        let again = bad(ran);
        if !again.is_empty() {
            let only = Selection { only: Some(&again), private: false };
            let second = work.run(place, module, only, patience).await?;
            ran.tests.extend(second.tests.into_iter().filter(|(id, _)| again.contains(id)));
        }
    }
    let mut compared = Compared::new(module.name, native, inside);
    let open = compared.may_be_the_share();
    if !open.is_empty() {
        let only = Selection { only: Some(&open), private: true };
        compared.settle_share(&work.run(Place::Inside, module, only, patience).await?);
    }
    Ok(compared)
}

/// The tests that went wrong for no reason that is known already.
fn bad(ran: &Ran) -> BTreeSet<String> {
    let wrong = ran.tests.iter().filter(|(_, outcome)| outcome.verdict.is_bad() && outcome.needs.is_none());
    wrong.map(|(id, _)| id.clone()).collect()
}
