//! What L1 is to do: a shell script with the folder, the environment and the command, and the list of shares.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::MachineArgs;

/// Variables that are passed on without being asked for.
const PASSED: &[&str] = &["PATH", "HOME", "USER", "LANG", "TZ", "LD_LIBRARY_PATH"];
/// Variables whose names begin so are passed on too.
const PASSED_PREFIXES: &[&str] = &["NOVUM_", "RUST_", "CARGO_", "PROPTEST_", "INSTA_"];

/// One run.
pub(crate) struct Job {
    /// Run by `sh` in the root file system of L1.
    pub(crate) script: String,
    /// Folders that can be written; the n-th has the mount tag `share<n>`.
    pub(crate) shares: Vec<PathBuf>,
}

impl Job {
    /// The job that runs `command` here, with `env` added to what is passed on.
    pub(crate) fn new(
        args: &MachineArgs,
        command: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let share = |folder: &PathBuf| {
            let full = folder.canonicalize().with_context(|| format!("--share {}", folder.display()))?;
            anyhow::ensure!(full.is_dir(), "--share {}: not a folder", folder.display());
            Ok(full)
        };
        let shares = args.share.iter().map(share).collect::<anyhow::Result<_>>()?;
        let mut variables = passed_on();
        for wish in &args.env {
            variables.push(wished(wish)?);
        }
        variables.extend_from_slice(env);
        let folder = env::current_dir().context("the current folder")?;
        Ok(Self { script: script(&folder, &variables, command), shares })
    }

    /// One line per share: mount tag and path.
    pub(crate) fn share_list(&self) -> String {
        let line = |(number, path): (usize, &PathBuf)| format!("{} {}\n", tag(number), path.display());
        self.shares.iter().enumerate().map(line).collect()
    }
}

/// The mount tag of share `number`.
pub(crate) fn tag(number: usize) -> String {
    format!("share{number}")
}

/// `command` with its program made a path, so that it is the host's file that runs.
pub(crate) fn resolve(command: &[String]) -> anyhow::Result<Vec<String>> {
    let mut command = command.to_vec();
    let program = &command[0];
    if program.contains('/') {
        let path = Path::new(program).canonicalize().with_context(|| format!("no program {program}"))?;
        command[0] = path.to_str().context("the program's path is not UTF-8")?.to_owned();
    }
    Ok(command)
}

fn passed_on() -> Vec<(String, String)> {
    let wanted =
        |name: &str| PASSED.contains(&name) || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| wanted(name))
        .collect()
}

fn wished(wish: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = match wish.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (wish, env::var(wish).with_context(|| format!("--env {wish}"))?),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
        bail!("--env {wish}: a shell cannot have a variable of that name");
    }
    Ok((name.to_owned(), value))
}

fn script(folder: &Path, variables: &[(String, String)], command: &[String]) -> String {
    let mut script = format!("cd {} || exit 126\n", quote(&folder.to_string_lossy()));
    for (name, value) in variables {
        script.push_str(&format!("export {name}={}\n", quote(value)));
    }
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    // No `exec`: the shell then says when a program died by a signal.
    script.push_str(&format!("{}\n", words.join(" ")));
    script
}

/// As one word for sh.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_passes_every_character() {
        let value = "a'b \"c\" $HOME \\ \n`x`";
        let command = ["printf", "%s|", value, ""].map(str::to_owned);
        let variables = [("NOVUM_X".to_owned(), value.to_owned())];
        let text = script(Path::new("/"), &variables, &command) + "printf %s \"$NOVUM_X\"\n";
        let out = Command::new("sh").args(["-c", &text]).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{value}||{value}"));
    }

    #[test]
    fn a_variable_that_a_shell_cannot_have_is_refused() {
        assert!(wished("A B=1").is_err());
        assert!(wished("1A=1").is_err());
        assert_eq!(wished("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
    }
}
