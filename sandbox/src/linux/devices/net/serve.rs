//! The card's thread: frames from the transmit ring to the tap, from the tap into the receive ring.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::Shared;
use crate::linux::sys::borrow_eventfd;
use crate::linux::virtio::ring::Ring;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// struct virtio_net_hdr_v1: all zero but the number of buffers at its end.
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Longest frame: the largest MTU, the Ethernet header and a VLAN tag.
const MOST_FRAME: usize = 65_521 + 18;

/// What the receive ring waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receive {
    /// A frame from the tap.
    Frame,
    /// A buffer from the driver: until then the tap keeps its frames, and drops those that it has no room for.
    Buffer,
    /// Nothing: the tap was taken away.
    Gone,
}

/// Passes frames until `stop`.
pub(super) fn serve(mut rings: Vec<Ring>, card: &Shared, stop: &EventFd) -> Vec<Ring> {
    let tap = &card.tap;
    let mut frame = vec![0; HEADER.len() + MOST_FRAME];
    frame[..HEADER.len()].copy_from_slice(&HEADER);
    let mut state = Receive::Buffer;
    loop {
        transmit(&mut rings[TRANSMIT], card);
        if state != Receive::Gone {
            state = receive(&mut rings[RECEIVE], card, &mut frame);
        }
        let tap = (state == Receive::Frame).then_some(tap);
        if !wait(&rings, tap, stop) {
            return rings;
        }
    }
}

/// From the guest. What the tap does not take is lost, as on a wire.
fn transmit(ring: &mut Ring, card: &Shared) {
    let memory = ring.memory().clone();
    let mut frame = Vec::new();
    loop {
        ring.quiet();
        while let Some(chain) = ring.next() {
            let head = chain.head_index();
            if let Ok(mut reader) = chain.reader(&memory) {
                frame.resize(reader.available_bytes().min(HEADER.len() + MOST_FRAME + 1), 0);
                let whole = reader.read_exact(&mut frame).is_ok();
                if whole
                    && card.link.load(Ordering::SeqCst)
                    && (HEADER.len() + 1..=HEADER.len() + MOST_FRAME).contains(&frame.len())
                {
                    let _ = rustix::io::write(&card.tap, &frame[HEADER.len()..]);
                }
            }
            ring.give_back(head, 0);
        }
        ring.notify();
        if !ring.listen() {
            return;
        }
    }
}

/// To the guest, until the tap has no frame or the driver no buffer. `frame` begins with the header.
fn receive(ring: &mut Ring, card: &Shared, frame: &mut [u8]) -> Receive {
    let memory = ring.memory().clone();
    loop {
        if !card.link.load(Ordering::SeqCst) {
            return drop_frames(&card.tap, frame);
        }
        let Some(chain) = ring.next() else {
            if ring.listen() {
                continue;
            }
            return Receive::Buffer;
        };
        let length = match rustix::io::read(&card.tap, &mut frame[HEADER.len()..]) {
            Ok(count @ 1..) => HEADER.len() + count,
            stopped => {
                ring.put_back();
                ring.quiet();
                return after(stopped);
            }
        };
        let head = chain.head_index();
        // A buffer that is too small loses the frame, and is given back so that the driver sees it.
        let fits = |writer: &virtio_queue::Writer<'_>| writer.available_bytes() >= length;
        let writer = chain.writer(&memory).ok().filter(fits);
        let written = writer.and_then(|mut writer| writer.write_all(&frame[..length]).ok());
        ring.give_back(head, written.map_or(0, |()| length as u32));
        ring.notify();
    }
}

/// Without a link frames go nowhere.
fn drop_frames(tap: &OwnedFd, frame: &mut [u8]) -> Receive {
    loop {
        match rustix::io::read(tap, &mut frame[HEADER.len()..]) {
            Ok(1..) => {}
            stopped => return after(stopped),
        }
    }
}

/// What comes after a read that brought no frame.
fn after(stopped: rustix::io::Result<usize>) -> Receive {
    match stopped {
        Err(Errno::AGAIN | Errno::INTR) => Receive::Frame,
        _ => Receive::Gone,
    }
}

/// Waits for kicks and, where it is given, the tap; false means stop.
fn wait(rings: &[Ring], tap: Option<&OwnedFd>, stop: &EventFd) -> bool {
    let events = [rings[RECEIVE].kick(), rings[TRANSMIT].kick(), stop];
    let mut fds = Vec::with_capacity(4);
    fds.extend(events.map(|event| PollFd::from_borrowed_fd(borrow_eventfd(event), PollFlags::IN)));
    fds.extend(tap.map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)));
    while let Err(error) = poll(&mut fds, None) {
        if error != Errno::INTR {
            return false;
        }
    }
    for (event, fd) in events.iter().zip(&fds).take(2) {
        if !fd.revents().is_empty() {
            // It was readable: this only takes note.
            let _ = event.read();
        }
    }
    fds[2].revents().is_empty()
}
