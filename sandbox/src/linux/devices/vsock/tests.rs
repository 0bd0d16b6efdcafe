//! The hub against a guest made of packets: streams both ways, credit, and packets that break every rule.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::BUFFER_BYTES;
use super::hub::{HOST_CID, MOST_CONNECTIONS};
use super::packet::{Header, NO_RECEIVE, NO_SEND, STREAM, op};
use super::stream::Vsock;

const CID: u64 = 3;
/// No packets.
const NOTHING: [u16; 0] = [];
/// Room of the guest's receive buffers.
const ROOM: usize = 4096;

fn vsock() -> Vsock {
    Vsock::new(CID).unwrap()
}

/// A packet of the guest from its port 9 to the host's port 5.
fn packet(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 9,
        dst_port: 5,
        kind: STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// What the host sends: op, flags, data.
fn sent(vsock: &Vsock) -> Vec<(u16, u32, Vec<u8>)> {
    let next = || vsock.hub().next_packet(ROOM);
    std::iter::from_fn(next).map(|(header, data)| (header.op, header.flags, data)).collect()
}

fn ops(vsock: &Vsock) -> Vec<u16> {
    sent(vsock).into_iter().map(|(op, ..)| op).collect()
}

#[tokio::test]
async fn the_guest_connects_and_both_sides_speak_and_end() {
    let vsock = vsock();
    let mut listener = vsock.listen(5).unwrap();
    assert!(vsock.listen(5).is_err(), "one listener at a port");
    vsock.hub().receive(&packet(op::REQUEST), &[]);
    let mut stream = listener.accept().await;
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(sent(&vsock), [(op::RESPONSE, 0, vec![]), (op::RW, 0, b"hello".to_vec())]);
    vsock.hub().receive(&packet(op::RW), b"hi there");
    vsock.hub().receive(&Header { flags: NO_SEND, ..packet(op::SHUTDOWN) }, &[]);
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hi there", "the guest's end is an end of file");
    stream.write_all(b"bye").await.unwrap();
    drop(stream);
    let end = NO_SEND | NO_RECEIVE;
    assert_eq!(sent(&vsock), [(op::RW, 0, b"bye".to_vec()), (op::SHUTDOWN, end, vec![])]);
    vsock.hub().receive(&packet(op::RST), &[]);
    assert!(vsock.hub().entries.is_empty(), "nothing is left of it");
}

#[tokio::test]
async fn the_host_connects_or_is_refused() {
    let vsock = vsock();
    let (guest, host) = (vsock.clone(), vsock.clone());
    let answer = |answer: u16| {
        let guest = guest.clone();
        async move {
            let (header, _) = loop {
                if let Some(packet) = guest.hub().next_packet(ROOM) {
                    break packet;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!((header.op, header.dst_port), (op::REQUEST, 77));
            let reply = Header { src_port: 77, dst_port: header.src_port, ..packet(answer) };
            guest.hub().receive(&reply, &[]);
        }
    };
    let (stream, ()) = tokio::join!(host.connect(77), answer(op::RESPONSE));
    assert!(stream.is_ok());
    let (stream, ()) = tokio::join!(host.connect(77), answer(op::RST));
    assert_eq!(stream.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let vsock = vsock();
    let mut listener = vsock.listen(5).unwrap();
    vsock.hub().receive(&Header { buf_alloc: 6000, ..packet(op::REQUEST) }, &[]);
    let mut stream = listener.accept().await;
    stream.write_all(&[7; 10_000]).await.unwrap();
    let lengths = |packets: Vec<(u16, u32, Vec<u8>)>| -> Vec<(u16, usize)> {
        packets.into_iter().map(|(op, _, data)| (op, data.len())).collect()
    };
    let expected = [(op::RESPONSE, 0), (op::RW, 4096), (op::RW, 1904), (op::CREDIT_REQUEST, 0)];
    assert_eq!(lengths(sent(&vsock)), expected);
    assert_eq!(ops(&vsock), NOTHING, "it asks once");
    vsock.hub().receive(&Header { buf_alloc: 6000, fwd_cnt: 5000, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(lengths(sent(&vsock)), [(op::RW, 4000)]);
    // A guest that says it took more than it got gets nothing for it.
    stream.write_all(&[7; 100]).await.unwrap();
    vsock.hub().receive(&Header { buf_alloc: 6000, fwd_cnt: 50_000, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(lengths(sent(&vsock)), [(op::CREDIT_REQUEST, 0)]);
}

#[tokio::test]
async fn a_guest_is_told_of_room_and_reset_when_it_sends_more() {
    let vsock = vsock();
    let mut listener = vsock.listen(5).unwrap();
    vsock.hub().receive(&packet(op::REQUEST), &[]);
    let mut stream = listener.accept().await;
    assert_eq!(ops(&vsock), [op::RESPONSE]);
    let half = vec![1; BUFFER_BYTES / 2];
    for piece in half.chunks(64 << 10).chain(half.chunks(64 << 10)) {
        vsock.hub().receive(&packet(op::RW), piece);
    }
    assert_eq!(ops(&vsock), NOTHING, "all of it fits");
    stream.read_exact(&mut vec![0; BUFFER_BYTES / 2]).await.unwrap();
    let (header, _) = vsock.hub().next_packet(ROOM).unwrap();
    assert_eq!((header.op, header.fwd_cnt as usize), (op::CREDIT_UPDATE, BUFFER_BYTES / 2));
    for _ in 0..2 {
        vsock.hub().receive(&packet(op::RW), &half);
    }
    assert_eq!(ops(&vsock), [op::RST], "more than there was room for");
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn packets_of_no_stream_are_refused_and_refusals_do_not_pile_up() {
    let vsock = vsock();
    for op in [op::REQUEST, op::RW, op::RESPONSE] {
        vsock.hub().receive(&packet(op), b"x");
    }
    assert_eq!(ops(&vsock), [op::RST; 3]);
    vsock.hub().receive(&packet(op::RST), &[]);
    vsock.hub().receive(&Header { src_cid: 99, ..packet(op::REQUEST) }, &[]);
    assert_eq!(ops(&vsock), NOTHING, "a reset and a forged sender get no answer");
    let mut taken = 0;
    while vsock.hub().has_room() {
        vsock.hub().receive(&packet(op::RW), &[]);
        taken += 1;
    }
    assert!(taken <= 64, "then the guest's packets wait in its ring");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_packets_neither_panic_nor_pile_up(
        packets in proptest::collection::vec(
            (0u32..4, 0u32..4, 0u16..9, 0u32..8, any::<u32>(), any::<u32>(), 0usize..70_000, 0u8..8), 0..300)
    ) {
        let vsock = vsock();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut listener = vsock.listen(1).unwrap();
        let mut streams = Vec::new();
        for (guest, host, op, flags, buf_alloc, fwd_cnt, length, act) in packets {
            let header = Header {
                src_port: guest, dst_port: host, op, flags, buf_alloc, fwd_cnt, ..packet(0)
            };
            if vsock.hub().has_room() {
                vsock.hub().receive(&header, &vec![1; length]);
            }
            match act {
                0 => drop(vsock.hub().next_packet(ROOM)),
                1 if !vsock.hub().ports[&1].waiting.is_empty() => streams.push(runtime.block_on(listener.accept())),
                2 => drop(streams.pop()),
                3 => {
                    if let Some(stream) = streams.last_mut() {
                        let _ = runtime.block_on(async {
                            tokio::select! { biased; done = stream.write(&[2; 5000]) => done, () = async {} => Ok(0) }
                        });
                    }
                }
                _ => {}
            }
            let hub = vsock.hub();
            prop_assert!(hub.entries.len() <= MOST_CONNECTIONS);
            for entry in hub.entries.values() {
                prop_assert!(entry.connection.incoming.len() <= BUFFER_BYTES);
                prop_assert!(entry.connection.outgoing.len() <= BUFFER_BYTES);
            }
        }
        let mut count = 0;
        while vsock.hub().next_packet(ROOM).is_some() {
            count += 1;
            prop_assert!(count < 100_000, "it sends for ever");
        }
    }

    #[test]
    fn no_packets_in_a_ring_panic_or_pile_up(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        super::driver::serve(&bytes);
    }
}
