//! What is refused at deployment, and with which words.

use std::sync::Arc;

use novum_sandbox::wasm::recognises;
use novum_sandbox::{Artifact, ArtifactFormat, Engine, Error, Function, Manifest};
use proptest::prelude::*;

use super::programs::ECHO;
use super::{Bed, run};

async fn refusal(bytes: impl AsRef<[u8]>) -> String {
    match Bed::new().image(bytes, |_| {}).await.map(drop) {
        Err(error @ Error::Artifact { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_says_what_is_missing() {
    let cases: [(&[u8], &[&str]); 12] = [
        (b"\x7fELF\x02\x01\x01", &["neither a Wasm binary nor text", r"\x7fELF"]),
        (b"", &["neither a Wasm binary nor text"]),
        (b"(module (func", &["text does not parse"]),
        (b"\0asm\x01\0\0\0\xff", &["cannot run on the wasm engine"]),
        (b"\0asm\x07\0\x07\0", &["header"]),
        (b"(module)", &["exports no function `_start`", "WASI command"]),
        (b"(module (func (export \"_initialize\")))", &["reactor"]),
        (b"(module (func (export \"_start\") (param i32)))", &["without parameters"]),
        (
            b"(module (import \"env\" \"foo\" (func)) (func (export \"_start\")))",
            &["`env::foo`", "wasi_snapshot_preview1", "undefined"],
        ),
        (
            b"(module (import \"wasi_unstable\" \"fd_write\" (func)) (func (export \"_start\")))",
            &["preview 0"],
        ),
        (
            b"(module (import \"wasi_snapshot_preview1\" \"fd_dance\" (func)) (memory (export \"memory\") 1)
              (func (export \"_start\")))",
            &["fd_dance"],
        ),
        (b"(component)", &["wasi:cli/run", "wasi:http/incoming-handler"]),
    ];
    for (bytes, words) in cases {
        let text = refusal(bytes).await;
        for word in words {
            assert!(text.contains(word), "{}: {text}", bytes.escape_ascii());
        }
    }
}

#[tokio::test]
async fn a_missing_memory_export_is_named() {
    let text = refusal(
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
         (func (export \"_start\")))",
    )
    .await;
    assert!(text.contains("`memory`"), "{text}");
}

#[tokio::test]
async fn a_component_with_foreign_imports_is_refused_by_name() {
    let text = refusal("(component (import \"a:b/c\" (func)))").await;
    assert!(text.contains("a:b/c") && text.contains("wasi:cli 0.2"), "{text}");
}

#[tokio::test]
async fn an_instance_that_cannot_be_made_is_refused() {
    let text = refusal("(module (memory 1) (data (i32.const 65536) \"x\") (func (export \"_start\")))").await;
    assert!(text.contains("out of bounds"), "{text}");
}

#[tokio::test]
async fn an_archives_entry_is_the_program() {
    let bed = Bed::new();
    let root = bed.dir.path().join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::write(root.join("bin/echo.wat"), ECHO).unwrap();
    let prepare = |entry: &str| {
        let mut manifest = Manifest::new("f".parse().unwrap());
        manifest.entry = entry.to_owned();
        let digest = novum_snapshot::Digest::of(entry.as_bytes());
        let artifact = Artifact { format: ArtifactFormat::Tar, digest, path: root.clone() };
        bed.engine.prepare(Arc::new(Function { version: 1, manifest, artifact }))
    };
    for entry in ["bin/echo.wat", "/bin/echo.wat"] {
        let image = prepare(entry).await.unwrap();
        assert_eq!(run(&image, b"x").await.unwrap().output, "x");
    }
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
    for entry in ["", "../escape", "bin/../../x", "link", "bin"] {
        match prepare(entry).await.map(drop) {
            Err(Error::Manifest { field, .. }) => assert_eq!(field, "entry"),
            other => panic!("{entry}: {other:?}"),
        }
    }
}

#[test]
fn wasm_is_recognised() {
    for yes in [&b"\0asm\x01\0\0\0"[..], b"(module", b"\n  (component $x", b";; comment\n(module"] {
        assert!(recognises(yes));
    }
    for no in [&b""[..], b"\x7fELF", b"#!/bin/sh", b"(lisp)", b"\0as"] {
        assert!(!recognises(no));
    }
}

static BED: std::sync::LazyLock<Bed> = std::sync::LazyLock::new(Bed::new);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic(
        prefix in prop::sample::select(vec![&b""[..], b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0", b"(module ", b"(component "]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let all = [prefix, &bytes].concat();
        let _ = recognises(&all);
        let _ = runtime().block_on(BED.image(&all, |_| {}));
    }

    #[test]
    fn a_damaged_module_never_panics(at in 8_usize..90, with in any::<u8>()) {
        let mut binary = wat::parse_str(ECHO).unwrap();
        let at = at % binary.len();
        binary[at] = with;
        runtime().block_on(async {
            if let Ok(image) = BED.image(&binary, |_| {}).await {
                let mut call = super::invocation(b"abc");
                call.deadline = std::time::Instant::now() + std::time::Duration::from_millis(50);
                let _ = super::run_with(&image, call).await;
            }
        });
    }
}
