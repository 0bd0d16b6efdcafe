//! The invocation's standard input, output and log as the program's descriptors 0, 1 and 2.
//!
//! Nothing here waits: where there is no input yet or no room for output, the control's waker is left with the channel,
//! and the thread is woken when that changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{OwnedPermit, Receiver, Sender};

use super::control::Control;
use super::files::{Console, ConsoleRead, ConsoleWrite, Stream};
use super::image::Prologue;
use crate::engine::{Input, LogSink, Output};

/// Largest piece that goes into an output channel.
const PIECE: usize = 64 << 10;

/// What an invocation's output came to.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// Standard output, where it is collected.
    pub(super) bytes: Vec<u8>,
    /// When the first byte came, counted from the start.
    pub(super) first_byte: Option<Duration>,
    /// The program wrote more than may be collected.
    pub(super) over_limit: Option<usize>,
    /// The receiver of a stream went away.
    pub(super) closed: bool,
}

type Reserve = Pin<Box<dyn Future<Output = Result<OwnedPermit<Bytes>, SendError<()>>> + Send>>;

/// A channel that output goes into, a piece at a time and only where it has room.
struct Outlet {
    sender: Sender<Bytes>,
    permit: Option<OwnedPermit<Bytes>>,
    reserve: Option<Reserve>,
}

impl Outlet {
    fn new(sender: Sender<Bytes>) -> Self {
        Self { sender, permit: None, reserve: None }
    }

    /// Room for one piece: `None` where the receiver is gone. Where there is none, `waker` is told when there is.
    fn has_room(&mut self, waker: &Waker) -> Option<bool> {
        if self.permit.is_some() {
            return Some(true);
        }
        let future = self.reserve.get_or_insert_with(|| Box::pin(self.sender.clone().reserve_owned()));
        match future.as_mut().poll(&mut Context::from_waker(waker)) {
            Poll::Pending => Some(false),
            Poll::Ready(result) => {
                self.reserve = None;
                self.permit = result.ok();
                self.permit.as_ref().map(|_| true)
            }
        }
    }

    /// Takes the front of `bytes` into the room that was found.
    fn put(&mut self, bytes: &[u8]) -> ConsoleWrite {
        let piece = &bytes[..bytes.len().min(PIECE)];
        if let Some(permit) = self.permit.take() {
            permit.send(Bytes::copy_from_slice(piece));
        }
        ConsoleWrite::Taken(piece.len())
    }
}

enum Sink {
    Collect { limit_bytes: usize },
    Stream(Outlet),
}

/// Where standard error goes.
enum ErrorSink {
    Log(Arc<dyn LogSink>),
    Stream(Outlet),
}

/// The console of one invocation.
pub(super) struct Stdio {
    pending: Bytes,
    stream: Option<Receiver<Bytes>>,
    sink: Sink,
    error: ErrorSink,
    control: Arc<Control>,
    waker: Waker,
    started: Instant,
    collected: Arc<Mutex<Collected>>,
}

impl Stdio {
    /// For an invocation that begins now.
    pub(super) fn new(input: Input, output: Output, log: Arc<dyn LogSink>, control: Arc<Control>) -> Self {
        Self::with(input, output, ErrorSink::Log(log), control)
    }

    /// For a command whose three streams are channels.
    pub(super) fn of_channels(
        input: Receiver<Bytes>,
        output: Sender<Bytes>,
        error: Sender<Bytes>,
        control: Arc<Control>,
    ) -> Self {
        let error = ErrorSink::Stream(Outlet::new(error));
        Self::with(Input::Stream(input), Output::Stream(output), error, control)
    }

    fn with(input: Input, output: Output, error: ErrorSink, control: Arc<Control>) -> Self {
        let (pending, stream) = match input {
            Input::Bytes(bytes) => (bytes, None),
            Input::Stream(receiver) => (Bytes::new(), Some(receiver)),
        };
        let sink = match output {
            Output::Collect { limit_bytes } => Sink::Collect { limit_bytes },
            Output::Stream(sender) => Sink::Stream(Outlet::new(sender)),
        };
        let waker = Waker::from(control.clone());
        let (started, collected) = (Instant::now(), Arc::default());
        Self { pending, stream, sink, error, control, waker, started, collected }
    }

    /// Says what the program had said before its image was taken.
    pub(super) fn say(&mut self, prologue: &Prologue) {
        if let ErrorSink::Log(log) = &self.error
            && !prologue.log.is_empty()
        {
            log.write(&prologue.log);
        }
        for piece in prologue.output.chunks(PIECE) {
            if self.write_output(piece) == ConsoleWrite::Full
                && let Sink::Stream(outlet) = &mut self.sink
            {
                // Nobody has sent anything yet, so only a channel for less than this has no room; its reader makes some.
                outlet.reserve = None;
                let _ = outlet.sender.blocking_send(Bytes::copy_from_slice(piece));
            }
        }
    }

    /// What the output comes to, while and after the program runs.
    pub(super) fn collected(&self) -> Arc<Mutex<Collected>> {
        self.collected.clone()
    }

    /// Fetches the next piece of input; `false` where there is none yet.
    fn fill(&mut self) -> bool {
        while self.pending.is_empty() {
            let Some(stream) = &mut self.stream else { return true };
            match stream.poll_recv(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(bytes)) => self.pending = bytes,
                Poll::Ready(None) => self.stream = None,
                Poll::Pending => return false,
            }
        }
        true
    }

    /// Room for one piece of output: `None` where the receiver is gone.
    fn has_room(&mut self) -> Option<bool> {
        match &mut self.sink {
            Sink::Stream(outlet) => outlet.has_room(&self.waker),
            Sink::Collect { .. } => Some(true),
        }
    }

    fn write_output(&mut self, bytes: &[u8]) -> ConsoleWrite {
        match self.has_room() {
            None => return self.close(),
            Some(false) => return ConsoleWrite::Full,
            Some(true) => {}
        }
        let mut collected = self.collected.lock();
        if !bytes.is_empty() {
            collected.first_byte.get_or_insert_with(|| self.started.elapsed());
            self.control.set_replied(true);
        }
        match &mut self.sink {
            Sink::Collect { limit_bytes } => {
                if collected.bytes.len() + bytes.len() > *limit_bytes {
                    collected.over_limit = Some(*limit_bytes);
                    self.control.cancel();
                    return ConsoleWrite::Closed;
                }
                collected.bytes.extend_from_slice(bytes);
                ConsoleWrite::Taken(bytes.len())
            }
            Sink::Stream(outlet) => outlet.put(bytes),
        }
    }

    fn write_error(&mut self, bytes: &[u8]) -> ConsoleWrite {
        match &mut self.error {
            ErrorSink::Log(log) => {
                log.write(bytes);
                ConsoleWrite::Taken(bytes.len())
            }
            ErrorSink::Stream(outlet) => match outlet.has_room(&self.waker) {
                None => self.close(),
                Some(false) => ConsoleWrite::Full,
                Some(true) => outlet.put(bytes),
            },
        }
    }

    fn close(&mut self) -> ConsoleWrite {
        self.collected.lock().closed = true;
        self.control.cancel();
        ConsoleWrite::Closed
    }
}

impl Console for Stdio {
    fn read(&mut self, max: usize) -> ConsoleRead {
        if !self.fill() {
            return ConsoleRead::Empty;
        }
        if self.pending.is_empty() {
            return ConsoleRead::End;
        }
        ConsoleRead::Data(self.pending.split_to(max.min(self.pending.remaining())))
    }

    fn pending(&mut self) -> Option<usize> {
        if !self.fill() {
            return Some(0);
        }
        if self.pending.is_empty() { None } else { Some(self.pending.len()) }
    }

    fn is_complete(&mut self) -> bool {
        self.fill() && self.stream.as_ref().is_none_or(|stream| stream.is_closed() && stream.is_empty())
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> ConsoleWrite {
        match stream {
            Stream::Output => self.write_output(bytes),
            Stream::Log | Stream::Input => self.write_error(bytes),
        }
    }

    fn gathers(&self, stream: Stream) -> bool {
        match stream {
            Stream::Output => matches!(self.sink, Sink::Collect { .. }),
            Stream::Log | Stream::Input => matches!(self.error, ErrorSink::Log(_)),
        }
    }

    fn writable(&mut self, stream: Stream) -> bool {
        let room = match (stream, &mut self.error) {
            (Stream::Output, _) => self.has_room(),
            (_, ErrorSink::Stream(outlet)) => outlet.has_room(&self.waker),
            (_, ErrorSink::Log(_)) => Some(true),
        };
        room != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl LogSink for Nowhere {
        fn write(&self, _: &[u8]) {}
    }

    fn stdio(input: Input, output: Output) -> Stdio {
        Stdio::new(input, output, Arc::new(Nowhere), Control::new().unwrap())
    }

    #[test]
    fn input_comes_in_pieces_and_ends_with_its_sender() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut stdio = stdio(Input::Stream(receiver), Output::Collect { limit_bytes: 0 });
        assert_eq!(stdio.read(4), ConsoleRead::Empty);
        sender.try_send(Bytes::from_static(b"abcdef")).unwrap();
        assert_eq!(stdio.read(4), ConsoleRead::Data(Bytes::from_static(b"abcd")));
        assert!(!stdio.is_complete());
        drop(sender);
        assert_eq!((stdio.pending(), stdio.is_complete()), (Some(2), true));
        assert_eq!(stdio.read(4), ConsoleRead::Data(Bytes::from_static(b"ef")));
        assert_eq!((stdio.read(4), stdio.pending()), (ConsoleRead::End, None));
    }

    #[test]
    fn a_full_channel_makes_the_program_wait_and_a_closed_one_ends_it() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let mut stdio = stdio(Input::Bytes(Bytes::new()), Output::Stream(sender));
        assert_eq!(stdio.write(Stream::Output, b"one"), ConsoleWrite::Taken(3));
        assert_eq!(stdio.write(Stream::Output, b"two"), ConsoleWrite::Full);
        assert_eq!(receiver.try_recv().unwrap(), "one");
        assert_eq!(stdio.write(Stream::Output, b"two"), ConsoleWrite::Taken(3));
        drop(receiver);
        assert_eq!(stdio.write(Stream::Output, b"three"), ConsoleWrite::Closed);
        assert!(stdio.control.is_cancelled());
    }

    #[test]
    fn more_output_than_allowed_stops_the_run() {
        let mut stdio = stdio(Input::Bytes(Bytes::new()), Output::Collect { limit_bytes: 4 });
        assert_eq!(stdio.write(Stream::Output, b"1234"), ConsoleWrite::Taken(4));
        assert_eq!(stdio.write(Stream::Output, b"5"), ConsoleWrite::Closed);
        assert_eq!(stdio.collected().lock().over_limit, Some(4));
    }
}
