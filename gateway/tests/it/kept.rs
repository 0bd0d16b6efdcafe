//! Images of programs that outlive the gateway, and the `ready` line, from outside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use novum_proto::gateway::v1::{self as proto, functions_client::FunctionsClient};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::*;
use crate::program::novum;
use crate::skip::skipped;

/// Draws a number before it reads, and says it in every reply.
const NONCE: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
int main(void) {
    unsigned long nonce;
    char line[100] = {0};
    getrandom(&nonce, sizeof nonce, 0);
    write(2, "warm\n", 5);
    if (read(0, line, 99) < 0) return 1;
    printf("%016lx %s", nonce, line);
    return 0;
}
"#;

/// The program; `None` where the test cannot run here.
fn program(test: &str) -> Option<Vec<u8>> {
    let probe = novum_sandbox::engines::row(novum_sandbox::EngineKind::Process).map(|row| (row.probe)());
    if let Some(Err(reason)) = probe {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
        skipped(test, &reason);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("p.c"), dir.path().join("p"));
    fs::write(&source, NONCE).unwrap();
    let done = Command::new("gcc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(&source).status();
    assert!(done.expect("gcc runs").success(), "gcc refuses the program");
    Some(fs::read(program).unwrap())
}

async fn ask(client: &mut FunctionsClient<Channel>) -> String {
    let reply = invoke(client, call("f", "question")).await.unwrap();
    let text = String::from_utf8(reply.payload.to_vec()).unwrap();
    let (nonce, rest) = text.split_once(' ').unwrap();
    assert_eq!(rest, "question");
    nonce.to_owned()
}

/// A gateway that comes after another, what it answers, and what it logs until then.
async fn restarted(dir: &Arc<TempDir>) -> (Gateway, String, String) {
    let log = dir.path().join("log");
    let gateway = Gateway::start_with(dir, &[], File::create(&log).unwrap());
    let mut client = gateway.functions().await;
    let answer = ask(&mut client).await;
    (gateway, answer, fs::read_to_string(log).unwrap())
}

fn store(dir: &TempDir) -> PathBuf {
    dir.path().join("data/cache/snapshots")
}

/// The files of all images.
fn images(dir: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(store(dir).join("snapshots")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn snapshot(dir: &TempDir, args: &[&str]) -> crate::program::Ended {
    let store = store(dir);
    novum(&[&["snapshot"], args, &["--store", store.to_str().unwrap()]].concat())
}

#[tokio::test]
async fn an_image_outlives_the_gateway_and_goes_with_the_function() {
    let Some(program) = program("an_image_outlives_the_gateway_and_goes_with_the_function") else { return };
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("f"), &program).await.unwrap();
    let first = ask(&mut client).await;
    let dir = gateway.kill();
    let listed = snapshot(&dir, &["ls"]).succeeds();
    assert!(listed.text().contains("process.f.v1"), "{}", listed.text());
    let inspected = snapshot(&dir, &["inspect", "process.f.v1"]).succeeds();
    for part in ["function    f, version 1, process engine", "process-memory", "process-files", "cpu.sse2"] {
        assert!(inspected.text().contains(part), "{part}: {}", inspected.text());
    }
    let json = snapshot(&dir, &["inspect", "process.f.v1", "--json"]).succeeds().json();
    assert_eq!((&json["origin"]["function"], &json["origin"]["version"]), (&"f".into(), &1.into()));
    snapshot(&dir, &["verify"]).succeeds();
    let (gateway, second, _) = restarted(&dir).await;
    assert_eq!(second, first, "the program did not begin again");
    // Nothing that is needed can be pruned.
    snapshot(&dir, &["prune"]).succeeds();
    // The image, and over it, some time after the first call, what was learnt in that.
    assert!((1..=2).contains(&images(&dir).len()), "{:?}", images(&dir));
    let mut client = gateway.functions().await;
    client.delete(proto::DeleteRequest { name: "f".into() }).await.unwrap();
    assert!(!snapshot(&dir, &["ls"]).succeeds().text().contains("process.f"));
    gateway.kill();
    snapshot(&dir, &["prune"]).succeeds();
    assert_eq!(images(&dir).len(), 0);
}

#[tokio::test]
async fn a_damaged_image_is_taken_anew_and_the_log_says_why() {
    let Some(program) = program("a_damaged_image_is_taken_anew_and_the_log_says_why") else { return };
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("f"), &program).await.unwrap();
    let mut before = ask(&mut client).await;
    let dir = gateway.kill();
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [(Spoil, &str); 2] =
        [(|bytes| bytes[2 * 4096] ^= 1, "checksum"), (|bytes| bytes.truncate(10_000), "bytes")];
    for (spoil, reason) in spoils {
        // Beside it is what was learnt in its first call, once that is written.
        let path = images(&dir).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        spoil(&mut bytes);
        replace(&path, &bytes);
        let (gateway, after, log) = restarted(&dir).await;
        assert_ne!(after, before);
        assert!(log.contains("cannot be used and is taken anew") && log.contains(reason), "{log}");
        gateway.kill();
        let (gateway, again, _) = restarted(&dir).await;
        assert_eq!(again, after, "the new image is kept");
        gateway.kill();
        before = again;
        snapshot(&dir, &["prune"]).succeeds();
    }
}

fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn the_ready_line_is_waited_for_and_its_absence_is_the_manifests_fault() {
    let test = "the_ready_line_is_waited_for_and_its_absence_is_the_manifests_fault";
    let Some(program) = program(test) else { return };
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let ready =
        |line: &str| proto::Manifest { ready: Some(line.into()), timeout: millis(400), ..manifest("f") };
    let error = deploy(&mut client, ready("never said"), &program).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("never said"), "{error}");
    let error = deploy(&mut client, ready("two\nlines"), &program).await.unwrap_err();
    assert_eq!(field(&error), "manifest.ready");
    let error = deploy(&mut client, ready("warm"), ECHO).await.unwrap_err();
    assert!(error.message().contains("process engine"), "{error}");
    assert!(images(&gateway.dir).is_empty());
    deploy(&mut client, ready("warm"), &program).await.unwrap();
    let first = ask(&mut client).await;
    assert_eq!(ask(&mut client).await, first);
    let (_gateway, second, _) = restarted(&gateway.kill()).await;
    assert_eq!(second, first);
}
