//! `novum snapshot`: a look into the store of snapshots, on this machine and without a gateway.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use novum_sandbox::kept::Origin;
use novum_snapshot::collect::Prune;
use novum_snapshot::inspect::{self, Inspection};
use novum_snapshot::{Digest, OpenError, Snapshot, Store};
use serde::Serialize;
use serde_json::json;

use super::Global;
use super::error::{Error, exit};
use super::output::{self, GREEN, RED, styled};
use crate::units::{format_duration, parse_duration, parse_size};

/// List, examine, check and remove snapshots on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum snapshot ls
  novum snapshot inspect process.hello.v1
  novum snapshot verify
  novum snapshot rm 4f1c09
  novum snapshot prune --unused-for 24h --max-size 2GiB

A SNAPSHOT is a reference, a digest, or the first digits of a digest.")]
pub(super) struct Args {
    /// The store [default: cache/snapshots in the data directory]
    #[arg(long, global = true, value_name = "DIR", env = "NOVUM_SNAPSHOT_STORE")]
    store: Option<PathBuf>,
    /// The data directory of the gateway [default: $XDG_DATA_HOME/novum or ~/.local/share/novum]
    #[arg(long, global = true, value_name = "DIR", env = "NOVUM_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List snapshots: size, last use, parent, references
    Ls,
    /// Show layers, sections, memory and what a host must offer
    Inspect {
        /// Which
        snapshot: String,
    },
    /// Read every byte and compare checksums
    ///
    /// Exit code 65 if any is damaged.
    Verify {
        /// Which, with the layers below [default: all]
        #[arg(value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Remove references, and snapshots that nothing needs
    Rm {
        /// Which
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Remove snapshots that no reference keeps and no process uses
    ///
    /// Without an option all of them; with both options those that either one names.
    Prune {
        /// Only those that were not used for so long
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        unused_for: Option<Duration>,
        /// Only the longest unused, until the store is this small
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        max_size: Option<u64>,
    },
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let store = args.open()?;
    match &args.action {
        Action::Ls => print(global, &inspect::list(&store)?),
        Action::Inspect { snapshot } => print(global, &Inspected::of(&store, &store.find(snapshot)?)?),
        Action::Verify { snapshots } => verify(global, &store, snapshots),
        Action::Rm { snapshots } => {
            for snapshot in snapshots {
                print(global, &store.remove_called(snapshot)?)?;
            }
            Ok(0)
        }
        Action::Prune { unused_for, max_size } => {
            let everything = unused_for.is_none() && max_size.is_none();
            let unused_for = if everything { Some(Duration::ZERO) } else { *unused_for };
            print(global, &store.prune(&Prune { unused_for, max_bytes: *max_size })?)
        }
    }
}

/// A snapshot in detail, and of what it is an image, where it says so.
#[derive(Serialize)]
struct Inspected {
    origin: Option<Origin>,
    #[serde(flatten)]
    snapshot: Inspection,
}

impl Inspected {
    fn of(store: &Store, digest: &Digest) -> Result<Self, OpenError> {
        let snapshot = inspect::inspect(store, digest)?;
        let origin = Snapshot::open(store, digest)?.take("").ok();
        Ok(Self { origin, snapshot })
    }
}

impl Display for Inspected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(origin) = &self.origin {
            let Origin { engine, function, version, artifact, novum, made_at_ms, key: _ } = origin;
            let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let age = age.saturating_sub(Duration::from_millis(*made_at_ms));
            writeln!(f, "function    {function}, version {version}, {engine} engine")?;
            writeln!(f, "artifact    {artifact}")?;
            let age = format_duration(Duration::from_secs(age.as_secs()));
            // Files may come from elsewhere: nothing in them may steer a terminal.
            writeln!(f, "made        {age} ago by novum {}", novum.escape_debug())?;
        }
        self.snapshot.fmt(f)
    }
}

impl Args {
    /// Opens the store, which must be there: looking must not make one.
    fn open(&self) -> Result<Store, Error> {
        let path = match (&self.store, &self.data_dir) {
            (Some(store), _) => store.clone(),
            (None, Some(data)) => data.join("cache/snapshots"),
            (None, None) => super::serve::default_data_dir()?.join("cache/snapshots"),
        };
        if !path.is_dir() {
            return Err(Error::Usage {
                what: format!("there is no snapshot store at {}", path.display()),
                advice: "name the gateway's data directory with --data-dir, or the store with --store".into(),
            });
        }
        Ok(Store::open(path)?.without_counting_use())
    }
}

/// For a person as it displays itself, for a program as JSON.
fn print(global: &Global, value: &(impl Display + Serialize)) -> Result<u8, Error> {
    match global.json {
        true => output::json_line(&json!(value))?,
        false => output::raw(value.to_string().as_bytes())?,
    }
    Ok(0)
}

fn verify(global: &Global, store: &Store, named: &[String]) -> Result<u8, Error> {
    let mut intact = true;
    if named.is_empty() {
        // Each layer has its own turn.
        for digest in store.digests()? {
            intact &=
                verify_one(global, digest, Snapshot::open(store, &digest).and_then(|s| s.verify_layer()))?;
        }
    }
    for name in named {
        let digest = store.find(name)?;
        intact &= verify_one(global, digest, Snapshot::open(store, &digest).and_then(|s| s.verify()))?;
    }
    Ok(if intact { 0 } else { exit::INVALID })
}

fn verify_one(global: &Global, digest: Digest, result: Result<(), OpenError>) -> Result<bool, Error> {
    let reason = result.err().map(|e| reason(&e));
    match (global.json, &reason) {
        (true, _) => {
            output::json_line(&json!({ "digest": digest, "intact": reason.is_none(), "reason": reason }))?
        }
        (false, None) => output::line(format_args!("{digest}  {}", styled(GREEN, "intact")))?,
        (false, Some(reason)) => {
            output::line(format_args!("{digest}  {}  {reason}", styled(RED, "damaged")))?
        }
    }
    Ok(reason.is_none())
}

/// An error with its causes, on one line.
fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
