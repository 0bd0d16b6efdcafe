//! `novum deploy`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use novum_proto::gateway::v1;
use novum_sandbox::{EngineChoice, FunctionName};
use serde_json::json;

use super::Global;
use super::error::Error;
use super::functions::function_json;
use super::input::{Limits, named_artifact};
use super::output;
use super::progress::Progress;
use crate::manifest::{self, FunctionFile};
use crate::units::{format_duration, format_size};

/// Deploy a function; the former version serves until the new one is ready
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum deploy                                   the novum.toml in this directory
  novum deploy functions/hello                   the one in that directory
  novum deploy functions/*/novum.toml            several
  novum deploy --name hello hello.wasm           without a manifest
  novum deploy --name sort --engine process --memory 64MiB /usr/bin/sort")]
pub(super) struct Args {
    /// Directories with a novum.toml, manifest files, or with --name one artifact [default: .]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Deploy a file without a manifest under this name
    #[arg(long)]
    name: Option<FunctionName>,
    /// What isolates the function [default: auto]
    #[arg(long, requires = "name", value_parser = super::input::engine())]
    engine: Option<EngineChoice>,
    #[command(flatten)]
    limits: Limits,
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let files = files(args)?;
    let client = global.connect().await?;
    for file in &files {
        let sent = Arc::new(AtomicU64::new(0));
        let name = file.manifest.name.as_str();
        let progress = Progress::upload(name, sent.clone(), file.artifact.size_bytes());
        let response = client.deploy(file, sent).await;
        drop(progress);
        report(global, &response?)?;
    }
    Ok(0)
}

fn files(args: &Args) -> Result<Vec<FunctionFile>, Error> {
    let Some(name) = &args.name else {
        args.limits.refuse_without_name()?;
        let here = [PathBuf::from(".")];
        let paths = if args.paths.is_empty() { &here[..] } else { &args.paths };
        return paths.iter().map(|path| Ok(manifest::load(&manifest_path(path)?)?)).collect();
    };
    let [path] = &args.paths[..] else {
        return Err(Error::Usage {
            what: format!("--name {name} deploys exactly one artifact, not {}", args.paths.len()),
            advice: format!("novum deploy --name {name} FILE"),
        });
    };
    let mut file = named_artifact(name.clone(), path)?;
    file.manifest.engine = args.engine.unwrap_or_default();
    args.limits.apply(&mut file.manifest)?;
    Ok(vec![file])
}

/// The manifest that `path` means: itself, or the novum.toml in it.
pub(super) fn manifest_path(path: &Path) -> Result<PathBuf, Error> {
    let found = std::fs::metadata(path).map_err(|source| Error::File {
        doing: "open",
        path: path.to_owned(),
        source,
    })?;
    if found.is_dir() {
        let manifest = path.join(manifest::FILE_NAME);
        if manifest.is_file() {
            return Ok(manifest);
        }
        return Err(Error::Usage {
            what: format!("there is no {} in {}", manifest::FILE_NAME, path.display()),
            advice: "write one (docs/manifest.md), or deploy a file with --name NAME FILE".into(),
        });
    }
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Ok(path.to_owned());
    }
    Err(Error::Usage {
        what: format!("{} is neither a directory nor a manifest", path.display()),
        advice: format!("to deploy it without a manifest: novum deploy --name NAME {}", path.display()),
    })
}

fn report(global: &Global, response: &v1::DeployResponse) -> Result<(), Error> {
    let function = response.function.as_ref().ok_or(Error::Protocol("function"))?;
    let manifest = function.manifest.as_ref().ok_or(Error::Protocol("manifest"))?;
    let prepared = output::duration(response.prepare_time.as_ref());
    if global.json {
        return output::json_line(&json!({
            "outcome": if response.changed { "deployed" } else { "unchanged" },
            "function": function_json(function),
            "prepare_us": prepared.as_micros() as u64,
        }));
    }
    let (name, version) = (&manifest.name, function.version);
    if !response.changed {
        return output::line(format_args!("{name} is unchanged: version {version} serves"));
    }
    output::line(format_args!(
        "{} {name} version {version} ({}, {}, prepared in {})",
        output::styled(output::GREEN, "deployed"),
        output::engine_name(manifest.engine),
        format_size(function.artifact_bytes),
        format_duration(prepared),
    ))
}
