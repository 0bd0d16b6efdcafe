//! The Logs call: the past, what comes, notes on invocations.

use novum::note::{Note, Outcome, Stop};
use novum_proto::gateway::v1 as proto;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn lines_and_failures_are_kept_with_their_invocation() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("says"), says("", "one\\ntwo", 0)).await.unwrap();
    deploy(&mut client, manifest("trap"), TRAP).await.unwrap();
    let reply = invoke(&mut client, call("says", "")).await.unwrap();
    invoke(&mut client, call("trap", "")).await.unwrap();
    let read = |function: &str, tail| proto::LogsRequest { function: function.into(), tail, follow: false };
    let mut lines = client.logs(read("", 0)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(line) = lines.message().await.unwrap() {
        all.push(line);
    }
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!((all[0].line.as_str(), all[0].note, all[0].version), ("one", false, 1));
    assert_eq!(all[0].invocation_id, reply.invocation_id);
    assert_eq!((all[2].function.as_str(), all[2].note), ("trap", true));
    let note: Note = all[2].line.parse().unwrap();
    assert_eq!(note.outcome, Outcome::Fault("trap".into()));
    let mut one = client.logs(read("says", 1)).await.unwrap().into_inner();
    assert_eq!(one.message().await.unwrap().unwrap().line, "two");
    assert!(one.message().await.unwrap().is_none());
    assert_eq!(client.logs(read("none", 1)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_follower_sees_every_invocation_as_it_ends() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let manifest = proto::Manifest { timeout: millis(100), ..manifest("f") };
    deploy(&mut client, manifest.clone(), ECHO).await.unwrap();
    let follow = proto::LogsRequest { follow: true, tail: -1, function: "f".into() };
    let mut lines = client.logs(follow).await.unwrap().into_inner();
    invoke(&mut client, call("f", "12345")).await.unwrap();
    let line = lines.message().await.unwrap().unwrap();
    let note: Note = line.line.parse().unwrap();
    assert!(line.note && note.outcome == Outcome::Ok && note.out_bytes == 5 && note.cold, "{note:?}");
    deploy(&mut client, manifest, LOOP).await.unwrap();
    invoke(&mut client, call("f", "")).await.unwrap_err();
    let line = lines.message().await.unwrap().unwrap();
    let note: Note = line.line.parse().unwrap();
    assert_eq!((note.outcome, line.version), (Outcome::Stopped(Stop::Deadline), 2));
}
