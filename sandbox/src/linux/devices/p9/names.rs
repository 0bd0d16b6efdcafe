//! Messages about names: walk, link, rename, remove.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::server::{Opened, Server, join};
use super::wire::{Decoder, Encoder};
use crate::share::Links;

/// Most names in one walk (MAXWELEM).
const MAX_NAMES: u16 = 16;
/// `AT_REMOVEDIR` in Tunlinkat.
const REMOVE_DIR: u32 = 0x200;

impl Server {
    /// Twalk: a new fid, some names further; none of them followed where it is a symbolic link. Where not every name
    /// is there, the reply holds those that are and there is no new fid.
    pub(super) fn walk(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (from, to, count) = (message.u32()?, message.u32()?, message.u16()?);
        if count > MAX_NAMES || (from != to && self.fids.contains_key(&to)) {
            return Err(Errno::INVAL);
        }
        let fid = self.fid(from)?;
        if fid.opened.is_some() && from == to {
            return Err(Errno::BUSY);
        }
        let mut path = fid.path.clone();
        let mut found = Vec::new();
        for _ in 0..count {
            let name = message.string()?;
            let step = self.step(&path, name);
            let (next, attr) = match step {
                Ok(step) => step,
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => break,
            };
            path = next;
            found.push(attr);
        }
        if found.len() == usize::from(count) {
            self.insert(to, path)?;
        }
        reply.u16(found.len() as u16);
        found.iter().for_each(|attr| reply.qid_of(attr));
        Ok(())
    }

    fn step(&self, path: &[u8], name: &[u8]) -> Result<(Vec<u8>, crate::share::Attr), Errno> {
        let next = match name {
            b".." => path.iter().rposition(|byte| *byte == b'/').map_or(Vec::new(), |at| path[..at].to_vec()),
            _ => join(path, name)?,
        };
        let attr = self.share.stat(&next, Links::Refuse, false)?;
        Ok((next, attr))
    }

    /// The path of `name` in the directory of a fid.
    pub(super) fn child(&self, fid: u32, name: &[u8]) -> Result<Vec<u8>, Errno> {
        join(&self.fid(fid)?.path, name)
    }

    pub(super) fn symlink(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (fid, name, text) = (message.u32()?, message.string()?, message.string()?);
        let path = self.child(fid, name)?;
        self.share.symlink(text, &path, Links::Refuse)?;
        self.reply_qid(&path, reply)
    }

    pub(super) fn make_dir(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (fid, name, mode) = (message.u32()?, message.string()?, message.u32()?);
        let path = self.child(fid, name)?;
        self.share.make_dir(&path, Links::Refuse, mode)?;
        self.reply_qid(&path, reply)
    }

    fn reply_qid(&self, path: &[u8], reply: &mut Encoder) -> Result<(), Errno> {
        reply.qid_of(&self.share.stat(path, Links::Refuse, false)?);
        Ok(())
    }

    pub(super) fn read_link(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let fid = self.fid(message.u32()?)?;
        reply.string(&self.share.read_link(&fid.path, Links::Refuse)?);
        Ok(())
    }

    pub(super) fn link(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let (directory, fid, name) = (message.u32()?, message.u32()?, message.string()?);
        let path = self.child(directory, name)?;
        self.share.link(&self.fid(fid)?.path, &path, Links::Refuse)
    }

    /// Trename: a fid to a name in a directory.
    pub(super) fn rename(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let (fid, directory, name) = (message.u32()?, message.u32()?, message.string()?);
        let old = self.fid(fid)?.path.clone();
        self.move_name(&old, &self.child(directory, name)?)
    }

    /// Trenameat: from a name in a directory to a name in a directory.
    pub(super) fn rename_at(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let old = self.child(message.u32()?, message.string()?)?;
        let new = self.child(message.u32()?, message.string()?)?;
        self.move_name(&old, &new)
    }

    /// Fids follow what they name.
    fn move_name(&mut self, old: &[u8], new: &[u8]) -> Result<(), Errno> {
        self.share.rename(old, new, Links::Refuse, RenameFlags::empty())?;
        for fid in self.fids.values_mut() {
            let Some(rest) = fid.path.strip_prefix(old) else { continue };
            if rest.is_empty() || rest[0] == b'/' {
                fid.path = [new, rest].concat();
            }
        }
        Ok(())
    }

    pub(super) fn unlink_at(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let (directory, name, flags) = (message.u32()?, message.string()?, message.u32()?);
        let path = self.child(directory, name)?;
        self.share.remove(&path, Links::Refuse, flags & REMOVE_DIR != 0)
    }

    /// Tremove: removes what the fid names; the fid is gone whether that worked or not.
    pub(super) fn remove(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let fid = self.fids.remove(&message.u32()?).ok_or(Errno::BADF)?;
        if matches!(fid.opened, Some(Opened::Lost)) {
            return Err(Errno::STALE);
        }
        match self.share.remove(&fid.path, Links::Refuse, false) {
            Err(Errno::ISDIR) => self.share.remove(&fid.path, Links::Refuse, true),
            other => other,
        }
    }
}
