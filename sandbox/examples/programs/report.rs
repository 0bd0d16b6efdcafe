//! What was found: a line per case while it runs, JSON, and the table of docs/programs.md.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::counters::Counts;
use crate::harness::{Both, Case, Cases, Verdict};

/// One case's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    name: String,
    package: String,
    program: String,
    /// See [`Verdict::word`].
    result: String,
    differences: Vec<String>,
    exit: String,
    stdout_bytes: usize,
    stderr_bytes: usize,
    files: usize,
    native_ms: f64,
    inside_ms: f64,
    exits: u64,
    calls: u64,
    /// Calls that were not served.
    unserved: Vec<String>,
}

impl Record {
    /// Of a case that was tried.
    pub(crate) fn new(case: &Case, verdict: &Verdict, (exits, calls): Counts) -> Self {
        let ran: Option<&Both> = if let Verdict::Ran(both) = verdict { Some(both) } else { None };
        let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        Self {
            name: case.name.clone(),
            package: case.package.clone(),
            program: case.command().0,
            result: verdict.word(case).to_owned(),
            differences: verdict.differences(),
            exit: ran.map(|both| both.native.exit.clone()).unwrap_or_default(),
            stdout_bytes: ran.map_or(0, |both| both.native.stdout.len()),
            stderr_bytes: ran.map_or(0, |both| both.native.stderr.len()),
            files: ran.map_or(0, |both| both.native.tree.len()),
            native_ms: ran.map_or(0.0, |both| ms(both.native.time)),
            inside_ms: ran.map_or(0.0, |both| ms(both.inside.time)),
            exits,
            calls,
            unserved: ran.map(|both| both.inside.remarks.clone()).unwrap_or_default(),
        }
    }

    /// For the terminal.
    pub(crate) fn line(&self, verbose: bool) -> String {
        let Self { result, name, native_ms, inside_ms, exits, .. } = self;
        let mut line = format!("{result:<8}{name:<44}{native_ms:>9.1} ms{inside_ms:>9.1} ms{exits:>8} exits");
        let shown = if verbose { usize::MAX } else { 1 };
        for text in self.differences.iter().take(shown).chain(&self.unserved) {
            let _ = write!(line, "\n        {text}");
        }
        line
    }
}

/// One run of the command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    kernel: String,
    cpu: String,
    commit: String,
    records: Vec<Record>,
}

impl Report {
    /// With the machine's description, and nothing found yet.
    pub(crate) fn new() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
            commit: commit(),
            records: Vec::new(),
        }
    }

    /// With one more record.
    pub(crate) fn add(&mut self, record: Record) {
        self.records.push(record);
    }

    fn count(&self, result: &str) -> usize {
        self.records.iter().filter(|record| record.result == result).count()
    }

    /// Whether nothing that could be run differs.
    pub(crate) fn all_same(&self) -> bool {
        self.count("differs") == 0
    }

    /// The sums.
    pub(crate) fn summary(&self) -> String {
        let (same, differs, missing) = (self.count("same"), self.count("differs"), self.count("missing"));
        let (total, stated) = (self.records.len(), self.count("stated"));
        let left = if total == missing { ", so nothing was compared" } else { "" };
        format!(
            "{total} cases: {same} the same, {differs} differ, {stated} differ as stated, {missing} not on this machine{left}"
        )
    }

    fn record(&self, name: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.name == name)
    }
}

fn commit() -> String {
    let asked = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = asked.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
    text.unwrap_or_default()
}

/// A column of the table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Above it.
    pub(crate) title: String,
    /// Below it.
    pub(crate) report: Report,
}

impl FromStr for Column {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (title, files) = text.split_once('=').context("must be TITLE=FILE,...")?;
        let mut reports = files.split(',').map(read);
        let mut report = reports.next().context("no file")??;
        for other in reports {
            let others = other?.records.into_iter();
            let new: Vec<Record> = others.filter(|record| report.record(&record.name).is_none()).collect();
            report.records.extend(new);
        }
        Ok(Self { title: title.to_owned(), report })
    }
}

fn read(file: &str) -> Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is no result"))
}

/// Between these lines of a page stands the table.
const BEGIN: &str = "<!-- the table begins: written by the command, do not edit -->";
const END: &str = "<!-- the table ends -->";

/// Puts the table into the page at `path`.
pub(crate) fn write_markdown(path: &Path, cases: &Cases, columns: &[Column]) -> Result<()> {
    let old = std::fs::read_to_string(path).unwrap_or_else(|_| format!("{BEGIN}\n{END}\n"));
    let (before, rest) = old.split_once(BEGIN).context("the page has no place for the table")?;
    let (_, after) = rest.split_once(END).context("the table in the page has no end")?;
    let page = format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(cases, columns));
    std::fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

fn table(cases: &Cases, columns: &[Column]) -> String {
    let mut text = String::new();
    for Column { title, report } in columns {
        let Report { kernel, cpu, commit, .. } = report;
        let _ =
            writeln!(text, "- **{title}**: {}. Linux {kernel}, {cpu}, commit {commit}.", report.summary());
    }
    let titles: String = columns.iter().map(|column| format!(" {} |", column.title)).collect();
    let rules: String = columns.iter().map(|_| "---|").collect();
    let _ = writeln!(
        text,
        "\n| case | package | exit | bytes out, err; files |{titles} calls | exits | ms native | ms inside | notes |"
    );
    let _ = writeln!(text, "|---|---|---:|---:|{rules}---:|---:|---:|---:|---|");
    for case in &cases.case {
        let found: Vec<Option<&Record>> =
            columns.iter().map(|column| column.report.record(&case.name)).collect();
        text += &row(case, &found);
    }
    text
}

fn row(case: &Case, found: &[Option<&Record>]) -> String {
    let Some(first) = found.iter().flatten().next() else { return String::new() };
    let Record { name, package, exit, stdout_bytes, stderr_bytes, files, .. } = first;
    let results: String = found
        .iter()
        .map(|record| format!(" {} |", record.map_or("not run", |record| &record.result)))
        .collect();
    let Record { calls, exits, native_ms, inside_ms, .. } = first;
    let mut notes = vec![case.note.clone(), case.known.clone().unwrap_or_default()];
    if !case.ignore.is_empty() {
        notes.push(format!("contents not compared: {}", case.ignore.join(", ")));
    }
    if !case.stderr {
        notes.push("stderr not compared".to_owned());
    }
    let unserved = first.unserved.iter().filter_map(|text| text.split(' ').nth(3)).collect::<Vec<_>>();
    if !unserved.is_empty() {
        notes.push(format!("not served: {}", unserved.join(", ")));
    }
    notes.retain(|note| !note.is_empty());
    let notes = notes.join("; ");
    format!(
        "| {name} | {package} | {exit} | {stdout_bytes}, {stderr_bytes}; {files} |{results} {calls} | {exits} \
         | {native_ms:.1} | {inside_ms:.1} | {notes} |\n"
    )
}
