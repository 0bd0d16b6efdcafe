//! Input, output, arguments, environment, exit status, streaming, cancellation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::{Error, ExitStatus, Input, LogSink, Output, Renewal};
use tokio::sync::mpsc;

use super::programs::{ECHO, flood, list, program, spin};
use super::{Bed, Log, fault, invocation, run, run_with};

#[tokio::test]
async fn a_command_echoes_its_input() {
    let bed = Bed::new();
    for size in [0, 1, 100, 65_536, 200_000] {
        let input: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let reply = bed.call(ECHO, &input).await.unwrap();
        assert_eq!(reply.exit, ExitStatus::Code(0));
        assert!(reply.output == input, "{size} bytes");
        assert_eq!(reply.timings.first_byte.is_some(), size > 0);
        assert!(reply.timings.first_byte <= Some(reply.timings.run));
    }
}

#[tokio::test]
async fn each_instance_serves_one_invocation() {
    let bed = Bed::new();
    let image = bed.image(ECHO, |_| {}).await.unwrap();
    assert_eq!(image.renewal(), Renewal::Restart);
    let mut sandbox = Arc::clone(&image).start().await.unwrap();
    sandbox.invoke(invocation(b"a")).await.unwrap();
    assert!(matches!(sandbox.invoke(invocation(b"b")).await, Err(Error::Host { .. })));
    assert!(sandbox.reset().await.is_err());
}

#[tokio::test]
async fn an_instance_finds_nothing_of_the_one_before() {
    // Adds one to a word of memory and writes it.
    let count = program(
        "",
        "(i32.store (i32.const 70000) (i32.add (i32.load (i32.const 70000)) (i32.const 1)))
         (call $say (i32.const 1) (i32.const 70000) (i32.const 4))",
    );
    let bed = Bed::new();
    let image = bed.image(count, |_| {}).await.unwrap();
    for _ in 0..50 {
        assert_eq!(run(&image, b"").await.unwrap().output, [1, 0, 0, 0][..]);
    }
}

#[tokio::test]
async fn arguments_begin_with_the_entry_or_the_name() {
    let bed = Bed::new();
    let args = |entry: &'static str| {
        move |manifest: &mut novum_sandbox::Manifest| {
            manifest.entry = entry.into();
            manifest.args = vec!["-n".into(), String::new(), "x y".into()];
        }
    };
    let image = bed.image(list("args"), args("bin/tool.wasm")).await.unwrap();
    assert_eq!(run(&image, b"").await.unwrap().output, &b"tool.wasm\0-n\0\0x y\0"[..]);
    let image = bed.image(list("args"), args("")).await.unwrap();
    assert_eq!(run(&image, b"").await.unwrap().output, &b"f\0-n\0\0x y\0"[..]);
}

#[tokio::test]
async fn the_invocation_adds_to_the_manifests_environment() {
    let bed = Bed::new();
    let env = |manifest: &mut novum_sandbox::Manifest| {
        manifest.env = [("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    };
    let image = bed.image(list("environ"), env).await.unwrap();
    assert_eq!(run(&image, b"").await.unwrap().output, &b"A=1\0B=2\0"[..]);
    let mut call = invocation(b"");
    call.env = [("C", "x"), ("A", "3"), ("C", "4")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert_eq!(run_with(&image, call).await.unwrap().output, &b"B=2\0A=3\0C=4\0"[..]);
}

#[tokio::test]
async fn an_exit_code_is_passed_on() {
    let bed = Bed::new();
    for code in [0, 1, 42, 125, 255] {
        let exit = program("", &format!("(call $exit (i32.const {code}))"));
        assert_eq!(bed.call(exit, b"").await.unwrap().exit, ExitStatus::Code(code));
    }
}

#[tokio::test]
async fn output_before_a_trap_is_kept_and_the_trap_tells_where() {
    let crash = r#"(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\10\00\00\00\05\00\00\00")
      (data (i32.const 16) "hello")
      (func $inner (param i32) (drop (i32.div_u (i32.const 1) (local.get 0))))
      (func $_ZN4core9panicking9panic_fmt17h0123456789abcdefE (call $inner (i32.const 0)))
      (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $_ZN4core9panicking9panic_fmt17h0123456789abcdefE)))"#;
    let reply = Bed::new().call(crash, b"").await.unwrap();
    assert_eq!(reply.output, "hello");
    let (kind, message) = fault(reply);
    assert_eq!(kind, "trap");
    assert!(message.contains("integer divide by zero"), "{message}");
    assert!(message.contains("inner") && message.contains("core::panicking::panic_fmt"), "{message}");
    assert!(!message.contains("Stack backtrace"), "the host's stack shows: {message}");
}

#[tokio::test]
async fn a_traps_message_is_bounded_and_clean() {
    let name = "\\1b[31m".repeat(3000);
    let crash = format!("(module (func $\"{name}\" unreachable) (func (export \"_start\") (call 0)))");
    let (_, message) = fault(Bed::new().call(crash, b"").await.unwrap());
    assert!(message.len() < 9000, "{} bytes", message.len());
    assert!(!message.contains('\x1b'));
}

#[tokio::test]
async fn standard_error_is_the_log() {
    let shout = program(
        "(data (i32.const 100) \"to the log\")",
        "(call $say (i32.const 2) (i32.const 100) (i32.const 10))",
    );
    let bed = Bed::new();
    let image = bed.image(shout, |_| {}).await.unwrap();
    let log = Arc::new(Log::default());
    let mut call = invocation(b"");
    call.log = Arc::clone(&log) as Arc<dyn LogSink>;
    assert_eq!(run_with(&image, call).await.unwrap().output, "");
    assert_eq!(log.text(), "to the log");
}

#[tokio::test]
async fn input_and_output_stream_piece_by_piece() {
    let bed = Bed::new();
    let image = bed.image(ECHO, |_| {}).await.unwrap();
    let (send, input) = mpsc::channel(1);
    let (output, mut receive) = mpsc::channel(1);
    let mut call = invocation(b"");
    (call.input, call.output) = (Input::Stream(input), Output::Stream(output));
    let mut sandbox = Arc::clone(&image).start().await.unwrap();
    let running = tokio::spawn(async move { sandbox.invoke(call).await });
    for piece in ["one", "two", "", "three"] {
        send.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        if !piece.is_empty() {
            assert_eq!(receive.recv().await.unwrap(), piece);
        }
    }
    drop(send);
    let reply = running.await.unwrap().unwrap();
    assert_eq!((reply.exit, reply.output), (ExitStatus::Code(0), Bytes::new()));
    assert!(reply.timings.first_byte.is_some());
    assert_eq!(receive.recv().await, None);
}

#[tokio::test]
async fn a_full_output_channel_makes_the_program_wait() {
    let bed = Bed::new();
    let image = bed.image(ECHO, |_| {}).await.unwrap();
    let (send, input) = mpsc::channel(1);
    let (output, mut receive) = mpsc::channel(1);
    let mut call = invocation(b"");
    (call.input, call.output) = (Input::Stream(input), Output::Stream(output));
    let mut sandbox = Arc::clone(&image).start().await.unwrap();
    let running = tokio::spawn(async move { sandbox.invoke(call).await });
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_millis(300), send.send(Bytes::from_static(b"x"))).await.is_ok()
    {
        taken += 1;
        assert!(taken < 100, "nobody reads the output, yet the program goes on reading its input");
    }
    drop(send);
    let mut got = 0;
    while let Some(piece) = receive.recv().await {
        got += piece.len();
    }
    assert_eq!(got, taken);
    assert!(running.await.unwrap().unwrap().exit.success());
}

#[tokio::test]
async fn a_closed_output_channel_is_a_cancellation() {
    let bed = Bed::new();
    let image = bed.image(flood(1), |_| {}).await.unwrap();
    let (output, mut receive) = mpsc::channel(4);
    let mut call = invocation(b"");
    call.output = Output::Stream(output);
    let mut sandbox = image.start().await.unwrap();
    let running = tokio::spawn(async move { sandbox.invoke(call).await });
    receive.recv().await.unwrap();
    drop(receive);
    assert!(matches!(running.await.unwrap(), Err(Error::Cancelled)));
}

#[tokio::test]
async fn dropping_an_invocation_frees_its_instance() {
    let bed = Bed::new();
    // One that computes, one that waits for input.
    for source in [spin(), ECHO.to_owned()] {
        let image = bed.image(source, |_| {}).await.unwrap();
        for _ in 0..2 * super::SANDBOXES {
            let (_keep, input) = mpsc::channel(1);
            let mut call = invocation(b"");
            call.input = Input::Stream(input);
            let mut sandbox = Arc::clone(&image).start().await.unwrap();
            tokio::time::timeout(Duration::from_millis(20), sandbox.invoke(call)).await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn a_start_function_may_call_wasi() {
    let late = r#"(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\10\00\00\00\05\00\00\00")
      (data (i32.const 16) "early")
      (func $early (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (start $early)
      (func (export "_start")))"#;
    let bed = Bed::new();
    let image = bed.image(late, |_| {}).await.unwrap();
    let mut sandbox = image.start().await.unwrap();
    assert_eq!(sandbox.invoke(invocation(b"")).await.unwrap().output, "early");
    assert!(matches!(sandbox.invoke(invocation(b"")).await, Err(Error::Host { .. })));
}

#[tokio::test]
async fn a_start_function_that_loops_meets_the_invocations_deadline() {
    let looping = "(module (func $f (loop $l (br $l))) (start $f) (func (export \"_start\")))";
    let bed = Bed::new();
    let image = bed.image(looping, |_| {}).await.unwrap();
    let mut call = invocation(b"");
    call.deadline = Instant::now() + Duration::from_millis(50);
    assert!(matches!(run_with(&image, call).await, Err(Error::Deadline { .. })));
}
