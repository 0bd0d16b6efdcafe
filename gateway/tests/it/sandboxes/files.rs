//! Files in and out, and copies of them.

use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::create_sandbox_request::Source;
use tonic::Code;

use super::calls::{Place, file, refused, words};

#[tokio::test]
async fn ten_mebibytes_go_in_and_come_out() {
    let Some(mut place) = Place::new("ten_mebibytes_go_in_and_come_out", &[]).await else { return };
    place.create("work").await;
    let data: Vec<u8> = (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(place.write(file("work", "/tmp/big"), &data).await.unwrap(), data.len() as u64);
    assert!(place.read("work", "/tmp/big").await.unwrap() == data);
    let ended = place.run(words("work", &["wc", "-c", "/tmp/big"]), b"").await.unwrap();
    assert_eq!(ended.text(), format!("{} /tmp/big\n", data.len()));
    let part = proto::ReadFileRequest {
        sandbox: "work".into(),
        path: "/tmp/big".into(),
        offset: 1_000_000,
        length: Some(100_000),
    };
    let mut pieces = place.client.read_file(part).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes.extend_from_slice(&piece.data);
    }
    assert!(bytes == data[1_000_000..1_100_000]);
    // What a program writes is there for the next and for the client; a shorter file replaces a longer one.
    place.run(words("work", &["sh", "-c", "echo made > /tmp/made"]), b"").await.unwrap();
    assert_eq!(place.read("work", "/tmp/made").await.unwrap(), b"made\n");
    place.write(file("work", "/tmp/big"), b"small").await.unwrap();
    let mut more = file("work", "/tmp/big");
    more.append = true;
    place.write(more, b"er").await.unwrap();
    assert_eq!(place.read("work", "/tmp/big").await.unwrap(), b"smaller");
    let mut deep = file("work", "/opt/a/b/tool");
    (deep.make_directories, deep.mode) = (true, Some(0o755));
    place.write(deep, b"#!/bin/sh\necho a tool\n").await.unwrap();
    assert_eq!(place.run(words("work", &["/opt/a/b/tool"]), b"").await.unwrap().text(), "a tool\n");
    // The directory on the host is as it was.
    assert!(!std::path::Path::new(&place.root()).join("tmp/big").exists());
}

#[tokio::test]
async fn paths_cannot_leave_the_sandbox() {
    let Some(mut place) = Place::new("paths_cannot_leave_the_sandbox", &[]).await else { return };
    std::fs::write(place.dir.path().join("secret"), "secret").unwrap();
    let shared = place.dir.path().join("shared");
    std::os::unix::fs::symlink("../secret", shared.join("relative")).unwrap();
    std::os::unix::fs::symlink(place.dir.path().join("secret"), shared.join("absolute")).unwrap();
    std::fs::write(shared.join("open"), "open").unwrap();
    let mut request = place.request("work");
    request.shares = vec![proto::SharedDirectory {
        source: shared.to_str().unwrap().into(),
        target: "/shared".into(),
        read_only: None,
    }];
    place.client.create(request).await.unwrap();
    assert_eq!(place.read("work", "/shared/open").await.unwrap(), b"open");
    let secret = place.dir.path().join("secret").to_str().unwrap().to_owned();
    let paths = [
        "/../secret",
        "/../../../../../../../../etc/passwd",
        "/shared/../../secret",
        "/shared/relative",
        "/shared/absolute",
        &secret,
        "/proc/self/root/../secret",
    ];
    for path in paths {
        let status = place.read("work", path).await.unwrap_err();
        let codes = [Code::NotFound, Code::PermissionDenied, Code::InvalidArgument];
        assert!(codes.contains(&status.code()), "{path}: {status:?}");
    }
    // What can be written so is the sandbox's own: see below.
    for path in paths {
        let _ = place.write(file("work", path), b"x").await;
    }
    refused(place.write(file("work", "/shared/open"), b"x").await, Code::PermissionDenied, "");
    refused(place.write(file("work", "/shared/new"), b"x").await, Code::PermissionDenied, "");
    assert_eq!(std::fs::read(place.dir.path().join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read(shared.join("open")).unwrap(), b"open");
    refused(place.read("work", "etc/motd").await, Code::InvalidArgument, "absolute");
    refused(place.read("work", "/etc").await, Code::InvalidArgument, "directory");
    refused(place.read("work", "/dev/zero").await, Code::InvalidArgument, "regular");
    refused(place.read("work", "/missing").await, Code::NotFound, "/missing");
    refused(place.read("work", &format!("/{}", "x".repeat(5000))).await, Code::InvalidArgument, "4095");
    refused(place.write(file("work", "/no/such/dir"), b"x").await, Code::NotFound, "");
}

#[tokio::test]
async fn files_have_their_limit() {
    let Some(mut place) = Place::new("files_have_their_limit", &[]).await else { return };
    place.create("work").await;
    let data = vec![7; 80 << 20];
    refused(place.write(file("work", "/tmp/big"), &data).await, Code::ResourceExhausted, "No space left");
    place.write(file("work", "/tmp/big"), b"").await.unwrap();
    place.write(file("work", "/tmp/other"), &data[..40 << 20]).await.unwrap();
}

#[tokio::test]
async fn snapshots_and_forks_keep_files_apart() {
    let Some(mut place) = Place::new("snapshots_and_forks_keep_files_apart", &[]).await else { return };
    place.create("work").await;
    let large = vec![1; 300_000];
    place.write(file("work", "/tmp/state"), b"first").await.unwrap();
    place.write(file("work", "/tmp/large"), &large).await.unwrap();
    let take =
        |snapshot: &str| proto::SnapshotSandboxRequest { name: "work".into(), snapshot: snapshot.into() };
    let kept = place.client.snapshot(take("first")).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!((kept.name.as_str(), kept.holds.as_str(), kept.sandbox.as_str()), ("first", "files", "work"));
    refused(place.client.snapshot(take("first")).await, Code::AlreadyExists, "first");
    place.write(file("work", "/tmp/state"), b"second").await.unwrap();
    let fork = proto::ForkSandboxRequest { name: "work".into(), forks: vec!["one".into(), String::new()] };
    let forks = place.client.fork(fork).await.unwrap().into_inner().sandboxes;
    assert_eq!((forks.len(), forks[0].name.as_str(), forks[0].source.as_str()), (2, "one", "sandbox work"));
    place.write(file("one", "/tmp/state"), b"one").await.unwrap();
    place.run(words("one", &["sh", "-c", "echo more >> /tmp/large"]), b"").await.unwrap();
    let mut again = place.request("again");
    (again.source, again.memory_bytes) = (Some(Source::Snapshot("first".into())), None);
    let made = place.client.create(again.clone()).await.unwrap().into_inner().sandbox.unwrap();
    assert_eq!((made.source.as_str(), made.memory_bytes), ("snapshot first", 64 << 20));
    place.client.delete(proto::DeleteSandboxRequest { name: "work".into() }).await.unwrap();
    for (name, state, length) in
        [("one", "one", 300_005), (forks[1].name.as_str(), "second", 300_000), ("again", "first", 300_000)]
    {
        assert_eq!(place.read(name, "/tmp/state").await.unwrap(), state.as_bytes(), "{name}");
        assert_eq!(place.read(name, "/tmp/large").await.unwrap().len(), length, "{name}");
        assert_eq!(place.run(words(name, &["cat", "/tmp/state"]), b"").await.unwrap().text(), state);
    }
    let list = proto::ListSandboxSnapshotsRequest::default();
    let names: Vec<_> = place.client.list_snapshots(list).await.unwrap().into_inner().snapshots;
    assert_eq!(names.iter().map(|kept| kept.name.as_str()).collect::<Vec<_>>(), ["first"]);
    (again.name, again.cpus) = ("more".into(), Some(1));
    refused(place.client.create(again.clone()).await, Code::InvalidArgument, "cpus");
    place.client.delete_snapshot(proto::DeleteSandboxSnapshotRequest { name: "first".into() }).await.unwrap();
    again.cpus = None;
    refused(place.client.create(again).await, Code::NotFound, "first");
    let running = place.start(words("one", &["cat"])).await.unwrap();
    place.settle("one", |sandbox| sandbox.is_some_and(|sandbox| sandbox.commands == 1)).await;
    let fork = proto::ForkSandboxRequest { name: "one".into(), forks: vec!["two".into()] };
    refused(place.client.fork(fork).await, Code::FailedPrecondition, "not running programs");
    refused(place.get("two").await, Code::NotFound, "two");
    drop(running);
}
