//! Deploying: what is refused, what is no change, versions, archives, shared directories.

use std::io::Write;

use novum_proto::gateway::v1::{self as proto, deploy_request};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::*;

#[tokio::test]
async fn a_module_that_is_no_wasm_is_refused_and_the_old_version_serves_on() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    for (artifact, engine) in [
        (&b"this is no module at all"[..], proto::Engine::Auto),
        (b"this is no module at all", proto::Engine::Wasm),
        (b"\0asm\x01\0\0\0garbage", proto::Engine::Auto),
        (b"(module (nonsense))", proto::Engine::Auto),
    ] {
        let manifest = proto::Manifest { engine: engine.into(), ..manifest("echo") };
        let error = deploy(&mut client, manifest, artifact).await.unwrap_err();
        assert_eq!(field(&error), "chunk", "{error}");
    }
    let reply = invoke(&mut client, call("echo", "still")).await.unwrap();
    assert_eq!((reply.payload.as_ref(), reply.version), (&b"still"[..], 1));
    settle_artifacts(&gateway, 1).await;
}

/// Waits until this many artifacts are kept: what nobody uses is removed in the background.
async fn settle_artifacts(gateway: &Gateway, wanted: usize) {
    let began = std::time::Instant::now();
    loop {
        let kept = std::fs::read_dir(gateway.dir.path().join("data/artifacts")).unwrap().count();
        if kept == wanted {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{kept} artifacts are kept, not {wanted}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_same_deploy_again_is_no_change_and_another_is_a_new_version() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let version = |r: &proto::DeployResponse| r.function.as_ref().unwrap().version;
    let first = deploy(&mut client, manifest("f"), ECHO).await.unwrap();
    let again = deploy(&mut client, manifest("f"), ECHO).await.unwrap();
    assert_eq!((first.changed, again.changed, version(&again)), (true, false, 1));
    for n in 2..=5 {
        let manifest = proto::Manifest { args: vec![n.to_string()], ..manifest("f") };
        let next = deploy(&mut client, manifest, says(&n.to_string(), "", 0)).await.unwrap();
        assert_eq!((next.changed, version(&next)), (true, n));
    }
    for (version, there) in [(0, true), (5, true), (4, true), (3, true), (2, false), (1, false), (6, false)] {
        let reply = invoke(&mut client, proto::InvokeRequest { version, ..call("f", "") }).await;
        match reply {
            Ok(reply) => {
                let ran = if version == 0 { 5 } else { version };
                assert!(there && reply.version == ran && reply.payload == ran.to_string());
            }
            Err(error) => assert!(!there && error.code() == Code::NotFound, "{version}: {error}"),
        }
    }
    settle_artifacts(&gateway, 3).await;
}

#[tokio::test]
async fn what_was_declared_of_the_artifact_is_checked() {
    let gateway = Gateway::start(&["--max-artifact", "100KiB"]);
    let mut client = gateway.functions().await;
    let digest = novum_snapshot::Digest::of(ECHO.as_bytes()).to_string();
    let start = |size: Option<u64>, sha256: &str| deploy_request::Start {
        manifest: Some(manifest("echo")),
        size_bytes: size,
        sha256: sha256.into(),
        ..Default::default()
    };
    let size = ECHO.len() as u64;
    let wrong = novum_snapshot::Digest::of(b"").to_string();
    let error = deploy_start(&mut client, start(Some(size + 1), ""), ECHO.as_bytes()).await.unwrap_err();
    assert_eq!(field(&error), "start.size_bytes");
    let error = deploy_start(&mut client, start(None, &wrong), ECHO.as_bytes()).await.unwrap_err();
    assert_eq!(field(&error), "start.sha256");
    for declared in [Some(1 << 20), None] {
        let error = deploy_start(&mut client, start(declared, ""), &vec![0; 1 << 20]).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("--max-artifact"), "{error}");
    }
    let good = deploy_start(&mut client, start(Some(size), &digest), ECHO.as_bytes()).await.unwrap();
    assert_eq!(good.function.unwrap().artifact_sha256, digest);
}

fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn an_archive_is_unpacked_and_its_entry_must_be_in_it() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let archive = tar(&[("bin/echo.wat", ECHO), ("data/x", "y")]);
    let start = |entry: &str| deploy_request::Start {
        manifest: Some(proto::Manifest { entry: entry.into(), ..manifest("tar") }),
        format: proto::ArtifactFormat::Tar.into(),
        ..Default::default()
    };
    for entry in ["", "bin/missing", "bin", "../../../../../../../../etc/passwd"] {
        let error = deploy_start(&mut client, start(entry), &archive).await.unwrap_err();
        assert_eq!(field(&error), "manifest.entry", "{entry}: {error}");
    }
    let error = deploy_start(&mut client, start("x"), b"not a tar").await.unwrap_err();
    assert_eq!(field(&error), "chunk");
    assert_eq!(std::fs::read_dir(gateway.dir.path().join("data/roots")).unwrap().count(), 0);
}

#[tokio::test]
async fn only_allowed_directories_are_shared() {
    let open = tempfile::tempdir().unwrap();
    let closed = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(closed.path(), open.path().join("link")).unwrap();
    let gateway = Gateway::start(&["--allow-share", open.path().to_str().unwrap()]);
    let mut client = gateway.functions().await;
    let sharing = |source: &std::path::Path| proto::Manifest {
        shares: vec![proto::SharedDirectory {
            source: source.to_str().unwrap().into(),
            target: "/data".into(),
            read_only: None,
        }],
        ..manifest("sharing")
    };
    for bad in [closed.path(), &open.path().join("link"), &open.path().join("missing")] {
        let error = deploy(&mut client, sharing(bad), ECHO).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let violations = error.get_details_precondition_failure().unwrap().violations;
        assert_eq!(
            (violations[0].r#type.as_str(), violations[0].subject.as_str()),
            ("SHARE", bad.to_str().unwrap())
        );
    }
    let inner = open.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    deploy(&mut client, sharing(&inner), ECHO).await.unwrap();
    assert!(invoke(&mut client, call("sharing", "x")).await.is_ok());
    // Checked again at use: what was a directory now leads elsewhere.
    std::fs::remove_dir(&inner).unwrap();
    std::os::unix::fs::symlink(closed.path(), &inner).unwrap();
    let error = invoke(&mut client, call("sharing", "x")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

#[tokio::test]
async fn deploys_of_one_name_at_once_all_count() {
    let gateway = Gateway::start(&[]);
    let client = gateway.functions().await;
    let deploys: Vec<_> = (0..8)
        .map(|n| {
            let mut client = client.clone();
            let manifest = proto::Manifest { args: vec![n.to_string()], ..manifest("race") };
            tokio::spawn(async move { deploy(&mut client, manifest, ECHO).await })
        })
        .collect();
    let mut versions = Vec::new();
    for deploy in deploys {
        versions.push(deploy.await.unwrap().unwrap().function.unwrap().version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_deleted_function_is_gone_and_its_invocation_finishes() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("gone"), ECHO).await.unwrap();
    let mut held = hold(&mut client, "gone").await;
    client.delete(proto::DeleteRequest { name: "gone".into() }).await.unwrap();
    assert_eq!(invoke(&mut client, call("gone", "")).await.unwrap_err().code(), Code::NotFound);
    let again = client.delete(proto::DeleteRequest { name: "gone".into() }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    held.input.send(stream_input("more")).await.unwrap();
    assert!(held.replies.message().await.unwrap().is_some());
    drop(held.input);
    assert!(held.replies.message().await.unwrap().is_some());
}

#[tokio::test]
async fn no_more_functions_than_allowed() {
    let gateway = Gateway::start(&["--max-functions", "1"]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("first"), ECHO).await.unwrap();
    let error = deploy(&mut client, manifest("second"), ECHO).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("--max-functions"), "{error}");
    assert!(deploy(&mut client, manifest("first"), LOOP).await.unwrap().changed);
}

#[test]
fn a_second_gateway_on_the_same_data_is_told_so() {
    let gateway = Gateway::start(&[]);
    let output = command(gateway.dir.path(), &["--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!output.status.success());
    let mut text = Vec::new();
    text.write_all(&output.stderr).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("another gateway uses the data directory"), "{text}");
}
