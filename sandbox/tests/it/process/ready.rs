//! Images that are taken where the program says that it is ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::{Error, Image, Input, Invocation, Output, Renewal, Sandbox};

use super::{Log, Run, compile, has_kvm, has_program};

/// Says something on both streams before the marker and after it, and never needs input.
const WARM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
static volatile int spins;
static void *spin(void *unused) { for (;;) { spins++; usleep(1000); } }
int main(void) {
    unsigned nonce;
    char line[100] = {0};
    getrandom(&nonce, sizeof nonce, 0);
    pthread_t thread;
    pthread_create(&thread, 0, spin, 0);
    printf("nonce %08x\n", nonce);
    fflush(stdout);
    write(2, "warming\nready", 13);
    write(2, " to serve\nup and", 16);
    write(2, " running\nmore\n", 14);
    printf("after\n");
    int before = spins;
    while (spins < before + 3) usleep(1000);
    if (read(0, line, 99) < 0) return 1;
    printf("%s\n", line);
    return 0;
}
"#;

async fn call(sandbox: &mut Box<dyn Sandbox>, input: &'static str) -> (String, String) {
    let log = Arc::<Log>::default();
    let invocation = Invocation {
        env: Vec::new(),
        input: Input::Bytes(Bytes::from_static(input.as_bytes())),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        deadline: Instant::now() + Run::new().deadline,
    };
    let reply = sandbox.invoke(invocation).await.unwrap();
    sandbox.reset().await.unwrap();
    (String::from_utf8(reply.output.to_vec()).unwrap(), log.text())
}

async fn image(run: &Run, program: &std::path::Path) -> Arc<dyn Image> {
    let image = run.prepare(program).await.unwrap();
    assert_eq!(image.renewal(), Renewal::Reset, "the program has an image");
    image
}

#[tokio::test]
async fn what_is_said_before_and_after_the_marker_comes_once_in_every_call() {
    if !has_kvm("what_is_said_before_and_after_the_marker_comes_once_in_every_call") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), WARM, &["-static", "-pthread"]);
    for ready in ["ready to serve", "up and running"] {
        let mut run = Run::new();
        run.manifest.ready = Some(ready.into());
        let image = image(&run, &program).await;
        let mut nonces = Vec::new();
        for _ in 0..2 {
            let mut sandbox = image.clone().start().await.unwrap();
            for input in ["one", "two"] {
                let (reply, log) = call(&mut sandbox, input).await;
                let (nonce, rest) = reply.split_once('\n').unwrap();
                assert_eq!(rest, format!("after\n{input}\n"));
                assert_eq!(log, "warming\nready to serve\nup and running\nmore\n");
                nonces.push(nonce.to_owned());
            }
        }
        nonces.dedup();
        assert_eq!(nonces.len(), 1, "the program began once");
    }
}

#[tokio::test]
async fn a_program_that_is_never_ready_is_refused() {
    if !has_kvm("a_program_that_is_never_ready_is_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), WARM, &["-static", "-pthread"]);
    // Half a line is none, and neither is a part of one.
    for line in ["ready", "to serve", "done"] {
        let mut run = Run::new();
        run.manifest.ready = Some(line.into());
        run.manifest.timeout = Duration::from_millis(300);
        match run.prepare(&program).await.map(drop) {
            Err(Error::Manifest { field, reason }) => {
                assert!(field == "ready" && reason.contains(&format!("{line:?}")), "{field}: {reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn python_is_ready_after_its_imports() {
    if !has_program("python_is_ready_after_its_imports", "/usr/bin/python3") {
        return;
    }
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let script = "import sys, json, random; began = random.random(); print('warm', file=sys.stderr); \
                  print(began, sys.stdin.read())";
    let mut run = Run::new().args(&["-I", "-c", script]).with_libraries();
    run.manifest.ready = Some("warm".into());
    let mut sandbox = image(&run, &python).await.start().await.unwrap();
    let (first, log) = call(&mut sandbox, "a").await;
    let (second, _) = call(&mut sandbox, "b").await;
    assert_eq!(log, "warm\n");
    assert_eq!(first.replace(" a", " b"), second, "the interpreter began once");
}
