//! Unmodified programs of the system, compared with a native run.

use std::path::Path;
use std::process::Command;

use novum_sandbox::ExitStatus;

use super::{Run, compile, has_kvm};

/// Runs `program` natively and in a sandbox, and compares standard output and exit code.
async fn same_as_native(program: &str, args: &[&str], input: &str) {
    let path = std::fs::canonicalize(program).unwrap();
    let mut native = Command::new(&path);
    native.args(args).env_clear().stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = native.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
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
async fn programs_of_the_system_do_what_they_do_natively() {
    if !has_kvm("programs_of_the_system_do_what_they_do_natively") {
        return;
    }
    let text = "pear\napple\nfig\napple\n";
    let cases: [(&str, &[&str], &str); 8] = [
        ("/usr/bin/cat", &[], text),
        ("/usr/bin/sort", &["-u"], text),
        ("/usr/bin/sha256sum", &[], text),
        ("/usr/bin/wc", &[], text),
        ("/usr/bin/sed", &["s/p/P/g"], text),
        ("/usr/bin/grep", &["-n", "p"], text),
        ("/usr/bin/gzip", &["-nc"], text),
        ("/usr/bin/perl", &["-ne", "print length, qq{\\n}"], text),
    ];
    for (program, args, input) in cases {
        if Path::new(program).exists() {
            same_as_native(program, args, input).await;
        }
    }
}
