//! Looking at files: stat(2), statx(2), statfs(2), access(2).

use rustix::io::Errno;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::{AccessCheck, End, StatFsView};
use crate::share::{Attr, Time};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_stat, |p, [path, into, ..]| stat_at(p, libc::AT_FDCWD, path, into, End::Follow)),
    (libc::SYS_lstat, |p, [path, into, ..]| stat_at(p, libc::AT_FDCWD, path, into, End::Stay)),
    (libc::SYS_fstat, fstat),
    (libc::SYS_newfstatat, newfstatat),
    (libc::SYS_statx, statx),
    (libc::SYS_statfs, statfs),
    (libc::SYS_fstatfs, fstatfs),
    (libc::SYS_access, |p, [path, mode, ..]| access_at(p, libc::AT_FDCWD, path, mode, 0)),
    (libc::SYS_faccessat, |p, [dirfd, path, mode, ..]| access_at(p, fd(dirfd), path, mode, 0)),
    (libc::SYS_faccessat2, |p, [dirfd, path, mode, flags, ..]| access_at(p, fd(dirfd), path, mode, flags)),
];

/// Little-endian fields, one after the other.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn zeroes(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len() + bytes, 0);
        self
    }

    fn time(self, time: Time) -> Self {
        self.u64(time.seconds as u64).u64(u64::from(time.nanos))
    }

    fn statx_time(self, time: Time) -> Self {
        self.u64(time.seconds as u64).u32(time.nanos).zeroes(4)
    }
}

/// `struct stat` of x86-64: 144 bytes.
pub(in crate::process) fn stat_bytes(attr: &Attr) -> Vec<u8> {
    let fields = Fields::default()
        .u64(attr.id.dev)
        .u64(attr.id.ino)
        .u64(u64::from(attr.nlink))
        .u32(attr.mode)
        .u32(attr.uid)
        .u32(attr.gid)
        .zeroes(4)
        .u64(attr.rdev)
        .u64(attr.size)
        .u64(u64::from(attr.block_size))
        .u64(attr.blocks);
    fields.time(attr.atime).time(attr.mtime).time(attr.ctime).zeroes(24).0
}

/// `struct statx`: 256 bytes.
fn statx_bytes(attr: &Attr) -> Vec<u8> {
    let major = |dev| rustix::fs::major(dev);
    let minor = |dev| rustix::fs::minor(dev);
    let fields = Fields::default()
        .u32(libc::STATX_BASIC_STATS | libc::STATX_BTIME)
        .u32(attr.block_size)
        .u64(0)
        .u32(attr.nlink)
        .u32(attr.uid)
        .u32(attr.gid)
        .u16(attr.mode as u16)
        .zeroes(2)
        .u64(attr.id.ino)
        .u64(attr.size)
        .u64(attr.blocks)
        .u64(0);
    let fields = fields
        .statx_time(attr.atime)
        .statx_time(attr.btime)
        .statx_time(attr.ctime)
        .statx_time(attr.mtime)
        .u32(major(attr.rdev))
        .u32(minor(attr.rdev))
        .u32(major(attr.id.dev))
        .u32(minor(attr.id.dev));
    fields.zeroes(112).0
}

/// `struct statfs` of x86-64: 120 bytes.
fn statfs_bytes(view: &StatFsView) -> Vec<u8> {
    let flags = libc::ST_NOSUID | libc::ST_NODEV | if view.read_only { libc::ST_RDONLY } else { 0 };
    Fields::default()
        .u64(view.magic as u64)
        .u64(view.block_size)
        .u64(view.blocks)
        .u64(view.free)
        .u64(view.free)
        .u64(view.files)
        .u64(view.files_free)
        .u64(view.id)
        .u64(crate::share::NAME_MAX as u64)
        .u64(view.block_size)
        .u64(flags | 0x20)
        .zeroes(32)
        .0
}

fn stat_at(process: &mut Process, dirfd: i32, path: u64, into: u64, end: End) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let attr = process.files.stat(dirfd, &path, end, false)?;
    process.memory.write(into, &stat_bytes(&attr))?;
    Ok(Outcome::ZERO)
}

fn fstat(process: &mut Process, [n, into, ..]: Args) -> Result<Outcome, Errno> {
    let attr = process.files.stat_open(fd(n))?;
    process.memory.write(into, &stat_bytes(&attr))?;
    Ok(Outcome::ZERO)
}

/// The file that a `*at` call with flags names.
fn look(process: &mut Process, dirfd: u64, path: u64, flags: i32) -> Result<Attr, Errno> {
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    // Linux 6.11 takes a null pointer for an empty path.
    let path = if empty && path == 0 { Vec::new() } else { process.path(path)? };
    let end = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { End::Stay } else { End::Follow };
    let found = process.files.stat(fd(dirfd), &path, end, empty);
    process.note_look(&path, found.as_ref().map_err(|errno| *errno));
    found
}

fn newfstatat(process: &mut Process, [dirfd, path, into, flags, ..]: Args) -> Result<Outcome, Errno> {
    const KNOWN: i32 = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    if flags as i32 & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let attr = look(process, dirfd, path, flags as i32)?;
    process.memory.write(into, &stat_bytes(&attr))?;
    Ok(Outcome::ZERO)
}

fn statx(process: &mut Process, [dirfd, path, flags, mask, into, _]: Args) -> Result<Outcome, Errno> {
    const KNOWN: i32 =
        libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH | libc::AT_STATX_SYNC_TYPE;
    let flags = flags as i32;
    if flags & !KNOWN != 0 || flags & libc::AT_STATX_SYNC_TYPE == libc::AT_STATX_SYNC_TYPE {
        return Err(Errno::INVAL);
    }
    if mask as i32 & libc::STATX__RESERVED != 0 {
        return Err(Errno::INVAL);
    }
    let attr = look(process, dirfd, path, flags)?;
    process.memory.write(into, &statx_bytes(&attr))?;
    Ok(Outcome::ZERO)
}

fn statfs(process: &mut Process, [path, into, ..]: Args) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let view = process.files.statfs(&path)?;
    process.memory.write(into, &statfs_bytes(&view))?;
    Ok(Outcome::ZERO)
}

fn fstatfs(process: &mut Process, [n, into, ..]: Args) -> Result<Outcome, Errno> {
    let view = process.files.statfs_open(fd(n))?;
    process.memory.write(into, &statfs_bytes(&view))?;
    Ok(Outcome::ZERO)
}

fn access_at(process: &mut Process, dirfd: i32, path: u64, mode: u64, flags: u64) -> Result<Outcome, Errno> {
    let (mode, flags) = (mode as i32, flags as i32);
    const KNOWN: i32 = libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    if mode & !7 != 0 || flags & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let path = process.path(path)?;
    let end = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { End::Stay } else { End::Follow };
    let check = AccessCheck { write: mode & libc::W_OK != 0, execute: mode & libc::X_OK != 0 };
    process.files.check_access(dirfd, &path, end, flags & libc::AT_EMPTY_PATH != 0, check)?;
    Ok(Outcome::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Identity;

    fn attr() -> Attr {
        let time = |seconds| Time { seconds, nanos: 5 };
        Attr {
            id: Identity { dev: rustix::fs::makedev(3, 7), ino: 11 },
            mode: libc::S_IFREG | 0o640,
            nlink: 2,
            uid: 1,
            gid: 4,
            rdev: 0,
            size: 1234,
            block_size: 4096,
            blocks: 8,
            atime: time(1),
            mtime: time(2),
            ctime: time(3),
            btime: time(4),
        }
    }

    #[test]
    fn the_structures_have_the_sizes_of_the_abi() {
        assert_eq!(stat_bytes(&attr()).len(), size_of::<libc::stat>());
        assert_eq!(statx_bytes(&attr()).len(), size_of::<libc::statx>());
        let view = StatFsView {
            magic: 1,
            block_size: 2,
            blocks: 3,
            free: 4,
            files: 5,
            files_free: 6,
            id: 7,
            read_only: true,
        };
        assert_eq!(statfs_bytes(&view).len(), size_of::<libc::statfs>());
    }

    #[test]
    fn fields_stand_where_the_c_library_looks() {
        let bytes = stat_bytes(&attr());
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let at = std::mem::offset_of!(libc::stat, st_size);
        assert_eq!(word(at), 1234);
        assert_eq!(word(std::mem::offset_of!(libc::stat, st_mtime)), 2);
        let bytes = statx_bytes(&attr());
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(half(std::mem::offset_of!(libc::statx, stx_mode)) as u16, 0o100_640);
        assert_eq!(half(std::mem::offset_of!(libc::statx, stx_dev_minor)), 7);
        assert_eq!(half(std::mem::offset_of!(libc::statx, stx_mtime)), 2);
        assert_eq!(half(std::mem::offset_of!(libc::statx, stx_ctime)), 3);
    }
}
