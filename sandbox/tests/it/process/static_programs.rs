//! Static programs without a C library, and what the contract says about their ends.

use std::time::Duration;

use bytes::Bytes;
use novum_sandbox::{Error, ExitStatus, Input, Output};

use super::{Run, compile, has_kvm};

const CALLS: &str = r#"
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
"#;

async fn run(body: &str, run: Run) -> Result<novum_sandbox::Reply, Error> {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &format!("{CALLS}{body}"), &["-static", "-nostdlib"]);
    run.run(&program).await
}

#[tokio::test]
async fn hello_writes_and_exits() {
    if !has_kvm("hello_writes_and_exits") {
        return;
    }
    let body = r#"void _start(void) { call(1, 1, (long)"hello\n", 6); call(231, 3, 0, 0); }"#;
    let reply = run(body, Run::new()).await.unwrap();
    assert_eq!((reply.exit, &reply.output[..]), (ExitStatus::Code(3), &b"hello\n"[..]));
    assert!(reply.timings.first_byte.is_some());
}

const ECHO: &str = r#"
static char buffer[65536];
void _start(void) {
    long n;
    while ((n = call(0, 0, (long)buffer, sizeof buffer)) > 0)
        for (long done = 0; done < n; done += call(1, 1, (long)buffer + done, n - done));
    call(231, 0, 0, 0);
}"#;

#[tokio::test]
async fn input_becomes_output() {
    if !has_kvm("input_becomes_output") {
        return;
    }
    let input: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7) as u8).collect();
    let reply = run(ECHO, Run::new().input(input.clone())).await.unwrap();
    assert!(reply.output == input);
}

#[tokio::test]
async fn streams_flow_both_ways_with_back_pressure() {
    if !has_kvm("streams_flow_both_ways_with_back_pressure") {
        return;
    }
    let (to, input) = tokio::sync::mpsc::channel(1);
    let (output, mut from) = tokio::sync::mpsc::channel(1);
    let mut plan = Run::new();
    (plan.input, plan.output) = (Input::Stream(input), Output::Stream(output));
    let running = tokio::spawn(async move { run(ECHO, plan).await });
    for round in 0..50u8 {
        to.send(Bytes::from(vec![round; 1000])).await.unwrap();
        let mut got = 0;
        while got < 1000 {
            let piece: Bytes = from.recv().await.unwrap();
            assert!(piece.iter().all(|&byte| byte == round));
            got += piece.len();
        }
    }
    drop(to);
    assert_eq!(running.await.unwrap().unwrap().exit, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_loop_and_a_wait_end_at_the_deadline() {
    if !has_kvm("a_loop_and_a_wait_end_at_the_deadline") {
        return;
    }
    let mut plan = Run::new();
    plan.deadline = Duration::from_millis(300);
    let looping = run("void _start(void) { for (;;); }", plan).await;
    assert!(matches!(looping, Err(Error::Deadline { .. })), "{looping:?}");
    let (_open, input) = tokio::sync::mpsc::channel(1);
    let mut plan = Run::new();
    (plan.deadline, plan.input) = (Duration::from_millis(300), Input::Stream(input));
    let waiting = run(ECHO, plan).await;
    assert!(matches!(waiting, Err(Error::Deadline { .. })), "{waiting:?}");
}

#[tokio::test]
async fn dropping_the_invocation_stops_the_program() {
    if !has_kvm("dropping_the_invocation_stops_the_program") {
        return;
    }
    let (output, mut from) = tokio::sync::mpsc::channel(4);
    let mut plan = Run::new();
    plan.output = Output::Stream(output);
    let body = r#"void _start(void) { call(1, 1, (long)"x", 1); for (;;); }"#;
    let running = tokio::spawn(async move { run(body, plan).await });
    assert_eq!(from.recv().await.unwrap(), "x");
    running.abort();
    assert_eq!(from.recv().await, None, "the sandbox lets go of its output");
}

#[tokio::test]
async fn too_much_output_is_refused() {
    if !has_kvm("too_much_output_is_refused") {
        return;
    }
    let mut plan = Run::new();
    plan.output = Output::Collect { limit_bytes: 1000 };
    let body = r#"static char b[600]; void _start(void) { for (;;) call(1, 1, (long)b, sizeof b); }"#;
    let ended = run(body, plan).await;
    assert!(matches!(ended, Err(Error::OutputLimit { limit_bytes: 1000 })), "{ended:?}");
}

#[tokio::test]
async fn a_null_pointer_is_a_fault_with_a_report() {
    if !has_kvm("a_null_pointer_is_a_fault_with_a_report") {
        return;
    }
    let body = "void _start(void) { call(39, 0, 0, 0); *(volatile int *)24 = 1; }";
    let reply = run(body, Run::new()).await.unwrap();
    let ExitStatus::Fault(fault) = reply.exit else { panic!("no fault") };
    assert_eq!(fault.kind, "SIGSEGV");
    assert!(fault.message.contains("address 0x18 is not mapped"), "{}", fault.message);
    assert!(fault.message.contains("getpid"), "{}", fault.message);
    assert!(fault.message.contains("/app/program"), "{}", fault.message);
}

#[tokio::test]
async fn protection_is_enforced() {
    if !has_kvm("protection_is_enforced") {
        return;
    }
    let cases = [
        ("a store to constants", "*(volatile char *)\"text\" = 1;"),
        ("a jump into data", "static char code[] = {0xc3}; ((void (*)(void))code)();"),
        (
            "a load from a page that was unmapped",
            "long p = map(); *(volatile char *)p = 1; call(11, p, 4096, 0); *(volatile char *)p;",
        ),
        (
            "a store after mprotect",
            "long p = map(); *(volatile char *)p = 1; call(10, p, 4096, 1); *(volatile char *)p = 1;",
        ),
        ("a jump into the system area", "((void (*)(void))0xffff800000001000)();"),
        ("a load from the system area", "*(volatile char *)0xffff800000000000;"),
        ("a load from the call stub's neighbour", "*(volatile char *)0x7fffffffeff0;"),
        ("a port", "__asm__ volatile(\"outb %al, $0x80\");"),
    ];
    let map = "static long map(void) { register long r10 __asm__(\"r10\") = 0x22; register long r8 __asm__(\"r8\") = -1; \
               register long r9 __asm__(\"r9\") = 0; long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"(9), \"D\"(0), \
               \"S\"(4096), \"d\"(3), \"r\"(r10), \"r\"(r8), \"r\"(r9) : \"rcx\", \"r11\", \"memory\"); return r; }";
    for (what, code) in cases {
        let body = format!("{map} void _start(void) {{ {code} call(231, 0, 0, 0); }}");
        let reply = run(&body, Run::new()).await.unwrap();
        assert!(
            matches!(&reply.exit, ExitStatus::Fault(f) if f.kind == "SIGSEGV"),
            "{what}: {:?}",
            reply.exit
        );
    }
}

#[tokio::test]
async fn a_call_that_is_not_served_is_noted() {
    if !has_kvm("a_call_that_is_not_served_is_noted") {
        return;
    }
    let plan = Run::new();
    let log = plan.log.clone();
    let body = "void _start(void) { call(231, -call(246, 0, 0, 0), 0, 0); }";
    let reply = run(body, plan).await.unwrap();
    assert_eq!(reply.exit, ExitStatus::Code(libc_enosys()));
    assert!(log.text().contains("kexec_load is not served (1 times)"), "{}", log.text());
}

fn libc_enosys() -> i32 {
    38
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_reason() {
    if !has_kvm("what_cannot_run_is_refused_with_the_reason") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "just text").unwrap();
    let refused = Run::new().run(&text).await.unwrap_err().to_string();
    assert!(refused.contains("not an ELF program"), "{refused}");
    let program = compile(dir.path(), "int main(void) { return 0; }", &[]);
    let refused = Run::new().run(&program).await.unwrap_err().to_string();
    assert!(refused.contains("/lib64/ld-linux-x86-64.so.2"), "{refused}");
}
