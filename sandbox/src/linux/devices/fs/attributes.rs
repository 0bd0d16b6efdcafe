//! Messages about extended attributes: set, get, list, remove. Only an upper layer of an overlay has them
//! ([`Share::open_upper`](crate::share::Share::open_upper)); elsewhere they are ENOSYS, which the guest's kernel
//! remembers, so that it does not ask before every write.

use rustix::io::Errno;

use super::names::name;
use super::server::{Answer, Opened, Server};
use crate::linux::devices::p9::wire::{Decoder, Encoder};
use crate::share::{Attributes, Links};

/// Largest value and list, as Linux has them.
const MOST_BYTES: usize = 64 << 10;

impl Server {
    /// Those of a node: of its name, or of something open where it has none any more.
    fn attributes(&self, number: u64) -> Result<Attributes, Errno> {
        if !self.share.is_upper() {
            return Err(Errno::NOSYS);
        }
        if let Some(path) = self.nodes.get(number)?.path.as_deref() {
            return self.share.attributes(path, Links::Refuse);
        }
        let mut open = self.handles.values().filter(|handle| handle.node == number);
        let found = open.find_map(|handle| match &handle.opened {
            Opened::File(file) => Some(self.share.attributes_of(file.fd())),
            Opened::Dir(dir) => Some(self.share.attributes_of(dir.fd())),
            Opened::Asleep(_) | Opened::Lost => None,
        });
        found.unwrap_or(Err(Errno::STALE))
    }

    pub(super) fn set_attribute(&mut self, node: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        let of = self.attributes(node)?;
        let (size, flags) = (message.u32()? as usize, message.u32()?);
        let name = name(message)?;
        if size > MOST_BYTES {
            return Err(Errno::TOOBIG);
        }
        self.share.set_attribute(&of, name, message.bytes(size)?, flags)
    }

    pub(super) fn get_attribute(
        &mut self,
        node: u64,
        message: &mut Decoder<'_>,
        answer: &mut Encoder,
    ) -> Answer {
        let of = self.attributes(node)?;
        let (size, _) = (message.u32()? as usize, message.u32()?);
        sized(&of.get(name(message)?)?, size, answer)
    }

    pub(super) fn list_attributes(
        &mut self,
        node: u64,
        message: &mut Decoder<'_>,
        answer: &mut Encoder,
    ) -> Answer {
        let of = self.attributes(node)?;
        let (size, _) = (message.u32()? as usize, message.u32()?);
        sized(&of.names()?, size, answer)
    }

    pub(super) fn remove_attribute(
        &mut self,
        node: u64,
        message: &mut Decoder<'_>,
        _: &mut Encoder,
    ) -> Answer {
        let of = self.attributes(node)?;
        self.share.remove_attribute(&of, name(message)?)
    }
}

/// How many bytes there are, where the guest gives room for none, else the bytes.
fn sized(bytes: &[u8], size: usize, answer: &mut Encoder) -> Answer {
    match size {
        0 => {
            answer.u32(bytes.len() as u32);
            answer.u32(0);
        }
        size if bytes.len() > size => return Err(Errno::RANGE),
        _ => answer.0.extend(bytes),
    }
    Ok(())
}
