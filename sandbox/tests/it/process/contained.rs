//! What one program may do to the memory, files and descriptors that it has in common with others: nothing, or up to a limit.

use novum_sandbox::Error;

use super::has_kvm;
use super::images::{SOON, Warm, call, text};

const PROGRAM: &str = include_str!("contained.c");

/// The program that attacks; `None` where the test cannot run here.
async fn attacker(test: &str) -> Option<Warm> {
    if !has_kvm(test) {
        return None;
    }
    Some(Warm::limited(PROGRAM, 64 << 20).await)
}

#[tokio::test]
async fn a_file_of_the_image_is_changed_for_nobody_else() {
    let Some(warm) = attacker("a_file_of_the_image_is_changed_for_nobody_else").await else { return };
    let (mut one, mut other) = (warm.start().await, warm.start().await);
    let whole = "204800 of 204800\n";
    assert_eq!(text(&mut one, b"l").await, whole);
    assert_eq!(text(&mut one, b"p").await, "mprotect: EACCES\nremove: EACCES\nshared: EACCES\n");
    assert_eq!(text(&mut other, b"l").await, whole);
    assert_eq!(text(&mut one, b"c").await, format!("mprotect: 0\n{whole}"));
    assert_eq!(text(&mut one, b"l").await, whole);
    assert_eq!(text(&mut other, b"l").await, whole);
    assert_eq!(text(&mut warm.start().await, b"l").await, whole);
}

#[tokio::test]
async fn closed_files_cost_as_long_as_they_are_mapped() {
    let Some(warm) = attacker("closed_files_cost_as_long_as_they_are_mapped").await else { return };
    let mut sandbox = warm.start().await;
    for how in [b"s", b"m"] {
        assert_eq!(text(&mut sandbox, how).await, "ENOSPC after some\n".repeat(3));
    }
}

#[tokio::test]
async fn memory_is_watched_while_a_program_makes_no_calls() {
    let Some(warm) = attacker("memory_is_watched_while_a_program_makes_no_calls").await else { return };
    let mut sandbox = warm.start().await;
    let ended = sandbox.invoke(call(b"o", &[], SOON)).await;
    assert!(matches!(ended, Err(Error::MemoryLimit { .. })), "{ended:?}");
}
