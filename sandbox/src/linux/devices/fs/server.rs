//! The server's state (nodes, open files) and its dispatch: one row for each message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::nodes::Nodes;
pub(super) use crate::linux::devices::files::Opened;
use crate::linux::devices::p9::wire::{Decoder, Encoder};
use crate::share::{Access, Attr, Links, Share};

/// Largest payload of a read or write: 128 pages, which fit the ring with room to spare.
pub(super) const MAX_PAYLOAD: usize = 512 << 10;
/// Largest message: a write with its headers, or two names.
pub(super) const MAX_REQUEST: usize = MAX_PAYLOAD + (16 << 10);
/// Bytes before an answer's own fields: length, error, unique.
const OUT_HEADER: usize = 16;
/// Most open files and directories.
pub(super) const MAX_HANDLES: usize = 1 << 14;

/// The version that is spoken.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// What is agreed on in the first message: asynchronous reads, O_TRUNC in open, large writes, looking for changes of
/// the host by the file's times, parallel lookups, a bound of pages.
const FLAGS: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 18 | 1 << 22;
const MAX_PAGES: u16 = (MAX_PAYLOAD >> 12) as u16;

/// How a message is answered.
pub(super) type Answer = Result<(), Errno>;
/// Handles one kind of message.
pub(super) type Serve = fn(&mut Server, u64, &mut Decoder<'_>, &mut Encoder) -> Answer;

/// Every message that is answered. Others are ENOSYS, which the guest's kernel remembers.
pub(super) const MESSAGES: &[(u32, Serve)] = &[
    (1, Server::look_up),
    (3, Server::get_attr),
    (4, Server::set_attr),
    (5, Server::read_link),
    (6, Server::symlink),
    (8, Server::make_node),
    (9, Server::make_dir),
    (10, Server::unlink),
    (11, Server::remove_dir),
    (12, Server::rename),
    (13, Server::link),
    (14, Server::open),
    (15, Server::read),
    (16, Server::write),
    (17, Server::statfs),
    (18, Server::release),
    (20, Server::sync),
    (21, Server::set_attribute),
    (22, Server::get_attribute),
    (23, Server::list_attributes),
    (24, Server::remove_attribute),
    (26, Server::init),
    (27, Server::open_dir),
    (28, Server::read_dir),
    (29, Server::release),
    (30, Server::sync),
    (35, Server::create),
    (38, Server::destroy),
    (43, Server::allocate),
    (45, Server::rename_with),
    (46, Server::seek),
];
/// Messages without an answer.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;

/// An open file or directory of a node.
pub(super) struct Handle {
    pub(super) node: u64,
    pub(super) opened: Opened,
}

/// One guest's view of a share.
pub(super) struct Server {
    pub(super) share: Arc<Share>,
    pub(super) nodes: Nodes,
    pub(super) handles: HashMap<u64, Handle>,
    pub(super) next_handle: u64,
    /// Most bytes that the answer being made may have.
    pub(super) room: usize,
    /// User and group of who asks.
    pub(super) caller: (u32, u32),
}

impl Server {
    pub(super) fn new(share: Arc<Share>) -> Self {
        Self { share, nodes: Nodes::new(), handles: HashMap::new(), next_handle: 1, room: 0, caller: (0, 0) }
    }

    /// Serves `request`; the answer has at most `room` bytes, and none where none is expected or not even an error fits.
    pub(super) fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut message = Decoder(request);
        let header = (message.u32(), message.u32(), message.u64(), message.u64());
        let (Ok(_), Ok(kind), Ok(unique), Ok(node)) = header else { return Vec::new() };
        // User, group; process and padding.
        let (Ok(uid), Ok(gid), Ok(_)) = (message.u32(), message.u32(), message.u64()) else {
            return Vec::new();
        };
        self.caller = (uid, gid);
        if matches!(kind, FORGET | BATCH_FORGET) {
            // What is cut short is forgotten as far as it goes.
            let _ = self.forget(kind, node, &mut message);
            return Vec::new();
        }
        self.room = room.min(OUT_HEADER + MAX_PAYLOAD);
        self.wake(&message);
        let mut answer = Encoder(vec![0; OUT_HEADER]);
        let serve = MESSAGES.iter().find(|(number, _)| *number == kind).map(|(_, serve)| *serve);
        let result = serve.map_or(Err(Errno::NOSYS), |serve| serve(self, node, &mut message, &mut answer));
        let mut answer = answer.0;
        let result = if answer.len() > self.room.max(OUT_HEADER) { Err(Errno::IO) } else { result };
        if result.is_err() {
            answer.truncate(OUT_HEADER);
        }
        if answer.len() > room {
            return Vec::new();
        }
        let length = (answer.len() as u32).to_le_bytes();
        let error = result.err().map_or(0, |errno| -errno.raw_os_error());
        answer[..4].copy_from_slice(&length);
        answer[4..8].copy_from_slice(&error.to_le_bytes());
        answer[8..OUT_HEADER].copy_from_slice(&unique.to_le_bytes());
        answer
    }

    /// Bytes that an answer's own fields may have.
    pub(super) fn payload(&self) -> usize {
        self.room.saturating_sub(OUT_HEADER)
    }

    fn init(&mut self, _: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (major, minor, read_ahead, flags) =
            (message.u32()?, message.u32()?, message.u32()?, message.u32()?);
        // A new mount: what was open is closed.
        (self.nodes, self.handles) = (Nodes::new(), HashMap::new());
        if major < MAJOR {
            return Err(Errno::PROTO);
        }
        [MAJOR, minor.min(MINOR), read_ahead, flags & FLAGS].into_iter().for_each(|word| answer.u32(word));
        // Background requests, of which so many are congestion.
        answer.u16(64);
        answer.u16(48);
        answer.u32(MAX_PAYLOAD as u32);
        // Times are exact to the nanosecond.
        answer.u32(1);
        answer.u16(MAX_PAGES);
        answer.u16(0);
        (0..8).for_each(|_| answer.u32(0));
        Ok(())
    }

    fn destroy(&mut self, _: u64, _: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        (self.nodes, self.handles) = (Nodes::new(), HashMap::new());
        Ok(())
    }

    fn forget(&mut self, kind: u32, node: u64, message: &mut Decoder<'_>) -> Answer {
        if kind == FORGET {
            self.nodes.forget(node, message.u64()?);
            return Ok(());
        }
        let count = message.u32()?;
        message.u32()?;
        for _ in 0..count {
            let (node, times) = (message.u64()?, message.u64()?);
            self.nodes.forget(node, times);
        }
        Ok(())
    }

    /// Keeps something open; returns its handle.
    pub(super) fn keep(&mut self, node: u64, opened: Opened) -> Result<u64, Errno> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Errno::MFILE);
        }
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, Handle { node, opened });
        Ok(number)
    }

    /// What `stat` says of a node: of its name where that still names it, else of something open.
    pub(super) fn attr_of(&self, number: u64) -> Result<Attr, Errno> {
        let node = self.nodes.get(number)?;
        let named = node.path.as_deref().map(|path| self.share.stat(path, Links::Refuse, false));
        if let Some(Ok(attr)) = named
            && node.id.is_none_or(|id| id == attr.id)
        {
            return Ok(attr);
        }
        let mut open = self.handles.values().filter(|handle| handle.node == number);
        let stat = open.find_map(|handle| match &handle.opened {
            Opened::File(file) => Some(file.stat()),
            Opened::Dir(dir) => Some(dir.stat()),
            Opened::Asleep(_) | Opened::Lost => None,
        });
        stat.unwrap_or(Err(Errno::STALE))
    }

    /// How long the guest may believe what it was told: what the host changes in a writable share shows at once.
    pub(super) fn fresh(&self) -> Duration {
        Duration::from_secs(if self.share.access() == Access::ReadOnly { 1 } else { 0 })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "state_tests.rs"]
mod state_tests;
