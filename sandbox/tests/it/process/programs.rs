//! Unmodified programs of the system, compared with a native run.

use std::process::Command;

use novum_sandbox::ExitStatus;

use std::time::Duration;

use super::{Run, compile, has_kvm, has_program, skipped};

/// Runs `program` natively and in a sandbox, and compares standard output and exit code.
async fn same_as_native(program: &str, args: &[&str], input: &str) {
    let path = std::fs::canonicalize(program).unwrap();
    let mut native = Command::new(&path);
    native.args(args).env_clear().stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = native.spawn().unwrap();
    // A program that does not read may be gone by now.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
    let native = child.wait_with_output().unwrap();
    let plan = Run::new().args(args).input(input.to_owned()).with_libraries();
    let log = plan.log.clone();
    let reply = plan.run(&path).await.unwrap();
    let (output, expected) =
        (String::from_utf8_lossy(&reply.output), String::from_utf8_lossy(&native.stdout));
    assert_eq!(output, expected, "{program} {args:?}: {:?}; log: {}", reply.exit, log.text());
    assert_eq!(reply.exit, ExitStatus::Code(native.status.code().unwrap()), "{program}: {}", log.text());
}

#[tokio::test]
async fn a_dynamic_c_program_runs() {
    if !has_kvm("a_dynamic_c_program_runs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        int main(int argc, char **argv) {
            char *p = malloc(10 << 20);
            memset(p, 7, 10 << 20);
            printf("%d %s %d\n", argc, argv[1], p[5 << 20]);
            return 5;
        }"#;
    for flags in [&["-pie"][..], &["-no-pie"], &["-static"], &["-static-pie"]] {
        let program = compile(dir.path(), source, flags);
        let reply = Run::new().args(&["x y"]).with_libraries().run(&program).await.unwrap();
        assert_eq!((reply.exit, &reply.output[..]), (ExitStatus::Code(5), &b"2 x y 7\n"[..]), "{flags:?}");
    }
}

#[tokio::test]
async fn memory_behaves_as_on_linux() {
    if !has_kvm("memory_behaves_as_on_linux") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("memory.c"), &[]);
    same_as_native(program.to_str().unwrap(), &[], "").await;
}

#[tokio::test]
async fn limits_that_a_program_sets_hold() {
    if !has_kvm("limits_that_a_program_sets_hold") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("limits.c"), &[]);
    same_as_native(program.to_str().unwrap(), &[], "").await;
}

#[tokio::test]
async fn splice_moves_and_loses_nothing() {
    if !has_kvm("splice_moves_and_loses_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("splice.c"), &[]);
    same_as_native(program.to_str().unwrap(), &[], "").await;
}

#[tokio::test]
async fn users_groups_and_scheduling_are_told_as_on_linux() {
    let test = "users_groups_and_scheduling_are_told_as_on_linux";
    if !has_kvm(test) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped(test, "the native run needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("identity.c"), &[]);
    same_as_native(program.to_str().unwrap(), &[], "").await;
}

#[tokio::test]
async fn writes_end_when_all_is_written() {
    if !has_kvm("writes_end_when_all_is_written") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("writes.c"), &["-pthread"]);
    let native = Command::new(&program).output().unwrap();
    assert!(native.status.success());
    // Through a channel that has room for one piece at a time.
    let (output, mut pieces) = tokio::sync::mpsc::channel(1);
    let mut plan = Run::new().with_libraries();
    plan.output = novum_sandbox::Output::Stream(output);
    let running = tokio::spawn(async move { plan.run(&program).await });
    let mut got = Vec::new();
    while let Some(piece) = pieces.recv().await {
        got.extend_from_slice(&piece);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(running.await.unwrap().unwrap().exit, ExitStatus::Code(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
    assert!(got == native.stdout, "{}\n---\n{}", text(&got), text(&native.stdout));
}

#[tokio::test]
async fn waits_end_while_another_thread_keeps_the_cpu() {
    if !has_kvm("waits_end_while_another_thread_keeps_the_cpu") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("waits.c"), &["-pthread"]);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut plan = Run::new().with_libraries();
    plan.input = novum_sandbox::Input::Stream(receiver);
    let later = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let _ = sender.send(bytes::Bytes::from_static(b"x")).await;
    });
    let reply = plan.run(&program).await.unwrap();
    later.await.unwrap();
    let text = String::from_utf8_lossy(&reply.output);
    assert_eq!(text, "slept\njoined\n-1 1\n0\n1 1\n1 x\nend\n", "{:?}", reply.exit);
}

/// Where a wake-up is lost the vCPU's thread may never come back, so nothing here waits for its end: neither the loop nor, at
/// the end, the runtime.
#[test]
fn a_thread_that_may_go_on_does_so_while_another_one_computes() {
    if !has_kvm("a_thread_that_may_go_on_does_so_while_another_one_computes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), include_str!("wakes.c"), &["-pthread"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let failed =
        ["timer", "sleepers", "signalled", "alarmed", "taken", "let_in"].into_iter().find_map(|case| {
            let plan = Run::new().args(&[case]).with_libraries();
            // Where the timer is lost, the sandbox's deadline is too.
            let patience = plan.deadline + Duration::from_secs(10);
            let ended = runtime.block_on(async { tokio::time::timeout(patience, plan.run(&program)).await });
            match ended {
                Ok(Ok(reply)) if reply.output == format!("{case}\n").as_bytes() => None,
                Ok(other) => Some((case, format!("{:?}", other.map(|reply| reply.exit)))),
                Err(_) => Some((case, format!("it still runs after {patience:?}"))),
            }
        });
    runtime.shutdown_background();
    assert_eq!(failed, None);
}

#[tokio::test]
async fn vector_registers_survive_calls() {
    if !has_kvm("vector_registers_survive_calls") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        int main(void) {
            float out[16] = {0}, in[16];
            for (int i = 0; i < 16; i++) in[i] = i;
            if (__builtin_cpu_supports("avx2")) {
                __asm__ volatile("vmovups (%0), %%ymm9" ::"r"(in) : "memory");
                for (int i = 0; i < 100; i++) getppid();
                __asm__ volatile("vaddps %%ymm9, %%ymm9, %%ymm9; vmovups %%ymm9, (%0)" ::"r"(out) : "memory");
            }
            printf("%d %d %f\n", !!__builtin_cpu_supports("avx2"), !!__builtin_cpu_supports("avx512f"), out[7]);
            if (__builtin_cpu_supports("avx512f")) {
                __asm__ volatile("vmovups (%0), %%zmm17" ::"r"(in) : "memory");
                for (int i = 0; i < 100; i++) getppid();
                __asm__ volatile("vmovups %%zmm17, (%0)" ::"r"(out) : "memory");
                printf("%f\n", out[15]);
            }
            return 0;
        }"#;
    let program = compile(dir.path(), source, &[]);
    same_as_native(program.to_str().unwrap(), &[], "").await;
}

#[tokio::test]
async fn python_runs_with_its_libraries_and_threads() {
    if !has_program("python_runs_with_its_libraries_and_threads", "/usr/bin/python3") {
        return;
    }
    let script = "import hashlib, json, re, sqlite3, sys, threading, zipfile\n\
                  t = [threading.Thread(target=lambda: sum(range(100000))) for _ in range(4)]\n\
                  [x.start() for x in t]; [x.join() for x in t]\n\
                  print(json.dumps({'a': hashlib.sha256(sys.stdin.read().encode()).hexdigest()}))\n\
                  print(sqlite3.connect(':memory:').execute('select 6*7').fetchone())";
    same_as_native("/usr/bin/python3", &["-c", script], "some input").await;
}

#[tokio::test]
async fn programs_of_the_system_do_what_they_do_natively() {
    let text = "pear\napple\nfig\napple\n";
    let cases: [(&str, &[&str], &str); 12] = [
        ("/usr/bin/cat", &[], text),
        ("/usr/bin/sort", &["-u"], text),
        ("/usr/bin/sha256sum", &[], text),
        ("/usr/bin/wc", &[], text),
        ("/usr/bin/sed", &["s/p/P/g"], text),
        ("/usr/bin/grep", &["-n", "p"], text),
        ("/usr/bin/gzip", &["-nc"], text),
        ("/usr/bin/awk", &["{ n += length } END { print n }"], text),
        ("/usr/bin/jq", &["-n", "[1, 2] | add"], text),
        ("/usr/bin/sqlite3", &[":memory:", "select 6 * 7"], text),
        ("/usr/bin/xz", &["-c"], text),
        ("/usr/bin/perl", &["-ne", "print length, qq{\\n}"], text),
    ];
    for (program, args, input) in cases {
        if has_program("programs_of_the_system_do_what_they_do_natively", program) {
            same_as_native(program, args, input).await;
        }
    }
}

/// `plan` with `dir` at the same path, read-only.
fn with_share(mut plan: Run, dir: &std::path::Path) -> Run {
    let target = dir.to_str().unwrap().to_owned();
    plan.manifest.shares.push(novum_sandbox::Share { source: dir.into(), target, read_only: true });
    plan
}

#[tokio::test]
async fn calls_that_are_answered_within_the_vm_answer_as_linux_does() {
    if !has_kvm("calls_that_are_answered_within_the_vm_answer_as_linux_does") {
        return;
    }
    let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = compile(dir.path(), include_str!("answers.c"), &[]);
    std::fs::write(shared.path().join("file"), "0123456789").unwrap();
    let args = [shared.path().to_str().unwrap()];
    let native = Command::new(&program).args(args).output().unwrap();
    assert!(native.status.success());
    let image = with_share(Run::new().with_libraries().args(&args), shared.path());
    // The first start has nothing to go by, later ones know what it looked at.
    let image = image.prepare(&program).await.unwrap();
    for _ in 0..2 {
        let mut sandbox = image.clone().start().await.unwrap();
        let plan = Run::new();
        let call = novum_sandbox::Invocation {
            env: Vec::new(),
            input: plan.input,
            output: plan.output,
            log: plan.log,
            deadline: std::time::Instant::now() + plan.deadline,
        };
        let reply = sandbox.invoke(call).await.unwrap();
        let (got, expected) =
            (String::from_utf8_lossy(&reply.output), String::from_utf8_lossy(&native.stdout));
        assert_eq!(got, expected, "{:?}", reply.exit);
    }
}

#[tokio::test]
async fn a_program_that_only_looks_sees_what_others_change() {
    if !has_kvm("a_program_that_only_looks_sees_what_others_change") {
        return;
    }
    let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = r#"
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            struct stat s, p;
            write(1, "go\n", 3);
            int fd = open(argv[1], O_RDONLY);
            do fstat(fd, &s); while (s.st_size < 5);
            do stat(argv[1], &p); while (p.st_size < 7);
            char bytes[8];
            while (read(fd, bytes, 8) > 0) ;
            while (read(fd, bytes, 8) == 0) ;
            return bytes[0];
        }"#;
    let program = compile(dir.path(), source, &[]);
    let file = shared.path().join("file");
    std::fs::write(&file, "xxxx").unwrap();
    let (output, mut pieces) = tokio::sync::mpsc::channel(1);
    let args = [file.to_str().unwrap()];
    let mut plan = with_share(Run::new().with_libraries().args(&args), shared.path());
    plan.manifest.timeout = std::time::Duration::from_millis(1);
    plan.output = novum_sandbox::Output::Stream(output);
    let running = tokio::spawn(async move { plan.run(&program).await });
    pieces.recv().await.unwrap();
    for size in (6..).step_by(4) {
        if running.is_finished() {
            break;
        }
        // It may be at an earlier look when the file grows: there is always something new.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        std::fs::write(&file, "x".repeat(size)).unwrap();
    }
    assert_eq!(running.await.unwrap().unwrap().exit, ExitStatus::Code(i32::from(b'x')));
}
