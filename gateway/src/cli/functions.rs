//! `novum functions`.

use novum_proto::gateway::v1;
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::output::{self, duration, engine_name};
use crate::client::Client;
use crate::units::{format_duration, format_size};

/// List what is deployed, or show one function
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  novum functions
  novum functions get hello
  novum functions --json | jq -r .name"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List all functions (the default)
    List,
    /// Show one function's manifest and version
    Get {
        /// Its name
        name: String,
        /// This version instead of the current one
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        version: u64,
    },
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let client = global.connect().await?;
    match &args.action {
        None | Some(Action::List) => list(global, &client).await?,
        Some(Action::Get { name, version }) => {
            let request = v1::GetRequest { name: name.clone(), version: *version };
            let response =
                client.functions().get(request).await.map_err(Error::status(format!("get {name}")))?;
            let function = response.into_inner().function.ok_or(Error::Protocol("function"))?;
            match global.json {
                true => output::json_line(&function_json(&function))?,
                false => show(&function)?,
            }
        }
    }
    Ok(0)
}

async fn list(global: &Global, client: &Client) -> Result<(), Error> {
    let functions = all(client).await?;
    if global.json {
        return functions.iter().try_for_each(|function| output::json_line(&function_json(function)));
    }
    if functions.is_empty() {
        output::note(format_args!("nothing is deployed at {}; try: novum deploy DIR", global.server));
        return Ok(());
    }
    let rows: Vec<_> = functions.iter().map(row).collect();
    output::table(&["NAME", "VERSION", "ENGINE", "ARTIFACT", "MEMORY", "TIMEOUT", "DEPLOYED"], &rows)
}

/// Every function, page by page.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::Function>, Error> {
    let mut functions = Vec::new();
    let mut request = v1::ListRequest { page_size: 1000, page_token: String::new() };
    loop {
        let page = client.functions().list(request.clone()).await;
        let page = page.map_err(Error::status("list functions"))?.into_inner();
        functions.extend(page.functions);
        if page.next_page_token.is_empty() {
            return Ok(functions);
        }
        request.page_token = page.next_page_token;
    }
}

fn row(function: &v1::Function) -> Vec<String> {
    let manifest = function.manifest.clone().unwrap_or_default();
    vec![
        manifest.name,
        function.version.to_string(),
        engine_name(manifest.engine).to_owned(),
        format_size(function.artifact_bytes),
        format_size(manifest.memory_bytes.unwrap_or(0)),
        format_duration(duration(manifest.timeout.as_ref())),
        deployed(function),
    ]
}

fn deployed(function: &v1::Function) -> String {
    let time = function.deployed_at.as_ref().map(ToString::to_string).unwrap_or_default();
    // RFC 3339 to the second is enough for a person.
    time.split('.').next().unwrap_or_default().replace('T', " ").trim_end_matches('Z').to_owned()
}

fn show(function: &v1::Function) -> Result<(), Error> {
    let m = function.manifest.clone().unwrap_or_default();
    let pool = m.pool.unwrap_or_default();
    let mut lines = vec![
        ("name", m.name.clone()),
        ("version", function.version.to_string()),
        ("deployed", deployed(function)),
        ("engine", engine_name(m.engine).to_owned()),
        ("entry", m.entry.clone()),
        ("args", m.args.join(" ")),
        ("memory", format_size(m.memory_bytes.unwrap_or(0))),
        ("timeout", format_duration(duration(m.timeout.as_ref()))),
        ("output", format_size(m.output_bytes.unwrap_or(0))),
        ("allow_env", m.allow_env.join(" ")),
        ("ready", m.ready.clone().unwrap_or_default()),
        (
            "artifact",
            format!("{}, sha256 {}", format_size(function.artifact_bytes), function.artifact_sha256),
        ),
    ];
    let mut env: Vec<_> = m.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.sort();
    lines.extend(env.into_iter().map(|variable| ("env", variable)));
    lines.extend(m.shares.iter().map(|share| {
        let mode = if share.read_only() { "read-only" } else { "writable" };
        ("share", format!("{} at {} ({mode})", share.source, share.target))
    }));
    lines.push((
        "pool",
        format!(
            "min {}, max {}, queue {}, idle {}",
            pool.min(),
            pool.max(),
            pool.queue(),
            format_duration(duration(pool.idle.as_ref()))
        ),
    ));
    let shown = lines.into_iter().filter(|(_, value)| !value.is_empty());
    shown.into_iter().try_for_each(|(key, value)| {
        output::line(format_args!("{} {value}", output::styled(output::BOLD, format_args!("{key:<10}"))))
    })
}

/// The stable form of a function.
pub(super) fn function_json(function: &v1::Function) -> Value {
    let m = function.manifest.clone().unwrap_or_default();
    let seconds = |d: Option<&prost_types::Duration>| duration(d).as_secs_f64();
    let share = |share: &v1::SharedDirectory| json!({ "source": share.source, "target": share.target, "read_only": share.read_only() });
    let pool = m.pool.unwrap_or_default();
    json!({
        "name": m.name,
        "version": function.version,
        "engine": engine_name(m.engine),
        "deployed_at": function.deployed_at.as_ref().map(ToString::to_string),
        "artifact": {
            "sha256": function.artifact_sha256,
            "bytes": function.artifact_bytes,
            "format": if function.artifact_format() == v1::ArtifactFormat::Tar { "tar" } else { "file" },
        },
        "entry": m.entry,
        "args": m.args,
        "env": m.env,
        "allow_env": m.allow_env,
        "ready": m.ready,
        "memory_bytes": m.memory_bytes,
        "timeout_s": seconds(m.timeout.as_ref()),
        "output_bytes": m.output_bytes,
        "shares": m.shares.iter().map(share).collect::<Vec<_>>(),
        "pool": {
            "min": pool.min(), "max": pool.max(), "queue": pool.queue(), "idle_s": seconds(pool.idle.as_ref()),
        },
    })
}
