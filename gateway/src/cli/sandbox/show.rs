//! Sandboxes and snapshots for people and for programs.

use novum_proto::gateway::v1;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::output::{self, duration, engine_name};
use crate::units::{format_duration, format_size};

fn state(sandbox: &v1::Sandbox) -> &'static str {
    match sandbox.state() {
        v1::SandboxState::Paused => "paused",
        v1::SandboxState::Running | v1::SandboxState::Unspecified => "running",
    }
}

fn time(time: Option<&prost_types::Timestamp>) -> String {
    let text = time.map(ToString::to_string).unwrap_or_default();
    // RFC 3339 to the second is enough for a person.
    text.split('.').next().unwrap_or_default().replace('T', " ").trim_end_matches('Z').to_owned()
}

/// The stable form of a sandbox.
pub(super) fn json(sandbox: &v1::Sandbox) -> Value {
    json!({
        "name": sandbox.name,
        "engine": engine_name(sandbox.engine),
        "state": state(sandbox),
        "source": sandbox.source,
        "memory_bytes": sandbox.memory_bytes,
        "cpus": sandbox.cpus,
        "created_at": sandbox.created_at.as_ref().map(ToString::to_string),
        "expires_at": sandbox.expires_at.as_ref().map(ToString::to_string),
        "idle_timeout_s": duration(sandbox.idle_timeout.as_ref()).as_secs_f64(),
        "commands": sandbox.commands,
        "private_bytes": sandbox.private_bytes,
        "start_us": duration(sandbox.start_time.as_ref()).as_secs_f64() * 1e6,
    })
}

/// The stable form of a snapshot.
pub(super) fn snapshot_json(kept: &v1::SandboxSnapshot) -> Value {
    json!({
        "name": kept.name,
        "engine": engine_name(kept.engine),
        "sandbox": kept.sandbox,
        "created_at": kept.created_at.as_ref().map(ToString::to_string),
        "holds": kept.holds,
        "bytes": kept.bytes,
    })
}

/// A new sandbox: its name alone, so that a script can take it.
pub(super) fn made(global: &Global, sandbox: Option<v1::Sandbox>) -> Result<u8, Error> {
    let sandbox = sandbox.ok_or(Error::Protocol("sandbox"))?;
    match global.json {
        true => output::json_line(&json(&sandbox))?,
        false => output::line(&sandbox.name)?,
    }
    Ok(0)
}

/// A sandbox in another state.
pub(super) fn changed(global: &Global, sandbox: Option<v1::Sandbox>) -> Result<u8, Error> {
    let sandbox = sandbox.ok_or(Error::Protocol("sandbox"))?;
    match global.json {
        true => output::json_line(&json(&sandbox))?,
        false => output::line(format_args!("{} is {}", sandbox.name, state(&sandbox)))?,
    }
    Ok(0)
}

pub(super) async fn get(global: &Global, name: &str) -> Result<u8, Error> {
    let request = v1::GetSandboxRequest { name: name.to_owned() };
    let found = global.connect().await?.sandboxes().get(request).await;
    let found = found.map_err(Error::status(format!("get {name}")))?.into_inner();
    let sandbox = found.sandbox.ok_or(Error::Protocol("sandbox"))?;
    if global.json {
        output::json_line(&json(&sandbox))?;
        return Ok(0);
    }
    let lines = [
        ("name", sandbox.name.clone()),
        ("engine", engine_name(sandbox.engine).to_owned()),
        ("state", state(&sandbox).to_owned()),
        ("source", sandbox.source.clone()),
        ("memory", format_size(sandbox.memory_bytes)),
        ("private", format_size(sandbox.private_bytes)),
        ("cpus", sandbox.cpus.to_string()),
        ("commands", sandbox.commands.to_string()),
        ("created", time(sandbox.created_at.as_ref())),
        ("idle", format_duration(duration(sandbox.idle_timeout.as_ref()))),
        ("expires", time(sandbox.expires_at.as_ref())),
    ];
    for (key, value) in lines {
        output::line(format_args!("{} {value}", output::styled(output::BOLD, format_args!("{key:<10}"))))?;
    }
    Ok(0)
}

/// Of one reply; as many as a gateway gives.
const PAGE: u32 = 1000;

/// A whole list: `page` gets the page at a token, and the next one's.
async fn pages<T, F: Future<Output = Result<(Vec<T>, String), Error>>>(
    page: impl Fn(String) -> F,
) -> Result<Vec<T>, Error> {
    let (mut all, mut next) = page(String::new()).await?;
    while !next.is_empty() {
        let more;
        (more, next) = page(next).await?;
        all.extend(more);
    }
    Ok(all)
}

pub(super) async fn list(global: &Global) -> Result<u8, Error> {
    let client = global.connect().await?.sandboxes();
    let all = pages(|page_token| {
        let (mut client, request) =
            (client.clone(), v1::ListSandboxesRequest { page_size: PAGE, page_token });
        async move {
            let page = client.list(request).await.map_err(Error::status("list sandboxes"))?.into_inner();
            Ok((page.sandboxes, page.next_page_token))
        }
    })
    .await?;
    if global.json {
        all.iter().try_for_each(|sandbox| output::json_line(&json(sandbox)))?;
        return Ok(0);
    }
    if all.is_empty() {
        output::note("there are no sandboxes; try: novum sandbox create --function NAME");
        return Ok(0);
    }
    let row = |s: &v1::Sandbox| {
        let engine = engine_name(s.engine).to_owned();
        let (commands, private) = (s.commands.to_string(), format_size(s.private_bytes));
        let created = time(s.created_at.as_ref());
        vec![s.name.clone(), engine, state(s).to_owned(), commands, private, created, s.source.clone()]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    output::table(&["NAME", "ENGINE", "STATE", "COMMANDS", "PRIVATE", "CREATED", "SOURCE"], &rows)?;
    Ok(0)
}

pub(super) async fn snapshots(global: &Global) -> Result<u8, Error> {
    let client = global.connect().await?.sandboxes();
    let all = pages(|page_token| {
        let (mut client, request) =
            (client.clone(), v1::ListSandboxSnapshotsRequest { page_size: PAGE, page_token });
        async move {
            let page = client.list_snapshots(request).await;
            let page = page.map_err(Error::status("list snapshots"))?.into_inner();
            Ok((page.snapshots, page.next_page_token))
        }
    })
    .await?;
    if global.json {
        all.iter().try_for_each(|kept| output::json_line(&snapshot_json(kept)))?;
        return Ok(0);
    }
    let row = |s: &v1::SandboxSnapshot| {
        let (engine, bytes) = (engine_name(s.engine).to_owned(), format_size(s.bytes));
        let created = time(s.created_at.as_ref());
        vec![s.name.clone(), engine, s.sandbox.clone(), s.holds.clone(), bytes, created]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    output::table(&["NAME", "ENGINE", "SANDBOX", "HOLDS", "BYTES", "CREATED"], &rows)?;
    Ok(0)
}
