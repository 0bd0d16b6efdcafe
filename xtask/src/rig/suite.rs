//! `cargo xtask rig test`: tests built here, run in the rig with `NOVUM_REQUIRE_KVM=1`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::{MachineArgs, machine, report, run_command};

/// Arguments of `cargo xtask rig test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Fail where QEMU is missing instead of saying that the tests were skipped.
    #[arg(long)]
    require: bool,
    /// Of what was built, run only the tests of this package. With `--workspace` nothing is built again that
    /// `cargo test --workspace` has built.
    #[arg(long)]
    only: Option<String>,
    /// What to build, as for `cargo test`; `-p novum-sandbox --no-default-features --features vm` if nothing is
    /// said. After `--`: for the tests themselves.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// Builds and runs; the exit code is that of the first failing test binary.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.require && !machine::qemu_is_installed() {
        eprintln!("SKIPPED: rig: qemu-system-x86_64 is not installed");
        return Ok(ExitCode::SUCCESS);
    }
    let (build, pass) = match args.cargo.iter().position(|word| word == "--") {
        Some(at) => (&args.cargo[..at], &args.cargo[at + 1..]),
        None => (&args.cargo[..], &[][..]),
    };
    let (build, filter) = with_defaults(build);
    let mut binaries = binaries(&build)?;
    binaries.retain(|binary| args.only.as_ref().is_none_or(|only| binary.belongs_to(only)));
    anyhow::ensure!(!binaries.is_empty(), "cargo built no test");
    // One boot for all of them: a shell in L1 runs one after the other.
    let mut words: Vec<String> = ["sh", "-c", RUN_ALL, "rig-test"].map(str::to_owned).to_vec();
    words.push(binaries.len().to_string());
    words.extend(
        binaries
            .iter()
            .flat_map(|test| [&test.package, &test.executable])
            .map(|path| path.display().to_string()),
    );
    words.extend(filter);
    words.extend_from_slice(pass);
    let env = [("NOVUM_REQUIRE_KVM".to_owned(), "1".to_owned()), ("NOVUM_RIG".to_owned(), "1".to_owned())];
    let outcome = run_command(&args.machine, &words, &env)?;
    Ok(report(&outcome, Duration::from_secs(args.machine.timeout)))
}

/// `$1` pairs of a folder and a binary to run in it follow, then the arguments of each binary. The first failure's
/// status is the status of all.
const RUN_ALL: &str = r#"
n=$1; shift; i=0; list=; first=0
while [ $i -lt $n ]; do list="$list$1:$2
"; shift 2; i=$((i + 1)); done
IFS='
'
for pair in $list; do
  binary=${pair#*:}
  echo "rig: $binary" >&2
  (cd "${pair%%:*}" && exec "$binary" "$@"); rc=$?
  [ $rc -ne 0 ] && echo "rig: $binary ended with $rc" >&2
  [ $first -eq 0 ] && first=$rc
done
exit $first"#;

/// Cargo's arguments, and words without a dash, which filter tests as they do for `cargo test`.
fn with_defaults(build: &[String]) -> (Vec<String>, Vec<String>) {
    let takes_value =
        ["-p", "--package", "--features", "-F", "--test", "--bin", "--example", "--profile", "--target-dir"];
    let (mut options, mut filter) = (Vec::new(), Vec::new());
    let mut words = build.iter();
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            options.push(word.clone());
            options.extend(takes_value.contains(&word.as_str()).then(|| words.next().cloned()).flatten());
        } else {
            filter.push(word.clone());
        }
    }
    let names_package =
        |word: &String| word.starts_with("-p") || word.starts_with("--package") || word == "--workspace";
    if !options.iter().any(names_package) {
        let default = ["-p", "novum-sandbox", "--no-default-features", "--features", "vm"];
        options.extend(default.map(str::to_owned));
    }
    (options, filter)
}

/// A test binary, and the folder of its package, which cargo would run it in.
struct Binary {
    /// Cargo's id of the package: `path+file:///FOLDER#NAME@VERSION`.
    id: String,
    package: PathBuf,
    executable: PathBuf,
}

impl Binary {
    fn of(message: &serde_json::Value) -> Option<Self> {
        let manifest = PathBuf::from(message["manifest_path"].as_str()?);
        let executable = PathBuf::from(message["executable"].as_str()?);
        let id = message["package_id"].as_str()?.to_owned();
        Some(Self { id, package: manifest.parent()?.to_owned(), executable })
    }

    fn belongs_to(&self, package: &str) -> bool {
        let name = self.id.rsplit(['#', '/']).next().unwrap_or_default();
        name.split('@').next() == Some(package)
    }
}

/// Builds tests and returns their executables, as cargo's messages name them.
fn binaries(options: &[String]) -> anyhow::Result<Vec<Binary>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]).args(options);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let messages = child.stdout.take().context("cargo's messages")?;
    let mut found = Vec::new();
    for line in BufReader::new(messages).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
        if message["profile"]["test"] == true {
            found.extend(Binary::of(&message));
        }
    }
    anyhow::ensure!(child.wait()?.success(), "the tests do not build");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn filters_and_options_are_told_apart() {
        let (options, filter) = with_defaults(&words("--test boot kernel"));
        assert_eq!(options, words("--test boot -p novum-sandbox --no-default-features --features vm"));
        assert_eq!(filter, ["kernel"]);
        let (options, filter) = with_defaults(&words("-p other --lib"));
        assert_eq!((options, filter), (words("-p other --lib"), Vec::new()));
        let (options, _) = with_defaults(&words("--workspace --lib"));
        assert_eq!(options, words("--workspace --lib"));
    }

    #[test]
    fn a_binary_knows_its_package() {
        let of = |id: &str| Binary { id: id.into(), package: PathBuf::new(), executable: PathBuf::new() };
        assert!(of("path+file:///w/sandbox#novum-sandbox@0.1.0").belongs_to("novum-sandbox"));
        assert!(!of("path+file:///w/sandbox#novum-sandbox@0.1.0").belongs_to("novum"));
    }

    #[test]
    fn every_binary_runs_and_the_first_failure_counts() {
        let run = |arguments: &[&str]| {
            let out = Command::new("sh").args(["-c", RUN_ALL, "rig-test"]).args(arguments).output().unwrap();
            (out.status.code(), String::from_utf8(out.stdout).unwrap())
        };
        assert_eq!(run(&["2", "/", "pwd", "/tmp", "pwd"]), (Some(0), "/\n/tmp\n".to_owned()));
        assert_eq!(run(&["3", "/", "true", "/", "false", "/", "echo", "x"]), (Some(1), "x\n".to_owned()));
    }
}
