//! Some modules of CPython's own tests, natively and inside: every test comes to the same, but for those that make
//! processes or need sockets. The long list is run by the `cpython` example.

use std::path::Path;
use std::time::Duration;

use super::has_kvm;

#[allow(dead_code)] // the example uses all of it
#[path = "../../../examples/cpython/harness/mod.rs"]
mod harness;

use harness::modules::QUICK;
use harness::{Patience, Place, SUITE, Selection, Work};

#[tokio::test]
async fn cpython_tests_come_to_the_same_as_natively() {
    let test = "cpython_tests_come_to_the_same_as_natively";
    if !has_kvm(test) {
        return;
    }
    if !Path::new(SUITE).exists() {
        eprintln!("SKIPPED: {test}: Debian's libpython3.11-testsuite is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let work = Work::new(dir.path()).unwrap();
    let patience = Patience { test: Duration::from_secs(60), module: Duration::from_secs(120) };
    for module in QUICK {
        let native = work.run(Place::Native, module, Selection::default(), patience).await.unwrap();
        let inside = work.run(Place::Inside, module, Selection::default(), patience).await.unwrap();
        assert!(native.tests.len() > 3, "{}: {:?}", module.name, native.tests);
        for (id, expected) in &native.tests {
            let got = inside.tests.get(id).unwrap_or_else(|| panic!("{id} was not run inside"));
            let same = got.verdict == expected.verdict || got.needs.is_some();
            assert!(same, "{id}: natively {:?}, inside {got:?}", expected.verdict);
        }
    }
}
