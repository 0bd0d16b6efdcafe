//! Pages go where the driver says and nowhere else.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::linux::virtio::testing::{Driver, Piece, golden, pieces};

const AT: u64 = 0x100_0000;

fn start(features: u64) -> (Balloon, Driver) {
    let balloon = Balloon::new().unwrap();
    let driver = Driver::start(Box::new(BalloonDevice::new(balloon.clone())), features);
    (balloon, driver)
}

fn byte(driver: &Driver, at: u64) -> u8 {
    driver.memory.read_obj(GuestAddress(at)).unwrap()
}

fn fill(driver: &Driver, pages: u64) {
    (0..pages).for_each(|page| driver.memory.write_obj(7u8, GuestAddress(AT + page * PAGE)).unwrap());
}

#[test]
fn inflated_and_reported_pages_are_given_to_the_host() {
    let (balloon, mut driver) = start(STATISTICS | REPORTING);
    fill(&driver, 6);
    let numbers = [AT / PAGE + 2, AT / PAGE, AT / PAGE + 1, u64::from(u32::MAX)];
    driver.ask(&[Piece::Out(numbers.iter().flat_map(|number| (*number as u32).to_le_bytes()).collect())]);
    let seen = |driver: &Driver| (0..6).map(|page| byte(driver, AT + page * PAGE)).collect::<Vec<_>>();
    assert_eq!(seen(&driver), [0, 0, 0, 7, 7, 7]);
    let range = Piece::Raw(AT + 4 * PAGE, 2 * PAGE as u32, 2, 0);
    driver.ask_on(3, std::slice::from_ref(&range));
    assert_eq!(seen(&driver), [0, 0, 0, 7, 0, 0]);
    assert_eq!(balloon.reported_bytes(), 2 * PAGE);
    // Ranges that are not whole pages, or outside of memory.
    fill(&driver, 6);
    for bad in
        [Piece::Raw(AT + 1, PAGE as u32, 2, 0), Piece::Raw(AT, 100, 2, 0), Piece::Raw(1 << 40, 4096, 2, 0)]
    {
        driver.ask_on(3, &[bad]);
    }
    assert_eq!(seen(&driver), [7; 6]);
}

#[test]
fn queues_of_features_that_were_not_accepted_are_not_there() {
    let (balloon, mut driver) = start(REPORTING);
    driver.ask_on(2, &[Piece::Raw(AT, PAGE as u32, 2, 0)]);
    assert_eq!(balloon.reported_bytes(), PAGE);
}

#[test]
fn the_target_is_told_by_an_interrupt_and_what_was_given_is_known() {
    let (balloon, mut driver) = start(0);
    balloon.set_target_bytes(10 * PAGE + 5);
    assert!(driver.saw_config_change());
    assert_eq!(driver.config(0, 4), 10u32.to_le_bytes());
    driver.set_config(4, &8u32.to_le_bytes());
    driver.set_config(3, &8u32.to_le_bytes());
    driver.set_config(u64::MAX - 0x100, &[1; 8]);
    assert_eq!((balloon.target_bytes(), balloon.actual_bytes()), (10 * PAGE, 8 * PAGE));
}

fn statistics(free: u64) -> Vec<Piece> {
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    vec![Piece::Out([entry(4, free), entry(5, 99), entry(77, 1), vec![1; 9]].concat())]
}

#[test]
fn statistics_are_held_until_they_are_asked_for_also_across_a_pause() {
    let (balloon, mut driver) = start(STATISTICS);
    driver.offer(2, &statistics(1));
    for (free, held) in [(2, 1), (3, 3)] {
        // The buffer that is there is held; a resumed device has read it once more.
        while balloon.0.statistics.lock().0 < held {
            std::thread::yield_now();
        }
        let (asking, answer) = (balloon.clone(), std::sync::mpsc::channel());
        let asker = std::thread::spawn(move || {
            let _ = answer.0.send(asking.statistics(Duration::from_secs(20)));
        });
        driver.answer(2);
        driver.offer(2, &statistics(free));
        let got = answer.1.recv().unwrap().unwrap();
        asker.join().unwrap();
        assert_eq!((got.free_bytes, got.total_bytes), (Some(free), Some(99)));
        driver.pause_and_resume();
    }
    assert_eq!(balloon.statistics(Duration::ZERO), None);
}

#[test]
fn what_was_given_is_known_also_after_a_snapshot_until_it_is_taken_back() {
    let (balloon, mut driver) = start(MUST_TELL_HOST);
    balloon.set_target_bytes(4 * PAGE);
    let numbers = |pages: &[u64]| {
        let page = |page: &u64| ((AT / PAGE + page) as u32).to_le_bytes();
        [Piece::Out(pages.iter().flat_map(page).collect())]
    };
    // One of them is not memory.
    driver.ask(&numbers(&[0, 1, 2, 9, 1 << 20]));
    driver.set_config(4, &4u32.to_le_bytes());
    assert_eq!(balloon.given_ranges(), [(AT, 3 * PAGE), (AT + 9 * PAGE, PAGE)]);
    let saved = driver.save();
    let balloon = Balloon::new().unwrap();
    driver.restore(Box::new(BalloonDevice::new(balloon.clone())), &saved).unwrap();
    assert_eq!((balloon.target_bytes(), balloon.actual_bytes()), (4 * PAGE, 4 * PAGE));
    driver.ask_on(1, &numbers(&[1, 9, 1 << 20]));
    assert_eq!(balloon.given_ranges(), [(AT, PAGE), (AT + 2 * PAGE, PAGE)]);
    // A driver that starts anew has given nothing.
    driver.poke(0x70, &0u32.to_le_bytes());
    assert_eq!((balloon.given_ranges(), balloon.actual_bytes()), (Vec::new(), 0));
}

#[test]
fn a_driver_that_does_not_tell_is_not_believed() {
    let (balloon, mut driver) = start(0);
    driver.ask(&[Piece::Out((AT as u32 / PAGE as u32).to_le_bytes().to_vec())]);
    assert!(balloon.given_ranges().is_empty());
}

#[test]
fn balloons_are_written_as_they_always_were() {
    golden(
        &Pages { target_pages: 1, actual_pages: 2, given: vec![(3, 400)] },
        "virtio-balloon 1 010201039003",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_chains_do_no_harm(chains in proptest::collection::vec((0usize..4, pieces()), 1..16)) {
        let (_balloon, mut driver) = start(STATISTICS | REPORTING);
        for (queue, chain) in &chains {
            driver.offer(*queue, chain);
        }
        driver.pause_and_resume();
    }
}
