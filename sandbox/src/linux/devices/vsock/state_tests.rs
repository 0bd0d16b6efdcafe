//! Streams outlive a snapshot: no byte is lost or comes twice, and what nobody takes over is reset.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::hub::HOST_CID;
use super::super::packet::{Header, STREAM, op};
use super::super::stream::{Stream, Vsock};
use super::super::{VsockDevice, connection};
use super::*;
use crate::linux::virtio::VirtioDevice;
use crate::linux::virtio::testing::{OWNER, Saved, golden};

const CID: u64 = 3;
const PORT: u32 = 5;

/// A guest with one stream, made of packets: its own room is small, so that credit matters.
struct Guest {
    cid: u64,
    got: Vec<u8>,
    given: Vec<u8>,
    host_taken: u32,
}

impl Guest {
    const ROOM: u32 = 3000;

    fn packet(&self, op: u16) -> Header {
        Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: 9,
            dst_port: PORT,
            kind: STREAM,
            op,
            buf_alloc: Self::ROOM,
            fwd_cnt: self.got.len() as u32,
            ..Header::default()
        }
    }

    /// Takes all that the host sends; true where it was reset.
    fn take(&mut self, vsock: &Vsock) -> bool {
        let mut reset = false;
        loop {
            let next = vsock.hub().next_packet(1000);
            let Some((header, data)) = next else { return reset };
            assert_eq!(header.dst_cid, self.cid);
            self.host_taken = header.fwd_cnt;
            self.got.extend(&data);
            reset |= header.op == op::RST;
            if header.op == op::CREDIT_REQUEST || !data.is_empty() {
                vsock.hub().receive(&self.packet(op::CREDIT_UPDATE), &[]);
            }
        }
    }

    /// Sends as much of `count` bytes as there is credit for.
    fn give(&mut self, vsock: &Vsock, count: usize) {
        let flying = (self.given.len() as u32).wrapping_sub(self.host_taken) as usize;
        let count = count.min(connection::BUFFER_BYTES - flying);
        let data: Vec<u8> = (0..count).map(|at| ((self.given.len() + at) % 251) as u8).collect();
        vsock.hub().receive(&self.packet(op::RW), &data);
        self.given.extend(data);
    }
}

fn start() -> (Vsock, Stream, Guest) {
    let vsock = Vsock::new(CID).unwrap();
    let mut listener = vsock.listen(PORT).unwrap();
    let guest = Guest { cid: CID, got: Vec::new(), given: Vec::new(), host_taken: 0 };
    vsock.hub().receive(&guest.packet(op::REQUEST), &[]);
    let stream = now(listener.accept()).unwrap();
    std::mem::forget(listener);
    (vsock, stream, guest)
}

/// What is there without waiting.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        tokio::select! { biased; done = work => Some(done), () = async {} => None }
    })
}

fn save(vsock: &Vsock) -> Saved {
    Saved::new(|to| VsockDevice::new(vsock.clone()).save(OWNER, to)).unwrap()
}

fn restore(saved: &Saved, cid: u64) -> Result<Vsock, StateError> {
    let vsock = Vsock::new(cid).unwrap();
    VsockDevice::new(vsock.clone()).restore(OWNER, &saved.snapshot)?;
    Ok(vsock)
}

#[test]
fn what_nobody_takes_over_is_reset_and_the_guest_keeps_the_address_it_knows() {
    let (vsock, stream, mut guest) = start();
    let saved = save(&vsock);
    let clone = restore(&saved, 77).unwrap();
    assert!(clone.take_over(PORT + 1).is_empty());
    clone.hub().break_off_unclaimed();
    assert!(guest.take(&clone));
    assert!(clone.hub().entries.is_empty());
    let clone = restore(&saved, 77).unwrap();
    let streams = clone.take_over(PORT);
    assert_eq!((streams.len(), clone.take_over(PORT).len()), (1, 0), "once");
    clone.hub().break_off_unclaimed();
    assert!(!guest.take(&clone));
    // Its driver starts again and reads the new address.
    guest.cid = 77;
    guest.give(&clone, 5);
    guest.take(&clone);
    assert_eq!(clone.hub().spoken_cid, 77);
    drop(stream);
}

#[test]
fn more_than_a_guest_could_have_made_is_refused() {
    let (vsock, _stream, _guest) = start();
    let saved = save(&vsock);
    let streams = |change: &dyn Fn(&mut Streams)| {
        let mut streams: Streams = take(&saved.snapshot, OWNER).unwrap();
        change(&mut streams);
        let bytes = Saved::new(|to| put(to, OWNER, &streams)).unwrap();
        restore(&bytes, CID).map(drop).map_err(|error| error.to_string())
    };
    assert!(streams(&|_| ()).is_ok());
    for bad in [
        &(|s: &mut Streams| s.next_port = 3) as &dyn Fn(&mut Streams),
        &|s| s.connections.push(s.connections[0].clone()),
        &|s| s.connections[0].1.incoming.resize(connection::BUFFER_BYTES + 1, 0),
        &|s| s.connections[0].1.outgoing.resize(connection::BUFFER_BYTES + 1, 0),
        &|s| s.refusals = vec![Key { host: 1, guest: 1 }; 1000],
    ] {
        assert!(streams(bad).unwrap_err().contains("does not fit"));
    }
}

#[test]
fn streams_are_written_as_they_always_were() {
    let mut connection = Connection::accepted();
    connection.incoming.extend(b"in");
    connection.outgoing.extend(b"out");
    let key = Key { host: PORT, guest: 9 };
    let streams = Streams {
        spoken_cid: CID,
        next_port: 1 << 30,
        refusals: vec![key],
        connections: vec![(key, connection)],
    };
    golden(
        &streams,
        "virtio-vsock 1 038080808004010509010509010002696e036f757400000000000001000000000000000000",
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestGives(usize),
    GuestTakes,
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..20_000).prop_map(Step::HostWrites),
        (1usize..20_000).prop_map(Step::HostReads),
        (0usize..60_000).prop_map(Step::GuestGives),
        Just(Step::GuestTakes),
        Just(Step::Snapshot),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_byte_is_lost_or_doubled_by_snapshots(steps in steps()) {
        let (mut vsock, mut stream, mut guest) = start();
        let (mut written, mut read) = (Vec::<u8>::new(), Vec::<u8>::new());
        for step in steps {
            match step {
                Step::HostWrites(count) => {
                    let bytes: Vec<u8> = (0..count).map(|at| ((written.len() + at) % 253) as u8).collect();
                    let count = now(stream.write(&bytes)).map_or(0, Result::unwrap);
                    written.extend(&bytes[..count]);
                }
                Step::HostReads(count) => {
                    let mut bytes = vec![0; count];
                    let count = now(stream.read(&mut bytes)).map_or(0, Result::unwrap);
                    read.extend(&bytes[..count]);
                }
                Step::GuestGives(count) => guest.give(&vsock, count),
                Step::GuestTakes => drop(guest.take(&vsock)),
                Step::Snapshot => {
                    let saved = save(&vsock);
                    vsock = restore(&saved, CID).unwrap();
                    stream = vsock.take_over(PORT).pop().unwrap();
                    vsock.hub().break_off_unclaimed();
                }
            }
        }
        guest.take(&vsock);
        let mut rest = vec![0; connection::BUFFER_BYTES];
        while let Some(Ok(count @ 1..)) = now(stream.read(&mut rest)) {
            read.extend(&rest[..count]);
        }
        prop_assert!(read == guest.given);
        prop_assert!(guest.got == written);
    }

    #[test]
    fn damaged_streams_are_refused_or_harmless(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8), cut in any::<u8>()
    ) {
        let (vsock, mut stream, mut guest) = start();
        guest.give(&vsock, 40);
        now(stream.write_all(b"hello")).unwrap().unwrap();
        let saved = save(&vsock).changed::<Streams>(|bytes| {
            for (at, value) in &changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            if cut < 40 {
                bytes.truncate(cut.into());
            }
        });
        let Ok(vsock) = restore(&saved, CID) else { return Ok(()) };
        for mut stream in vsock.take_over(PORT) {
            now(stream.write(&[1; 100_000]));
            now(stream.read(&mut [0; 1000]));
        }
        vsock.hub().break_off_unclaimed();
        guest.give(&vsock, 100);
        let mut packets = 0;
        while vsock.hub().next_packet(1000).is_some() {
            packets += 1;
            prop_assert!(packets < 10_000, "it sends for ever");
        }
    }
}
