//! The host's side of a command against agents that are not ours: silent, greedy, talking nonsense.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_proto::guest::v1::{Exited, Failed, Hello, Output as Piece, Stream, ToHost, exited, to_host};
use novum_proto::guest::{FIRST_CREDIT_BYTES, MOST_PIECE_BYTES, write_frame};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::channel::Channel;
use super::run::{CommandEnd, Done, Streams, run};
use super::{Command, CommandError};
use crate::engine::{Input, LogSink, Output};

struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

fn streams(output: Output) -> Streams {
    let deadline = Instant::now() + Duration::from_secs(60);
    Streams { input: Input::Bytes(Bytes::new()), output, log: Arc::new(Nowhere), control: None, deadline }
}

fn frames(messages: impl IntoIterator<Item = to_host::Message>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        write_frame(&ToHost { message: Some(message) }, &mut bytes);
    }
    bytes
}

fn piece(stream: Stream, length: usize) -> to_host::Message {
    to_host::Message::Output(Piece { command: 1, stream: stream.into(), data: vec![b'x'; length] })
}

fn exit(code: u32) -> to_host::Message {
    to_host::Message::Exited(Exited { command: 1, how: Some(exited::How::Code(code)) })
}

/// Runs a command in a guest that says `bytes`, whatever it is told.
async fn run_against(bytes: Vec<u8>, streams: Streams) -> Result<Done, CommandError> {
    let (host, guest) = tokio::io::duplex(4 << 20);
    let (mut from_host, mut to_host) = tokio::io::split(guest);
    to_host.write_all(&bytes).await.unwrap();
    tokio::spawn(async move { from_host.read_to_end(&mut Vec::new()).await });
    let mut channel = Channel::new(host);
    let command = Command { args: vec!["x".into()], ..Command::default() };
    let runs = run(&mut channel, 1, &command, streams, None);
    tokio::time::timeout(Duration::from_secs(5), runs).await.unwrap_or(Err(CommandError::Cancelled))
}

fn collect(limit_bytes: usize) -> Output {
    Output::Collect { limit_bytes }
}

#[tokio::test]
async fn output_is_collected_until_the_end() {
    let bytes =
        frames([piece(Stream::Output, 3), piece(Stream::Error, 5), piece(Stream::Output, 2), exit(4)]);
    let done = run_against(bytes, streams(collect(5))).await.unwrap();
    assert_eq!((done.end, done.output.as_slice()), (CommandEnd::Code(4), &b"xxxxx"[..]));
    assert!(done.first_byte.is_some());
}

#[tokio::test]
async fn more_than_the_limit_ends_the_run() {
    let bytes = frames([piece(Stream::Output, 6), exit(0)]);
    let error = run_against(bytes, streams(collect(5))).await.unwrap_err();
    assert!(matches!(error, CommandError::OutputLimit { limit_bytes: 5 }), "{error}");
}

#[tokio::test]
async fn a_guest_that_sends_more_than_it_was_granted_is_broken_off() {
    // Nobody takes the output, so no credit goes back.
    let (to, _output) = tokio::sync::mpsc::channel(1);
    let count = FIRST_CREDIT_BYTES as usize / MOST_PIECE_BYTES + 3;
    let bytes = frames((0..count).map(|_| piece(Stream::Output, MOST_PIECE_BYTES)));
    let error = run_against(bytes, streams(Output::Stream(to))).await.unwrap_err();
    assert!(matches!(error, CommandError::Agent(_)), "{error}");
}

#[tokio::test]
async fn an_agent_that_fails_or_begins_anew_is_of_no_use() {
    let failed = to_host::Message::Failed(Failed { command: 0, reason: "no memory".into(), errno: 12 });
    for message in [failed, to_host::Message::Hello(Hello::default())] {
        let error = run_against(frames([message]), streams(collect(5))).await.unwrap_err();
        assert!(matches!(error, CommandError::Agent(_)), "{error}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_cancels() {
    let (to, output) = tokio::sync::mpsc::channel(1);
    drop(output);
    let error = run_against(frames([]), streams(Output::Stream(to))).await.unwrap_err();
    assert!(matches!(error, CommandError::Cancelled), "{error}");
}

#[tokio::test]
async fn a_silent_guest_meets_the_deadline() {
    let soon = Streams { deadline: Instant::now() + Duration::from_millis(10), ..streams(collect(5)) };
    let error = run_against(Vec::new(), soon).await.unwrap_err();
    assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nonsense_neither_panics_nor_ends_well(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..20)
    ) {
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend((piece.len() as u32).to_le_bytes());
            bytes.extend(piece);
        }
        bytes.extend([0xff; 8]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let result = runtime.block_on(run_against(bytes, streams(collect(100))));
        let waits = matches!(result, Err(CommandError::Cancelled | CommandError::Deadline { .. }));
        prop_assert!(!waits, "{result:?}");
    }
}
