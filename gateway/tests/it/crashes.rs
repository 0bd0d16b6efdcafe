//! kill -9 at any moment leaves the old version or the new one, never half.

use std::time::Duration;

use novum_proto::gateway::v1 as proto;
use novum_snapshot::Digest;

use crate::harness::*;

const ROUNDS: u64 = 12;

/// A module that says its number; padded so that its upload takes several messages.
fn numbered(n: u64) -> String {
    let padding = ";; padding to make the artifact larger than one chunk\n".repeat(8000);
    format!("{}{padding}", says(&n.to_string(), "", 0))
}

#[tokio::test]
async fn a_kill_while_deploying_leaves_the_old_version_or_the_new() {
    let mut gateway = Gateway::start(&[]);
    deploy(&mut gateway.functions().await, manifest("f"), numbered(0)).await.unwrap();
    let mut current = 0;
    let mut seed = std::process::id();
    let mut outcomes = [0, 0];
    for n in 1..=ROUNDS {
        let mut client = gateway.functions().await;
        let manifest = proto::Manifest { args: vec![n.to_string()], ..manifest("f") };
        let deploying = tokio::spawn(async move { deploy(&mut client, manifest, numbered(n)).await });
        // Spread over the upload, the compilation, the registry's transaction and after.
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
        tokio::time::sleep(Duration::from_micros(u64::from(seed >> 16) % 60_000)).await;
        let dir = gateway.kill();
        let confirmed = deploying.await.unwrap().is_ok();
        gateway = Gateway::start_in(&dir, &[]);
        let mut client = gateway.functions().await;
        let got = client.get(proto::GetRequest { name: "f".into(), version: 0 }).await.unwrap().into_inner();
        let function = got.function.unwrap();
        let reply = invoke(&mut client, call("f", "")).await.unwrap();
        let ran: u64 = String::from_utf8(reply.payload.to_vec()).unwrap().parse().unwrap();
        assert!(ran == n || (ran == current && !confirmed), "deployed {n} over {current}, found {ran}");
        assert_eq!(function.artifact_sha256, Digest::of(numbered(ran).as_bytes()).to_string());
        let stored = dir.path().join("data/artifacts").join(&function.artifact_sha256);
        assert_eq!(Digest::of(&std::fs::read(stored).unwrap()).to_string(), function.artifact_sha256);
        no_strays(&dir.path().join("data/artifacts"), 3);
        outcomes[usize::from(ran == n)] += 1;
        current = ran;
    }
    println!("killed {ROUNDS} times: {} old, {} new", outcomes[0], outcomes[1]);
}

/// No drafts, and no more artifacts than versions that are kept.
fn no_strays(path: &std::path::Path, most: usize) {
    let names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() <= most && names.iter().all(|n| n.len() == 64), "{names:?}");
}

#[tokio::test]
async fn a_kill_while_invoking_leaves_everything_deployed() {
    let mut gateway = Gateway::start(&[]);
    deploy(&mut gateway.functions().await, manifest("echo"), ECHO).await.unwrap();
    for round in 0..3 {
        let client = gateway.functions().await;
        let calls: Vec<_> = (0..8)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { while invoke(&mut client, call("echo", "x")).await.is_ok() {} })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + round * 15)).await;
        let dir = gateway.kill();
        for call in calls {
            call.await.unwrap();
        }
        gateway = Gateway::start_in(&dir, &[]);
        let reply = invoke(&mut gateway.functions().await, call("echo", "back")).await.unwrap();
        assert_eq!(reply.payload.as_ref(), b"back");
    }
}
