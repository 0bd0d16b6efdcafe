//! Requests that are messages of bytes, answered by messages of bytes: what 9p and virtio-fs have in common.

use std::io::{Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::linux::memory::Memory;
use crate::linux::virtio::{Chain, Handler};

/// Serves the messages of one protocol.
pub(super) trait Server: Send + 'static {
    /// Bytes of a request that are read; a longer one is cut.
    const MAX_REQUEST: usize;

    /// Serves `request`; the reply has at most `room` bytes, and none where none is expected or not even an error fits.
    fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8>;
}

/// A ring's side of a server. The server is shared with the device, so that what is open outlives a pause.
pub(super) struct Messages<S>(pub(super) Arc<Mutex<S>>);

impl<S: Server> Handler for Messages<S> {
    fn handle(&mut self, _: usize, chain: Chain, memory: &Memory) -> u32 {
        let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
            return 0;
        };
        let mut request = vec![0; reader.available_bytes().min(S::MAX_REQUEST)];
        if reader.read_exact(&mut request).is_err() {
            return 0;
        }
        let reply = self.0.lock().handle(&request, writer.available_bytes());
        writer.write_all(&reply).map_or(0, |()| reply.len() as u32)
    }
}
