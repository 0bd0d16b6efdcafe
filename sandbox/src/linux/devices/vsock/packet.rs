//! Packets in the rings: a header of 44 bytes and data, in one descriptor or two (VIRTIO 1.2 §5.10.6).

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::Bytes;

use crate::linux::memory::Memory;
use crate::linux::virtio::Chain;

/// Most data that one packet may bring: what Linux sends at most.
pub(super) const MOST_DATA: u32 = 64 << 10;

/// `type`: a stream.
pub(super) const STREAM: u16 = 1;

/// `op`.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of [`op::SHUTDOWN`]: the sender will not receive, will not send any more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;

/// A header's fields; `len` is that of the data beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// A packet of the driver; `None` where it is broken.
pub(super) fn read(memory: &Memory, chain: &mut Chain) -> Option<(Header, Vec<u8>)> {
    let packet = VsockPacket::from_tx_virtq_chain(memory, chain, MOST_DATA).ok()?;
    let mut data = vec![0; packet.data_slice().map_or(0, vm_memory::VolatileSlice::len)];
    if let Some(slice) = packet.data_slice() {
        slice.read_slice(&mut data, 0).ok()?;
    }
    let header = Header {
        src_cid: packet.src_cid(),
        dst_cid: packet.dst_cid(),
        src_port: packet.src_port(),
        dst_port: packet.dst_port(),
        kind: packet.type_(),
        op: packet.op(),
        flags: packet.flags(),
        buf_alloc: packet.buf_alloc(),
        fwd_cnt: packet.fwd_cnt(),
    };
    Some((header, data))
}

/// Fills a buffer of the driver with what `next` returns for its room; returns how many bytes were written.
pub(super) fn write(
    memory: &Memory,
    chain: &mut Chain,
    next: impl FnOnce(usize) -> Option<(Header, Vec<u8>)>,
) -> u32 {
    let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(memory, chain, u32::MAX) else { return 0 };
    let room = packet.data_slice().map_or(0, vm_memory::VolatileSlice::len);
    let Some((header, data)) = next(room) else { return 0 };
    packet.set_src_cid(header.src_cid).set_dst_cid(header.dst_cid);
    packet.set_src_port(header.src_port).set_dst_port(header.dst_port);
    packet.set_len(data.len() as u32).set_type(header.kind).set_op(header.op).set_flags(header.flags);
    packet.set_buf_alloc(header.buf_alloc).set_fwd_cnt(header.fwd_cnt);
    if let (Some(slice), false) = (packet.data_slice(), data.is_empty()) {
        // `next` was told the room.
        let _ = slice.write_slice(&data, 0);
    }
    (PKT_HEADER_SIZE + data.len()) as u32
}
