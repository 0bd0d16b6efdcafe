//! What is shown: a line for each module, and docs/cpython.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::compare::{Compared, Count, Difference, Why};

/// A line for the module and one for each test that differs for no known reason.
pub(crate) fn print(module: &Compared, verbose: bool) {
    println!(
        "{:<28} native {} in {:.1} s, inside {} in {:.1} s, {} differ, {} unexplained",
        module.module,
        counts(module.native),
        module.native_seconds,
        counts(module.inside),
        module.inside_seconds,
        module.differences.len(),
        module.unexplained().count(),
    );
    for difference in module.unexplained() {
        println!(
            "    {} -> {}: {}: {}",
            difference.native.name(),
            inside(difference),
            difference.test,
            difference.reason
        );
        if verbose {
            difference.details.lines().for_each(|line| println!("        {line}"));
        }
    }
    if !module.unserved.is_empty() {
        println!("    not served: {}", module.unserved.join(" "));
    }
}

fn inside(difference: &Difference) -> &'static str {
    difference.inside.map_or("not run", |verdict| verdict.name())
}

fn counts(count: Count) -> String {
    format!("{}/{}/{}", count.pass, count.bad, count.skip)
}

/// Writes docs/cpython.md.
///
/// # Errors
/// Where `path` cannot be written.
pub(crate) fn write_markdown(path: &Path, modules: &[Compared]) -> Result<()> {
    let mut text = String::from(HEAD);
    totals(&mut text, modules);
    table(&mut text, modules);
    differences(&mut text, modules);
    text.push_str(FOUND);
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

const HEAD: &str = "\
# CPython's regression tests in the process engine

Written by a command; do not edit:

    cargo run -p novum-sandbox --no-default-features --features vm --example cpython -- --install \\
        --json target/cpython.json --markdown docs/cpython.md

Debian 12's `/usr/bin/python3` (3.11) runs the tests of Debian's `libpython3.11-testsuite`, unchanged, twice: natively as root and
inside the process engine. Inside, the host's root directory is the read-only root under the sandbox's private layer in
memory, where `/tmp` is; tests work in a folder that is a writable share. A test is what unittest calls one; resources
that `python3 -m test` asks for by `-u` (network, large files, much time) are off in both places. A test that went wrong is run again,
alone, in the same place, and the second verdict counts. The list of modules, with what is left out, is
`sandbox/examples/cpython/harness/modules.rs`.

";

const FOUND: &str = "
## What these tests found

Each of these is mended, with a test of its own in `sandbox/tests/it/process`:

- A blocked thread's wait (a sleep, a lock with a time limit, `poll` on standard input) did not end while another thread ran
  without making calls (`test_queue`, `test_threading`).
- `setrlimit` was not served and `prlimit` changed nothing.
- `setuid`, `setresuid`, `setgroups` and their like, `getpriority` and the scheduling calls were not served (`test_posix`, `test_os`).
- `splice` was refused (`test_os`).
- A write to a full pipe came back short instead of waiting (`test_io`).
";

fn totals(text: &mut String, modules: &[Compared]) {
    let sum = |of: fn(&Compared) -> Count| {
        modules.iter().map(of).fold(Count::default(), |a, b| Count {
            pass: a.pass + b.pass,
            bad: a.bad + b.bad,
            skip: a.skip + b.skip,
        })
    };
    let (native, inside) = (sum(|module| module.native), sum(|module| module.inside));
    let mut by_cause: BTreeMap<Why, usize> = BTreeMap::new();
    for difference in modules.iter().flat_map(|module| &module.differences) {
        *by_cause.entry(difference.why).or_default() += 1;
    }
    let of = |why| by_cause.get(&why).copied().unwrap_or(0);
    let _ = writeln!(
        text,
        "| {} modules | passed | failed | skipped |\n|---|---:|---:|---:|\n| natively | {} | {} | {} |\n| inside | {} | {} | {} |\n",
        modules.len(),
        native.pass,
        native.bad,
        native.skip,
        inside.pass,
        inside.bad,
        inside.skip
    );
    let _ = writeln!(
        text,
        "Of the tests that differ, {} make processes (`fork` and `execve` are `ENOSYS`), {} need sockets of the host (`EAFNOSUPPORT`), \
         {} differ by a decision that is named below, {} because the folder is a share, {} skip themselves inside, {} go wrong natively only, {} are open.\n",
        of(Why::Processes),
        of(Why::Network),
        of(Why::Known),
        of(Why::Share),
        of(Why::Skips),
        of(Why::Native),
        of(Why::Unexplained),
    );
}

fn table(text: &mut String, modules: &[Compared]) {
    text.push_str(
        "## By module\n\nPassed / failed / skipped; then how many tests differ: because they make processes, need sockets, or for other reasons.\n\n\
         | module | natively | inside | processes | sockets | other |\n|---|---|---|---:|---:|---:|\n",
    );
    for module in modules {
        let count = |which: &[Why]| module.differences.iter().filter(|d| which.contains(&d.why)).count();
        let (processes, network) = (count(&[Why::Processes]), count(&[Why::Network]));
        let other = module.differences.len() - processes - network;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            module.module,
            counts(module.native),
            counts(module.inside),
            number(processes),
            number(network),
            number(other)
        );
    }
    text.push('\n');
}

fn number(n: usize) -> String {
    if n == 0 { String::new() } else { n.to_string() }
}

fn differences(text: &mut String, modules: &[Compared]) {
    const PARTS: [(Why, &str, &str); 7] = [
        (Why::Unexplained, "Open", "Defects, or not looked into yet."),
        (Why::Known, "By decision", "See process-engine.md and files.md."),
        (
            Why::Share,
            "On a share",
            "Run again in the sandbox's private layer, these do as natively. Files of a share keep their owner (`EPERM`) and get no \
             set-ID bits; `tarfile` gives up a file's mode and time with its owner.",
        ),
        (Why::Skips, "Skipped inside", "The test looks at what it runs on, and skips itself."),
        (Why::Native, "Other than passed natively", "Failed or skipped natively and passed inside."),
        (Why::Network, "Needs sockets", "`socket` is `EAFNOSUPPORT`."),
        (Why::Processes, "Makes processes", "`fork`, `vfork` and `posix_spawn` are `ENOSYS`."),
    ];
    text.push_str("## Tests that differ\n");
    for (why, title, meaning) in PARTS {
        let of = |module: &'_ Compared| module.differences.iter().filter(|d| d.why == why).count();
        if modules.iter().map(of).sum::<usize>() == 0 {
            continue;
        }
        let _ = writeln!(text, "\n### {title}\n\n{meaning}\n");
        modules.iter().for_each(|module| part(text, module, why));
    }
}

fn part(text: &mut String, module: &Compared, why: Why) {
    let prefix = format!("test.{}.", module.module);
    let mut names: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for difference in module.differences.iter().filter(|difference| difference.why == why) {
        let name = difference.test.strip_prefix(&prefix).unwrap_or(&difference.test);
        let reason = if says_all(why) { "" } else { difference.reason.as_str() };
        names.entry(reason).or_default().push(format!("`{name}`"));
    }
    for (reason, names) in names {
        let shown: String = reason.replace('|', "\\|").chars().take(200).collect();
        let shown = if shown.is_empty() { shown } else { format!(": {shown}") };
        let _ = writeln!(text, "- {} ({}): {}{shown}", module.module, names.len(), names.join(", "));
    }
}

/// Whether the part's title is the reason of every test in it.
fn says_all(why: Why) -> bool {
    matches!(why, Why::Processes | Why::Network | Why::Share)
}
