//! `novum.toml`: what it accepts, and that every error names its line and what is possible.

use std::path::{Path, PathBuf};
use std::time::Duration;

use novum::manifest::{self, ArtifactSource};
use novum_sandbox::{EngineChoice, Share};
use proptest::prelude::*;

fn refused(text: &str) -> String {
    manifest::parse(text, Path::new("novum.toml")).unwrap_err().to_string()
}

const FULL: &str = r#"
name = "thumbnail"
engine = "wasm"
entry = "thumbnail.wasm"
args = ["--width", "320"]
env = { MODE = "fast", "a.b" = "c" }
allow_env = ["WIDTH"]
memory = "64MiB"
timeout = "250ms"
output = 1048576

[pool]
min = 1
max = 8
queue = 0x10
idle = "5m"

[[share]]
source = "/srv/fonts"
target = "/fonts"

[[share]]
source = "cache"
target = "/cache"
read_only = false
"#;

#[test]
fn every_key_is_read() {
    let file = manifest::parse(FULL, Path::new("/nowhere/thumbnail/novum.toml")).unwrap();
    let m = &file.manifest;
    assert_eq!(m.name.as_str(), "thumbnail");
    assert_eq!(m.engine, EngineChoice::Wasm);
    assert_eq!(m.args, ["--width", "320"]);
    assert_eq!(m.env["MODE"], "fast");
    assert_eq!(m.env["a.b"], "c");
    assert!(m.allow_env.contains("WIDTH"));
    assert_eq!((m.memory_bytes, m.output_bytes), (64 << 20, 1 << 20));
    assert_eq!(m.timeout, Duration::from_millis(250));
    assert_eq!((m.pool.min, m.pool.max, m.pool.queue), (1, 8, 16));
    assert_eq!(m.pool.idle, Duration::from_secs(300));
    let share = |source: &str, target: &str, read_only| Share {
        source: source.into(),
        target: target.into(),
        read_only,
    };
    assert_eq!(
        m.shares,
        [share("/srv/fonts", "/fonts", true), share("/nowhere/thumbnail/cache", "/cache", false)]
    );
    assert_eq!(file.artifact, ArtifactSource::File(PathBuf::from("/nowhere/thumbnail/thumbnail.wasm")));
}

#[test]
fn a_root_directory_is_packed_and_entry_is_a_path_in_it() {
    let text = "name = \"a\"\nroot = \"rootfs\"\nentry = \"usr/bin/python3\"\n";
    let file = manifest::parse(text, Path::new("f/novum.toml")).unwrap();
    assert_eq!(file.artifact, ArtifactSource::Root("f/rootfs".into()));
    assert_eq!(file.manifest.entry, "usr/bin/python3");
}

/// One mistake each.
const MISTAKES: &[&str] = &[
    "name = \"a\"\nentry = \"a.wasm\"\nmemroy = \"64MiB\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\nfrobnicate = 1\n",
    "name = \"a\"\nentry = \"a.wasm\"\n[pool]\nmaximum = 4\n",
    "name = \"Hello World\"\nentry = \"a.wasm\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\nengine = \"qemu\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\nmemory = \"64MB\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\nmemory = \"1KiB\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\ntimeout = 5\n",
    "name = \"a\"\nentry = \"a.wasm\"\ntimeout = \"2h\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\nargs = [\"x\", 2]\n",
    "name = \"a\"\nentry = \"a.wasm\"\n[env]\nPORT = 80\n",
    "name = \"a\"\nentry = \"a.wasm\"\nenv = { \"A=B\" = \"x\" }\n",
    "name = \"a\"\nentry = \"a.wasm\"\n[pool]\nmin = 9\nmax = 3\n",
    "name = \"a\"\nentry = \"a.wasm\"\n\n[[share]]\nsource = \"/x\"\ntarget = \"relative\"\n",
    "name = \"a\"\nentry = \"a.wasm\"\n\n[[share]]\nsource = \"/x\"\n",
    "name = \"a\"\n",
    "name = \"a\nentry = \"a.wasm\"\n",
    "name = \"a\"\nname = \"b\"\n",
];

#[test]
fn errors_name_the_line_and_what_is_possible() {
    let shown: Vec<_> = MISTAKES.iter().map(|text| refused(text)).collect();
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn the_artifact_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("novum.toml");
    std::fs::write(&path, "name = \"a\"\nentry = \"a.wasm\"\n").unwrap();
    let message = manifest::load(&path).unwrap_err().to_string();
    assert!(message.contains("novum.toml:2:9: cannot open"), "{message}");
    std::fs::write(dir.path().join("a.wasm"), b"\0asm").unwrap();
    manifest::load(&path).unwrap();
    std::fs::write(&path, b"name = \"a\"\nentry = \"\xff\"\n").unwrap();
    let message = manifest::load(&path).unwrap_err().to_string();
    assert!(message.contains("novum.toml:2:10: this byte is not UTF-8"), "{message}");
}

#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../docs/manifest.md");
    for key in manifest::keys() {
        assert!(page.contains(&format!("`{key}`")), "docs/manifest.md does not describe `{key}`");
    }
}

fn toml_like() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "name",
        "entry",
        "engine",
        "memory",
        "pool",
        "share",
        "env",
        "=",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ".",
        ",",
        "\"",
        "'",
        "\"a\"",
        "\"5s\"",
        "1",
        "-1",
        "1e9",
        "true",
        "\n",
        " ",
        "#",
        "é",
        "\\u0000",
        "1979-05-27",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(\\PC|\n|\t)*") {
        if let Err(e) = manifest::parse(&text, Path::new("f")) {
            prop_assert!(e.to_string().starts_with("f:"));
        }
    }

    #[test]
    fn text_that_looks_like_toml_never_panics(text in toml_like()) {
        if let Err(e) = manifest::parse(&text, Path::new("f")) {
            prop_assert!(e.line <= text.lines().count() + 1);
        }
    }

    #[test]
    fn a_damaged_manifest_never_panics(at in 0usize..500, garbage in "\\PC{0,4}") {
        let mut text = FULL.to_owned();
        let at = at.min(text.len());
        text.insert_str(at, &garbage);
        let _ = manifest::parse(&text, Path::new("f"));
    }
}
