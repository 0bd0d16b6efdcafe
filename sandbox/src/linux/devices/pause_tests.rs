//! Devices are paused, resumed, saved and restored under traffic: every request is served once, whatever the moment.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::block::{Block, DiskAccess};
use super::console::Console;
use super::p9::wire::{Encoder, HEADER};
use super::vsock::{Listener, Stream, Vsock};
use crate::linux::Device;
use crate::linux::virtio::testing::{Driver, Piece};
use crate::share::{Access, Share};

const CID: u64 = 3;
const PORT: u32 = 5;

/// A device with what the host has of it.
trait Subject {
    /// The first one, or the one that takes a saved one's place.
    fn device(&mut self) -> Device;
    /// What comes after the device was restored, before it goes on.
    fn taken_over(&mut self) {}
    /// Once, before the traffic.
    fn prepare(&mut self, _: &mut Driver) {}
    /// Queue and pieces of request number `number`; none where it is not the guest's turn.
    fn request(&mut self, number: u32) -> (usize, Vec<Piece>);
    /// What the host does at times.
    fn host(&mut self) {}
    /// The answer to a request, in the order of the used ring.
    fn answer(&mut self, queue: usize, bytes: &[u8]);
    /// At the end, when all requests are answered, of which there were `count`.
    fn check(&mut self, count: u32);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(u8),
    Host,
    Pause,
    Restore,
    /// Lets the device's thread run.
    Yield(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u8..6).prop_map(Step::Ask),
        2 => Just(Step::Host),
        2 => Just(Step::Pause),
        1 => Just(Step::Restore),
        2 => (0u8..20).prop_map(Step::Yield),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Where the pieces of an answer will be.
type Places = Vec<(GuestAddress, usize)>;

/// A driver that keeps several requests in flight.
struct Traffic {
    driver: Driver,
    /// For each queue: free slots, and for each slot where its answer will be.
    queues: Vec<(VecDeque<u16>, Vec<Places>)>,
    asked: u32,
}

impl Traffic {
    fn new(subject: &mut dyn Subject, features: u64) -> Self {
        let mut driver = Driver::start(subject.device().make(), features);
        subject.prepare(&mut driver);
        let queue = |queue| {
            let slots = driver.slots(queue);
            ((0..slots).collect(), vec![Vec::new(); usize::from(slots)])
        };
        let queues = (0..driver.queues()).map(queue).collect();
        Self { driver, queues, asked: 0 }
    }

    fn ask(&mut self, subject: &mut dyn Subject) {
        let (queue, pieces) = subject.request(self.asked);
        let (free, places) = &mut self.queues[queue];
        let slot = free.pop_front().expect("the caller has waited for a free one");
        places[usize::from(slot)] = self.driver.offer_in(queue, slot, &pieces);
        self.asked += 1;
    }

    /// Takes the answers that are there; a slot that was free is a request answered twice.
    fn look(&mut self, subject: &mut dyn Subject) {
        for queue in 0..self.queues.len() {
            for (slot, written) in self.driver.used(queue) {
                let (free, places) = &mut self.queues[queue];
                assert!(!free.contains(&slot), "request {slot} of queue {queue} is answered twice");
                let mut bytes = Vec::new();
                for (at, length) in &places[usize::from(slot)] {
                    let mut piece = vec![0; *length];
                    self.driver.memory.read_slice(&mut piece, *at).unwrap();
                    bytes.extend(piece);
                }
                bytes.truncate(written as usize);
                free.push_back(slot);
                subject.answer(queue, &bytes);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.queues.iter().map(|(free, places)| places.len() - free.len()).sum()
    }

    fn settle(&mut self, subject: &mut dyn Subject, most: usize) {
        self.look(subject);
        while self.in_flight() > most {
            subject.host();
            self.driver.wait();
            self.look(subject);
        }
    }
}

fn run(subject: &mut dyn Subject, features: u64, steps: &[Step]) {
    let mut traffic = Traffic::new(subject, features);
    for step in steps {
        match step {
            Step::Ask(count) => {
                // No queue that is used has fewer slots than 8.
                traffic.settle(subject, 8 - usize::from(*count));
                (0..*count).for_each(|_| traffic.ask(subject));
            }
            Step::Host => subject.host(),
            Step::Pause => traffic.driver.pause_and_resume(),
            Step::Restore => {
                let saved = traffic.driver.save();
                let device = subject.device().make();
                traffic.driver.restore_with(device, &saved, || subject.taken_over()).unwrap();
            }
            Step::Yield(count) => (0..*count).for_each(|_| std::thread::yield_now()),
        }
    }
    traffic.settle(subject, 0);
    let count = traffic.asked;
    subject.check(count);
}

struct Terminal {
    out: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

struct Out(Sender<Vec<u8>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Subject for Terminal {
    fn device(&mut self) -> Device {
        Device::Console(Console::new(Box::new(Out(self.out.0.clone()))).unwrap())
    }
    fn request(&mut self, number: u32) -> (usize, Vec<Piece>) {
        (1, vec![Piece::Out(number.to_le_bytes().to_vec())])
    }
    fn answer(&mut self, _: usize, _: &[u8]) {}
    fn check(&mut self, count: u32) {
        let said: Vec<u8> = self.out.1.try_iter().flatten().collect();
        assert!(said == (0..count).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    }
}

/// A file that each request makes longer by its number.
struct Append {
    folder: tempfile::TempDir,
    order: Vec<u32>,
}

fn message(kind: u8, fields: impl FnOnce(&mut Encoder)) -> Piece {
    let mut encoder = Encoder(vec![0; HEADER]);
    fields(&mut encoder);
    let size = (encoder.0.len() as u32).to_le_bytes();
    encoder.0[..4].copy_from_slice(&size);
    encoder.0[4] = kind;
    Piece::Out(encoder.0)
}

impl Subject for Append {
    fn device(&mut self) -> Device {
        let share = Share::open_dir(self.folder.path(), Access::ReadWrite).unwrap();
        Device::P9 { tag: "p9".into(), share: Arc::new(share) }
    }
    fn prepare(&mut self, driver: &mut Driver) {
        let version = message(100, |m| {
            m.u32(8192);
            m.string(b"9P2000.L");
        });
        let attach = message(104, |m| [1, u32::MAX].into_iter().for_each(|word| m.u32(word)));
        let create = message(14, |m| {
            m.u32(1);
            m.string(b"file");
            let flags = (libc::O_WRONLY | libc::O_APPEND) as u32;
            [flags, 0o600, 0].into_iter().for_each(|word| m.u32(word));
        });
        for (kind, request) in [(101, version), (105, attach), (15, create)] {
            let answer = driver.ask(&[request, Piece::In(100)]);
            assert_eq!(answer[4], kind);
        }
    }
    fn request(&mut self, number: u32) -> (usize, Vec<Piece>) {
        let write = message(118, |m| {
            m.u32(1);
            m.u64(0);
            m.u32(4);
            m.u32(number);
        });
        (0, vec![write, Piece::In(64)])
    }
    fn answer(&mut self, _: usize, bytes: &[u8]) {
        assert_eq!(bytes[4], 119, "it was written");
        self.order.push(self.order.len() as u32);
    }
    fn check(&mut self, count: u32) {
        let file = std::fs::read(self.folder.path().join("file")).unwrap();
        assert!(file == (0..count).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        assert_eq!(self.order.len(), count as usize);
    }
}

/// A private disk whose sectors are written and read in turns.
struct Sectors {
    file: tempfile::NamedTempFile,
    read: Vec<u8>,
}

impl Subject for Sectors {
    fn device(&mut self) -> Device {
        let private = DiskAccess::Private { folder: None };
        Device::Block(Block::open(self.file.path(), private, "disk").unwrap())
    }
    fn request(&mut self, number: u32) -> (usize, Vec<Piece>) {
        let header = |kind: u32| Piece::Out([kind, 0, number / 2 % 60, 0].map(u32::to_le_bytes).concat());
        let pieces = match number % 2 {
            0 => vec![header(1), Piece::Out(vec![(number / 2) as u8; 512]), Piece::In(1)],
            _ => vec![header(0), Piece::In(512), Piece::In(1)],
        };
        (0, pieces)
    }
    fn answer(&mut self, _: usize, bytes: &[u8]) {
        assert_eq!(bytes.last(), Some(&0), "status");
        self.read.extend(bytes.first().filter(|_| bytes.len() > 1));
    }
    fn check(&mut self, count: u32) {
        assert_eq!(self.read, (0..count / 2).map(|number| number as u8).collect::<Vec<_>>());
    }
}

/// A stream both ways: the guest's bytes in its packets, the host's in the buffers that the guest gives.
struct Talk {
    vsock: Vsock,
    listener: Listener,
    stream: Option<Stream>,
    given: u32,
    taken: Vec<u8>,
    said: u32,
    heard: Vec<u8>,
    /// Receive buffers that the guest has given and not got back.
    buffers: usize,
}

impl Talk {
    fn new() -> Self {
        let vsock = Vsock::new(CID).unwrap();
        let listener = vsock.listen(PORT).unwrap();
        let (taken, heard) = Default::default();
        Self { vsock, listener, stream: None, given: 0, taken, said: 0, heard, buffers: 0 }
    }

    fn packet(&self, op: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = [CID, 2].map(u64::to_le_bytes).concat();
        packet.extend([9, PORT, data.len() as u32].map(u32::to_le_bytes).concat());
        packet.extend([1, op].map(u16::to_le_bytes).concat());
        packet.extend([0, 1 << 20, self.heard.len() as u32].map(u32::to_le_bytes).concat());
        packet.extend(data);
        packet
    }
}

/// What is there without waiting.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        tokio::select! { biased; done = work => Some(done), () = async {} => None }
    })
}

impl Subject for Talk {
    fn device(&mut self) -> Device {
        if self.stream.is_some() {
            self.vsock = Vsock::new(CID).unwrap();
        }
        Device::Vsock(self.vsock.clone())
    }
    fn taken_over(&mut self) {
        self.stream = self.vsock.take_over(PORT).pop();
        assert!(self.stream.is_some());
    }
    fn prepare(&mut self, driver: &mut Driver) {
        driver.ask_on(1, &[Piece::Out(self.packet(1, &[]))]);
        let response = driver.ask_on(0, &[Piece::In(44), Piece::In(8)]);
        assert_eq!(response[30], 2);
        self.stream = now(self.listener.accept());
    }
    fn request(&mut self, number: u32) -> (usize, Vec<Piece>) {
        if number.is_multiple_of(3) && self.buffers < 4 {
            self.buffers += 1;
            return (0, vec![Piece::In(44), Piece::In(8)]);
        }
        self.given += 1;
        (1, vec![Piece::Out(self.packet(5, &self.given.to_le_bytes()))])
    }
    fn host(&mut self) {
        let stream = self.stream.as_mut().unwrap();
        let mut bytes = [0; 1000];
        while let Some(Ok(count @ 1..)) = now(stream.read(&mut bytes)) {
            self.taken.extend(&bytes[..count]);
        }
        // Something for each buffer, so that all come back.
        if self.heard.len() as u32 + 4096 > self.said * 4 {
            self.said += 1;
            assert_eq!(now(stream.write(&self.said.to_le_bytes())).unwrap().unwrap(), 4);
        }
    }
    fn answer(&mut self, queue: usize, bytes: &[u8]) {
        if queue == 0 {
            self.buffers -= 1;
            assert!([5, 6].contains(&bytes[30]), "bytes or credit");
            self.heard.extend(&bytes[44..]);
        }
    }
    fn check(&mut self, _: u32) {
        self.host();
        assert!(self.taken == (1..=self.given).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let said: Vec<u8> = (1..=self.said).flat_map(u32::to_le_bytes).collect();
        assert!(said.starts_with(&self.heard));
    }
}

/// Devices whose requests have no order that the host could see.
struct Plain(Box<dyn Fn() -> Device>, Piece);

impl Subject for Plain {
    fn device(&mut self) -> Device {
        (self.0)()
    }
    fn request(&mut self, _: u32) -> (usize, Vec<Piece>) {
        (0, vec![self.1.clone()])
    }
    fn answer(&mut self, _: usize, _: &[u8]) {}
    fn check(&mut self, _: u32) {}
}

fn subject(kind: usize) -> Box<dyn Subject> {
    match kind {
        0 => Box::new(Terminal { out: channel() }),
        1 => Box::new(Append { folder: tempfile::tempdir().unwrap(), order: Vec::new() }),
        2 => {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), [0; 512 * 64]).unwrap();
            Box::new(Sectors { file, read: Vec::new() })
        }
        3 => Box::new(Talk::new()),
        4 => Box::new(Plain(Box::new(|| Device::Rng), Piece::In(32))),
        _ => Box::new(Plain(Box::new(|| Device::Balloon(Balloon::new().unwrap())), Piece::Out(vec![0; 8]))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_time: 30_000, ..ProptestConfig::default() })]
    #[test]
    fn every_request_is_served_once_whenever_the_device_is_paused_or_replaced(
        kind in 0usize..6, event_idx in any::<bool>(), steps in steps()
    ) {
        run(&mut *subject(kind), if event_idx { 1 << 29 } else { 0 }, &steps);
    }
}
