//! What goes wrong on purpose: full queues, passed deadlines, clients that leave, payloads and outputs that are too large.

use std::time::{Duration, Instant};

use novum_proto::gateway::v1 as proto;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::*;

/// The detail of a status that ended a run.
fn failure(status: &Status) -> proto::InvocationFailure {
    let rpc = tonic_types::pb::Status::decode(status.details()).unwrap();
    let any = rpc.details.iter().find(|any| any.type_url.ends_with("novum.gateway.v1.InvocationFailure"));
    proto::InvocationFailure::decode(any.expect("an InvocationFailure").value.as_slice()).unwrap()
}

fn quota(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    status.get_details_quota_failure().expect("a QuotaFailure detail").violations[0].subject.clone()
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { pool: pool(1, 1), ..manifest("one") }, ECHO).await.unwrap();
    let held = hold(&mut client, "one").await;
    let mut second = client.clone();
    let waiting = tokio::spawn(async move { invoke(&mut second, call("one", "second")).await });
    gateway.settle("one", |s| s.queued == 1).await;
    let refused = invoke(&mut client, call("one", "third")).await.unwrap_err();
    assert_eq!(quota(&refused), "function:one/pool.queue");
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    assert!(refused.message().contains("pool.queue"), "{refused}");
    drop(held.input);
    assert_eq!(waiting.await.unwrap().unwrap().payload.as_ref(), b"second");
    let stats = gateway.function_stats("one").await;
    assert_eq!((stats.refused, stats.succeeded), (1, 2));
}

#[tokio::test]
async fn a_deadline_ends_a_loop_and_the_next_call_is_served() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { timeout: millis(200), ..manifest("loop") }, LOOP).await.unwrap();
    let error = invoke(&mut client, call("loop", "")).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let failure = failure(&error);
    assert!(failure.invocation_id.len() == 16 && failure.timings.unwrap().run.unwrap().nanos >= 100_000_000);
    deploy(&mut client, manifest("loop"), ECHO).await.unwrap();
    assert_eq!(invoke(&mut client, call("loop", "x")).await.unwrap().payload.as_ref(), b"x");
    assert_eq!(gateway.function_stats("loop").await.stopped, 1);
}

#[tokio::test]
async fn the_smallest_of_the_three_deadlines_holds() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { timeout: millis(20_000), ..manifest("loop") }, LOOP).await.unwrap();
    let began = Instant::now();
    let by_message = proto::InvokeRequest { timeout: millis(100), ..call("loop", "") };
    assert_eq!(invoke(&mut client, by_message).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(invoke_with_header(&gateway, "loop", "100m").await, Code::DeadlineExceeded as i32);
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(gateway.function_stats("loop").await.stopped, 2);
}

/// A call with a `grpc-timeout` by a client that does not watch the time itself, as tonic's does. Returns the status.
async fn invoke_with_header(gateway: &Gateway, function: &str, timeout: &str) -> i32 {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let message = call(function, "").encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&message);
    let request =
        http::Request::post(format!("http://{}/novum.gateway.v1.Functions/Invoke", gateway.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", timeout)
            .body(http_body_util::Full::new(bytes::Bytes::from(body)))
            .unwrap();
    let reply = sender.send_request(request).await.unwrap();
    reply.headers()["grpc-status"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_deadline_also_passes_in_the_queue() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { pool: pool(1, 5), ..manifest("one") }, ECHO).await.unwrap();
    let held = hold(&mut client, "one").await;
    let late = proto::InvokeRequest { timeout: millis(50), ..call("one", "") };
    let error = invoke(&mut client, late).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("nothing was run"), "{error}");
    gateway.settle("one", |s| s.queued == 0 && s.running == 1 && s.stopped == 1).await;
    drop(held);
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_frees_its_instance() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { pool: pool(1, 0), ..manifest("one") }, ECHO).await.unwrap();
    // First the call is cancelled, then the whole connection breaks.
    let held = hold(&mut client, "one").await;
    gateway.settle("one", |s| s.running == 1).await;
    drop(held.replies);
    gateway.settle("one", |s| s.running == 0 && s.stopped == 1).await;
    let other = {
        let mut client = gateway.functions().await;
        hold(&mut client, "one").await
    };
    gateway.settle("one", |s| s.running == 1).await;
    drop(other);
    gateway.settle("one", |s| s.running == 0 && s.stopped == 2).await;
    assert!(invoke(&mut client, call("one", "x")).await.is_ok());
}

#[tokio::test]
async fn a_client_that_leaves_while_it_runs_or_waits_frees_its_place() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { pool: pool(1, 1), ..manifest("loop") }, LOOP).await.unwrap();
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move { invoke(&mut client, call("loop", "")).await }));
    }
    gateway.settle("loop", |s| s.running == 1 && s.queued == 1).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    gateway.settle("loop", |s| s.running == 0 && s.queued == 0 && s.stopped == 2).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_still_under_its_deadline() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let manifest = proto::Manifest { timeout: millis(500), ..manifest("echo") };
    deploy(&mut client, manifest, ECHO).await.unwrap();
    let held = hold(&mut client, "echo").await;
    // More than every window and buffer between here and the program takes; nothing is read.
    let feeding = async {
        for _ in 0..1000 {
            if held.input.send(stream_input(vec![0; 100_000])).await.is_err() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), feeding).await;
    gateway.settle("echo", |s| s.running == 0 && s.stopped == 1).await;
    drop(held.replies);
}

#[tokio::test]
async fn a_payload_of_100_mib_meets_the_limit_of_4() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let before = gateway.stats().await.resident_bytes;
    let error = invoke(&mut client, call("echo", vec![0; 100 << 20])).await.unwrap_err();
    assert_eq!(quota(&error), "max-payload");
    assert!(error.message().contains("--max-payload"), "{error}");
    let requests = tokio_stream::iter([stream_start("echo"), stream_input(vec![0; 100 << 20])]);
    let error = match client.invoke_stream(requests).await {
        Ok(replies) => replies.into_inner().message().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(quota(&error), "max-payload");
    let (status, _, body) = gateway.http("POST /v1/functions/echo:invoke HTTP/1.1", &vec![0; 100 << 20]);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, body["code"].as_str()), (413, Some("RESOURCE_EXHAUSTED")));
    let grown = gateway.stats().await.resident_bytes.saturating_sub(before);
    assert!(grown < 50 << 20, "{grown} bytes were buffered");
    let largest = vec![7; 4 << 20];
    let reply = invoke(&mut gateway.functions().await, call("echo", largest.clone())).await.unwrap();
    assert!(reply.payload == largest);
    assert_eq!(
        quota(&invoke(&mut client, call("echo", vec![0; (4 << 20) + 1])).await.unwrap_err()),
        "max-payload"
    );
}

#[tokio::test]
async fn an_output_over_its_limit_is_refused_and_named() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, proto::Manifest { output_bytes: Some(1000), ..manifest("echo") }, ECHO)
        .await
        .unwrap();
    let error = invoke(&mut client, call("echo", vec![0; 1001])).await.unwrap_err();
    assert_eq!(quota(&error), "manifest.output_bytes");
    failure(&error);
    assert!(invoke(&mut client, call("echo", vec![0; 1000])).await.is_ok());
}
