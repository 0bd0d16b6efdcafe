//! Messages about attributes: getattr, setattr, statfs.

use rustix::io::Errno;

use super::server::{Answer, Opened, Server};
use crate::linux::devices::p9::wire::{Decoder, Encoder};
use crate::share::{Attr, Links, SetTime, Time};

/// What a setattr sets.
mod valid {
    pub(super) const MODE: u32 = 1;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
}

/// struct fuse_attr.
pub(super) fn put_attr(answer: &mut Encoder, attr: &Attr) {
    let times = [attr.atime, attr.mtime, attr.ctime];
    [attr.id.ino, attr.size, attr.blocks].into_iter().for_each(|word| answer.u64(word));
    times.iter().for_each(|time| answer.u64(time.seconds as u64));
    times.iter().for_each(|time| answer.u32(time.nanos));
    let words = [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev as u32, attr.block_size, 0];
    words.into_iter().for_each(|word| answer.u32(word));
}

impl Server {
    pub(super) fn put_attr_out(&self, answer: &mut Encoder, attr: &Attr) {
        answer.u64(self.fresh().as_secs());
        answer.u32(0);
        answer.u32(0);
        put_attr(answer, attr);
    }

    pub(super) fn get_attr(&mut self, node: u64, _: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let attr = self.attr_of(node)?;
        self.put_attr_out(answer, &attr);
        Ok(())
    }

    pub(super) fn set_attr(&mut self, node: u64, message: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let wanted = message.u32()?;
        message.u32()?;
        let (_handle, size, _owner) = (message.u64()?, message.u64()?, message.u64()?);
        let seconds = [message.u64()? as i64, message.u64()? as i64, message.u64()? as i64];
        let nanos = [message.u32()?, message.u32()?, message.u32()?];
        let (mode, _, uid, gid) = (message.u32()?, message.u32()?, message.u32()?, message.u32()?);
        let time = |index: usize, to: u32, now: u32| match wanted {
            bits if bits & now != 0 => Ok(SetTime::Now),
            bits if bits & to == 0 => Ok(SetTime::Omit),
            _ if nanos[index] >= 1_000_000_000 => Err(Errno::INVAL),
            _ => Ok(SetTime::To(Time { seconds: seconds[index], nanos: nanos[index] })),
        };
        let times = (time(0, valid::ATIME, valid::ATIME_NOW)?, time(1, valid::MTIME, valid::MTIME_NOW)?);
        let given = |bit: u32, id: u32| (wanted & bit != 0).then_some(id);
        let owner = (given(valid::UID, uid), given(valid::GID, gid));
        self.change(
            node,
            owner,
            given(valid::MODE, mode),
            (wanted & valid::SIZE != 0).then_some(size),
            times,
        )?;
        let attr = self.attr_of(node)?;
        self.put_attr_out(answer, &attr);
        Ok(())
    }

    /// What is open is changed itself: its name may be gone.
    fn change(
        &self,
        number: u64,
        (uid, gid): (Option<u32>, Option<u32>),
        mode: Option<u32>,
        size: Option<u64>,
        (atime, mtime): (SetTime, SetTime),
    ) -> Answer {
        let node = self.nodes.get(number)?;
        let mut open = self.handles.values().filter(|handle| handle.node == number);
        let open = open.find_map(|handle| match &handle.opened {
            Opened::File(file) => Some(file),
            _ => None,
        });
        let path = node.path.as_deref().ok_or(Errno::STALE);
        let timed = (atime, mtime) != (SetTime::Omit, SetTime::Omit);
        if uid.is_some() || gid.is_some() {
            match open {
                Some(file) => file.chown(uid, gid)?,
                None => self.share.chown(path?, Links::Refuse, false, uid, gid)?,
            }
        }
        if let Some(mode) = mode {
            match open {
                Some(file) => file.chmod(mode)?,
                None => self.share.chmod(path?, Links::Refuse, false, mode)?,
            }
        }
        if let Some(size) = size {
            self.set_size(number, path, size)?;
        }
        match open {
            _ if !timed => Ok(()),
            Some(file) => file.set_times(atime, mtime),
            None => self.share.set_times(path?, Links::Refuse, false, atime, mtime),
        }
    }

    fn set_size(&self, node: u64, path: Result<&[u8], Errno>, size: u64) -> Answer {
        for handle in self.handles.values().filter(|handle| handle.node == node) {
            let Opened::File(file) = &handle.opened else { continue };
            // Those that are open for reading only cannot.
            match rustix::fs::ftruncate(file.fd(), size) {
                Err(Errno::INVAL | Errno::BADF) => {}
                other => return other,
            }
        }
        self.share.truncate(path?, Links::Refuse, size)
    }

    pub(super) fn statfs(&mut self, _: u64, _: &mut Decoder<'_>, answer: &mut Encoder) -> Answer {
        let stat = self.share.statfs()?;
        [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree]
            .into_iter()
            .for_each(|count| answer.u64(count));
        let size = u32::try_from(stat.f_bsize).unwrap_or(4096);
        [size, u32::try_from(stat.f_namelen).unwrap_or(255), size, 0]
            .into_iter()
            .for_each(|word| answer.u32(word));
        (0..6).for_each(|_| answer.u32(0));
        Ok(())
    }
}
