//! What one program may do to the memory, files and descriptors that it has in common with others: nothing, or up to a limit.

use std::sync::Arc;

use novum_sandbox::{Error, Invocation};

use super::images::{SOON, Warm, call, text};
use super::{Log, has_kvm};

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

#[tokio::test]
async fn a_read_that_its_buffer_cut_short_is_not_the_last() {
    let Some(warm) = attacker("a_read_that_its_buffer_cut_short_is_not_the_last").await else { return };
    let mut sandbox = warm.start().await;
    assert_eq!(text(&mut sandbox, b"r").await, "first: 4096\nsecond: 4096\n");
}

#[tokio::test]
async fn numbers_of_no_call_are_told_once() {
    let Some(warm) = attacker("numbers_of_no_call_are_told_once").await else { return };
    let log = Arc::<Log>::default();
    let call = Invocation { log: log.clone(), ..call(b"u", &[], SOON) };
    warm.start().await.invoke(call).await.unwrap();
    assert_eq!(log.text(), "novum: system call an unknown number is not served (400 times)\n");
}
