//! The table of cases, `cases.toml`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Everything in the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cases {
    /// Files of every work folder with their text.
    pub(crate) files: BTreeMap<String, String>,
    /// Programs that are compiled first.
    pub(crate) build: Vec<Build>,
    /// What is run and compared.
    pub(crate) case: Vec<Case>,
}

/// A program of ours, compiled by a compiler of Debian (or of Rust).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    /// Its file below `{built}`.
    pub(crate) name: String,
    /// The package with the compiler.
    pub(crate) package: String,
    /// Looked for in `PATH`; without it the program counts as missing.
    pub(crate) compiler: String,
    /// A shell command; `{sources}` and `{built}` are replaced.
    pub(crate) command: String,
}

/// One program with its arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// Shown in the table.
    pub(crate) name: String,
    /// The Debian packages it needs, with blanks between them.
    pub(crate) package: String,
    /// The program's absolute path and its arguments, with blanks between them; `'...'` keeps blanks together. `{work}` is
    /// the work folder, `{built}` the folder of what was compiled.
    pub(crate) run: String,
    /// Further arguments, as they are but for the placeholders.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Standard input.
    #[serde(default)]
    pub(crate) input: String,
    /// Added to `PATH`, `HOME`, `LANG` and `TZ`.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// A shell command that makes further files in the work folder, natively, before each of the two runs.
    pub(crate) make: Option<String>,
    /// The sandbox's memory limit.
    #[serde(default = "default_memory_mib")]
    pub(crate) memory_mib: u64,
    /// The sandbox's time limit.
    #[serde(default = "default_timeout_s")]
    pub(crate) timeout_s: u32,
    /// Whether the default tests run it.
    #[serde(default)]
    pub(crate) quick: bool,
    /// Whether standard error is compared.
    #[serde(default = "yes")]
    pub(crate) stderr: bool,
    /// Files whose contents are not compared, because they hold what no two runs share.
    #[serde(default)]
    pub(crate) ignore: Vec<String>,
    /// Why it cannot come out the same; such a case passes only as long as it differs.
    pub(crate) known: Option<String>,
    /// What is worth knowing; shown in the table.
    #[serde(default)]
    pub(crate) note: String,
}

impl Case {
    /// The program, and all its arguments.
    pub(crate) fn command(&self) -> (String, Vec<String>) {
        let mut words = split(&self.run).into_iter();
        let program = words.next().unwrap_or_default();
        (program, words.chain(self.args.iter().cloned()).collect())
    }
}

/// Words between blanks; what stands between single quotes is one word.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    for (i, part) in line.split('\'').enumerate() {
        if i % 2 == 1 {
            word.get_or_insert_default().push_str(part);
            continue;
        }
        for c in part.chars() {
            if c.is_whitespace() {
                words.extend(word.take());
            } else {
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    words
}

fn default_memory_mib() -> u64 {
    512
}

fn default_timeout_s() -> u32 {
    60
}

fn yes() -> bool {
    true
}

impl Cases {
    /// The table.
    ///
    /// # Errors
    /// Where it is malformed.
    pub(crate) fn load() -> Result<Self> {
        let cases: Self = toml::from_str(include_str!("../cases.toml")).context("cases.toml")?;
        let mut names = BTreeSet::new();
        for case in &cases.case {
            ensure!(names.insert(&case.name), "two cases are called {:?}", case.name);
        }
        Ok(cases)
    }
}
