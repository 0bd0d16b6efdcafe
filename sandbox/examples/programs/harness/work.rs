//! The work folder, and the order of things: fill, run natively, empty, fill, run inside, compare.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::{Both, Case, Cases, Verdict, inside, native};

/// Where all of it happens. Programs print paths, so it is the same place every time.
const PLACE: &str = "/tmp/novum-programs";

/// When the given files were changed, in both runs: 1 January 2020. Archives keep it.
const LONG_AGO: Duration = Duration::from_secs(1_577_836_800);

/// A case with its placeholders replaced.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) program: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) input: String,
    pub(super) memory_mib: u64,
    pub(super) timeout_s: u32,
}

/// The place of work, for one at a time.
pub(crate) struct Work {
    /// Multiplies time limits.
    pub(crate) patience: u32,
    files: BTreeMap<String, String>,
    folder: PathBuf,
    built: PathBuf,
    _lock: File,
}

impl Work {
    /// Waits until nobody else works there.
    ///
    /// # Errors
    /// Where the folders cannot be made.
    pub(crate) fn lock(cases: &Cases) -> Result<Self> {
        let place = Path::new(PLACE);
        let built = place.join("built");
        fs::create_dir_all(&built).with_context(|| format!("make {}", built.display()))?;
        let lock = File::create(place.join("lock"))?;
        lock.lock()?;
        let files = cases.files.clone();
        Ok(Self { patience: 1, files, folder: place.join("work"), built, _lock: lock })
    }

    /// Compiles what `case` runs, if it is one of ours and not there yet: why it cannot be, or `None`.
    ///
    /// # Errors
    /// Where the compiler fails.
    pub(crate) fn build(&self, cases: &Cases, case: &Case) -> Result<Option<Verdict>> {
        let (unfilled, _) = case.command();
        let program = self.fill_in(&unfilled);
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let build = cases.build.iter().find(|build| unfilled.contains("{built}") && build.name == name);
        let Some(build) = build else {
            let missing = !Path::new(&program).exists();
            return Ok(missing.then_some(Verdict::Missing(program)));
        };
        // The command's text is part of what makes the file: a changed source or option builds again.
        let stamp = self.built.join(format!("{name}.stamp"));
        let identity = format!("{}\n{}", build.command, source_text(&build.command)?);
        if fs::read_to_string(&stamp).is_ok_and(|old| old == identity) && Path::new(&program).exists() {
            return Ok(None);
        }
        if !exists_in_path(&build.compiler) {
            return Ok(Some(Verdict::Missing(build.compiler.clone())));
        }
        shell(&self.fill_in(&build.command), &self.built)?;
        fs::write(stamp, identity)?;
        Ok(None)
    }

    /// Runs `case` twice.
    ///
    /// # Errors
    /// Where the machinery fails, not the program.
    pub(crate) async fn compare(&self, case: &Case) -> Result<Verdict> {
        let plan = self.plan(case);
        self.prepare(case)?;
        let native = native::run(&plan, &self.folder)?;
        self.prepare(case)?;
        let inside = inside::run(&plan, &self.folder).await?;
        Ok(Verdict::Ran(Box::new(Both::new(case, native, inside))))
    }

    fn plan(&self, case: &Case) -> Plan {
        let mut env: BTreeMap<String, String> =
            [("PATH", "/usr/bin:/bin"), ("HOME", "{work}"), ("LANG", "C.UTF-8"), ("TZ", "UTC")]
                .map(|(name, value)| (name.to_owned(), self.fill_in(value)))
                .into();
        env.extend(case.env.iter().map(|(name, value)| (name.clone(), self.fill_in(value))));
        let (program, args) = case.command();
        Plan {
            program: self.fill_in(&program),
            args: args.iter().map(|arg| self.fill_in(arg)).collect(),
            env,
            input: self.fill_in(&case.input),
            memory_mib: case.memory_mib,
            timeout_s: case.timeout_s * self.patience,
        }
    }

    fn fill_in(&self, text: &str) -> String {
        text.replace("{work}", &self.folder.to_string_lossy())
            .replace("{built}", &self.built.to_string_lossy())
            .replace("{sources}", sources())
    }

    /// An empty work folder with the case's files.
    fn prepare(&self, case: &Case) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::create_dir_all(&self.folder)?;
        for (name, text) in &self.files {
            let path = self.folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::write(&path, text)?;
            File::options().write(true).open(&path)?.set_modified(UNIX_EPOCH + LONG_AGO)?;
        }
        case.make.as_ref().map_or(Ok(()), |command| shell(&self.fill_in(command), &self.folder))
    }
}

fn sources() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/examples/programs/sources")
}

/// The text of the sources that a build command names.
fn source_text(command: &str) -> Result<String> {
    let named = command.split_whitespace().filter_map(|word| word.strip_prefix("{sources}/"));
    named.map(|name| fs::read_to_string(Path::new(sources()).join(name)).map_err(Into::into)).collect()
}

fn exists_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn shell(command: &str, folder: &Path) -> Result<()> {
    let done = Command::new("/bin/sh").arg("-ec").arg(command).current_dir(folder).output()?;
    if !done.status.success() {
        bail!("{command}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
