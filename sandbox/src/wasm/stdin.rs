//! Standard input of one invocation.
//!
//! A piece of input is handed out by reference, without a copy; a streaming input waits in the caller's channel
//! until the program reads.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::engine::Input;

/// Standard input.
#[derive(Clone)]
pub(super) struct Stdin(Arc<Mutex<Source>>);

struct Source {
    ready: Bytes,
    more: Option<mpsc::Receiver<Bytes>>,
}

impl Source {
    /// Ready when a byte or the end can be read.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ready.is_empty() {
            let Some(more) = &mut self.more else { break };
            match more.poll_recv(cx) {
                Poll::Ready(Some(piece)) => self.ready = piece,
                Poll::Ready(None) => self.more = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    /// Up to `size` bytes; empty at the end.
    fn take(&mut self, size: usize) -> Bytes {
        self.ready.split_to(size.min(self.ready.len()))
    }
}

impl Stdin {
    pub(super) fn new(input: Input) -> Self {
        let source = match input {
            Input::Bytes(ready) => Source { ready, more: None },
            Input::Stream(more) => Source { ready: Bytes::new(), more: Some(more) },
        };
        Self(Arc::new(Mutex::new(source)))
    }
}

impl Stdin {
    /// Ready when a byte or the end can be read.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.lock().poll_fill(cx)
    }

    /// Reads into `count` parts of a program's memory, without waiting; 0 is the end, `None` means wait. `part` says
    /// where the next one lies: what was read before may have changed that.
    pub(super) fn try_read<E>(
        &self,
        memory: &mut [u8],
        count: u32,
        mut part: impl FnMut(&[u8], u32) -> Result<Range<usize>, E>,
    ) -> Result<Option<usize>, E> {
        let mut source = self.0.lock();
        if source.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(None);
        }
        let mut read = 0;
        for i in 0..count {
            let part = part(memory, i)?;
            let piece = source.take(part.len());
            memory[part.start..part.start + piece.len()].copy_from_slice(&piece);
            read += piece.len();
        }
        Ok(Some(read))
    }

    /// The next bytes, `None` at the end.
    pub(super) fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut source = self.0.lock();
        source.poll_fill(cx).map(|()| Some(source.take(usize::MAX)).filter(|piece| !piece.is_empty()))
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty()) // for WASI p3, which is not linked
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        poll_fn(|cx| self.0.lock().poll_fill(cx)).await;
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut source = self.0.lock();
        if source.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(Bytes::new());
        }
        match source.take(size) {
            piece if piece.is_empty() && size > 0 => Err(StreamError::Closed),
            piece => Ok(piece),
        }
    }
}
