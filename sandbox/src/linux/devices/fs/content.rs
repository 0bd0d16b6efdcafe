//! Messages about contents: open, read, write, readdir, sync, allocate, seek.

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::server::{Answer, Opened, Server};
use crate::linux::devices::p9::wire::{Decoder, Encoder};
use crate::share::{Access, DirEntry, Links, OpenFile};

/// Cookies behind `.` and behind `..`, which the share does not list; host cookies do not reach so far.
const AFTER_DOT: u64 = i64::MAX as u64 - 2;
const AFTER_DOT_DOT: u64 = i64::MAX as u64 - 1;
/// struct fuse_dirent without its name.
const ENTRY_HEADER: usize = 24;

impl Server {
    fn answer_open(&mut self, node: u64, opened: Opened, answer: &mut Encoder) -> Answer {
        answer.u64(self.keep(node, opened)?);
        answer.u64(0);
        Ok(())
    }

    /// Flags have Linux's x86 values.
    pub(super) fn open(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let flags = OFlags::from_bits_truncate(message.u32()?).difference(OFlags::CREATE | OFlags::EXCL);
        let file = self.share.open(self.nodes.path(node)?, Links::Refuse, flags, 0)?;
        self.answer_open(node, Opened::File(file), answer)
    }

    pub(super) fn open_dir(&mut self, node: u64, _: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let dir = self.share.open_dir_at(self.nodes.path(node)?, Links::Refuse)?;
        self.answer_open(node, Opened::Dir(dir), answer)
    }

    pub(super) fn release(&mut self, _: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        self.handles.remove(&message.u64()?).map(drop).ok_or(Errno::BADF)
    }

    fn file(&self, handle: u64) -> Result<&OpenFile, Errno> {
        match &self.handles.get(&handle).ok_or(Errno::BADF)?.opened {
            Opened::File(file) => Ok(file),
            Opened::Dir(_) => Err(Errno::ISDIR),
            Opened::Asleep(_) | Opened::Lost => Err(Errno::STALE),
        }
    }

    pub(super) fn read(&mut self, _: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (handle, offset, size) = (message.u64()?, message.u64()?, message.u32()? as usize);
        let (start, size) = (answer.0.len(), size.min(self.payload()));
        let file = self.file(handle)?;
        answer.0.resize(start + size, 0);
        let got = rustix::io::pread(file.fd(), &mut answer.0[start..], offset)?;
        answer.0.truncate(start + got);
        Ok(())
    }

    pub(super) fn write(&mut self, _: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (handle, offset, size) = (message.u64()?, message.u64()?, message.u32()? as usize);
        // Flags, lock owner, flags of the open, padding.
        message.bytes(20)?;
        let data = message.bytes(size)?;
        answer.u32(rustix::io::pwrite(self.file(handle)?.fd(), data, offset)? as u32);
        answer.u32(0);
        Ok(())
    }

    /// As many whole entries as fit.
    pub(super) fn read_dir(&mut self, _: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (handle, mut cookie, size) = (message.u64()?, message.u64()?, message.u32()? as usize);
        let (start, room) = (answer.0.len(), answer.0.len() + size.min(self.payload()));
        let dir = match self.handles.get_mut(&handle).map(|handle| &mut handle.opened) {
            Some(Opened::Dir(dir)) => dir,
            Some(Opened::Asleep(_) | Opened::Lost) => return Err(Errno::STALE),
            _ => return Err(Errno::BADF),
        };
        for (name, here, next) in [(&b"."[..], 0, AFTER_DOT), (&b".."[..], AFTER_DOT, AFTER_DOT_DOT)] {
            if cookie == here {
                let attr = dir.stat()?;
                let entry =
                    DirEntry { name: name.to_vec(), ino: attr.id.ino, kind: attr.kind(), cookie: next };
                if !put_entry(answer, &entry, room) {
                    return Ok(());
                }
                cookie = next;
            }
        }
        let cookie = if cookie == AFTER_DOT_DOT { 0 } else { cookie };
        let mut too_small = false;
        dir.read(cookie, |entry| {
            let fits = put_entry(answer, &entry, room);
            too_small = !fits && answer.0.len() == start;
            fits
        })?;
        if too_small { Err(Errno::INVAL) } else { Ok(()) }
    }

    pub(super) fn sync(&mut self, _: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        let (handle, data_only) = (message.u64()?, message.u32()? & 1 != 0);
        match &self.handles.get(&handle).ok_or(Errno::BADF)?.opened {
            Opened::File(file) if data_only => rustix::fs::fdatasync(file.fd()),
            Opened::File(file) => rustix::fs::fsync(file.fd()),
            Opened::Dir(dir) => rustix::fs::fsync(dir.fd()),
            Opened::Asleep(_) | Opened::Lost => Err(Errno::STALE),
        }
    }

    pub(super) fn allocate(&mut self, _: u64, message: &mut Decoder<'_>, _: &mut Encoder) -> Answer {
        let (handle, offset, length) = (message.u64()?, message.u64()?, message.u64()?);
        let flags = FallocateFlags::from_bits_retain(message.u32()?);
        if self.share.access() == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        rustix::fs::fallocate(self.file(handle)?.fd(), flags, offset, length)
    }

    /// Only for data and holes: other seeks are the guest's own.
    pub(super) fn seek(&mut self, _: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let (handle, offset, whence) = (message.u64()?, message.u64()?, message.u32()?);
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        answer.u64(rustix::fs::seek(self.file(handle)?.fd(), to)?);
        Ok(())
    }
}

/// False where it does not fit into `room` bytes of answer.
fn put_entry(answer: &mut Encoder, entry: &DirEntry, room: usize) -> bool {
    let length = (ENTRY_HEADER + entry.name.len()).next_multiple_of(8);
    if answer.0.len() + length > room {
        return false;
    }
    let end = answer.0.len() + length;
    answer.u64(entry.ino);
    answer.u64(entry.cookie);
    answer.u32(entry.name.len() as u32);
    // The type as `readdir` has it: the upper bits of the mode.
    answer.u32(entry.kind.as_raw_mode() >> 12);
    answer.0.extend(&entry.name);
    answer.0.resize(end, 0);
    true
}
