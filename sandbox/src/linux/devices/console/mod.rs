//! virtio-console: a terminal, one port.
//!
//! ```text
//! Console::send ── bytes that wait ── receive ring ──> /dev/hvc0 ──> transmit ring ── the writer that was given
//! Console::resize ── configuration, its interrupt ──> SIGWINCH
//! ```
//! Source: VIRTIO 1.2 §5.3.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use novum_snapshot::{Snapshot, State, Writer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::linux::virtio::ring::{Interrupt, Ring};
use crate::linux::virtio::state::{Bytes, put, take};
use crate::linux::virtio::{Activation, StateError, VirtioDevice, Worker, read_config_bytes, worker};

const DEVICE_ID: u32 = 3;
/// Receive, transmit.
const QUEUE_SIZES: &[u16] = &[64, 64];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Feature: the configuration has the terminal's size.
const SIZE: u64 = 1;
/// Most bytes that wait for the guest.
const MOST_WAITING: usize = 64 << 10;
/// Output is moved in pieces of at most this.
const PIECE: usize = 16 << 10;

/// A guest's terminal, the host's side of it. Clones are the same terminal.
#[derive(Clone, Debug)]
pub struct Console(Arc<Shared>);

struct Shared {
    output: Mutex<Box<dyn Write + Send>>,
    waiting: Mutex<VecDeque<u8>>,
    /// Written when bytes wait.
    sent: EventFd,
    /// Columns and rows.
    size: Mutex<(u16, u16)>,
    /// The guest's interrupt while its driver is at work.
    interrupt: Mutex<Option<Interrupt>>,
    /// Whether the driver was told the size. Linux reads the size only when it changes, and must not be told before its
    /// terminal is there, which its first output shows.
    told: AtomicBool,
}

/// A terminal as a section of a snapshot.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Terminal {
    waiting: Bytes,
    columns: u16,
    rows: u16,
    told: bool,
}

impl State for Terminal {
    const KIND: &'static str = "virtio-console";
    const VERSION: u32 = 1;
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Console {
    /// A terminal of 80 by 25 that writes what the guest says to `output`. While `output` blocks, the guest's output
    /// does too, and so does pausing the guest.
    ///
    /// # Errors
    /// Where the host has no eventfd left.
    pub fn new(output: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            output: Mutex::new(output),
            waiting: Mutex::default(),
            sent: EventFd::new(EFD_NONBLOCK)?,
            size: Mutex::new((80, 25)),
            interrupt: Mutex::new(None),
            told: AtomicBool::new(false),
        })))
    }

    /// Types `bytes`; returns how many were taken, fewer where the guest does not read.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.0.waiting.lock();
        let taken = bytes.len().min(MOST_WAITING - waiting.len());
        waiting.extend(&bytes[..taken]);
        // It only fails where the counter would overflow: then it is readable already.
        let _ = self.0.sent.write(1);
        taken
    }

    /// Changes the terminal's size, which the guest is told at once.
    pub fn resize(&self, columns: u16, rows: u16) {
        *self.0.size.lock() = (columns, rows);
        let interrupt = self.0.interrupt.lock();
        if let (Some(interrupt), true) = (&*interrupt, self.0.told.load(Ordering::SeqCst)) {
            interrupt.config_changed();
        }
    }
}

/// The device.
pub(crate) struct ConsoleDevice {
    console: Console,
    worker: Option<Worker>,
}

impl ConsoleDevice {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, worker: None }
    }
}

impl VirtioDevice for ConsoleDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = *self.console.0.size.lock();
        // Then the number of ports, which is only there with a feature that is not offered.
        read_config_bytes(&[columns.to_le_bytes(), rows.to_le_bytes()].concat(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let console = self.console.clone();
        *self.console.0.interrupt.lock() = Some(activation.interrupt);
        let work = move |rings, stop: &EventFd| serve(rings, &console.0, stop);
        self.worker = Some(Worker::run("virtio-console", activation.rings, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        *self.console.0.interrupt.lock() = None;
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.console.0.told.store(false, Ordering::SeqCst);
    }

    fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        let Shared { waiting, size, told, .. } = &*self.console.0;
        let (columns, rows) = *size.lock();
        let waiting = Bytes(waiting.lock().iter().copied().collect());
        put(to, owner, &Terminal { waiting, columns, rows, told: told.load(Ordering::SeqCst) })
    }

    fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        let state: Terminal = take(from, owner)?;
        if state.waiting.0.len() > MOST_WAITING {
            return Err(StateError::refused(owner, "more was typed than a terminal keeps"));
        }
        let Shared { waiting, size, told, .. } = &*self.console.0;
        *waiting.lock() = state.waiting.0.into();
        *size.lock() = (state.columns, state.rows);
        told.store(state.told, Ordering::SeqCst);
        Ok(())
    }
}

fn serve(mut rings: Vec<Ring>, shared: &Shared, stop: &EventFd) -> Vec<Ring> {
    loop {
        print(&mut rings[TRANSMIT], shared);
        type_in(&mut rings[RECEIVE], shared);
        let events = [rings[RECEIVE].kick(), rings[TRANSMIT].kick(), &shared.sent, stop];
        let Ok(ready) = worker::wait(&events) else { break };
        if ready.contains(&3) {
            break;
        }
        for index in ready {
            // It was readable: this only takes note.
            let _ = events[index].read();
        }
    }
    rings
}

/// From the guest.
fn print(ring: &mut Ring, shared: &Shared) {
    let memory = ring.memory().clone();
    loop {
        ring.quiet();
        while let Some(chain) = ring.next() {
            let interrupt = shared.interrupt.lock();
            if let (Some(interrupt), false) = (&*interrupt, shared.told.swap(true, Ordering::SeqCst)) {
                interrupt.config_changed();
            }
            drop(interrupt);
            let head = chain.head_index();
            if let Ok(mut reader) = chain.reader(&memory) {
                let mut piece = vec![0; reader.available_bytes().min(PIECE)];
                // Each piece is shorter than what is left, so the reads do not fail; a lost output is no guest's matter.
                while let Ok(count @ 1..) = reader.read(&mut piece) {
                    let mut output = shared.output.lock();
                    let _ = output.write_all(&piece[..count]).and_then(|()| output.flush());
                }
            }
            ring.give_back(head, 0);
            ring.notify();
        }
        if !ring.listen() {
            return;
        }
    }
}

/// To the guest: as much as it has room for.
fn type_in(ring: &mut Ring, shared: &Shared) {
    let memory = ring.memory().clone();
    loop {
        ring.quiet();
        while !shared.waiting.lock().is_empty() {
            let Some(chain) = ring.next() else { break };
            let head = chain.head_index();
            let written = chain.writer(&memory).map_or(0, |mut writer| {
                let mut waiting = shared.waiting.lock();
                let (piece, _) = waiting.as_slices();
                let count = writer.write(piece).unwrap_or(0);
                waiting.drain(..count);
                count as u32
            });
            ring.give_back(head, written);
            ring.notify();
        }
        // Buffers alone are no work: only those for which something waits.
        if !ring.listen() || shared.waiting.lock().is_empty() {
            return;
        }
    }
}
