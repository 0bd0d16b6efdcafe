//! A terminal passes bytes both ways and its size.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::linux::virtio::testing::{Driver, Piece, golden, pieces};

struct Out(Sender<Vec<u8>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start() -> (Console, Driver, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    let console = Console::new(Box::new(Out(sender))).unwrap();
    let driver = Driver::start(Box::new(ConsoleDevice::new(console.clone())), SIZE);
    (console, driver, receiver)
}

#[test]
fn bytes_go_both_ways_in_order() {
    let (console, mut driver, out) = start();
    driver.ask_on(1, &[Piece::Out(b"hello ".to_vec()), Piece::Out(b"host".to_vec())]);
    let said: Vec<u8> = out.try_iter().flatten().collect();
    assert_eq!(said, b"hello host");
    // Typed before the guest reads, and across a pause.
    assert_eq!(console.send(b"abcdef"), 6);
    assert_eq!(driver.ask_on(0, &[Piece::In(4)]), b"abcd");
    driver.pause_and_resume();
    assert_eq!(driver.ask_on(0, &[Piece::In(1), Piece::In(9)])[..2], *b"ef");
}

#[test]
fn a_guest_that_does_not_read_keeps_no_more_than_a_bound() {
    let (console, _driver, _out) = start();
    let taken: usize = (0..10).map(|_| console.send(&[1; 10_000])).sum();
    assert_eq!(taken, MOST_WAITING);
}

#[test]
fn a_new_size_is_told_by_an_interrupt() {
    let (console, mut driver, _out) = start();
    assert_eq!(driver.config(0, 4), [80, 0, 25, 0]);
    console.resize(100, 25);
    assert!(!driver.saw_config_change(), "nothing was said: the terminal may not be there");
    driver.ask_on(1, &[Piece::Out(b"x".to_vec())]);
    assert!(driver.saw_config_change());
    console.resize(132, 43);
    assert!(driver.saw_config_change());
    assert_eq!(driver.config(0, 8), [132, 0, 43, 0, 0, 0, 0, 0]);
}

#[test]
fn what_was_typed_and_the_size_come_back() {
    let (console, mut driver, _out) = start();
    driver.ask_on(1, &[Piece::Out(b"x".to_vec())]);
    console.resize(132, 43);
    console.send(b"typed");
    driver.saw_config_change();
    let saved = driver.save();
    let (sender, out) = channel();
    let console = Console::new(Box::new(Out(sender))).unwrap();
    driver.restore(Box::new(ConsoleDevice::new(console.clone())), &saved).unwrap();
    assert_eq!(driver.ask_on(0, &[Piece::In(5)]), b"typed");
    assert_eq!(driver.config(0, 4), [132, 0, 43, 0]);
    // Its terminal is there: it is told at once.
    console.resize(80, 24);
    assert!(driver.saw_config_change());
    driver.ask_on(1, &[Piece::Out(b"more".to_vec())]);
    assert_eq!(out.try_iter().flatten().collect::<Vec<_>>(), b"more");
    let much = saved.changed::<Terminal>(|bytes| {
        let length = [0x81, 0x80, 0x04];
        *bytes = [&length[..], &[1; MOST_WAITING + 1], &[80, 24, 1]].concat();
    });
    let error = driver.restore(Box::new(ConsoleDevice::new(console)), &much).unwrap_err();
    assert!(error.to_string().contains("typed"), "{error}");
}

#[test]
fn terminals_are_written_as_they_always_were() {
    golden(
        &Terminal { waiting: Bytes(b"typed".to_vec()), columns: 132, rows: 43, told: true },
        "virtio-console 1 05747970656484012b01",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_chains_do_no_harm(chains in proptest::collection::vec((0usize..2, pieces()), 1..16)) {
        let (console, mut driver, out) = start();
        for (queue, chain) in &chains {
            console.send(b"typed");
            driver.offer(*queue, chain);
        }
        driver.pause_and_resume();
        drop(driver);
        let _ = out.recv_timeout(Duration::ZERO);
    }
}
