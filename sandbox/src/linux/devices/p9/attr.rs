//! Messages about attributes: getattr, setattr, statfs.

use rustix::io::Errno;

use super::server::{Fid, Opened, Server};
use super::wire::{Decoder, Encoder};
use crate::share::{Links, SetTime, Time};

/// V9FS_MAGIC: the type that Rstatfs tells.
const FILE_SYSTEM: u32 = 0x0102_1997;
/// P9_GETATTR_BASIC: everything that struct stat has.
const BASIC: u64 = 0x7ff;

/// What a Tsetattr sets.
mod valid {
    pub(super) const MODE: u32 = 1;
    pub(super) const UID: u32 = 2;
    pub(super) const GID: u32 = 4;
    pub(super) const SIZE: u32 = 8;
    pub(super) const ATIME: u32 = 0x10;
    pub(super) const MTIME: u32 = 0x20;
    pub(super) const ATIME_SET: u32 = 0x80;
    pub(super) const MTIME_SET: u32 = 0x100;
}

impl Server {
    pub(super) fn get_attr(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        let attr = self.attr_of(self.fid(message.u32()?)?)?;
        reply.u64(BASIC);
        reply.qid_of(&attr);
        [attr.mode, attr.uid, attr.gid].into_iter().for_each(|word| reply.u32(word));
        let sizes = [attr.nlink.into(), attr.rdev, attr.size, attr.block_size.into(), attr.blocks];
        sizes.into_iter().for_each(|word| reply.u64(word));
        for time in [attr.atime, attr.mtime, attr.ctime, attr.btime] {
            reply.u64(time.seconds as u64);
            reply.u64(time.nanos.into());
        }
        // Generation and data version: not kept.
        reply.u64(0);
        reply.u64(0);
        Ok(())
    }

    pub(super) fn set_attr(&mut self, message: &mut Decoder<'_>, _: &mut Encoder) -> Result<(), Errno> {
        let (number, wanted) = (message.u32()?, message.u32()?);
        let (mode, uid, gid, size) = (message.u32()?, message.u32()?, message.u32()?, message.u64()?);
        let mut time = |now: u32, to: u32| -> Result<SetTime, Errno> {
            let (seconds, nanos) = (message.u64()? as i64, message.u64()?);
            let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
            Ok(match wanted & (now | to) {
                0 => SetTime::Omit,
                bits if bits & to == 0 => SetTime::Now,
                _ => SetTime::To(Time { seconds, nanos: nanos.ok_or(Errno::INVAL)? }),
            })
        };
        let atime = time(valid::ATIME, valid::ATIME_SET)?;
        let mtime = time(valid::MTIME, valid::MTIME_SET)?;
        let fid = self.fid(number)?;
        if wanted & (valid::UID | valid::GID) != 0 {
            let given = |bit: u32, id: u32| (wanted & bit != 0).then_some(id);
            self.share.chown(
                &fid.path,
                Links::Refuse,
                false,
                given(valid::UID, uid),
                given(valid::GID, gid),
            )?;
        }
        if wanted & valid::MODE != 0 {
            self.set_mode(fid, mode)?;
        }
        if wanted & valid::SIZE != 0 {
            self.set_size(fid, size)?;
        }
        if (atime, mtime) != (SetTime::Omit, SetTime::Omit) {
            self.set_times(fid, atime, mtime)?;
        }
        Ok(())
    }

    /// What is open is changed itself: its name may be gone.
    fn set_mode(&self, fid: &Fid, mode: u32) -> Result<(), Errno> {
        match &fid.opened {
            Some(Opened::File(file)) => file.chmod(mode),
            _ => self.share.chmod(&fid.path, Links::Refuse, false, mode),
        }
    }

    fn set_times(&self, fid: &Fid, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
        match &fid.opened {
            Some(Opened::File(file)) => file.set_times(atime, mtime),
            _ => self.share.set_times(&fid.path, Links::Refuse, false, atime, mtime),
        }
    }

    fn set_size(&self, fid: &Fid, size: u64) -> Result<(), Errno> {
        if let Some(Opened::File(file)) = &fid.opened {
            // Opened for reading only: then the name decides.
            match rustix::fs::ftruncate(file.fd(), size) {
                Err(Errno::INVAL | Errno::BADF) => {}
                other => return other,
            }
        }
        self.share.truncate(&fid.path, Links::Refuse, size)
    }

    pub(super) fn statfs(&mut self, message: &mut Decoder<'_>, reply: &mut Encoder) -> Result<(), Errno> {
        self.fid(message.u32()?)?;
        let stat = self.share.statfs()?;
        reply.u32(FILE_SYSTEM);
        reply.u32(u32::try_from(stat.f_bsize).unwrap_or(4096));
        [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree]
            .into_iter()
            .for_each(|n| reply.u64(n));
        // The file system's id: there is one.
        reply.u64(0);
        reply.u32(u32::try_from(stat.f_namelen).unwrap_or(255));
        Ok(())
    }
}
