//! Messages about contents: open, create, read, write, readdir, sync, locks.

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::server::{Opened, Server};
use super::wire::{Decoder, Encoder, HEADER};
use crate::share::{Attr, DirEntry, Links, Lock, LockKind, OpenFile, Share};

/// Rread and Rreaddir: the header and the count.
const DATA_HEADER: usize = HEADER + 4;
/// One entry of Rreaddir without its name: qid, cookie, type, length.
const ENTRY_HEADER: usize = 13 + 8 + 1 + 2;
/// Cookies behind `.` and behind `..`, which the share does not list. Host cookies do not reach so far, and a guest
/// keeps them in a signed number.
const AFTER_DOT: u64 = i64::MAX as u64 - 2;
const AFTER_DOT_DOT: u64 = i64::MAX as u64 - 1;

/// Results of Tlock.
const LOCKED: u8 = 0;
const BLOCKED: u8 = 1;

impl Server {
    /// Tlopen. Its flags have Linux's x86 values.
    pub(super) fn open(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, flags) = (message.u32()?, OFlags::from_bits_truncate(message.u32()?));
        let fid = self.fid(number)?;
        if fid.opened.is_some() {
            return Err(Errno::BUSY);
        }
        let attr = self.share.stat(&fid.path, Links::Refuse, false)?;
        let opened = match attr.kind() {
            FileType::Directory if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => {
                return Err(Errno::ISDIR);
            }
            FileType::Directory => Opened::Dir(self.share.open_dir_at(&fid.path, Links::Refuse)?),
            _ => {
                let flags = flags.difference(OFlags::CREATE | OFlags::EXCL);
                Opened::File(self.share.open(&fid.path, Links::Refuse, flags, 0)?)
            }
        };
        self.fid_mut(number)?.opened = Some(opened);
        reply_opened(reply, &attr);
        Ok(())
    }

    /// Tlcreate: the fid of a directory becomes that of the new, open file.
    pub(super) fn create(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, name) = (message.u32()?, message.string()?);
        let (flags, mode) = (OFlags::from_bits_truncate(message.u32()?), message.u32()?);
        if self.fid(number)?.opened.is_some() {
            return Err(Errno::BUSY);
        }
        let path = self.child(number, name)?;
        let file = self.share.open(&path, Links::Refuse, flags | OFlags::CREATE, mode)?;
        reply_opened(reply, file.attr_at_open());
        let fid = self.fid_mut(number)?;
        fid.path = path;
        fid.opened = Some(Opened::File(file));
        Ok(())
    }

    /// The open file of a fid.
    pub(super) fn file(&self, number: u32) -> Result<&OpenFile, Errno> {
        match &self.fid(number)?.opened {
            Some(Opened::File(file)) => Ok(file),
            Some(Opened::Dir(_)) => Err(Errno::ISDIR),
            Some(Opened::Asleep(_) | Opened::Lost) => Err(Errno::STALE),
            None => Err(Errno::BADF),
        }
    }

    pub(super) fn read(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, offset, count) = (message.u32()?, message.u64()?, message.u32()? as usize);
        let count = count.min(self.room.saturating_sub(DATA_HEADER));
        let file = self.file(number)?;
        reply.0.resize(DATA_HEADER + count, 0);
        let got = rustix::io::pread(file.fd(), &mut reply.0[DATA_HEADER..], offset)?;
        reply.0.truncate(DATA_HEADER + got);
        reply.0[HEADER..DATA_HEADER].copy_from_slice(&(got as u32).to_le_bytes());
        Ok(())
    }

    pub(super) fn write(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, offset, count) = (message.u32()?, message.u64()?, message.u32()? as usize);
        let data = message.bytes(count)?;
        reply.u32(rustix::io::pwrite(self.file(number)?.fd(), data, offset)? as u32);
        Ok(())
    }

    /// Treaddir: as many whole entries as fit.
    pub(super) fn read_dir(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, mut cookie, count) = (message.u32()?, message.u64()?, message.u32()? as usize);
        let room = DATA_HEADER + count.min(self.room.saturating_sub(DATA_HEADER));
        let share = self.share.clone();
        let fid = self.fid_mut(number)?;
        let path = fid.path.clone();
        let Some(Opened::Dir(dir)) = &mut fid.opened else { return Err(Errno::BADF) };
        reply.u32(0);
        for (name, here, next) in [(&b"."[..], 0, AFTER_DOT), (&b".."[..], AFTER_DOT, AFTER_DOT_DOT)] {
            if cookie == here {
                let attr = if name == b"." { dir.stat()? } else { parent_of(&share, &path)? };
                let entry =
                    DirEntry { name: name.to_vec(), ino: attr.id.ino, kind: attr.kind(), cookie: next };
                if !put_entry(reply, &entry, room) {
                    return Err(Errno::INVAL);
                }
                cookie = next;
            }
        }
        let cookie = if cookie == AFTER_DOT_DOT { 0 } else { cookie };
        let mut too_small = false;
        dir.read(cookie, |entry| {
            let fits = put_entry(reply, &entry, room);
            too_small = !fits && reply.0.len() == DATA_HEADER;
            fits
        })?;
        if too_small {
            return Err(Errno::INVAL);
        }
        let length = (reply.0.len() - DATA_HEADER) as u32;
        reply.0[HEADER..DATA_HEADER].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    pub(super) fn sync(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let (number, data_only) = (message.u32()?, message.u32().unwrap_or(0) != 0);
        match &self.fid(number)?.opened {
            Some(Opened::File(file)) if data_only => rustix::fs::fdatasync(file.fd()),
            Some(Opened::File(file)) => rustix::fs::fsync(file.fd()),
            Some(Opened::Dir(dir)) => rustix::fs::fsync(dir.fd()),
            Some(Opened::Asleep(_) | Opened::Lost) => Err(Errno::STALE),
            None => Err(Errno::BADF),
        }
    }

    pub(super) fn lock(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, kind, _flags) = (message.u32()?, message.u8()?, message.u32()?);
        let lock = lock(kind, message.u64()?, message.u64()?)?;
        self.fid(number)?.locks.has_room(lock)?;
        // A client that wants to wait asks again: nobody waits here for another tenant.
        reply.u8(match self.file(number)?.set_lock(lock) {
            Ok(()) => {
                self.fid_mut(number)?.locks.note(lock);
                LOCKED
            }
            Err(Errno::AGAIN) => BLOCKED,
            Err(error) => return Err(error),
        });
        Ok(())
    }

    pub(super) fn get_lock(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let (number, kind, start, length) = (message.u32()?, message.u8()?, message.u64()?, message.u64()?);
        let (process, client) = (message.u32()?, message.string()?);
        let found = self.file(number)?.get_lock(lock(kind, start, length)?)?;
        let (kind, start, length) = found.map_or((UNLOCK, start, length), |found| {
            let kind = if found.kind == LockKind::Read { READ_LOCK } else { WRITE_LOCK };
            (kind, found.start as u64, found.length as u64)
        });
        reply.u8(kind);
        reply.u64(start);
        reply.u64(length);
        reply.u32(process);
        reply.string(client);
        Ok(())
    }
}

/// Kinds of locks on the wire.
const READ_LOCK: u8 = 0;
const WRITE_LOCK: u8 = 1;
const UNLOCK: u8 = 2;

fn lock(kind: u8, start: u64, length: u64) -> Result<Lock, Errno> {
    let kind = match kind {
        READ_LOCK => LockKind::Read,
        WRITE_LOCK => LockKind::Write,
        UNLOCK => LockKind::Unlock,
        _ => return Err(Errno::INVAL),
    };
    let number = |value: u64| i64::try_from(value).map_err(|_| Errno::INVAL);
    Ok(Lock { kind, start: number(start)?, length: number(length)? })
}

/// The qid, and 0: the client may use the whole message.
fn reply_opened(reply: &mut Encoder, attr: &Attr) {
    reply.qid_of(attr);
    reply.u32(0);
}

fn parent_of(share: &Share, path: &[u8]) -> Result<Attr, Errno> {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    share.stat(&path[..end], Links::Refuse, false)
}

/// False where it does not fit into `room` bytes of reply.
fn put_entry(reply: &mut Encoder, entry: &DirEntry, room: usize) -> bool {
    if reply.0.len() + ENTRY_HEADER + entry.name.len() > room {
        return false;
    }
    reply.qid(entry.kind, entry.ino);
    reply.u64(entry.cookie);
    reply.u8(match entry.kind {
        FileType::Directory => libc::DT_DIR,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    });
    reply.string(&entry.name);
    true
}
