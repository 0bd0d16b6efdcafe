//! Draining on SIGTERM, and what a restart keeps.

use std::time::{Duration, Instant};

use novum_proto::gateway::v1::{self as proto, invoke_stream_response::Part};
use rustix::process::Signal;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn sigterm_lets_running_invocations_finish_and_refuses_new_ones() {
    let mut gateway = Gateway::start(&["--drain-timeout", "60s"]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let mut held = hold(&mut client, "echo").await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(gateway.channel().await);
    gateway.signal(Signal::TERM);
    let began = Instant::now();
    let refused = loop {
        match invoke(&mut client, call("echo", "")).await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < PATIENCE, "the gateway takes new invocations"),
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("shutting down"), "{refused}");
    let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
    assert_eq!(health.check(check).await.unwrap().into_inner().status, 2, "NOT_SERVING");
    assert_eq!(gateway.http("GET /healthz HTTP/1.1", b"").0, 503);
    held.input.send(stream_input("last words")).await.unwrap();
    drop(held.input);
    let mut said = Vec::new();
    loop {
        match held.replies.message().await.unwrap().unwrap().part.unwrap() {
            Part::Output(bytes) => said.extend_from_slice(&bytes),
            Part::Log(_) => {}
            Part::End(_) => break,
        }
    }
    assert_eq!(said, b"last words");
    assert!(gateway.wait().success());
}

#[tokio::test]
async fn the_drain_timeout_cancels_what_still_runs() {
    let mut gateway = Gateway::start(&["--drain-timeout", "100ms"]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("loop"), LOOP).await.unwrap();
    let mut other = client.clone();
    let running = tokio::spawn(async move { invoke(&mut other, call("loop", "")).await });
    gateway.settle("loop", |s| s.running == 1).await;
    gateway.signal(Signal::TERM);
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(gateway.wait().success());
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once_also_with_followers() {
    let mut gateway = Gateway::start(&["--drain-timeout", "60s"]);
    let mut client = gateway.functions().await;
    let follow = proto::LogsRequest { follow: true, ..Default::default() };
    let mut lines = client.logs(follow).await.unwrap().into_inner();
    gateway.signal(Signal::TERM);
    let began = Instant::now();
    assert!(gateway.wait().success());
    assert!(began.elapsed() < Duration::from_secs(30));
    let _ = lines.message().await;
}

#[tokio::test]
async fn versions_and_numbers_of_versions_survive_a_restart() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    for n in 1..=4 {
        deploy(&mut client, manifest("f"), says(&n.to_string(), "", 0)).await.unwrap();
    }
    let before = client.get(proto::GetRequest { name: "f".into(), version: 0 }).await.unwrap().into_inner();
    let gateway = Gateway::start_in(&gateway.kill(), &[]);
    let mut client = gateway.functions().await;
    let after = client.get(proto::GetRequest { name: "f".into(), version: 0 }).await.unwrap().into_inner();
    assert_eq!(before, after);
    for version in 2..=4 {
        let reply = invoke(&mut client, proto::InvokeRequest { version, ..call("f", "") }).await.unwrap();
        assert_eq!(reply.payload, version.to_string());
    }
    let next = deploy(&mut client, manifest("f"), says("5", "", 0)).await.unwrap();
    assert_eq!(next.function.unwrap().version, 5);
    assert!(!deploy(&mut client, manifest("f"), says("5", "", 0)).await.unwrap().changed);
}
