//! The table of docs/programs.md. A module of its own: in the rig it would take too long for the checks there.

use super::has_kvm;

#[allow(dead_code, reason = "the `programs` example, whose module this is, shows more of what was found")]
#[path = "../../../examples/programs/harness/mod.rs"]
mod harness;

/// The cases of docs/programs.md that are quick and need little.
#[tokio::test]
async fn the_table_of_programs_holds() {
    if !has_kvm("the_table_of_programs_holds") {
        return;
    }
    let cases = harness::Cases::load().unwrap();
    let work = harness::Work::lock(&cases).unwrap();
    let mut failures = String::new();
    for case in cases.case.iter().filter(|case| case.quick) {
        let verdict = match work.build(&cases, case).unwrap() {
            Some(missing) => missing,
            None => work.compare(case).await.unwrap(),
        };
        match verdict.word(case) {
            "missing" => {
                eprintln!("SKIPPED: the_table_of_programs_holds: {}: {:?}", case.name, verdict.differences());
            }
            "differs" => failures += &format!("{}: {:#?}\n", case.name, verdict.differences()),
            _ => {}
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
