//! Writes that need no exit of their own are the writes that they would be with one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::{Input, Invocation, Output, Reply, Sandbox};

use super::images::Warm;
use super::{Log, has_kvm};

/// Writes what its input says: triples of a descriptor, a length and a letter; then bad writes, whose results are told.
const WRITER: &str = r#"
    #include <errno.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <sys/syscall.h>
    int main(void) {
        char input[4096]; static char bytes[8192];
        long n = 0, got;
        while ((got = read(0, input + n, sizeof input - n)) > 0) n += got;
        if (n == 4 && !memcmp(input, "loop", 4)) { write(2, "begun", 5); for (;;) __asm__ volatile(""); }
        if (n == 5 && !memcmp(input, "crash", 5)) { write(2, "log", 3); write(1, "reply", 5); *(volatile char *)8 = 1; }
        for (long i = 0; i + 3 < n; i += 4) {
            long len = input[i + 1] * 32 + input[i + 2];
            memset(bytes, input[i + 3], len);
            if (write(input[i], bytes, len) != len) return 3;
        }
        if (n == 3) {
            long bad[] = {
                syscall(SYS_write, 1, 8L, 4L) < 0 ? errno : 0,
                syscall(SYS_write, 1, 0x7ffffff00140L, 4L) < 0 ? errno : 0,
                syscall(SYS_write, 1, -1L, 4L) < 0 ? errno : 0,
                syscall(SYS_write, 1, bytes, 0L),
                syscall(SYS_write, 0x100000001L, "u", 1L),
            };
            close(1);
            long closed = write(1, "x", 1) < 0 ? errno : 0;
            dup2(2, 1);
            char text[200];
            int len = sprintf(text, "%ld %ld %ld %ld %ld %ld", bad[0], bad[1], bad[2], bad[3], bad[4], closed);
            write(1, text, len);
        }
        return 0;
    }"#;

async fn ask(sandbox: &mut Box<dyn Sandbox>, input: &[u8], within: Duration) -> (Option<Reply>, String) {
    let log = Arc::<Log>::default();
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::copy_from_slice(input)),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        deadline: Instant::now() + within,
    };
    let reply = sandbox.invoke(call).await.ok();
    sandbox.reset().await.unwrap();
    (reply, log.text())
}

/// `EFAULT` and `EBADF`.
const FAULT: i32 = 14;
const CLOSED: i32 = 9;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn writes_of_every_length_arrive_in_order_and_once() {
    if !has_kvm("writes_of_every_length_arrive_in_order_and_once") {
        return;
    }
    let warm = Warm::c(WRITER, &["-static"]).await;
    let lengths = [1, 7, 8, 9, 31, 255, 1023, 1024, 1025, 4000, 900, 900, 900, 900, 5, 1024, 1024, 1024, 3];
    for order in [1, 2, usize::MAX] {
        // The first of them finds out what a run stores into; the reply is gathered from the second on.
        let mut sandbox = warm.start().await;
        for _ in 0..2 {
            let (mut input, mut wanted) = (Vec::new(), [String::new(), String::new()]);
            for (i, &len) in lengths.iter().enumerate() {
                let to = (i / order) % 2;
                let letter = b'a' + i as u8;
                input.extend([to as u8 + 1, (len / 32) as u8, (len % 32) as u8, letter]);
                wanted[to].push_str(&(letter as char).to_string().repeat(len));
            }
            let (reply, log) = ask(&mut sandbox, &input, SOON).await;
            let reply = reply.expect("it ends");
            assert!(reply.exit.success(), "{:?}", reply.exit);
            assert!(reply.output == wanted[0].as_bytes() && log == wanted[1], "order {order}");
        }
    }
}

#[tokio::test]
async fn bad_writes_and_descriptors_that_change_are_as_ever() {
    if !has_kvm("bad_writes_and_descriptors_that_change_are_as_ever") {
        return;
    }
    let warm = Warm::c(WRITER, &["-static"]).await;
    for _ in 0..3 {
        let mut sandbox = warm.start().await;
        let (reply, log) = ask(&mut sandbox, b"bad", SOON).await;
        assert_eq!(log, format!("{FAULT} {FAULT} {FAULT} 0 1 {CLOSED}"));
        assert_eq!(reply.unwrap().output, "u");
    }
}

#[tokio::test]
async fn what_was_gathered_comes_out_however_the_run_ends_and_only_then() {
    if !has_kvm("what_was_gathered_comes_out_however_the_run_ends_and_only_then") {
        return;
    }
    let warm = Warm::c(WRITER, &["-static"]).await;
    let mut sandbox = warm.start().await;
    for _ in 0..2 {
        let (reply, log) = ask(&mut sandbox, b"crash", SOON).await;
        let reply = reply.expect("a fault is an outcome");
        assert!(!reply.exit.success());
        assert_eq!((&reply.output[..], log.as_str()), (&b"reply"[..], "log"));
        let (reply, log) = ask(&mut sandbox, b"loop", Duration::from_millis(300)).await;
        assert!(reply.is_none(), "it runs to its deadline");
        assert_eq!(log, "begun");
        let (reply, log) = ask(&mut sandbox, b"", SOON).await;
        assert_eq!((&reply.unwrap().output[..], log.as_str()), (&b""[..], ""), "nothing of another call");
    }
}

#[tokio::test]
async fn a_line_of_the_log_does_not_wait_for_the_next_call() {
    if !has_kvm("a_line_of_the_log_does_not_wait_for_the_next_call") {
        return;
    }
    let warm = Warm::c(WRITER, &["-static"]).await;
    let mut sandbox = warm.start().await;
    let log = Arc::<Log>::default();
    let call = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::from_static(b"loop")),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        deadline: Instant::now() + Duration::from_secs(60),
    };
    let run = tokio::spawn(async move { sandbox.invoke(call).await });
    // As long as it takes on a busy machine, and far from the deadline.
    let began = Instant::now();
    while log.text().is_empty() && began.elapsed() < Duration::from_secs(40) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log.text(), "begun");
    run.abort();
}
