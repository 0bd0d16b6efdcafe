//! A device's thread: sleeps until a ring is kicked, serves it until it is empty, sleeps again.

use std::io;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::{Chain, Ring};
use crate::linux::STACK_BYTES;
use crate::linux::memory::Memory;
use crate::linux::sys::borrow_eventfd;

/// What a device does with a request that it answers at once.
pub(crate) trait Handler: Send + 'static {
    /// Serves `chain` of queue number `queue`; returns how many bytes were written into it.
    fn handle(&mut self, queue: usize, chain: Chain, memory: &Memory) -> u32;
}

/// The running thread.
pub(crate) struct Worker {
    stop: EventFd,
    thread: JoinHandle<Vec<Ring>>,
}

impl Worker {
    /// Starts a thread of this name that answers requests.
    pub(crate) fn start(name: &str, rings: Vec<Ring>, handler: impl Handler) -> io::Result<Self> {
        Self::run(name, rings, |rings, stop| serve(rings, handler, stop))
    }

    /// Starts a thread of this name for a device that waits for more than its rings. `work` gives the rings back soon
    /// after `stop` is set.
    pub(crate) fn run(
        name: &str,
        rings: Vec<Ring>,
        work: impl FnOnce(Vec<Ring>, &EventFd) -> Vec<Ring> + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || work(rings, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread between two requests; returns the queues.
    pub(crate) fn stop(self) -> Vec<Queue> {
        // The counter of an eventfd does not overflow by one.
        let _ = self.stop.write(1);
        let rings = self.thread.join().unwrap_or_default();
        rings.into_iter().map(Ring::into_queue).collect()
    }
}

fn serve(mut rings: Vec<Ring>, mut handler: impl Handler, stop: &EventFd) -> Vec<Ring> {
    // What the driver made available before the device was active.
    for (index, ring) in rings.iter_mut().enumerate() {
        drain(index, ring, &mut handler);
    }
    loop {
        let events: Vec<_> = rings.iter().map(Ring::kick).chain([stop]).collect();
        let Ok(kicked) = wait(&events) else { break };
        if kicked.contains(&rings.len()) {
            break;
        }
        for index in kicked {
            let _ = rings[index].clear_kick();
            drain(index, &mut rings[index], &mut handler);
        }
    }
    rings
}

/// Serves everything that is in the ring.
fn drain(index: usize, ring: &mut Ring, handler: &mut impl Handler) {
    let memory = ring.memory().clone();
    loop {
        ring.quiet();
        while let Some(chain) = ring.next() {
            let head = chain.head_index();
            let written = handler.handle(index, chain, &memory);
            ring.give_back(head, written);
            ring.notify();
        }
        if !ring.listen() {
            return;
        }
    }
}

/// Waits until one of `events` is set; returns which are.
pub(crate) fn wait(events: &[&EventFd]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> =
        events.iter().map(|event| PollFd::from_borrowed_fd(borrow_eventfd(event), PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect())
}
