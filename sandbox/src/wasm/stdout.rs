//! Standard output and standard error of one invocation.
//!
//! The first piece of collected output is kept as it came, without a copy. Streaming output waits in the program
//! until the caller's channel has room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::engine::{LogSink, Output};

/// Most bytes that one write may carry: what a program can make the host allocate at a time.
const PIECE: usize = 64 << 10;

/// Why the streams ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Halt {
    /// More output than the invocation collects.
    #[error("the output limit of {limit_bytes} bytes was reached")]
    OutputLimit {
        /// The limit.
        limit_bytes: usize,
    },
    /// The output channel is closed.
    #[error("the caller went away")]
    Cancelled,
}

impl Halt {
    fn trap(self) -> StreamError {
        StreamError::Trap(wasmtime::Error::new(self))
    }
}

/// What became of an offer.
pub(super) enum Offer {
    /// So many bytes were written.
    Taken(usize),
    /// There is no room now.
    Wait,
}

/// Standard output.
#[derive(Clone)]
pub(super) struct Stdout(Arc<Mutex<Sink>>);

struct Sink {
    to: To,
    started: Instant,
    first_byte: Option<Duration>,
    halt: Option<Halt>,
}

enum To {
    Collect { first: Bytes, rest: BytesMut, limit: usize },
    Stream { sender: mpsc::Sender<Bytes>, stuck: Option<Bytes> },
}

impl Stdout {
    pub(super) fn new(output: Output, started: Instant) -> Self {
        let to = match output {
            Output::Collect { limit_bytes } => {
                To::Collect { first: Bytes::new(), rest: BytesMut::new(), limit: limit_bytes }
            }
            Output::Stream(sender) => To::Stream { sender, stuck: None },
        };
        Self(Arc::new(Mutex::new(Sink { to, started, first_byte: None, halt: None })))
    }

    /// Waits until the next write goes through or fails.
    pub(super) async fn room_or_end(&self) {
        let sender = match &self.0.lock().to {
            To::Stream { sender, .. } => sender.clone(),
            To::Collect { .. } => return,
        };
        // Room or a closed channel; the write tells which.
        let _ = sender.reserve().await;
    }

    /// Writes pieces of `total` bytes, or as much of them as goes at once, without waiting.
    pub(super) fn offer<'a>(
        &self,
        total: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Offer, Halt> {
        let mut sink = self.0.lock();
        let room = match sink.room() {
            Ok(0) => return Ok(Offer::Wait),
            Ok(room) => room,
            Err(_) => return Err(sink.halt.unwrap_or(Halt::Cancelled)),
        };
        sink.offer(total, room, pieces).map(Offer::Taken)
    }

    /// Writes a piece, waiting for room.
    pub(super) async fn send(&self, piece: Bytes) -> Result<(), Halt> {
        loop {
            self.room_or_end().await;
            let mut sink = self.0.lock();
            match sink.room() {
                Ok(0) => continue,
                Ok(_) => drop(sink.write(piece)),
                Err(_) => {}
            }
            return sink.halt.map_or(Ok(()), Err);
        }
    }

    /// Why the stream ended the run, if it did.
    pub(super) fn halt(&self) -> Option<Halt> {
        self.0.lock().halt
    }

    /// From the start to the first byte.
    pub(super) fn first_byte(&self) -> Option<Duration> {
        self.0.lock().first_byte
    }

    /// What was collected.
    pub(super) fn collected(&self) -> Bytes {
        match &mut self.0.lock().to {
            To::Stream { .. } => Bytes::new(),
            To::Collect { first, rest, .. } if rest.is_empty() => std::mem::take(first),
            To::Collect { rest, .. } => std::mem::take(rest).freeze(),
        }
    }
}

impl Sink {
    fn offer<'a>(
        &mut self,
        total: usize,
        room: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<usize, Halt> {
        if total == 0 {
            return Ok(0);
        }
        if let To::Collect { first, rest, limit } = &mut self.to {
            let held = first.len().max(rest.len());
            let (limit_bytes, fits) = (*limit, total <= limit.saturating_sub(held));
            if fits {
                rest.reserve(if rest.is_empty() { held + total } else { total });
                if rest.is_empty() {
                    rest.extend_from_slice(first);
                }
                pieces.for_each(|piece| rest.extend_from_slice(piece));
            }
            self.first_byte.get_or_insert_with(|| self.started.elapsed());
            return if fits { Ok(total) } else { Err(self.halt(Halt::OutputLimit { limit_bytes })) };
        }
        let mut whole = BytesMut::with_capacity(total.min(room));
        for piece in pieces {
            whole.extend_from_slice(&piece[..piece.len().min(room - whole.len())]);
        }
        let taken = whole.len();
        match self.write(whole.freeze()) {
            Ok(()) => Ok(taken),
            Err(_) => Err(self.halt.unwrap_or(Halt::Cancelled)),
        }
    }

    fn halt(&mut self, halt: Halt) -> Halt {
        *self.halt.insert(halt)
    }

    fn stop(&mut self, halt: Halt) -> StreamError {
        self.halt(halt).trap()
    }

    fn write(&mut self, piece: Bytes) -> StreamResult<()> {
        if piece.is_empty() {
            return Ok(());
        }
        if self.first_byte.is_none() {
            self.first_byte = Some(self.started.elapsed());
        }
        let halt = match &mut self.to {
            To::Collect { first, rest, limit } => collect(first, rest, *limit, piece),
            To::Stream { sender, stuck } => match sender.try_send(piece) {
                Ok(()) => None,
                Err(mpsc::error::TrySendError::Full(piece)) if stuck.is_none() => {
                    *stuck = Some(piece);
                    None
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    return Err(StreamError::trap("a write without room: check-write had answered 0"));
                }
                Err(mpsc::error::TrySendError::Closed(_)) => Some(Halt::Cancelled),
            },
        };
        halt.map_or(Ok(()), |halt| Err(self.stop(halt)))
    }

    /// How many bytes the next write may carry; 0 means wait.
    fn room(&mut self) -> StreamResult<usize> {
        let To::Stream { sender, stuck } = &mut self.to else { return Ok(PIECE) };
        if sender.is_closed() {
            return Err(self.stop(Halt::Cancelled));
        }
        if let Some(piece) = stuck.take()
            && let Err(mpsc::error::TrySendError::Full(piece)) = sender.try_send(piece)
        {
            *stuck = Some(piece);
            return Ok(0);
        }
        Ok(if sender.capacity() > 0 { PIECE } else { 0 })
    }
}

fn collect(first: &mut Bytes, rest: &mut BytesMut, limit: usize, piece: Bytes) -> Option<Halt> {
    if first.len().max(rest.len()) + piece.len() > limit {
        return Some(Halt::OutputLimit { limit_bytes: limit });
    }
    if first.is_empty() && rest.is_empty() {
        *first = piece;
        return None;
    }
    if rest.is_empty() {
        rest.extend_from_slice(first);
    }
    rest.extend_from_slice(&piece);
    None
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink()) // for WASI p3, which is not linked
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stdout {
    async fn ready(&mut self) {
        self.room_or_end().await;
    }
}

impl OutputStream for Stdout {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.0.lock().room()
    }
}

/// Standard error.
#[derive(Clone)]
pub(super) struct Stderr(pub(super) Arc<dyn LogSink>);

impl Stderr {
    /// Writes all of it; the sink bounds what it keeps.
    pub(super) fn write_all<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> usize {
        let mut written = 0;
        for piece in pieces.flat_map(|piece| piece.chunks(PIECE)) {
            self.0.write(piece);
            written += piece.len();
        }
        written
    }
}

impl IsTerminal for Stderr {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stderr {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink()) // for WASI p3, which is not linked
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stderr {
    async fn ready(&mut self) {}
}

impl OutputStream for Stderr {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PIECE)
    }
}
