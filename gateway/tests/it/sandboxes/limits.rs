//! What sandboxes take of the gateway's memory and descriptors, and what a gateway leaves behind.

use std::sync::Arc;

use bytes::Bytes;
use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::create_sandbox_request::Source;
use novum_proto::gateway::v1::write_file_request::Part;
use novum_snapshot::{Host, Store, Writer};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::calls::{Place, file, refused, words};
use crate::harness::{Gateway, PATIENCE};

const MIB: u64 = 1 << 20;

/// Waits until all sandboxes of the gateway hold what is wanted.
async fn settle(place: &Place, wanted: impl Fn(u64) -> bool) {
    let began = std::time::Instant::now();
    loop {
        let held = place.gateway.stats().await.sandbox_bytes;
        if wanted(held) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{held} bytes");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_program_leaves_in_files_counts_after_its_end() {
    let Some(mut place) = Place::new("what_a_program_leaves_in_files", &[]).await else { return };
    place.create("work").await;
    let write = ["dd", "if=/dev/zero", "of=/tmp/large", "bs=1M", "count=30"];
    assert_eq!(place.run(words("work", &write), b"").await.unwrap().code(), Some(0));
    place.settle("work", |now| now.is_some_and(|now| now.private_bytes >= 30 * MIB)).await;
}

#[tokio::test]
async fn sandboxes_have_their_place_in_the_memory_budget() {
    let budget = ["--memory-budget", "64MiB"];
    let Some(mut place) = Place::new("sandboxes_in_the_memory_budget", &budget).await else { return };
    place.create("work").await;
    let bytes = vec![1; 20 << 20];
    place.write(file("work", "/tmp/data"), &bytes).await.unwrap();
    // Copies hold together what one of them holds.
    let forks = (0..8).map(|n| format!("fork-{n}")).collect();
    place.client.fork(proto::ForkSandboxRequest { name: "work".into(), forks }).await.unwrap();
    let take = proto::SnapshotSandboxRequest { name: "work".into(), snapshot: "kept".into() };
    place.client.snapshot(take).await.unwrap();
    settle(&place, |held| (20 * MIB..32 * MIB).contains(&held)).await;
    place.create("more").await;
    // What they write is their own, and then there is no room for another one, however it is made.
    for name in ["fork-0", "fork-1", "fork-2"] {
        place.write(file(name, "/tmp/own"), &bytes).await.unwrap();
    }
    settle(&place, |held| held > 80 * MIB).await;
    refused(place.client.create(place.request("other")).await, Code::ResourceExhausted, "--memory-budget");
    let fork = proto::ForkSandboxRequest { name: "work".into(), forks: vec!["other".into()] };
    refused(place.client.fork(fork).await, Code::ResourceExhausted, "--memory-budget");
    let take = proto::SnapshotSandboxRequest { name: "work".into(), snapshot: "other".into() };
    refused(place.client.snapshot(take).await, Code::ResourceExhausted, "--memory-budget");
    for name in ["fork-0", "fork-1"] {
        place.client.delete(proto::DeleteSandboxRequest { name: name.into() }).await.unwrap();
    }
    settle(&place, |held| held < 60 * MIB).await;
    place.create("other").await;
    // The name that could not be had is free, too.
    place
        .client
        .fork(proto::ForkSandboxRequest { name: "work".into(), forks: vec!["fork-0".into()] })
        .await
        .unwrap();
}

#[tokio::test]
async fn the_gateway_takes_the_descriptors_it_may_have_and_says_when_they_run_out() {
    let Some(mut place) = Place::new("the_gateway_takes_the_descriptors", &[]).await else { return };
    let pid = Pid::from_raw(i32::try_from(place.gateway.pid()).unwrap()).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", place.gateway.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert!(numbers.len() < 2 || numbers[0] == numbers[1], "{line}");
    place.create("work").await;
    let few = Rlimit { current: Some(70), maximum: Some(70) };
    prlimit(Some(pid), Resource::Nofile, few).unwrap();
    refused(place.client.create(place.request("other")).await, Code::ResourceExhausted, "LimitNOFILE");
    let fork = proto::ForkSandboxRequest { name: "work".into(), forks: vec![String::new()] };
    refused(place.client.fork(fork).await, Code::ResourceExhausted, "70 open");
    refused(place.get("other").await, Code::NotFound, "other");
}

#[tokio::test]
async fn snapshots_that_a_killed_gateway_left_are_released() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let gateway = Gateway::start_in(&dir, &[]);
    gateway.kill();
    let store = Store::open(dir.path().join("data/cache/snapshots")).unwrap();
    let plant = |name: &str| {
        let writer = Writer::base(&store, Host::new(["cpu.avx2"])).unwrap();
        writer.publish_as(&name.parse().unwrap()).unwrap()
    };
    let left = plant("sandbox:4711-1700000000000000000-3");
    plant("somebodys-own");
    let gateway = Gateway::start_in(&dir, &[]);
    let names: Vec<_> =
        store.refs_to_digests().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["somebodys-own"]);
    drop(gateway);
    assert!(
        !store.contains(&left) || store.get_ref(&"somebodys-own".parse().unwrap()).unwrap() == Some(left)
    );
}

#[tokio::test]
async fn a_gateway_that_drains_waits_for_files_that_are_written() {
    let Some(mut place) = Place::new("a_gateway_that_drains_waits_for_files", &[]).await else { return };
    place.create("work").await;
    let (requests, pieces) = tokio::sync::mpsc::channel(4);
    let request = |part| proto::WriteFileRequest { part: Some(part) };
    requests.send(request(Part::Start(file("work", "/tmp/slow")))).await.unwrap();
    requests.send(request(Part::Data(Bytes::from_static(b"one")))).await.unwrap();
    let mut client = place.client.clone();
    let write = tokio::spawn(async move { client.write_file(ReceiverStream::new(pieces)).await });
    // It is there: the write is under way.
    let began = std::time::Instant::now();
    while place.read("work", "/tmp/slow").await.unwrap_or_default() != b"one" {
        assert!(began.elapsed() < PATIENCE, "nothing is written");
    }
    place.gateway.signal(Signal::TERM);
    loop {
        match place.read("work", "/tmp/slow").await {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "it does not drain"),
            Err(status) => break assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    }
    let pause = proto::PauseSandboxRequest { name: "work".into() };
    refused(place.client.pause(pause).await, Code::Unavailable, "shutting down");
    requests.send(request(Part::Data(Bytes::from_static(b" two")))).await.unwrap();
    drop(requests);
    assert_eq!(write.await.unwrap().unwrap().into_inner().written_bytes, 7);
    assert!(place.gateway.wait().success());
}

#[tokio::test]
async fn requests_that_cannot_be_name_their_field() {
    let Some(mut place) = Place::new("requests_that_cannot_be_name_their_field", &[]).await else { return };
    let watch = place.client.watch(proto::WatchSandboxesRequest { name: "Not_A_Name".into() }).await;
    refused(watch.map(drop), Code::InvalidArgument, "`name`: a name is");
    let mut deep = place.request("deep");
    deep.source = Some(Source::Root(proto::RootSource { layers: vec![place.root(); 65] }));
    refused(place.client.create(deep).await, Code::InvalidArgument, "at most 64 directories, not 65");
}
