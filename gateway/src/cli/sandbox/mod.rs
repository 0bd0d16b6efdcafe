//! `novum sandbox`: sandboxes that live between calls.

mod copy;
mod create;
mod exec;
mod show;
mod watch;

use novum_proto::gateway::v1;
use serde_json::json;

use super::Global;
use super::error::Error;
use super::output;
use crate::units::{format_size, parse_size};

/// Work in sandboxes that live between calls: create, exec, shell, cp, pause, resize, snapshot, fork
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum sandbox create --function tools --name work     a sandbox with that function's files
  novum sandbox create --root /srv/debian --name deb    a Linux guest with that root
  novum sandbox exec work -- /usr/bin/env               run a program in it; its exit code is passed through
  novum sandbox shell deb                               a shell, with your terminal
  novum sandbox cp data.csv work:/tmp/data.csv          files in and out
  novum sandbox fork work --name try1 --name try2       two more in its state
  novum sandbox ls
  novum sandbox rm work try1 try2")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a sandbox and print its name
    Create(create::Args),
    /// Run a program in a sandbox
    Exec(exec::Args),
    /// Run a shell in a sandbox, with your terminal
    Shell(exec::ShellArgs),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls,
    /// Show one sandbox
    Get {
        /// Its name
        name: String,
    },
    /// Delete sandboxes with everything that runs in them
    #[command(visible_alias = "delete")]
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// The names are those of snapshots
        #[arg(long)]
        snapshot: bool,
    },
    /// Copy a file into a sandbox or out of it; NAME:/PATH is one there, - is standard input or output
    Cp(copy::Args),
    /// Stop a sandbox's processors
    Pause {
        /// Its name
        name: String,
    },
    /// Let a paused sandbox go on
    Resume {
        /// Its name
        name: String,
    },
    /// Take memory from a running sandbox, or give it back
    Resize {
        /// Its name
        name: String,
        /// What it shall have, such as 256MiB: at most what it was made with
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        memory: u64,
    },
    /// Keep a sandbox's state, for `create --snapshot`
    Snapshot {
        /// The sandbox
        name: String,
        /// The snapshot's name [default: made up]
        #[arg(long = "name", value_name = "NAME")]
        snapshot: Option<String>,
    },
    /// List snapshots
    Snapshots,
    /// Make further sandboxes in the state of one
    Fork {
        /// The sandbox
        name: String,
        /// A name for a new sandbox; may be repeated
        #[arg(long = "name", value_name = "NAME", conflicts_with = "count")]
        names: Vec<String>,
        /// How many, with made-up names
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
        count: u8,
    },
    /// Print what is there and then what happens, until interrupted
    Watch {
        /// Only this sandbox
        name: Option<String>,
    },
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    match &args.action {
        Action::Create(args) => create::run(global, args).await,
        Action::Exec(args) => exec::run(global, args).await,
        Action::Shell(args) => exec::shell(global, args).await,
        Action::Ls => show::list(global).await,
        Action::Get { name } => show::get(global, name).await,
        Action::Rm { names, snapshot } => remove(global, names, *snapshot).await,
        Action::Cp(args) => copy::run(global, args).await,
        Action::Pause { name } => pause(global, name).await,
        Action::Resume { name } => resume(global, name).await,
        Action::Resize { name, memory } => resize(global, name, *memory).await,
        Action::Snapshot { name, snapshot } => keep(global, name, snapshot.as_deref()).await,
        Action::Snapshots => show::snapshots(global).await,
        Action::Fork { name, names, count } => fork(global, name, names, *count).await,
        Action::Watch { name } => watch::run(global, name.as_deref()).await,
    }
}

async fn remove(global: &Global, names: &[String], snapshot: bool) -> Result<u8, Error> {
    let mut sandboxes = global.connect().await?.sandboxes();
    for name in names {
        let what = format!("delete {name}");
        if snapshot {
            let request = v1::DeleteSandboxSnapshotRequest { name: name.clone() };
            sandboxes.delete_snapshot(request).await.map_err(Error::status(what))?;
        } else {
            let request = v1::DeleteSandboxRequest { name: name.clone() };
            sandboxes.delete(request).await.map_err(Error::status(what))?;
        }
        match global.json {
            true => output::json_line(&json!({ "outcome": "deleted", "name": name }))?,
            false => output::line(format_args!("deleted {name}"))?,
        }
    }
    Ok(0)
}

async fn pause(global: &Global, name: &str) -> Result<u8, Error> {
    let request = v1::PauseSandboxRequest { name: name.to_owned() };
    let mut sandboxes = global.connect().await?.sandboxes();
    let paused = sandboxes.pause(request).await.map_err(Error::status(format!("pause {name}")))?;
    show::changed(global, paused.into_inner().sandbox)
}

async fn resume(global: &Global, name: &str) -> Result<u8, Error> {
    let request = v1::ResumeSandboxRequest { name: name.to_owned() };
    let mut sandboxes = global.connect().await?.sandboxes();
    let resumed = sandboxes.resume(request).await.map_err(Error::status(format!("resume {name}")))?;
    show::changed(global, resumed.into_inner().sandbox)
}

async fn resize(global: &Global, name: &str, memory_bytes: u64) -> Result<u8, Error> {
    let request = v1::ResizeSandboxRequest { name: name.to_owned(), memory_bytes };
    let mut sandboxes = global.connect().await?.sandboxes();
    let resized = sandboxes.resize(request).await.map_err(Error::status(format!("resize {name}")))?;
    let now = resized.into_inner().memory_bytes;
    match global.json {
        true => output::json_line(&json!({ "outcome": "resized", "name": name, "memory_bytes": now }))?,
        false => output::line(format_args!("{name}: {}", format_size(now)))?,
    }
    Ok(0)
}

async fn keep(global: &Global, name: &str, snapshot: Option<&str>) -> Result<u8, Error> {
    let request = v1::SnapshotSandboxRequest {
        name: name.to_owned(),
        snapshot: snapshot.unwrap_or_default().to_owned(),
    };
    let mut sandboxes = global.connect().await?.sandboxes();
    let kept =
        sandboxes.snapshot(request).await.map_err(Error::status(format!("take a snapshot of {name}")))?;
    let kept = kept.into_inner().snapshot.ok_or(Error::Protocol("snapshot"))?;
    match global.json {
        true => output::json_line(&show::snapshot_json(&kept))?,
        false => output::line(&kept.name)?,
    }
    Ok(0)
}

async fn fork(global: &Global, name: &str, names: &[String], count: u8) -> Result<u8, Error> {
    let forks = if names.is_empty() { vec![String::new(); count.into()] } else { names.to_vec() };
    let request = v1::ForkSandboxRequest { name: name.to_owned(), forks };
    let mut sandboxes = global.connect().await?.sandboxes();
    let forked = sandboxes.fork(request).await.map_err(Error::status(format!("fork {name}")))?;
    for sandbox in forked.into_inner().sandboxes {
        show::made(global, Some(sandbox))?;
    }
    Ok(0)
}
