//! Bytes as what a guest does to rings and registers, for the property tests and the fuzz targets (`sandbox/fuzz`): no
//! panic, no hang, and nothing written behind a request's end.
//!
//! Every byte string stands for something; where it ends, the guest stops.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::Transport;
use super::ring::{Interrupt, Ring};
use super::worker::Handler;
use super::{VERSION_1, VirtioDevice};
use crate::linux::bus::BusDevice;
use crate::linux::memory::{self, Memory};

/// Where the rings are, 64 KiB each: descriptors, then the available and the used ring.
const RINGS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const RING_BYTES: u64 = 0x1_0000;
/// Where an indirect table and the buffers are.
const INDIRECT_TABLE: u64 = 0x30_0000;
const BUFFERS: u64 = 0x40_0000;
/// Entries of the ring.
const ENTRIES: u16 = 64;
/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Most requests of one run, and most steps.
const MOST_REQUESTS: u32 = 200;

/// What is left of the bytes; zeroes behind their end.
pub(crate) struct Feed<'a>(pub(crate) &'a [u8]);

impl Feed<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// Mostly small, sometimes any.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..224 => small.into(),
            224..240 => self.word().into(),
            240..250 => 1 << (self.byte() % 64),
            _ => u64::from(self.word()) << 32 | u64::from(self.word()),
        }
    }
}

/// A descriptor: where, how much, flags, the next one.
fn descriptor(memory: &Memory, table: u64, index: u16, (at, length, flags, next): (u64, u32, u16, u16)) {
    let place = table + u64::from(index) * 16;
    let bytes = [&at.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
    memory.write_slice(&bytes.concat(), GuestAddress(place)).expect("the table is in memory");
}

/// Puts the next request of `feed` into `table`; `first` is what a device of this kind expects at its start.
fn request(memory: &Memory, feed: &mut Feed<'_>, table: u64, first: Option<Vec<u8>>) {
    let count = u16::from(feed.byte() % 6) + u16::from(first.is_some()) + 1;
    let (mut free, mut first) = (BUFFERS, first);
    for index in 0..count {
        let last = if index + 1 < count { NEXT } else { 0 };
        let entry = match (first.take(), feed.byte() % 8) {
            (Some(bytes), _) => out(memory, &mut free, &bytes, last, index),
            (_, 0..3) => {
                let count = feed.number() as usize % 2048;
                let bytes = feed.take(count.min(64));
                out(memory, &mut free, &[bytes, vec![1; count.saturating_sub(64)]].concat(), last, index)
            }
            (_, 3..6) => {
                let length = (feed.number() % 0x2_0000) as u32;
                let entry = (free, length, last | WRITE, index + 1);
                free += u64::from(length).next_multiple_of(16);
                entry
            }
            (_, 6) => (feed.number(), feed.word(), u16::from(feed.byte() % 8), u16::from(feed.byte())),
            (_, _) => {
                let inner = u64::from(feed.byte() % 4);
                for at in 0..inner as u16 {
                    let more = if u64::from(at) + 1 < inner { NEXT } else { 0 };
                    let flags = u16::from(feed.byte()) & (WRITE | INDIRECT) | more;
                    let entry = (BUFFERS + u64::from(at) * 512, feed.word() % 600, flags, at + 1);
                    descriptor(memory, INDIRECT_TABLE, at, entry);
                }
                (INDIRECT_TABLE + u64::from(feed.byte() & 8), inner as u32 * 16, INDIRECT, 0)
            }
        };
        descriptor(memory, table, index, entry);
    }
}

fn out(memory: &Memory, free: &mut u64, bytes: &[u8], flags: u16, index: u16) -> (u64, u32, u16, u16) {
    let at = *free;
    memory.write_slice(bytes, GuestAddress(at)).expect("buffers are in memory");
    *free += (bytes.len() as u64).next_multiple_of(16);
    (at, bytes.len() as u32, flags, index + 1)
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("the host has eventfds")
}

fn ring(memory: &Arc<Memory>) -> Ring {
    let mut queue = Queue::new(ENTRIES).expect("a power of two");
    queue.set_desc_table_address(Some(RINGS as u32), None);
    queue.set_avail_ring_address(Some((RINGS + AVAILABLE) as u32), None);
    queue.set_used_ring_address(Some((RINGS + USED) as u32), None);
    queue.set_ready(true);
    Ring::new(queue, event(), memory.clone(), Interrupt::new(event()))
}

/// Serves the requests that `bytes` stand for. `header` makes of some bytes what a request begins with.
///
/// # Panics
/// Where the handler does, or says that it wrote more than there was room for.
pub(crate) fn serve(bytes: &[u8], handler: &mut impl Handler, header: impl Fn(&mut Feed<'_>) -> Vec<u8>) {
    let memory = Arc::new(memory::allocate(32 << 20).expect("the host has memory"));
    let (mut ring, mut feed) = (ring(&memory), Feed(bytes));
    for made in 1..=MOST_REQUESTS as u16 {
        if feed.is_empty() {
            return;
        }
        let first = (feed.byte() < 240).then(|| header(&mut feed));
        request(&memory, &mut feed, RINGS, first);
        let place = RINGS + AVAILABLE;
        let slot = u64::from((made - 1) % ENTRIES);
        memory.write_obj(0u16, GuestAddress(place + 4 + slot * 2)).expect("in memory");
        memory.write_obj(made, GuestAddress(place + 2)).expect("in memory");
        while let Some(chain) = ring.next() {
            let head = chain.head_index();
            let room: u64 = chain.clone().writable().map(|part| u64::from(part.len())).sum();
            let written = handler.handle(0, chain, &memory);
            assert!(u64::from(written) <= room, "{written} bytes into {room}");
            ring.give_back(head, written);
            ring.notify();
        }
    }
}

/// Takes chains from a ring that is made of `bytes`: the first of them its indices, the rest anywhere in it.
///
/// # Panics
/// Where taking, reading or giving back a chain does.
pub(crate) fn take_chains(bytes: &[u8]) {
    use std::io::{Read, Write};
    let memory = Arc::new(memory::allocate(32 << 20).expect("the host has memory"));
    let mut feed = Feed(bytes);
    let mut queue = Queue::new(256).expect("a power of two");
    queue.set_size(1 << (feed.byte() % 9));
    queue.set_event_idx(feed.byte() & 1 != 0);
    queue.set_next_avail(feed.word() as u16);
    queue.set_next_used(feed.word() as u16);
    let address = |feed: &mut Feed<'_>, usual: u64| match feed.byte() {
        0 => Some(feed.word() & !15),
        _ => Some(usual as u32),
    };
    queue.set_desc_table_address(address(&mut feed, RINGS), None);
    queue.set_avail_ring_address(address(&mut feed, RINGS + AVAILABLE), None);
    queue.set_used_ring_address(address(&mut feed, RINGS + USED), None);
    queue.set_ready(true);
    if !queue.is_valid(&*memory) {
        return;
    }
    let mut ring = Ring::new(queue, event(), memory.clone(), Interrupt::new(event()));
    for _ in 0..MOST_REQUESTS {
        if feed.is_empty() {
            return;
        }
        let at = RINGS + [0, AVAILABLE, USED, feed.number() % RING_BYTES][usize::from(feed.byte() % 4)];
        let count = usize::from(feed.byte() % 32);
        memory.write_slice(&feed.take(count), GuestAddress(at)).expect("in memory");
        ring.quiet();
        for _ in 0..300 {
            let Some(chain) = ring.next() else { break };
            let head = chain.head_index();
            assert!(chain.clone().count() <= 256 + usize::from(u16::MAX), "a chain that does not end");
            if let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(&memory), chain.writer(&memory)) {
                let mut bytes = vec![0; reader.available_bytes().min(4096)];
                let _ = reader.read_exact(&mut bytes).and_then(|()| writer.write_all(&bytes));
            }
            match feed.byte() % 8 {
                0 => ring.put_back(),
                1 => ring.give_back(feed.word() as u16, u32::MAX),
                _ => ring.give_back(head, 1),
            }
            ring.notify();
        }
        ring.listen();
    }
}

/// Does to the registers and rings of `device` what `bytes` stand for.
///
/// # Panics
/// Where the device does; a device that cannot be stopped hangs.
pub(crate) fn poke(bytes: &[u8], device: Box<dyn VirtioDevice>) {
    let memory = Arc::new(memory::allocate(32 << 20).expect("the host has memory"));
    let queues = device.queue_sizes().len() as u64;
    let kicks: Vec<EventFd> = (0..queues).map(|_| event()).collect();
    let copies = kicks.iter().map(|kick| kick.try_clone().expect("the host has eventfds")).collect();
    let mut transport = Transport::new(device, memory.clone(), Interrupt::new(event()), copies);
    let mut feed = Feed(bytes);
    for _ in 0..MOST_REQUESTS {
        if feed.is_empty() {
            return;
        }
        match feed.byte() % 16 {
            0..4 => {
                let (at, length) = (u64::from(feed.byte()) * 4, usize::from(feed.byte() % 9));
                transport.write(at, &feed.take(length));
                transport.read(at, &mut vec![0; length]);
            }
            4..8 => {
                let (at, value) = (u64::from(feed.byte() % 64) * 4, feed.number() as u32);
                transport.write(at, &value.to_le_bytes());
            }
            8..10 => {
                let at = RINGS + feed.number() % (queues * RING_BYTES);
                let count = usize::from(feed.byte() % 16);
                memory.write_slice(&feed.take(count), GuestAddress(at)).expect("in memory");
            }
            10 => initialise(&mut transport, queues, u64::from(feed.word()) | VERSION_1),
            11 => transport.pause(),
            // Its rings may not be in memory.
            12 => drop(transport.resume()),
            other => {
                let queue = u64::from(feed.byte()) % queues;
                let ring = RINGS + queue * RING_BYTES;
                if other != 13 {
                    request(&memory, &mut feed, ring, None);
                    let index: u16 = memory.read_obj(GuestAddress(ring + AVAILABLE + 2)).expect("in memory");
                    memory
                        .write_obj(index.wrapping_add(1), GuestAddress(ring + AVAILABLE + 2))
                        .expect("in memory");
                }
                // Its counter is never near its end.
                let _ = kicks[queue as usize].write(1);
            }
        }
    }
}

/// As a good driver begins.
fn initialise(transport: &mut Transport, queues: u64, features: u64) {
    use super::mmio::register as r;
    let mut write = |at: u64, value: u32| transport.write(at, &value.to_le_bytes());
    write(r::STATUS, 0);
    write(r::STATUS, 3);
    for half in 0..2 {
        write(r::DRIVER_FEATURES_SEL, half);
        write(r::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    write(r::STATUS, 11);
    for queue in 0..queues as u32 {
        let ring = (RINGS + u64::from(queue) * RING_BYTES) as u32;
        write(r::QUEUE_SEL, queue);
        write(r::QUEUE_DESC_LOW, ring);
        write(r::QUEUE_DRIVER_LOW, ring + AVAILABLE as u32);
        write(r::QUEUE_DEVICE_LOW, ring + USED as u32);
        write(r::QUEUE_READY, 1);
    }
    write(r::STATUS, 15);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linux::Device;

    proptest! {
        #[test]
        fn no_ring_panics(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            take_chains(&bytes);
        }

        #[test]
        fn no_writes_to_registers_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            poke(&bytes, Device::Rng.make());
        }
    }
}
