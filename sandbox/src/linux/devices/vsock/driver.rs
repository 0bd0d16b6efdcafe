//! Bytes as packets of a guest, in its transmit ring, and as what the host does with its streams meanwhile: nothing panics,
//! and nobody can be made to keep more than the bounds. Both the property test and the fuzz target (`sandbox/fuzz`) use it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::BUFFER_BYTES;
use super::hub::{HOST_CID, MOST_CONNECTIONS};
use super::packet;
use super::stream::{Stream, Vsock};
use crate::linux::memory::Memory;
use crate::linux::virtio::driver::{self, Feed};
use crate::linux::virtio::{Chain, Handler};

const CID: u64 = 3;
const PORT: u32 = 1;

/// Each request is a packet and, by its number, what the host does next.
struct Guest {
    vsock: Vsock,
    listener: super::Listener,
    streams: Vec<Stream>,
    count: u32,
}

/// Serves what `bytes` stand for.
///
/// # Panics
/// Where a packet panics or the host is made to keep too much.
pub(crate) fn serve(bytes: &[u8]) {
    let vsock = Vsock::new(CID).expect("a guest's address");
    let listener = vsock.listen(PORT).expect("nobody listens yet");
    let mut guest = Guest { vsock, listener, streams: Vec::new(), count: 0 };
    driver::serve(bytes, &mut guest, header);
    drop(guest.streams);
    let mut packets = 0;
    while guest.vsock.hub().next_packet(4096).is_some() {
        packets += 1;
        assert!(packets < 1_000_000, "it sends for ever");
    }
}

/// struct virtio_vsock_hdr, mostly of the guest and to the host.
fn header(feed: &mut Feed<'_>) -> Vec<u8> {
    let cids = if feed.byte() < 8 { [feed.number(), feed.number()] } else { [CID, HOST_CID] };
    let mut header = cids.map(u64::to_le_bytes).concat();
    header.extend([u32::from(feed.byte() % 4), u32::from(feed.byte() % 3)].map(u32::to_le_bytes).concat());
    header.extend((feed.number() as u32).to_le_bytes());
    header
        .extend([1 + u16::from(feed.byte() < 4), u16::from(feed.byte() % 9)].map(u16::to_le_bytes).concat());
    header.extend(
        [u32::from(feed.byte() % 8), feed.number() as u32, feed.number() as u32]
            .map(u32::to_le_bytes)
            .concat(),
    );
    header
}

/// What is there without waiting.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(work).poll(context) {
        std::task::Poll::Ready(done) => Some(done),
        std::task::Poll::Pending => None,
    }
}

impl Handler for Guest {
    fn handle(&mut self, _: usize, mut chain: Chain, memory: &Memory) -> u32 {
        self.count += 1;
        if self.count.is_multiple_of(5) {
            return packet::write(memory, &mut chain, |room| self.vsock.hub().next_packet(room));
        }
        if self.vsock.hub().has_room()
            && let Some((header, data)) = packet::read(memory, &mut chain)
        {
            self.vsock.hub().receive(&header, &data);
        }
        self.streams.extend(now(self.listener.accept()));
        if let Some(stream) = self.streams.last_mut() {
            // What the guest makes of it is what is tried here.
            let _ = match self.count % 4 {
                0 => now(stream.write(&[2; 5000])).is_some(),
                1 => now(stream.read(&mut [0; 3000])).is_some(),
                2 if self.count.is_multiple_of(3) => self.streams.pop().is_some(),
                _ => now(stream.shutdown()).is_some(),
            };
        }
        let hub = self.vsock.hub();
        assert!(hub.entries.len() <= MOST_CONNECTIONS);
        for entry in hub.entries.values() {
            assert!(entry.connection.incoming.len() <= BUFFER_BYTES);
            assert!(entry.connection.outgoing.len() <= BUFFER_BYTES);
        }
        0
    }
}
