//! `novum bench`, with so few samples that the numbers mean nothing.

use crate::program::{arg, novum};

#[test]
fn a_cold_start_benchmark_leaves_json_a_table_and_a_chart() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let line = [
        ["bench", "cold-start", "--samples", "5", "--only", "hello,rust"],
        ["--sandboxes", "2", "--callers", "2", "--seconds", "0.1"],
    ];
    let line: Vec<_> = line.concat().into_iter().chain(["--out", arg(&out)]).collect();
    let run = novum(&line).succeeds();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&read("cold-start.json")).unwrap();
    let cells = json["cells"].as_array().unwrap();
    let skipped = json["skipped"].as_array().unwrap();
    let find =
        |way: serde_json::Value| cells.iter().find(|cell| cell["program"] == "hello" && cell["way"] == way);
    // The Rust program's module is committed, so this much can be measured anywhere.
    let restored = cells.iter().find(|cell| cell["program"] == "rust").unwrap();
    assert_eq!(restored["alone"]["micros"].as_array().unwrap().len(), 5);
    assert!(json["host"]["kernel"].is_string() && json["host"]["commit"].is_string());
    for way in [serde_json::json!("spawn"), serde_json::json!({ "restore": "process" })] {
        let why = || skipped.iter().any(|what| what["reason"].as_str().is_some_and(|why| !why.is_empty()));
        assert!(find(way.clone()).is_some() || why(), "{way} is neither measured nor explained: {json}");
    }
    let (table, chart) = (read("cold-start.md"), read("cold-start.svg"));
    assert!(table.contains("| word count (Rust) | wasm: restore + call |"), "{table}");
    assert!(run.text().contains(&table) && chart.contains("<svg") && chart.contains("word count (Rust)"));
}
