//! The server's state (fids) and its dispatch: one row for each message.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::wire::{Decoder, Encoder, HEADER};
use crate::linux::devices::files::Locks;
pub(super) use crate::linux::devices::files::Opened;
use crate::share::{Attr, Links, NAME_MAX, Share};

/// Largest message that is agreed on: what Linux's client can put into one request.
pub(super) const MAX_MESSAGE: usize = 512 << 10;
/// Smallest that is agreed on: every fixed-size message fits.
pub(super) const MIN_MESSAGE: usize = 4096;
/// Most fids of one guest: each may hold a descriptor of the host.
pub(super) const MAX_FIDS: usize = 1 << 14;
/// Longest path of a fid, as Linux's PATH_MAX.
const MAX_PATH: usize = 4096;

pub(super) const VERSION: &[u8] = b"9P2000.L";
pub(super) const RLERROR: u8 = 7;
pub(super) const TVERSION: u8 = 100;

/// Handles one kind of message.
pub(super) type Serve = fn(&mut Server, &mut Decoder<'_>, &mut Encoder) -> Result<(), Errno>;

/// Every message that is served, by its type; the reply's type is one more.
pub(super) const MESSAGES: &[(u8, Serve)] = &[
    (8, Server::statfs),
    (12, Server::open),
    (14, Server::create),
    (16, Server::symlink),
    (20, Server::rename),
    (22, Server::read_link),
    (24, Server::get_attr),
    (26, Server::set_attr),
    (40, Server::read_dir),
    (50, Server::sync),
    (52, Server::lock),
    (54, Server::get_lock),
    (70, Server::link),
    (72, Server::make_dir),
    (74, Server::rename_at),
    (76, Server::unlink_at),
    (TVERSION, Server::version),
    (104, Server::attach),
    (108, Server::flush),
    (110, Server::walk),
    (116, Server::read),
    (118, Server::write),
    (120, Server::clunk),
    (122, Server::remove),
];

/// A name that the client holds on to.
pub(super) struct Fid {
    /// In the share, names separated by one slash; empty for its root. No symbolic link is ever followed in it.
    pub(super) path: Vec<u8>,
    pub(super) opened: Option<Opened>,
    /// What of the open file is locked.
    pub(super) locks: Locks,
}

/// One client's view of a share.
pub(super) struct Server {
    pub(super) share: Arc<Share>,
    pub(super) fids: HashMap<u32, Fid>,
    /// Agreed size of messages.
    pub(super) message_size: usize,
    /// Most bytes that the reply being made may have.
    pub(super) room: usize,
}

impl Server {
    pub(super) fn new(share: Arc<Share>) -> Self {
        Self { share, fids: HashMap::new(), message_size: MIN_MESSAGE, room: MIN_MESSAGE }
    }

    /// Serves `request`; the reply has at most `room` bytes, and none where not even an error fits.
    pub(super) fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut decoder = Decoder(request);
        let header = (decoder.u32(), decoder.u8(), decoder.u16());
        let (Ok(_), Ok(kind), Ok(tag)) = header else { return Vec::new() };
        self.room = room.min(self.message_size);
        self.wake(&decoder);
        let mut encoder = Encoder(vec![0; HEADER]);
        let serve = MESSAGES.iter().find(|(number, _)| *number == kind).map(|(_, serve)| *serve);
        let result = serve.map_or(Err(Errno::OPNOTSUPP), |serve| serve(self, &mut decoder, &mut encoder));
        let too_long = encoder.0.len() > self.room.max(HEADER + 4);
        let kind = match (result, too_long) {
            (Ok(()), false) => kind.wrapping_add(1),
            (failed, _) => {
                encoder.0.truncate(HEADER);
                encoder.u32(failed.err().unwrap_or(Errno::MSGSIZE).raw_os_error() as u32);
                RLERROR
            }
        };
        let mut reply = encoder.0;
        if reply.len() > room {
            return Vec::new();
        }
        let size = (reply.len() as u32).to_le_bytes();
        reply[..4].copy_from_slice(&size);
        reply[4] = kind;
        reply[5..HEADER].copy_from_slice(&tag.to_le_bytes());
        reply
    }

    pub(super) fn fid(&self, fid: u32) -> Result<&Fid, Errno> {
        let fid = self.fids.get(&fid).ok_or(Errno::BADF)?;
        if matches!(fid.opened, Some(Opened::Lost)) { Err(Errno::STALE) } else { Ok(fid) }
    }

    pub(super) fn fid_mut(&mut self, fid: u32) -> Result<&mut Fid, Errno> {
        let fid = self.fids.get_mut(&fid).ok_or(Errno::BADF)?;
        if matches!(fid.opened, Some(Opened::Lost)) { Err(Errno::STALE) } else { Ok(fid) }
    }

    pub(super) fn insert(&mut self, number: u32, path: Vec<u8>) -> Result<(), Errno> {
        if self.fids.len() >= MAX_FIDS && !self.fids.contains_key(&number) {
            return Err(Errno::MFILE);
        }
        self.fids.insert(number, Fid { path, opened: None, locks: Locks::default() });
        Ok(())
    }

    /// What `stat` says of a fid: of what is open, which may have no name any more, else of the name.
    pub(super) fn attr_of(&self, fid: &Fid) -> Result<Attr, Errno> {
        match &fid.opened {
            Some(Opened::File(file)) => file.stat(),
            Some(Opened::Dir(dir)) => dir.stat(),
            Some(Opened::Asleep(_) | Opened::Lost) => Err(Errno::STALE),
            None => self.share.stat(&fid.path, Links::Refuse, false),
        }
    }

    fn version(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let size = message.u32()? as usize;
        let version = message.string()?;
        // A new session: what was open is closed.
        self.fids.clear();
        self.message_size = size.clamp(MIN_MESSAGE, MAX_MESSAGE);
        reply.u32(self.message_size as u32);
        reply.string(if version == VERSION { VERSION } else { b"unknown" });
        Ok(())
    }

    fn attach(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let fid = message.u32()?;
        let root = self.share.stat(b"", Links::Refuse, false)?;
        self.insert(fid, Vec::new())?;
        reply.qid_of(&root);
        Ok(())
    }

    /// Requests are served one after the other: whatever shall be flushed is done.
    fn flush(&mut self, _: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        Ok(())
    }

    fn clunk(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        self.fids.remove(&message.u32()?).map(drop).ok_or(Errno::BADF)
    }
}

/// `directory` and `name`, which must be one plain name.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    if name.len() > NAME_MAX || directory.len() + name.len() >= MAX_PATH {
        return Err(Errno::NAMETOOLONG);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Errno::INVAL);
    }
    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    Ok([directory, slash, name].concat())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "state_tests.rs"]
mod state_tests;
