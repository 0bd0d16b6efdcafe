//! `novum sandbox watch`.

use novum_proto::gateway::v1;
use novum_proto::gateway::v1::sandbox_event::Event;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::show;
use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::invoke::Ended;
use crate::cli::output;

pub(super) async fn run(global: &Global, name: Option<&str>) -> Result<u8, Error> {
    let request = v1::WatchSandboxesRequest { name: name.unwrap_or_default().to_owned() };
    let mut client = global.connect().await?.sandboxes();
    let mut events = client.watch(request).await.map_err(Error::status("watch"))?.into_inner();
    while let Some(event) = events.next().await {
        let event = event.map_err(Error::status("watch"))?;
        match global.json {
            true => output::json_line(&json(&event))?,
            false => line(&event)?,
        }
    }
    Ok(0)
}

/// The event's name and what belongs to it.
fn parts(event: &v1::SandboxEvent) -> (&'static str, Value) {
    let exit = |exit: Option<&v1::ExitStatus>| Ended::new(exit).map_or(Value::Null, |e| e.json().into());
    match &event.event {
        Some(Event::Existing(_)) => ("existing", json!({})),
        Some(Event::Present(_)) => ("present", json!({})),
        Some(Event::Created(_)) => ("created", json!({})),
        Some(Event::Paused(_)) => ("paused", json!({})),
        Some(Event::Resumed(_)) => ("resumed", json!({})),
        Some(Event::CommandStarted(e)) => ("command-started", json!({ "program": e.program })),
        Some(Event::CommandEnded(e)) => {
            ("command-ended", json!({ "program": e.program, "exit": exit(e.exit.as_ref()) }))
        }
        Some(Event::Snapshotted(e)) => ("snapshotted", json!({ "snapshot": e.snapshot })),
        Some(Event::Deleted(e)) => ("deleted", json!({ "reason": e.reason })),
        // One that a newer gateway knows.
        None => ("unknown", json!({})),
    }
}

fn json(event: &v1::SandboxEvent) -> Value {
    let (name, details) = parts(event);
    json!({
        "event": name,
        "details": details,
        "sandbox": event.sandbox.as_ref().map(show::json),
        "time": event.time.as_ref().map(ToString::to_string),
        "sequence": event.sequence,
    })
}

fn line(event: &v1::SandboxEvent) -> Result<(), Error> {
    let (name, details) = parts(event);
    let sandbox = event.sandbox.as_ref().map_or("", |sandbox| &sandbox.name);
    let time = event.time.as_ref().map(ToString::to_string).unwrap_or_default();
    let details = match details {
        Value::Object(map) if !map.is_empty() => Value::Object(map).to_string(),
        _ => String::new(),
    };
    let text = format!("{time} {name:<15} {sandbox} {details}");
    output::line(text.trim_end())
}
