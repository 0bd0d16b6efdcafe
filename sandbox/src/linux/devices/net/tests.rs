//! Frames pass both ways, with a socket pair in the tap's place.

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::linux::virtio::testing::{Driver, Piece, golden, pieces};

fn start() -> (OwnedFd, Driver) {
    let (host, tap) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::io::ioctl_fionbio(&host, true).unwrap();
    let net = Net::new(tap, MacAddress::of(1), 1500).unwrap();
    (host, Driver::start(Box::new(NetDevice::new(net)), MAC | MTU))
}

fn frame(host: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 70_000];
    rustix::io::read(host, &mut frame).ok().map(|count| frame[..count].to_vec())
}

#[test]
fn frames_pass_both_ways_without_and_with_their_header() {
    let (host, mut driver) = start();
    driver.ask_on(1, &[Piece::Out(vec![0; 12]), Piece::Out(b"from the guest".to_vec())]);
    assert_eq!(frame(&host).unwrap(), b"from the guest");
    driver.offer(0, &[Piece::In(1526)]);
    rustix::io::write(&host, b"from the host").unwrap();
    assert_eq!(driver.answer(0), 12 + 13);
    // Frames that wait for a buffer, and a pause between.
    rustix::io::write(&host, b"next").unwrap();
    driver.pause_and_resume();
    let next = driver.ask_on(0, &[Piece::In(12), Piece::In(4)]);
    assert_eq!(next, b"\0\0\0\0\0\0\0\0\0\0\x01\0next");
}

#[test]
fn frames_that_are_none_are_dropped() {
    let (host, mut driver) = start();
    driver.ask_on(1, &[Piece::Out(vec![0; 12])]);
    driver.ask_on(1, &[Piece::Out(vec![0; 5])]);
    driver.ask_on(1, &[Piece::In(100)]);
    driver.ask_on(1, &[Piece::Out(vec![0; 12]), Piece::Out(vec![1; 65_540])]);
    assert_eq!(frame(&host), None);
    rustix::io::write(&host, &[1; 100]).unwrap();
    driver.offer(0, &[Piece::In(50)]);
    assert_eq!(driver.answer(0), 0, "too small a buffer loses the frame");
}

#[test]
fn a_tap_that_goes_away_leaves_a_guest_that_can_still_be_stopped() {
    let (host, mut driver) = start();
    driver.offer(0, &[Piece::In(50)]);
    drop(host);
    driver.ask_on(1, &[Piece::Out(vec![0; 20])]);
    driver.pause_and_resume();
}

#[test]
fn addresses_are_those_of_one_card() {
    let address: MacAddress = "52:4e:00:00:00:01".parse().unwrap();
    assert_eq!((address, address.to_string()), (MacAddress::of(1), "52:4e:00:00:00:01".to_owned()));
    for bad in [
        "",
        "52:4e:00:00:00",
        "52:4e:00:00:00:01:02",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "5:4e:0:0:0:1",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
}

#[test]
fn the_configuration_has_address_and_mtu() {
    let (_host, mut driver) = start();
    assert_eq!(driver.config(0, 12), [0x52, 0x4e, 0, 0, 0, 1, 1, 0, 0, 0, 220, 5]);
    let error = Net::open("a-name-that-is-too-long", MacAddress::of(1), 1500).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_card_with_another_address_waits_for_its_link() {
    let (host, mut driver) = start();
    let saved = driver.save();
    for number in [1, 2] {
        let (peer, tap) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::ioctl_fionbio(&peer, true).unwrap();
        let net = Net::new(tap, MacAddress::of(number), 1500).unwrap();
        driver.restore(Box::new(NetDevice::new(net.clone())), &saved).unwrap();
        assert_eq!(net.link(), number == 1);
        assert_eq!(driver.config(6, 2), [u8::from(number == 1), 0]);
        driver.ask_on(1, &[Piece::Out(vec![0; 12]), Piece::Out(b"early".to_vec())]);
        assert_eq!(frame(&peer).is_some(), number == 1);
        rustix::io::write(&peer, b"lost").unwrap();
        driver.kick(0);
        if number == 2 {
            // The device has read the frame before it looks at this one.
            driver.ask_on(1, &[Piece::Out(vec![0; 12])]);
            driver.ask_on(1, &[Piece::Out(vec![0; 12])]);
            driver.saw_config_change();
            net.set_link(true);
            assert!(driver.saw_config_change());
            driver.ask_on(1, &[Piece::Out(vec![0; 12]), Piece::Out(b"now".to_vec())]);
            assert_eq!(frame(&peer).unwrap(), b"now");
        }
    }
    let (_, tap) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let other = Net::new(tap, MacAddress::of(1), 9000).unwrap();
    let error = driver.restore(Box::new(NetDevice::new(other)), &saved).unwrap_err();
    assert!(error.to_string().contains("MTU"), "{error}");
    drop(host);
}

#[test]
fn cards_are_written_as_they_always_were() {
    golden(&Card { mac: MacAddress::of(1), mtu: 1500, link: true }, "virtio-net 1 524e00000001dc0b01");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_chains_do_no_harm(chains in proptest::collection::vec((0usize..2, pieces()), 1..16)) {
        let (host, mut driver) = start();
        for (queue, chain) in &chains {
            let _ = rustix::io::write(&host, b"a frame");
            driver.offer(*queue, chain);
        }
        driver.pause_and_resume();
    }
}
