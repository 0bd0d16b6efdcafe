//! Commands, pauses, ends.

use std::time::Duration;

use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::exec_request::Part;
use novum_proto::gateway::v1::exec_response::Part as Reply;
use tonic::Code;

use super::calls::{Place, part, refused, words};
use crate::harness::millis;

#[tokio::test]
async fn a_command_gets_its_input_and_gives_output_errors_and_code() {
    let Some(mut place) = Place::new("a_command_gets_its_input", &[]).await else { return };
    let made = place.create("work").await;
    assert_eq!((made.name.as_str(), made.state()), ("work", proto::SandboxState::Running));
    let input: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let ended = place.run(words("work", &["cat"]), &input).await.unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(ended.output == input, "{} bytes came back", ended.output.len());
    let ended = place.run(words("work", &["sh", "-c", "echo out; echo err >&2; exit 7"]), b"").await.unwrap();
    assert_eq!((ended.code(), &*ended.output, &*ended.error), (Some(7), &b"out\n"[..], &b"err\n"[..]));
    let mut start = words("work", &["/bin/env"]);
    start.env.insert("COLOUR".into(), "blue".into());
    start.working_directory = "/etc".into();
    let ended = place.run(start, b"").await.unwrap();
    assert!(ended.text().contains("COLOUR=blue"), "{ended:?}");
    let mut start = words("work", &["cat", "motd"]);
    start.working_directory = "/etc".into();
    assert_eq!(place.run(start, b"").await.unwrap().text(), "welcome\n");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let Some(mut place) = Place::new("what_cannot_be_is_refused", &[]).await else { return };
    place.create("work").await;
    let again = place.request("work");
    refused(place.client.create(again).await, Code::AlreadyExists, "work");
    refused(
        place.client.create(place.request("Bad_Name")).await,
        Code::InvalidArgument,
        "1 to 63 characters",
    );
    let mut elsewhere = place.request("other");
    elsewhere.source =
        Some(proto::create_sandbox_request::Source::Root(proto::RootSource { layers: vec!["/etc".into()] }));
    refused(place.client.create(elsewhere).await, Code::FailedPrecondition, "--allow-share");
    let mut wasm = place.request("other");
    wasm.engine = proto::Engine::Wasm.into();
    refused(place.client.create(wasm).await, Code::Unimplemented, "process or the linux engine");
    let mut wide = place.request("other");
    wide.cpus = Some(2);
    refused(place.client.create(wide).await, Code::Unimplemented, "processor");
    let mut kept = place.request("other");
    let source = place.dir.path().join("shared").to_str().unwrap().into();
    kept.shares = vec![proto::SharedDirectory { source, target: "/".into(), read_only: Some(false) }];
    refused(place.client.create(kept).await, Code::Unimplemented, "keep what it writes to its root");
    let smaller = proto::ResizeSandboxRequest { name: "work".into(), memory_bytes: 64 << 20 };
    refused(place.client.resize(smaller).await, Code::Unimplemented, "be resized");
    let mut terminal = words("work", &["cat"]);
    terminal.terminal = Some(proto::TerminalSize { rows: 24, columns: 80 });
    refused(place.run(terminal, b"").await, Code::Unimplemented, "terminal");
    refused(place.run(words("work", &["nothing"]), b"").await, Code::InvalidArgument, "PATH");
    refused(place.run(words("work", &[]), b"").await, Code::InvalidArgument, "program");
    refused(place.run(words("work", &["a\0b"]), b"").await, Code::InvalidArgument, "NUL");
    refused(place.run(words("nobody", &["cat"]), b"").await, Code::NotFound, "novum sandbox ls");
    let mut nowhere = words("work", &["cat"]);
    nowhere.working_directory = "/nowhere".into();
    refused(place.run(nowhere, b"").await, Code::InvalidArgument, "/nowhere");
    assert_eq!(place.run(words("work", &["true"]), b"").await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn one_program_at_a_time_and_a_signal_reaches_it() {
    let Some(mut place) = Place::new("one_program_at_a_time", &[]).await else { return };
    place.create("work").await;
    let mut running = place.start(words("work", &["cat"])).await.unwrap();
    assert!(matches!(running.next().await.unwrap(), Reply::Started(_)));
    refused(place.run(words("work", &["true"]), b"").await, Code::FailedPrecondition, "one at a time");
    running.input.send(part(Part::Signal(15))).await.unwrap();
    let ended = running.end().await.unwrap();
    assert_eq!(ended.fault(), Some("SIGTERM"), "{ended:?}");
    assert_eq!(place.run(words("work", &["true"]), b"").await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_paused_sandbox_stands_still() {
    let Some(mut place) = Place::new("a_paused_sandbox_stands_still", &[]).await else { return };
    place.create("work").await;
    let mut running = place.start(words("work", &["cat"])).await.unwrap();
    running.input.send(part(Part::Input("one".into()))).await.unwrap();
    assert!(matches!(running.next().await.unwrap(), Reply::Started(_)));
    assert_eq!(running.next().await.unwrap(), Reply::Output("one".into()));
    let name = || proto::PauseSandboxRequest { name: "work".into() };
    let paused = place.client.pause(name()).await.unwrap().into_inner().sandbox.unwrap();
    assert_eq!((paused.state(), paused.commands), (proto::SandboxState::Paused, 1));
    place.client.pause(name()).await.unwrap();
    running.input.send(part(Part::Input("two".into()))).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), running.next()).await;
    assert!(early.is_err(), "a paused sandbox answered: {early:?}");
    // Its files can be had meanwhile.
    assert_eq!(place.read("work", "/etc/motd").await.unwrap(), b"welcome\n");
    refused(place.run(words("work", &["true"]), b"").await, Code::FailedPrecondition, "paused");
    place.client.resume(proto::ResumeSandboxRequest { name: "work".into() }).await.unwrap();
    assert_eq!(running.next().await.unwrap(), Reply::Output("two".into()));
    assert_eq!(running.finish().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn deleting_a_sandbox_ends_its_command() {
    let Some(mut place) = Place::new("deleting_a_sandbox_ends_its_command", &[]).await else { return };
    // One that does not read keeps nothing alive.
    let _watch = place.client.watch(proto::WatchSandboxesRequest::default()).await.unwrap();
    for (name, paused) in [("plain", false), ("paused", true)] {
        place.create(name).await;
        let mut running = place.start(words(name, &["sleep", "1000"])).await.unwrap();
        assert!(matches!(running.next().await.unwrap(), Reply::Started(_)));
        if paused {
            place.client.pause(proto::PauseSandboxRequest { name: name.into() }).await.unwrap();
        }
        place.client.delete(proto::DeleteSandboxRequest { name: name.into() }).await.unwrap();
        refused(running.finish().await, Code::FailedPrecondition, "deleted");
        refused(place.get(name).await, Code::NotFound, name);
        refused(place.read(name, "/etc/motd").await, Code::NotFound, name);
    }
    assert_eq!(place.vcpu_threads(), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing_running() {
    let Some(mut place) = Place::new("a_client_that_vanishes", &[]).await else { return };
    place.create("work").await;
    for args in [&["sleep", "1000"][..], &["yes"], &["sh", "-c", "while true; do :; done"]] {
        let mut running = place.start(words("work", args)).await.unwrap();
        assert!(matches!(running.next().await.unwrap(), Reply::Started(_)));
        drop(running);
        place.settle("work", |sandbox| sandbox.is_some_and(|sandbox| sandbox.commands == 0)).await;
    }
    assert_eq!(place.run(words("work", &["true"]), b"").await.unwrap().code(), Some(0));
    assert_eq!(place.vcpu_threads(), 0);
}

#[tokio::test]
async fn limits_of_a_command_kill_it() {
    let Some(mut place) = Place::new("limits_of_a_command_kill_it", &[]).await else { return };
    place.create("work").await;
    let mut long = words("work", &["sleep", "1000"]);
    long.timeout = millis(100);
    refused(place.run(long, b"").await, Code::DeadlineExceeded, "deadline");
    let mut much = words("work", &["yes"]);
    much.output_bytes = Some(100_000);
    refused(place.run(much, b"").await, Code::ResourceExhausted, "output_bytes");
    assert_eq!(place.run(words("work", &["true"]), b"").await.unwrap().code(), Some(0));
    let (_, _, page) = place.gateway.http("GET /metrics HTTP/1.1", b"");
    let page = String::from_utf8(page).unwrap();
    for line in [
        "novum_sessions 1",
        "novum_sessions_made_total 1",
        "novum_session_commands_total{outcome=\"ok\"} 1",
        "novum_session_commands_total{outcome=\"stopped\"} 2",
    ] {
        assert!(page.contains(line), "{line} is missing in {page}");
    }
}

#[tokio::test]
async fn nobody_uses_it_so_it_goes() {
    let Some(mut place) = Place::new("nobody_uses_it_so_it_goes", &[]).await else { return };
    let mut idle = place.request("idle");
    idle.idle_timeout = millis(300);
    let mut short = place.request("short");
    short.lifetime = millis(300);
    let mut running = place.request("busy");
    running.idle_timeout = millis(300);
    for request in [idle, short, running] {
        place.client.create(request).await.unwrap();
    }
    let mut busy = place.start(words("busy", &["cat"])).await.unwrap();
    assert!(matches!(busy.next().await.unwrap(), Reply::Started(_)));
    for name in ["idle", "short"] {
        place.settle(name, |sandbox| sandbox.is_none()).await;
    }
    assert_eq!(place.get("busy").await.unwrap().commands, 1);
    assert_eq!(busy.finish().await.unwrap().code(), Some(0));
    place.settle("busy", |sandbox| sandbox.is_none()).await;
}

#[tokio::test]
async fn sandboxes_are_counted_and_listed_in_pages() {
    let Some(mut place) = Place::new("sandboxes_are_counted_and_listed", &["--max-sessions", "3"]).await
    else {
        return;
    };
    for name in ["c", "a", "b"] {
        place.create(name).await;
    }
    refused(place.client.create(place.request("d")).await, Code::ResourceExhausted, "--max-sessions");
    let mut names = Vec::new();
    let mut page = proto::ListSandboxesRequest { page_size: 2, page_token: String::new() };
    loop {
        let reply = place.client.list(page.clone()).await.unwrap().into_inner();
        names.extend(reply.sandboxes.into_iter().map(|sandbox| sandbox.name));
        page.page_token = reply.next_page_token;
        if page.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
    page.page_size = 5000;
    refused(place.client.list(page).await, Code::InvalidArgument, "1000");
}

#[tokio::test]
async fn a_watcher_sees_the_present_and_then_everything() {
    use proto::sandbox_event::Event;
    let Some(mut place) = Place::new("a_watcher_sees_the_present", &[]).await else { return };
    place.create("old").await;
    let all = proto::WatchSandboxesRequest::default();
    let mut events = place.client.watch(all).await.unwrap().into_inner();
    place.create("new").await;
    place.run(words("new", &["false"]), b"").await.unwrap();
    place.client.pause(proto::PauseSandboxRequest { name: "new".into() }).await.unwrap();
    place.client.resume(proto::ResumeSandboxRequest { name: "new".into() }).await.unwrap();
    place.client.delete(proto::DeleteSandboxRequest { name: "new".into() }).await.unwrap();
    let mut seen = Vec::new();
    let mut sequences = Vec::new();
    while seen.len() < 8 {
        let event = events.message().await.unwrap().unwrap();
        let name = event.sandbox.map(|sandbox| sandbox.name).unwrap_or_default();
        if event.sequence > 0 {
            sequences.push(event.sequence);
        }
        seen.push(match event.event.unwrap() {
            Event::Existing(_) => format!("existing {name}"),
            Event::Present(_) => "present".into(),
            Event::Created(_) => format!("created {name}"),
            Event::Paused(_) => format!("paused {name}"),
            Event::Resumed(_) => format!("resumed {name}"),
            Event::CommandStarted(e) => format!("{name} runs {}", e.program),
            Event::CommandEnded(e) => {
                format!("{name} ran {}, {:?}", e.program, e.exit.unwrap().status.unwrap())
            }
            Event::Snapshotted(e) => format!("snapshot {}", e.snapshot),
            Event::Deleted(e) => format!("{} {name}", e.reason),
        });
    }
    let expected = [
        "existing old",
        "present",
        "created new",
        "new runs false",
        "new ran false, Code(1)",
        "paused new",
        "resumed new",
        "deleted new",
    ];
    assert_eq!(seen, expected);
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequences:?}");
}
