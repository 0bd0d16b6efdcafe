//! WASI preview 2 commands and HTTP handlers.

use std::sync::Arc;

use bytes::Bytes;
use novum_sandbox::{Error, ExitStatus, Input, Output};
use tokio::sync::mpsc;

use super::{Bed, fault, invocation, run, run_with};

const COMMAND: &str = include_str!("fixtures/echo-command.wat");
const HANDLER: &str = include_str!("fixtures/http-handler.wat");

/// The fixture with one of its constants changed.
fn with(source: &str, old: &str, new: &str) -> String {
    assert!(source.contains(old), "the fixture has no {old}");
    source.replace(old, new)
}

#[tokio::test]
async fn a_component_command_echoes_its_input() {
    let input: Vec<u8> = (0..100_000).map(|i| i as u8).collect();
    let reply = Bed::new().call(COMMAND, &input).await.unwrap();
    assert_eq!(reply.exit, ExitStatus::Code(0));
    assert!(reply.output == input);
}

#[tokio::test]
async fn a_component_command_that_fails_has_exit_code_1() {
    let fails = with(COMMAND, "(global $failed (;0;) i32 i32.const 0)", "(global $failed i32 i32.const 1)");
    assert_eq!(Bed::new().call(fails, b"").await.unwrap().exit, ExitStatus::Code(1));
}

#[tokio::test]
async fn a_handlers_body_is_the_output() {
    let input: Vec<u8> = (0..100_000).map(|i| i as u8).collect();
    let reply = Bed::new().call(HANDLER, &input).await.unwrap();
    assert_eq!(reply.exit, ExitStatus::Code(0));
    assert!(reply.output == input);
    assert!(reply.timings.first_byte.is_some());
}

#[tokio::test]
async fn a_handlers_status_is_the_exit_code() {
    for (status, code) in [(204, 0), (299, 0), (302, 302), (404, 404), (500, 500)] {
        let status = format!("(global $status i32 i32.const {status})");
        let handler = with(HANDLER, "(global $status (;0;) i32 i32.const 200)", &status);
        let reply = Bed::new().call(handler, b"body").await.unwrap();
        assert_eq!((reply.exit, reply.output), (ExitStatus::Code(code), Bytes::from_static(b"body")));
    }
}

#[tokio::test]
async fn a_handlers_own_requests_are_refused() {
    let asks = with(HANDLER, "(global $ask (;1;) i32 i32.const 0)", "(global $ask i32 i32.const 1)");
    // 400 plus the number of HTTP-request-denied in wasi:http's error-code.
    assert_eq!(Bed::new().call(asks, b"").await.unwrap().exit, ExitStatus::Code(415));
}

#[tokio::test]
async fn a_handler_streams_both_ways() {
    let bed = Bed::new();
    let image = bed.image(HANDLER, |_| {}).await.unwrap();
    let (send, input) = mpsc::channel(1);
    let (output, mut receive) = mpsc::channel(1);
    let mut call = invocation(b"");
    (call.input, call.output) = (Input::Stream(input), Output::Stream(output));
    let mut sandbox = Arc::clone(&image).start().await.unwrap();
    let running = tokio::spawn(async move { sandbox.invoke(call).await });
    for piece in ["one", "two", "three"] {
        send.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        assert_eq!(receive.recv().await.unwrap(), piece);
    }
    drop(send);
    assert!(running.await.unwrap().unwrap().exit.success());
}

#[tokio::test]
async fn a_handler_whose_caller_goes_away_is_cancelled() {
    let bed = Bed::new();
    let image = bed.image(HANDLER, |_| {}).await.unwrap();
    let (send, input) = mpsc::channel(8);
    let (output, receive) = mpsc::channel(1);
    drop(receive);
    send.send(Bytes::from_static(b"x")).await.unwrap();
    let mut call = invocation(b"");
    (call.input, call.output) = (Input::Stream(input), Output::Stream(output));
    assert!(matches!(run_with(&image, call).await, Err(Error::Cancelled)));
}

#[tokio::test]
async fn a_handler_that_never_answers_is_a_fault() {
    let silent = with(HANDLER, "call $set\n", "drop drop drop drop drop drop drop drop drop return\n");
    let (kind, message) = fault(Bed::new().call(silent, b"").await.unwrap());
    assert_eq!(kind, "http");
    assert!(message.contains("without a response"), "{message}");
}

#[tokio::test]
async fn component_calls_do_not_disturb_each_other() {
    let bed = Bed::new();
    let image = bed.image(COMMAND, |_| {}).await.unwrap();
    for i in 0..100_u32 {
        assert_eq!(run(&image, &i.to_le_bytes()).await.unwrap().output, i.to_le_bytes()[..]);
    }
}
