//! Every example does what its own test cases say: deployed by the real command line, invoked over real gRPC.
//!
//! A case is `test/NAME.in` (the request), `NAME.out` (the whole reply) and, where it is not 0, `NAME.code`. An example
//! whose artifact is too large for git is tested where its `build.sh` has been run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Gateway, call, exit_code, invoke};
use crate::skip::skipped;

/// Built by their scripts only; the others are in git.
const LARGE: [&str; 2] = ["csv-summary", "qrcode"];
const SMALL: [&str; 4] = ["echo", "json", "markdown", "wordcount"];

struct Case {
    name: String,
    input: Vec<u8>,
    output: Vec<u8>,
    code: i32,
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn cases(example: &str) -> Vec<Case> {
    let folder = examples().join(example).join("test");
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let inputs =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension() == Some("in".as_ref()));
    let case = |path: PathBuf| Case {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        input: read(&path),
        output: read(&path.with_extension("out")),
        code: fs::read_to_string(path.with_extension("code")).map_or(0, |text| text.trim().parse().unwrap()),
    };
    inputs.map(case).collect()
}

/// Deploys an example with `novum deploy`, then holds the reply to each of its cases against what is expected.
async fn works(example: &str) {
    let gateway = Gateway::start(&[]);
    let deploy = Command::new(env!("CARGO_BIN_EXE_novum"))
        .args(["deploy", "--server", &gateway.address.to_string()])
        .arg(examples().join(example))
        .output()
        .unwrap();
    assert!(deploy.status.success(), "{}", String::from_utf8_lossy(&deploy.stderr));
    let mut functions = gateway.functions().await;
    let cases = cases(example);
    assert!(!cases.is_empty(), "{example} has no case");
    for Case { name, input, output, code } in cases {
        let reply = invoke(&mut functions, call(example, input)).await.unwrap();
        let log = String::from_utf8_lossy(&reply.log_tail);
        assert_eq!(exit_code(&reply), Some(code), "{name}: {log}");
        assert_eq!(
            String::from_utf8_lossy(&reply.payload),
            String::from_utf8_lossy(&output),
            "{name}: {log}"
        );
    }
}

async fn works_where_built(example: &str) {
    let artifact = examples().join(example).join(format!("{example}.wasm"));
    if artifact.exists() {
        works(example).await;
    } else {
        skipped(&format!("examples::{example}"), &format!("not built; run examples/build-all.sh {example}"));
    }
}

#[test]
fn every_example_is_tested() {
    let folders = fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path());
    let found: BTreeSet<String> = folders
        .filter(|path| path.join("novum.toml").exists())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let tested: BTreeSet<String> = SMALL.iter().chain(&LARGE).map(|name| (*name).to_owned()).collect();
    assert_eq!(found, tested);
}

#[tokio::test]
async fn echo_gives_back_what_it_gets() {
    works("echo").await;
}

#[tokio::test]
async fn json_indents_or_says_what_is_wrong() {
    works("json").await;
}

#[tokio::test]
async fn markdown_becomes_html() {
    works("markdown").await;
}

#[tokio::test]
async fn wordcount_counts_words() {
    works("wordcount").await;
}

#[tokio::test]
async fn csv_summary_is_a_python_component() {
    works_where_built("csv-summary").await;
}

#[tokio::test]
async fn qrcode_is_a_javascript_http_component() {
    works_where_built("qrcode").await;
}
