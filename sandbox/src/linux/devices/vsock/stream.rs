//! The host's side: listen, connect, read, write.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vmm_sys_util::eventfd::EventFd;

use super::connection::State;
use super::hub::{Entry, Hub, Key, Port};

/// Lowest address of a guest.
const FIRST_GUEST_CID: u64 = 3;

/// A guest's vsock device as the host's code uses it. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Vsock {
    hub: Arc<Mutex<Hub>>,
    kick: Arc<EventFd>,
}

impl Vsock {
    /// For a guest with address `guest_cid`, at least 3; give it to the machine as a
    /// [`Device::Vsock`](crate::linux::Device::Vsock).
    ///
    /// # Errors
    /// Where the host has no event descriptor left; `InvalidInput` for a reserved address.
    pub fn new(guest_cid: u64) -> io::Result<Self> {
        if guest_cid < FIRST_GUEST_CID || guest_cid >= u64::from(u32::MAX) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { hub: Arc::new(Mutex::new(Hub::new(guest_cid))), kick: super::new_kick()? })
    }

    /// The guest's address.
    #[must_use]
    pub fn guest_cid(&self) -> u64 {
        self.hub.lock().guest_cid()
    }

    /// Accepts streams of the guest to the host's `port`.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there already.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let mut hub = self.hub.lock();
        if hub.ports.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        hub.ports.insert(port, Port::default());
        Ok(Listener { vsock: self.clone(), port })
    }

    /// The streams of the host's `port` that a restored guest has open, as they were when it was saved: bytes on their way
    /// included. To be called between restoring the machine and letting it run; streams that nobody has taken over by
    /// then are reset.
    #[must_use]
    pub fn take_over(&self, port: u32) -> Vec<Stream> {
        let keys = self.hub.lock().claim(port);
        keys.into_iter().map(|key| Stream { vsock: self.clone(), key }).collect()
    }

    /// Opens a stream to the guest's `port`; waits until the guest has answered.
    ///
    /// # Errors
    /// `ConnectionRefused` where nobody listens there.
    pub async fn connect(&self, port: u32) -> io::Result<Stream> {
        let key = self.hub.lock().connect(port).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut stream = Stream { vsock: self.clone(), key };
        self.notify();
        poll_fn(|context| stream.poll_open(context)).await?;
        Ok(stream)
    }

    pub(super) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock()
    }

    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    fn notify(&self) {
        // It only fails where the counter would overflow: then it is set already.
        let _ = self.kick.write(1);
    }
}

/// A port of the host that the guest connects to.
#[derive(Debug)]
pub struct Listener {
    vsock: Vsock,
    port: u32,
}

impl Listener {
    /// The next stream.
    pub async fn accept(&mut self) -> Stream {
        let key = poll_fn(|context| {
            let mut hub = self.vsock.hub();
            let Some(port) = hub.ports.get_mut(&self.port) else { return Poll::Pending };
            match port.waiting.pop_front() {
                Some(key) => Poll::Ready(key),
                None => {
                    port.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        Stream { vsock: self.vsock.clone(), key }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let port = self.vsock.hub().ports.remove(&self.port);
        for key in port.into_iter().flat_map(|port| port.waiting) {
            drop(Stream { vsock: self.vsock.clone(), key });
        }
    }
}

/// A stream between the host and a program in the guest. Dropping it ends it when all that was written has been sent.
#[derive(Debug)]
pub struct Stream {
    vsock: Vsock,
    key: Key,
}

impl Stream {
    /// Works on the stream, then lets the device's thread send what that made due.
    fn with<T>(&self, work: impl FnOnce(&mut Entry) -> T) -> io::Result<T> {
        let mut hub = self.vsock.hub();
        let entry = hub.entries.get_mut(&self.key).ok_or(io::ErrorKind::NotConnected)?;
        let result = work(entry);
        let due = entry.connection.has_packet();
        hub.queue(self.key);
        drop(hub);
        if due {
            self.vsock.notify();
        }
        Ok(result)
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.with(|entry| {
            entry.wakers.write = Some(context.waker().clone());
            entry.connection.state
        })?;
        match state {
            State::Connecting => Poll::Pending,
            State::Open => Poll::Ready(Ok(())),
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.with(|entry| entry.connection.finish(true));
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|entry| {
            let connection = &mut entry.connection;
            if !connection.incoming.is_empty() {
                let (count, _) = connection.read(into.initialize_unfilled());
                into.advance(count);
                return Poll::Ready(Ok(()));
            }
            match (connection.was_reset, connection.ended()) {
                (true, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                (_, true) => Poll::Ready(Ok(())),
                _ => {
                    entry.wakers.read = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })?
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|entry| {
            let connection = &mut entry.connection;
            if connection.state == State::Closed || connection.guest_deaf {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let count = connection.write(bytes);
            if count > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(count));
            }
            entry.wakers.write = Some(context.waker().clone());
            Poll::Pending
        })?
    }

    /// Waits until the guest's driver has everything.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|entry| {
            let connection = &entry.connection;
            if connection.outgoing.is_empty() || connection.state == State::Closed {
                return Poll::Ready(Ok(()));
            }
            entry.wakers.write = Some(context.waker().clone());
            Poll::Pending
        })?
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.with(|entry| entry.connection.finish(false)))
    }
}
