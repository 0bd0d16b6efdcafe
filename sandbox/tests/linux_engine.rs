//! The engine contract on Linux guests: `cargo xtask rig test --test linux_engine`. Elsewhere the engine refuses at once.
#![cfg(feature = "vm")]

mod guest;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use guest::{Log, PATIENCE};
use novum_sandbox::engines::{self, EngineConfig};
use novum_sandbox::{
    Artifact, ArtifactFormat, EngineKind, Error, ExitStatus, Function, Image, Input, Invocation, Manifest,
    Output, Reply, Share, kept,
};
use novum_snapshot::{Digest, Store};

fn config(cache: &Path, kernels: PathBuf) -> EngineConfig {
    EngineConfig {
        cache: cache.to_owned(),
        kernels,
        max_sandboxes: 4,
        max_memory_bytes: 1 << 30,
        snapshots: None,
    }
}

/// A function whose root has `srv/run` with this script, over this machine's `/`.
async fn image(test: &str, folder: &Path, script: &str) -> Option<Arc<dyn Image>> {
    prepare(test, folder, script, None, |_| ()).await
}

/// The same of an engine that keeps images in `store`, with another manifest.
async fn prepare(
    test: &str,
    folder: &Path,
    script: &str,
    store: Option<&Store>,
    change: impl FnOnce(&mut Manifest),
) -> Option<Arc<dyn Image>> {
    let kernels = guest::kernels(test)?.root().to_owned();
    let (root, program) = (folder.join("root"), folder.join("root/srv/run"));
    if !program.exists() {
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut manifest = Manifest::new("script".parse().unwrap());
    manifest.entry = "srv/run".into();
    manifest.args = vec!["one".into()];
    manifest.shares = vec![Share { source: "/".into(), target: "/".into(), read_only: true }];
    let artifact = Artifact { format: ArtifactFormat::Tar, digest: Digest::of(b"script"), path: root };
    change(&mut manifest);
    let config = EngineConfig { snapshots: store.cloned(), ..config(folder, kernels) };
    let engine = (engines::row(EngineKind::Linux).unwrap().make)(&config).unwrap();
    Some(engine.prepare(Arc::new(Function { version: 1, manifest, artifact })).await.unwrap())
}

fn call(input: &str, limit_bytes: usize, patience: Duration, log: &Arc<Log>) -> Invocation {
    Invocation {
        env: vec![("EXTRA".into(), "more".into())],
        input: Input::Bytes(Bytes::copy_from_slice(input.as_bytes())),
        output: Output::Collect { limit_bytes },
        log: log.clone(),
        deadline: Instant::now() + patience,
    }
}

/// Invokes a fresh sandbox: output, outcome, log.
async fn invoke(image: &Arc<dyn Image>, call: Invocation) -> Result<Reply, Error> {
    image.clone().start().await.unwrap().invoke(call).await
}

#[tokio::test]
async fn a_function_gets_its_input_arguments_and_environment() {
    let folder = tempfile::tempdir().unwrap();
    let script = "tr a-z A-Z; echo $1 $EXTRA $(hostname); echo logged >&2; exit 3";
    let test = "a_function_gets_its_input_arguments_and_environment";
    let Some(image) = image(test, folder.path(), script).await else { return };
    let log = Arc::new(Log::default());
    let mut sandbox = image.clone().start().await.unwrap();
    let private = image.private_bytes();
    assert!((1..8 << 20).contains(&private), "it shares the image's memory: {private}");
    let reply = sandbox.invoke(call("abc ", 100, PATIENCE, &log)).await.unwrap();
    assert_eq!((reply.exit, reply.output.as_ref()), (ExitStatus::Code(3), &b"ABC one more script\n"[..]));
    assert_eq!(log.text(), "logged\n");
    assert!(reply.timings.first_byte.unwrap() <= reply.timings.run);
    drop(sandbox);
    assert_eq!(image.private_bytes(), 0);
}

#[tokio::test]
async fn a_function_is_fed_where_it_waits_for_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let script = "nonce=$(head -c 8 /dev/urandom | od -An -tx1); echo begun; read word; echo $nonce $word";
    let test = "a_function_is_fed_where_it_waits_for_its_input";
    let Some(image) = image(test, folder.path(), script).await else { return };
    let log = Arc::new(Log::default());
    let mut outputs = Vec::new();
    for env in [vec![], vec![], vec![("OTHER".to_owned(), "x".to_owned())]] {
        let reply = invoke(&image, Invocation { env, ..call("word\n", 100, PATIENCE, &log) }).await.unwrap();
        outputs.push(String::from_utf8_lossy(&reply.output).into_owned());
    }
    assert!(outputs[0].starts_with("begun\n") && outputs[0].ends_with("word\n"), "{outputs:?}");
    assert_eq!(outputs[0], outputs[1], "what it did before it waited was done once");
    assert_ne!(outputs[0], outputs[2], "with an environment of its own it begins anew");
}

/// What a script wrote before it waited for its input is there in every sandbox of one image, and in no other's.
#[tokio::test]
async fn an_image_outlives_its_engine_as_long_as_nothing_it_was_made_of_changes() {
    let test = "an_image_outlives_its_engine_as_long_as_nothing_it_was_made_of_changes";
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let script = "cat /srv/data; head -c 8 /dev/urandom | od -An -tx1; read word; echo $word";
    let data = folder.path().join("root/srv/data");
    std::fs::create_dir_all(data.parent().unwrap()).unwrap();
    std::fs::write(&data, "old\n").unwrap();
    let ask = async |memory_bytes| {
        let change = |manifest: &mut Manifest| manifest.memory_bytes = memory_bytes;
        let image = prepare(test, folder.path(), script, Some(&store), change).await?;
        let log = Arc::new(Log::default());
        let call = Invocation { env: vec![], ..call("word\n", 100, PATIENCE, &log) };
        let reply = invoke(&image, call).await.unwrap();
        assert_eq!(image.private_bytes(), 0);
        Some(String::from_utf8_lossy(&reply.output).into_owned())
    };
    let Some(first) = ask(128 << 20).await else { return };
    assert!(first.starts_with("old\n") && first.ends_with("word\n"), "{first}");
    let name = kept::reference(EngineKind::Linux, &"script".parse().unwrap(), 1);
    let kept = || store.get_ref(&name).unwrap().unwrap();
    let digest = kept();
    assert_eq!(ask(128 << 20).await.unwrap(), first, "nothing was run again");
    assert_eq!((kept(), store.digests().unwrap()), (digest, vec![digest]), "one snapshot, and it alone");

    let mut bytes = std::fs::read(store.path(&digest)).unwrap();
    bytes[3 * 4096 + 5] ^= 1;
    std::fs::remove_file(store.path(&digest)).unwrap();
    std::fs::write(store.path(&digest), bytes).unwrap();
    let second = ask(128 << 20).await.unwrap();
    assert_ne!(second, first, "it was damaged");

    std::fs::write(&data, "new\n").unwrap();
    let third = ask(128 << 20).await.unwrap();
    assert!(third.starts_with("new\n"), "the guest had read another file: {third}");

    let fourth = ask(96 << 20).await.unwrap();
    assert_ne!(fourth, third, "the manifest is another one");
    assert_eq!(ask(96 << 20).await.unwrap(), fourth, "and is known now");
    kept::release(&store, EngineKind::Linux, &"script".parse().unwrap(), 1).unwrap();
    assert_eq!(store.get_ref(&name).unwrap(), None);
}

#[tokio::test]
async fn a_function_that_never_waits_runs_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let script = "sum=$((2 + $(cat /count 2> /dev/null || echo 0))); echo $sum | tee /count";
    let test = "a_function_that_never_waits_runs_from_its_beginning";
    let Some(image) = image(test, folder.path(), script).await else { return };
    let log = Arc::new(Log::default());
    for _ in 0..2 {
        let reply =
            invoke(&image, Invocation { env: vec![], ..call("", 100, PATIENCE, &log) }).await.unwrap();
        let told = (reply.exit, log.text());
        assert_eq!(reply.output.as_ref(), b"2\n", "no run is seen by another: {told:?}");
    }
}

#[tokio::test]
async fn limits_end_a_run_and_a_reset_forgets_it() {
    let folder = tempfile::tempdir().unwrap();
    let script =
        "read word; [ -e /left ] && echo left; echo > /left; [ $word = loop ] && while :; do :; done; yes";
    let Some(image) = image("limits_end_a_run_and_a_reset_forgets_it", folder.path(), script).await else {
        return;
    };
    let log = Arc::new(Log::default());
    let mut sandbox = image.clone().start().await.unwrap();
    let error = sandbox.invoke(call("loop\n", 100, Duration::from_secs(2), &log)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    sandbox.reset().await.unwrap();
    let error = sandbox.invoke(call("yes\n", 100, PATIENCE, &log)).await.unwrap_err();
    assert!(matches!(error, Error::OutputLimit { limit_bytes: 100 }), "{error}");
    assert!(!folder.path().join("root/left").exists());
    // A caller that goes away: the future is dropped, and with the sandbox the guest.
    sandbox.reset().await.unwrap();
    let short = Duration::from_millis(500);
    let run = tokio::time::timeout(short, sandbox.invoke(call("loop\n", 100, PATIENCE, &log))).await;
    assert!(run.is_err());
    drop(sandbox);
    assert_eq!(image.private_bytes(), 0);
}

#[tokio::test]
async fn ends_of_the_guest_are_faults_with_their_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let script = "read what
        case $what in
            signal) kill -SEGV $$ ;;
            panic)
                echo 2 > /proc/sys/vm/panic_on_oom; echo 1 > /proc/sys/vm/overcommit_memory
                # MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE
                python3 -c 'import mmap; mmap.mmap(-1, 400 << 20, flags=0x8022)' ;;
            reset) python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)' ;;
        esac";
    let test = "ends_of_the_guest_are_faults_with_their_own_names";
    let Some(image) = image(test, folder.path(), script).await else { return };
    for (what, kind, message) in
        [("signal", "SIGSEGV", "SIGSEGV"), ("panic", "panic", "Out of memory"), ("reset", "reset", "reset")]
    {
        let log = Arc::new(Log::default());
        let reply = invoke(&image, call(&format!("{what}\n"), 100, PATIENCE, &log)).await.unwrap();
        let ExitStatus::Fault(fault) = reply.exit else { panic!("{what}: {:?}", reply.exit) };
        assert_eq!(fault.kind, kind);
        assert!(fault.message.contains(message), "{}", fault.message);
    }
}

#[test]
fn without_hardware_virtualization_the_engine_refuses_with_advice() {
    if std::env::var_os("NOVUM_RIG").is_some() {
        return;
    }
    let row = engines::row(EngineKind::Linux).unwrap();
    match (row.probe)() {
        // A machine with hardware virtualization.
        Ok(()) => {}
        Err(reason) if Path::new("/dev/kvm").exists() => {
            assert!(reason.contains("hardware virtualization"), "{reason}");
            let folder = tempfile::tempdir().unwrap();
            let error = (row.make)(&config(folder.path(), folder.path().into())).err().unwrap();
            assert!(matches!(error, Error::Unavailable { engine: EngineKind::Linux, .. }), "{error}");
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
}
