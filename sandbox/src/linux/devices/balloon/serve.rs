//! The balloon's thread: page numbers, free ranges and statistics as they come.

use std::io::Read;
use std::sync::atomic::Ordering;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::{Shared, Statistics};
use crate::linux::layout::PAGE;
use crate::linux::memory::Memory;
use crate::linux::sys;
use crate::linux::virtio::ring::Ring;
use crate::linux::virtio::{Chain, worker};

/// Most bytes of page numbers in one request; Linux sends a kilobyte.
const MOST_PAGE_NUMBERS: usize = 256 << 10;
/// Most bytes of statistics; Linux sends ten entries of ten bytes.
const MOST_STATISTICS: usize = 1024;

/// What a queue is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Report,
}

/// Serves the rings until `stop`.
pub(super) fn serve(
    mut rings: Vec<Ring>,
    roles: &[Role],
    tells: bool,
    shared: &Shared,
    stop: &EventFd,
) -> Vec<Ring> {
    // The chain that the statistics came in: it is given back to ask for new ones.
    let mut held = None;
    let statistics = roles.iter().position(|role| *role == Role::Statistics);
    loop {
        for (ring, role) in rings.iter_mut().zip(roles) {
            match role {
                Role::Statistics => hold(ring, shared, &mut held),
                role => drain(ring, *role, tells, shared),
            }
        }
        let events: Vec<_> = rings.iter().map(Ring::kick).chain([&shared.ask, stop]).collect();
        let Ok(ready) = worker::wait(&events) else { break };
        if ready.contains(&(events.len() - 1)) {
            break;
        }
        for index in &ready {
            // It was readable: this only takes note.
            let _ = events[*index].read();
        }
        let asked = ready.contains(&(events.len() - 2));
        if let (true, Some(index)) = (asked, statistics)
            && let Some(head) = held.take()
        {
            rings[index].give_back(head, 0);
            rings[index].notify();
        }
    }
    if let (Some(_), Some(index)) = (held, statistics) {
        rings[index].put_back();
    }
    rings
}

/// `tells`: the driver says so before it uses again what it gave.
fn drain(ring: &mut Ring, role: Role, tells: bool, shared: &Shared) {
    let memory = ring.memory().clone();
    loop {
        ring.quiet();
        while let Some(chain) = ring.next() {
            let head = chain.head_index();
            match role {
                Role::Inflate => inflate(chain, &memory, tells, shared),
                Role::Report => report(chain, &memory, shared),
                // The guest takes what it had given; the pages come when it touches them.
                Role::Deflate => runs(chain, &memory, |page, count| shared.given.lock().remove(page, count)),
                Role::Statistics => {}
            }
            ring.give_back(head, 0);
            ring.notify();
        }
        if !ring.listen() {
            return;
        }
    }
}

/// Takes the next statistics, unless some are held already.
fn hold(ring: &mut Ring, shared: &Shared, held: &mut Option<u16>) {
    let memory = ring.memory().clone();
    if held.is_none()
        && let Some(chain) = ring.next()
    {
        *held = Some(chain.head_index());
        let mut statistics = shared.statistics.lock();
        *statistics = (statistics.0 + 1, read_statistics(chain, &memory));
        shared.came.notify_all();
    }
    // What comes while some are held waits until they are asked for.
    ring.listen();
}

fn inflate(chain: Chain, memory: &Memory, tells: bool, shared: &Shared) {
    runs(chain, memory, |page, count| {
        if sys::discard(memory, GuestAddress(page * PAGE), count * PAGE) && tells {
            shared.given.lock().add(page, count);
        }
    });
}

/// The page numbers of a request, by runs of (first page, count).
fn runs(chain: Chain, memory: &Memory, mut each: impl FnMut(u64, u64)) {
    let Ok(mut reader) = chain.reader(memory) else { return };
    let mut bytes = vec![0; reader.available_bytes().min(MOST_PAGE_NUMBERS) / 4 * 4];
    if reader.read_exact(&mut bytes).is_err() {
        return;
    }
    let number = |word: &[u8]| u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut pages: Vec<u64> = bytes.chunks_exact(4).map(number).collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| page + 1 == *next) {
        each(run[0], run.len() as u64);
    }
}

/// The buffers of the chain are the free pages themselves.
fn report(chain: Chain, memory: &Memory, shared: &Shared) {
    for descriptor in chain.writable() {
        let length = u64::from(descriptor.len());
        if sys::discard(memory, descriptor.addr(), length) {
            shared.reported_bytes.fetch_add(length, Ordering::SeqCst);
        }
    }
}

/// Entries of a tag (two bytes) and a value (eight).
fn read_statistics(chain: Chain, memory: &Memory) -> Statistics {
    let mut statistics = Statistics::default();
    let Ok(mut reader) = chain.reader(memory) else { return statistics };
    let mut bytes = vec![0; reader.available_bytes().min(MOST_STATISTICS) / 10 * 10];
    if reader.read_exact(&mut bytes).is_err() {
        return statistics;
    }
    for entry in bytes.chunks_exact(10) {
        let value = entry[2..].try_into().map(u64::from_le_bytes).ok();
        match u16::from_le_bytes([entry[0], entry[1]]) {
            2 => statistics.major_faults = value,
            3 => statistics.minor_faults = value,
            4 => statistics.free_bytes = value,
            5 => statistics.total_bytes = value,
            6 => statistics.available_bytes = value,
            7 => statistics.cache_bytes = value,
            _ => {}
        }
    }
    statistics
}
