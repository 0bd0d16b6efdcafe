//! The preview 1 calls that the engine serves itself, and the border to those that wasmtime-wasi serves.

use novum_sandbox::{Error, ExitStatus};

use super::programs::program;
use super::{Bed, fault, run};

const READ: &str =
    r#"(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))"#;

/// Stores words from address 512 on.
fn words(words: &[u32]) -> String {
    let store =
        |(i, word): (usize, &u32)| format!("(i32.store (i32.const {}) (i32.const {word}))", 512 + 4 * i);
    words.iter().enumerate().map(store).collect()
}

#[tokio::test]
async fn several_buffers_are_read_and_written_in_one_call() {
    // Reads into buffers of 3, 0 and 4 bytes, writes them in another order.
    let body = format!(
        "{} (drop (call $read (i32.const 0) (i32.const 512) (i32.const 3) (i32.const 600)))
         {} (drop (call $write (i32.const 1) (i32.const 512) (i32.const 3) (i32.const 608)))
         (call $exit (i32.add (i32.mul (i32.const 10) (i32.load (i32.const 600))) (i32.load (i32.const 608))))",
        words(&[1000, 3, 1100, 0, 1200, 4]),
        words(&[1200, 4, 1100, 0, 1000, 3]),
    );
    let reply = Bed::new().call(program(READ, &body), b"abcdefghi").await.unwrap();
    assert_eq!((reply.exit, reply.output.as_ref()), (ExitStatus::Code(77), &b"defgabc"[..]));
}

#[tokio::test]
async fn too_many_buffers_are_invalid() {
    let write = |count: u32| {
        program(
            "",
            &format!(
                "(call $exit (call $write (i32.const 1) (i32.const 1024) (i32.const {count}) (i32.const 8)))"
            ),
        )
    };
    let bed = Bed::new();
    for (count, errno) in [(1024, 0), (1025, 28), (u32::MAX, 28)] {
        assert_eq!(bed.call(write(count), b"").await.unwrap().exit, ExitStatus::Code(errno), "{count}");
    }
}

#[tokio::test]
async fn a_pointer_outside_the_memory_is_a_trap() {
    let bed = Bed::new();
    let cases = [
        (words(&[131_070, 10]), "(i32.const 512) (i32.const 1) (i32.const 8)"),
        (words(&[0xffff_fff0, 0xffff_ffff]), "(i32.const 512) (i32.const 1) (i32.const 8)"),
        (words(&[1000, 4]), "(i32.const 512) (i32.const 1) (i32.const 131070)"),
        (String::new(), "(i32.const 131070) (i32.const 1) (i32.const 8)"),
        (String::new(), "(i32.const -1) (i32.const 1024) (i32.const 8)"),
    ];
    for (words, args) in cases {
        for call in ["$write (i32.const 1)", "$write (i32.const 2)", "$read (i32.const 0)"] {
            let source = program(READ, &format!("{words} (drop (call {call} {args}))"));
            let (kind, message) = fault(bed.call(source, b"input").await.unwrap());
            assert!(kind == "trap" && message.contains("outside"), "{call} {args}: {message}");
        }
    }
}

#[tokio::test]
async fn a_closed_descriptor_stays_closed() {
    let close = r#"(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))"#;
    // Writes, closes standard output, writes to it (EBADF is 8), writes the log.
    let body = "(call $say (i32.const 1) (i32.const 64) (i32.const 3))
         (drop (call $close (i32.const 1)))
         (local.set $a (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
         (call $say (i32.const 2) (i32.const 64) (i32.const 3))
         (call $exit (local.get $a))";
    let reply = Bed::new().call(program(close, body), b"").await.unwrap();
    assert_eq!((reply.exit, reply.output.len()), (ExitStatus::Code(8), 3));
}

#[tokio::test]
async fn a_renumbered_descriptor_takes_its_stream_along() {
    let renumber = r#"(import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
        (data (i32.const 100) "one two")"#;
    // Standard error becomes what standard output was; output goes on in order.
    let body = "(call $say (i32.const 1) (i32.const 100) (i32.const 4))
         (drop (call $renumber (i32.const 1) (i32.const 2)))
         (call $say (i32.const 2) (i32.const 104) (i32.const 3))";
    let reply = Bed::new().call(program(renumber, body), b"").await.unwrap();
    assert_eq!((reply.exit, reply.output.as_ref()), (ExitStatus::Code(0), &b"one two"[..]));
}

#[tokio::test]
async fn random_bytes_differ_and_clocks_go_on() {
    let imports = r#"
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))"#;
    let body = "(drop (call $random (i32.const 1000) (i32.const 32)))
         (drop (call $time (i32.const 0) (i64.const 1) (i32.const 1032)))
         (drop (call $time (i32.const 1) (i64.const 1) (i32.const 1040)))
         (drop (call $time (i32.const 1) (i64.const 1) (i32.const 1048)))
         (call $say (i32.const 1) (i32.const 1000) (i32.const 56))";
    let bed = Bed::new();
    let image = bed.image(program(imports, body), |_| {}).await.unwrap();
    let (first, second) = (run(&image, b"").await.unwrap().output, run(&image, b"").await.unwrap().output);
    let time = |output: &[u8], at: usize| u64::from_le_bytes(output[at..at + 8].try_into().unwrap());
    assert_ne!(first[..32], second[..32]);
    assert!(time(&first, 32) > 1_700_000_000_000_000_000, "the clock shows {}", time(&first, 32));
    assert!(time(&second, 32) >= time(&first, 32));
    assert!(time(&first, 48) >= time(&first, 40));
    assert!(time(&first, 48) < 60_000_000_000, "the monotonic clock counts from the invocation's start");
}

#[tokio::test]
async fn a_large_write_goes_through_in_parts() {
    // Grows to 4 MiB and writes 3 MiB in a loop over what was taken; counts the calls.
    let body = "(drop (memory.grow (i32.const 62)))
         (local.set $a (i32.const 65536))
         (loop $again
           (call $say (i32.const 1) (local.get $a) (i32.sub (i32.const 3211264) (local.get $a)))
           (local.set $b (i32.add (local.get $b) (i32.const 1)))
           (local.set $a (i32.add (local.get $a) (i32.load (i32.const 8))))
           (br_if $again (i32.lt_u (local.get $a) (i32.const 3211264))))
         (call $exit (local.get $b))";
    let bed = Bed::new();
    let image = bed.image(program("", body), |_| {}).await.unwrap();
    let mut call = super::invocation(b"");
    call.output = novum_sandbox::Output::Collect { limit_bytes: 3 << 20 };
    let reply = super::run_with(&image, call).await.unwrap();
    assert_eq!((reply.exit, reply.output.len()), (ExitStatus::Code(3), 3 << 20));
    assert!(matches!(run(&image, b"").await, Err(Error::OutputLimit { .. })));
}
