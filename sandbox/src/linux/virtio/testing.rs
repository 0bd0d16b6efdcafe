//! A driver for tests: it works a device through its registers and rings as a guest would, well or badly.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use novum_snapshot::{Host, Snapshot, State, Store, Writer};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeTuple, Serializer};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{DRIVER_OK, FEATURES_OK, Transport, register};
use super::ring::{CONFIG_CHANGED, Interrupt};
use super::{StateError, VERSION_1, VirtioDevice};
use crate::linux::bus::BusDevice;
use crate::linux::memory::{self, Memory};
use crate::linux::sys::borrow_eventfd;

/// Where the rings of the first queue are; each has its own [`RING_BYTES`].
const RINGS: u64 = 0x10_0000;
const RING_BYTES: u64 = 0x1_0000;
/// Parts of a ring.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers are.
const BUFFERS: u64 = 0x40_0000;
/// Descriptors and bytes of a request's slot.
pub(crate) const SLOT_DESCRIPTORS: u16 = 8;
const SLOT_BYTES: u64 = 0x4000;
/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// How long an answer may take.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A part of a request.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// For the device to read.
    Out(Vec<u8>),
    /// For the device to write, so many bytes.
    In(usize),
    /// A descriptor as it is: address, length, flags, next.
    Raw(u64, u32, u16, u16),
}

/// Chains that nobody should make.
pub(crate) fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let small = proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..64);
    let address = prop_oneof![0u64..0x200_0000, Just(u64::MAX), Just(BUFFERS), any::<u64>()];
    let length = prop_oneof![0u32..4096, Just(u32::MAX), any::<u32>()];
    let piece = prop_oneof![
        4 => small.prop_map(Piece::Out),
        4 => (0usize..2048).prop_map(Piece::In),
        1 => (address, length, 0u16..8, 0u16..6).prop_map(|(a, l, f, n)| Piece::Raw(a, l, f, n)),
    ];
    proptest::collection::vec(piece, 1..6)
}

/// Whose sections they are in tests.
pub(crate) const OWNER: &str = "virtio0";

/// A snapshot of nothing but sections.
pub(crate) struct Saved {
    pub(crate) snapshot: Snapshot,
    store: Store,
    _folder: Arc<tempfile::TempDir>,
}

impl Saved {
    pub(crate) fn new<E>(save: impl FnOnce(&mut Writer) -> Result<(), E>) -> Result<Self, E> {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let mut writer = Writer::base(&store, Host::new([""; 0])).unwrap();
        save(&mut writer)?;
        let digest = writer.publish().unwrap();
        let snapshot = Snapshot::open(&store, &digest).unwrap();
        Ok(Self { snapshot, store, _folder: Arc::new(folder) })
    }

    /// The same, with `change` done to the bytes of the section `S`.
    pub(crate) fn changed<S: State>(&self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let sections = self.snapshot.sections();
        let section = sections.iter().find(|section| section.kind == S::KIND).unwrap();
        let mut bytes = section.bytes.to_vec();
        change(&mut bytes);
        let mut writer = Writer::diff(&self.store, self.snapshot.host(), &self.snapshot).unwrap();
        writer.put(section.owner, &Raw::<S>(bytes, PhantomData)).unwrap();
        let snapshot = Snapshot::open(&self.store, &writer.publish().unwrap()).unwrap();
        Self { snapshot, store: self.store.clone(), _folder: self._folder.clone() }
    }
}

/// Sections are written as they always were, in lower-case hexadecimal digits, and read back as the same. Where this
/// fails for a changed type, raise its version and read the old one.
#[track_caller]
pub(crate) fn golden<S: State + PartialEq + std::fmt::Debug>(state: &S, written: &str) {
    let saved = Saved::new(|to| to.put(OWNER, state)).unwrap();
    let sections = saved.snapshot.sections();
    let bytes: String = sections[0].bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(format!("{} {} {bytes}", S::KIND, S::VERSION), written);
    assert_eq!(saved.snapshot.take::<S>(OWNER).unwrap(), *state);
}

/// Bytes that pass as a section of `S`.
struct Raw<S>(Vec<u8>, PhantomData<S>);

impl<S> Serialize for Raw<S> {
    fn serialize<T: Serializer>(&self, to: T) -> Result<T::Ok, T::Error> {
        // A tuple of bytes is written as they are.
        let mut tuple = to.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

impl<'de, S> Deserialize<'de> for Raw<S> {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("only written"))
    }
}

impl<S: State> State for Raw<S> {
    const KIND: &'static str = S::KIND;
    const VERSION: u32 = S::VERSION;
}

/// A device with its driver.
pub(crate) struct Driver {
    transport: Transport,
    pub(crate) memory: Arc<Memory>,
    kicks: Vec<EventFd>,
    interrupt: EventFd,
    /// Entries made available and seen used, for each queue.
    counts: Vec<(u16, u16)>,
    sizes: Vec<u16>,
}

impl Driver {
    /// Starts `device` with these features accepted, beside VERSION_1.
    pub(crate) fn start(device: Box<dyn VirtioDevice>, features: u64) -> Self {
        let mut driver = Self::connect(device);
        driver.initialise(features | VERSION_1);
        assert_eq!(
            driver.read(register::STATUS),
            3 | FEATURES_OK | DRIVER_OK,
            "the device takes these features"
        );
        driver
    }

    /// A device that no driver has touched.
    pub(crate) fn connect(device: Box<dyn VirtioDevice>) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let sizes = device.queue_sizes().to_vec();
        let memory = Arc::new(memory::allocate(32 << 20).unwrap());
        let (interrupt, kicks): (_, Vec<_>) = (event(), sizes.iter().map(|_| event()).collect());
        let copies = kicks.iter().map(|kick| kick.try_clone().unwrap()).collect();
        let line = Interrupt::new(interrupt.try_clone().unwrap());
        let transport = Transport::new(device, memory.clone(), line, copies);
        let counts = vec![(0, 0); sizes.len()];
        Self { transport, memory, kicks, interrupt, counts, sizes }
    }

    /// What a driver does at its start, with these features.
    pub(crate) fn initialise(&mut self, features: u64) {
        self.write(register::STATUS, 3);
        for half in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(register::STATUS, 3 | FEATURES_OK);
        for queue in 0..self.sizes.len() as u32 {
            let ring = (RINGS + u64::from(queue) * RING_BYTES) as u32;
            self.write(register::QUEUE_SEL, queue);
            self.write(register::QUEUE_NUM, self.sizes[queue as usize].into());
            self.write(register::QUEUE_DESC_LOW, ring);
            self.write(register::QUEUE_DRIVER_LOW, ring + AVAILABLE as u32);
            self.write(register::QUEUE_DEVICE_LOW, ring + USED as u32);
            self.write(register::QUEUE_READY, 1);
        }
        self.write(register::STATUS, 3 | FEATURES_OK | DRIVER_OK);
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Writes anything anywhere.
    pub(crate) fn poke(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(offset, data);
    }

    /// Reads anything anywhere.
    pub(crate) fn peek(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// Its registers.
    pub(crate) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Kicks a queue.
    pub(crate) fn kick(&self, queue: usize) {
        self.kicks[queue % self.kicks.len()].write(1).unwrap();
    }

    /// How many queues there are.
    pub(crate) fn queues(&self) -> usize {
        self.kicks.len()
    }

    /// Where the available ring of a queue has its index.
    pub(crate) fn available_index(queue: usize) -> GuestAddress {
        GuestAddress(RINGS + queue as u64 * RING_BYTES + AVAILABLE + 2)
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Reads the configuration.
    pub(crate) fn config(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.transport.read(register::CONFIG + offset, &mut data);
        data
    }

    /// Writes into it.
    pub(crate) fn set_config(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(register::CONFIG + offset, data);
    }

    pub(crate) fn generation(&mut self) -> u32 {
        self.read(register::CONFIG_GENERATION)
    }

    /// Whether the device said that its configuration has changed; asked once it is no more.
    pub(crate) fn saw_config_change(&mut self) -> bool {
        let status = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, status);
        status & CONFIG_CHANGED != 0
    }

    /// As before a snapshot and after it.
    pub(crate) fn pause_and_resume(&mut self) {
        self.transport.pause();
        self.transport.resume().unwrap();
    }

    /// Stops the device and saves it with its registers.
    pub(crate) fn save(&mut self) -> Saved {
        self.transport.pause();
        Saved::new(|to| self.transport.save(OWNER, to)).unwrap()
    }

    /// Goes on with `device` in the place of the one that was saved, behind new registers.
    pub(crate) fn restore(&mut self, device: Box<dyn VirtioDevice>, saved: &Saved) -> Result<(), StateError> {
        self.restore_with(device, saved, || ())
    }

    /// The same, with something to be done before it goes on.
    pub(crate) fn restore_with(
        &mut self,
        device: Box<dyn VirtioDevice>,
        saved: &Saved,
        before: impl FnOnce(),
    ) -> Result<(), StateError> {
        let copies = self.kicks.iter().map(|kick| kick.try_clone().unwrap()).collect();
        let line = Interrupt::new(self.interrupt.try_clone().unwrap());
        self.transport = Transport::new(device, self.memory.clone(), line, copies);
        self.transport.restore(OWNER, &saved.snapshot)?;
        before();
        self.transport.resume().map_err(StateError::host(OWNER, "starting"))
    }

    /// Makes a request on the first queue and waits for its answer.
    pub(crate) fn ask(&mut self, pieces: &[Piece]) -> Vec<u8> {
        self.ask_on(0, pieces)
    }

    /// Makes a request on `queue` and waits for its answer: all that the device may write to.
    pub(crate) fn ask_on(&mut self, queue: usize, pieces: &[Piece]) -> Vec<u8> {
        let places = self.offer(queue, pieces);
        self.answer(queue);
        let mut answer = Vec::new();
        for (at, length) in places {
            let mut bytes = vec![0; length];
            self.memory.read_slice(&mut bytes, at).unwrap();
            answer.extend(bytes);
        }
        answer
    }

    /// Makes a request without waiting; returns where the device may write.
    pub(crate) fn offer(&mut self, queue: usize, pieces: &[Piece]) -> Vec<(GuestAddress, usize)> {
        self.offer_in(queue, 0, pieces)
    }

    /// How many requests a queue can have at a time.
    pub(crate) fn slots(&self, queue: usize) -> u16 {
        self.sizes[queue] / SLOT_DESCRIPTORS
    }

    /// Makes a request of at most [`SLOT_DESCRIPTORS`] pieces in a slot that is free; its head is `slot` times as much.
    pub(crate) fn offer_in(
        &mut self,
        queue: usize,
        slot: u16,
        pieces: &[Piece],
    ) -> Vec<(GuestAddress, usize)> {
        let ring = RINGS + queue as u64 * RING_BYTES;
        let head = slot * SLOT_DESCRIPTORS;
        let (mut free, mut places) =
            (BUFFERS + queue as u64 * 0x10_0000 + u64::from(slot) * SLOT_BYTES, Vec::new());
        for (index, piece) in (head..).zip(pieces) {
            let last = if usize::from(index - head) + 1 < pieces.len() { NEXT } else { 0 };
            let at = free;
            let (address, length, flags, next) = match piece {
                Piece::Out(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                    (at, bytes.len() as u32, last, index + 1)
                }
                Piece::In(length) => {
                    self.memory.write_slice(&vec![0; *length], GuestAddress(at)).unwrap();
                    places.push((GuestAddress(at), *length));
                    (at, *length as u32, last | WRITE, index + 1)
                }
                Piece::Raw(address, length, flags, next) => (*address, *length, *flags, *next),
            };
            free += u64::from(if matches!(piece, Piece::Raw(..)) { 0 } else { length }).next_multiple_of(16);
            let descriptor = ring + u64::from(index) * 16;
            self.memory.write_obj(address, GuestAddress(descriptor)).unwrap();
            self.memory.write_obj(length, GuestAddress(descriptor + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(descriptor + 12)).unwrap();
            self.memory.write_obj(next, GuestAddress(descriptor + 14)).unwrap();
        }
        let (made, _) = &mut self.counts[queue];
        let slot = u64::from(*made % self.sizes[queue]);
        self.memory.write_obj(head, GuestAddress(ring + AVAILABLE + 4 + slot * 2)).unwrap();
        *made = made.wrapping_add(1);
        self.memory.write_obj(*made, GuestAddress(ring + AVAILABLE + 2)).unwrap();
        self.kicks[queue].write(1).unwrap();
        places
    }

    /// The slots whose requests were used since the last look, with how many bytes the device wrote; without waiting.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let ring = RINGS + queue as u64 * RING_BYTES;
        let mut slots = Vec::new();
        loop {
            let index: u16 = self.memory.read_obj(GuestAddress(ring + USED + 2)).unwrap();
            self.want_interrupt(queue);
            let seen = &mut self.counts[queue].1;
            if *seen == index && self.memory.read_obj::<u16>(GuestAddress(ring + USED + 2)).unwrap() == index
            {
                break;
            }
            while *seen != index {
                let entry = ring + USED + 4 + u64::from(*seen % self.sizes[queue]) * 8;
                let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
                let written = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
                slots.push((head as u16 / SLOT_DESCRIPTORS, written));
                *seen = seen.wrapping_add(1);
            }
        }
        slots
    }

    /// With EVENT_IDX: the device shall interrupt when the next entry is used.
    fn want_interrupt(&self, queue: usize) {
        let event = RINGS + queue as u64 * RING_BYTES + AVAILABLE + 4 + u64::from(self.sizes[queue]) * 2;
        self.memory.write_obj(self.counts[queue].1, GuestAddress(event)).unwrap();
        fence(Ordering::SeqCst);
    }

    /// Waits until the device interrupts.
    pub(crate) fn wait(&self) {
        let mut fds = [PollFd::from_borrowed_fd(borrow_eventfd(&self.interrupt), PollFlags::IN)];
        assert_ne!(poll(&mut fds, Some(&PATIENCE)).unwrap(), 0, "the device does not answer");
        let _ = self.interrupt.read();
    }

    /// Waits for the next used entry of `queue`; returns how many bytes the device wrote.
    pub(crate) fn answer(&mut self, queue: usize) -> u32 {
        let used = RINGS + queue as u64 * RING_BYTES + USED;
        let seen = self.counts[queue].1;
        self.want_interrupt(queue);
        while self.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap() == seen {
            self.wait();
        }
        self.counts[queue].1 = seen.wrapping_add(1);
        let slot = u64::from(seen % self.sizes[queue]);
        self.memory.read_obj(GuestAddress(used + 4 + slot * 8 + 4)).unwrap()
    }
}
