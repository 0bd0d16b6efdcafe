//! Messages about names: lookup, create, link, rename, remove.

use rustix::fs::{FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::attr::put_attr;
use super::server::{Answer, Opened, Server};
use crate::linux::devices::p9::join;
use crate::linux::devices::p9::wire::{Decoder, Encoder};
use crate::share::{Attr, Links};

/// The next NUL-terminated string.
pub(super) fn name<'a>(message: &mut Decoder<'a>) -> Result<&'a [u8], Errno> {
    let end = message.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    let text = message.bytes(end)?;
    message.u8()?;
    Ok(text)
}

impl Server {
    /// The path of `name` in the directory `node`.
    fn child(&self, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        join(self.nodes.path(node)?, name)
    }

    /// struct fuse_entry_out of `path`.
    fn put_entry(&mut self, path: Vec<u8>, attr: &Attr, answer: &mut Encoder) -> Result<u64, Errno> {
        let node = self.nodes.look_up(path, attr.id)?;
        let fresh = self.fresh().as_secs();
        // Node, generation, how long the name and the attributes may be believed.
        [node, 0, fresh, fresh].into_iter().for_each(|word| answer.u64(word));
        answer.u32(0);
        answer.u32(0);
        put_attr(answer, attr);
        Ok(node)
    }

    fn answer_entry(&mut self, path: Vec<u8>, answer: &mut Encoder) -> Answer {
        let attr = self.share.stat(&path, Links::Refuse, false)?;
        self.put_entry(path, &attr, answer).map(drop)
    }

    /// As [`Self::answer_entry`], of what was just made.
    fn answer_made(&mut self, path: Vec<u8>, answer: &mut Encoder) -> Answer {
        self.share.give_to(&path, Links::Refuse, self.caller)?;
        self.answer_entry(path, answer)
    }

    pub(super) fn look_up(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let path = self.child(node, name(message)?)?;
        self.answer_entry(path, answer)
    }

    pub(super) fn read_link(&mut self, node: u64, _: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        answer.0.extend(self.share.read_link(self.nodes.path(node)?, Links::Refuse)?);
        Ok(())
    }

    pub(super) fn symlink(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let path = self.child(node, name(message)?)?;
        self.share.symlink(name(message)?, &path, Links::Refuse)?;
        self.answer_made(path, answer)
    }

    /// Regular files; in an upper layer whiteouts, and FIFOs and sockets that are files of the host. No devices.
    pub(super) fn make_node(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (mode, device, _mask, _) = (message.u32()?, message.u32()?, message.u32()?, message.u32()?);
        let path = self.child(node, name(message)?)?;
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                self.share.open(&path, Links::Refuse, flags, mode)?;
            }
            FileType::CharacterDevice if device == 0 => self.share.make_whiteout(&path, Links::Refuse)?,
            kind => self.share.make_special(&path, Links::Refuse, kind, mode)?,
        }
        self.answer_made(path, answer)
    }

    pub(super) fn make_dir(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (mode, _mask) = (message.u32()?, message.u32()?);
        let path = self.child(node, name(message)?)?;
        self.share.make_dir(&path, Links::Refuse, mode)?;
        self.answer_made(path, answer)
    }

    pub(super) fn create(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (flags, mode, _mask, _) = (message.u32()?, message.u32()?, message.u32()?, message.u32()?);
        let path = self.child(node, name(message)?)?;
        let flags = OFlags::from_bits_truncate(flags) | OFlags::CREATE;
        let is_new =
            self.share.is_upper() && self.share.stat(&path, Links::Refuse, false) == Err(Errno::NOENT);
        let file = self.share.open(&path, Links::Refuse, flags, mode)?;
        if is_new {
            self.share.give_to(&path, Links::Refuse, self.caller)?;
        }
        let attr = file.stat()?;
        let node = self.put_entry(path, &attr, answer)?;
        let handle = self.keep(node, Opened::File(file))?;
        answer.u64(handle);
        answer.u64(0);
        Ok(())
    }

    pub(super) fn unlink(&mut self, node: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        self.remove(node, name(message)?, false)
    }

    pub(super) fn remove_dir(&mut self, node: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        self.remove(node, name(message)?, true)
    }

    fn remove(&mut self, node: u64, name: &[u8], directory: bool) -> Answer {
        let path = self.child(node, name)?;
        self.share.remove(&path, Links::Refuse, directory)?;
        self.nodes.lose(&path);
        Ok(())
    }

    pub(super) fn rename(&mut self, node: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        let to = message.u64()?;
        self.move_name(node, to, message, RenameFlags::empty())
    }

    pub(super) fn rename_with(&mut self, node: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        let (to, flags, _) = (message.u64()?, message.u32()?, message.u32()?);
        self.move_name(node, to, message, RenameFlags::from_bits_retain(flags))
    }

    fn move_name(&mut self, from: u64, to: u64, message: &mut Decoder<'_>, flags: RenameFlags) -> Answer {
        let old = self.child(from, name(message)?)?;
        let new = self.child(to, name(message)?)?;
        // Two names of one file: the host then changes nothing.
        let id = |path: &[u8]| self.share.stat(path, Links::Refuse, false).map(|attr| attr.id).ok();
        let same = id(&old).is_some() && id(&old) == id(&new);
        self.share.rename(&old, &new, Links::Refuse, flags)?;
        match flags {
            _ if same => {}
            flags if flags.contains(RenameFlags::EXCHANGE) => self.nodes.exchange(&old, &new),
            _ => self.nodes.rename(&old, &new),
        }
        Ok(())
    }

    pub(super) fn link(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let file = message.u64()?;
        let path = self.child(node, name(message)?)?;
        self.share.link(self.nodes.path(file)?, &path, Links::Refuse)?;
        self.answer_entry(path, answer)
    }
}
