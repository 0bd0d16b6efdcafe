//! One module of CPython's tests in one place: `driver.py` runs it and writes a verdict for each test; where the interpreter
//! does not survive a test, it goes on behind that test. Used by the `cpython` example and by the tests.

pub(crate) mod modules;
pub(crate) mod place;
pub(crate) mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

pub(crate) use modules::Module;
pub(crate) use place::Place;
pub(crate) use records::Outcome;

use place::{Ended, Job};
use records::Records;

/// Where Debian's `libpython3.11-testsuite` puts its tests; empty but for a few files without that package.
pub(crate) const SUITE: &str = "/usr/lib/python3.11/test/test_json";

/// How often a run goes on behind a test that it did not survive.
const MOST_DEATHS: usize = 40;

/// How long a test may take inside once it tried what a sandbox has not.
const HOPELESS_SECONDS: f64 = 5.0;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// One test.
    pub(crate) test: Duration,
    /// One run of a module.
    pub(crate) module: Duration,
}

/// Which tests of a module are run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection<'a> {
    /// Only these.
    pub(crate) only: Option<&'a BTreeSet<String>>,
    /// In `/tmp`, which inside is the sandbox's private layer, instead of the folder that both places see.
    pub(crate) private: bool,
}

/// What a module came to in one place.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// By the test's id.
    pub(crate) tests: BTreeMap<String, Outcome>,
    /// From the first start to the last end.
    pub(crate) time: Duration,
    /// What the engine said about calls that it does not serve.
    pub(crate) remarks: BTreeSet<String>,
}

/// A folder that both places see at the same path.
#[derive(Debug)]
pub(crate) struct Work {
    folder: PathBuf,
}

impl Work {
    /// Makes `folder` with the driver in it.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        std::fs::write(folder.join("driver.py"), include_str!("driver.py"))?;
        Ok(Self { folder })
    }

    /// Runs what is selected of `module` in `place`.
    ///
    /// # Errors
    /// Where the machinery fails, not a test.
    pub(crate) async fn run(
        &self,
        place: Place,
        module: &Module,
        selection: Selection<'_>,
        patience: Patience,
    ) -> Result<Ran> {
        let mut ran = Ran::default();
        let started = Instant::now();
        for _ in 0..MOST_DEATHS {
            let (records, ended) = self.run_once(place, module, selection, &ran.tests, patience).await?;
            ran.remarks.extend(remarks(&ended.stderr));
            let before = ran.tests.len();
            ran.tests.extend(records.tests);
            if records.done {
                break;
            }
            let why = format!("{}: {}", ended.exit, tail(&ended.stderr));
            let test = records.unfinished.unwrap_or_else(|| format!("test.{}", module.name));
            ran.tests.insert(test, Outcome::died(why, records.attempt));
            if ran.tests.len() == before || started.elapsed() > patience.module {
                break;
            }
        }
        ran.time = started.elapsed();
        Ok(ran)
    }

    async fn run_once(
        &self,
        place: Place,
        module: &Module,
        selection: Selection<'_>,
        done: &BTreeMap<String, Outcome>,
        patience: Patience,
    ) -> Result<(Records, Ended)> {
        let (records, orders) = (self.folder.join("records"), self.folder.join("orders"));
        std::fs::write(&records, "")?;
        let wanted = json!({
            "match": module.only,
            "only": selection.only.map(|ids| ids.iter().collect::<Vec<_>>()).unwrap_or_default(),
            "skip": done.keys().collect::<Vec<_>>(),
            "seconds": patience.test.as_secs_f64(),
            "hopeless_seconds": match place {
                Place::Native => patience.test.as_secs_f64(),
                Place::Inside => HOPELESS_SECONDS,
            },
            "folder": if selection.private { Path::new("/tmp") } else { &self.folder },
        });
        std::fs::write(&orders, wanted.to_string())?;
        let driver = self.folder.join("driver.py");
        let paths = [&driver, &records, &orders].map(|path| path.to_string_lossy().into_owned());
        let [driver, records_arg, orders_arg] = paths;
        let args = vec![driver, module.name.to_owned(), records_arg, orders_arg];
        let ended = place.run(&Job { work: &self.folder, args, limit: patience.module }).await?;
        Ok((Records::parse(&String::from_utf8_lossy(&std::fs::read(&records)?)), ended))
    }
}

/// The engine's own lines in the log.
fn remarks(log: &str) -> impl Iterator<Item = String> + '_ {
    let lines = log.lines().filter_map(|line| line.strip_prefix("novum: system call "));
    lines.filter_map(|line| line.split(' ').next()).map(str::to_owned)
}

/// The end of `text`.
fn tail(text: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
