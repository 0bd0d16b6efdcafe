//! Changing attributes: chmod(2), chown(2), utimensat(2), umask(2), and extended attributes, which no file has.

use rustix::io::Errno;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::{End, Place};
use crate::share::{SetTime, Time};

const CWD: u64 = libc::AT_FDCWD as u64;
const NOFOLLOW: i32 = libc::AT_SYMLINK_NOFOLLOW;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_chmod, |p, [path, mode, ..]| chmod_at(p, CWD, path, mode, 0)),
    (libc::SYS_fchmod, fchmod),
    (libc::SYS_fchmodat, |p, [dirfd, path, mode, ..]| chmod_at(p, dirfd, path, mode, 0)),
    (libc::SYS_fchmodat2, |p, [dirfd, path, mode, flags, ..]| chmod_at(p, dirfd, path, mode, flags as i32)),
    (libc::SYS_chown, |p, [path, uid, gid, ..]| chown_at(p, CWD, path, uid, gid, 0)),
    (libc::SYS_lchown, |p, [path, uid, gid, ..]| chown_at(p, CWD, path, uid, gid, NOFOLLOW)),
    (libc::SYS_fchown, fchown),
    (libc::SYS_fchownat, |p, [dirfd, path, uid, gid, flags, _]| {
        chown_at(p, dirfd, path, uid, gid, flags as i32)
    }),
    (libc::SYS_utimensat, utimensat),
    (libc::SYS_utimes, |p, [path, times, ..]| utimes_at(p, CWD, path, times)),
    (libc::SYS_futimesat, |p, [dirfd, path, times, ..]| utimes_at(p, dirfd, path, times)),
    (libc::SYS_utime, utime),
    (libc::SYS_umask, umask),
    (libc::SYS_getxattr, |p, [path, name, ..]| no_attribute(p, path, name, End::Follow)),
    (libc::SYS_lgetxattr, |p, [path, name, ..]| no_attribute(p, path, name, End::Stay)),
    (libc::SYS_fgetxattr, |p, [n, ..]| refuse_open(p, n, Errno::NODATA)),
    (libc::SYS_listxattr, |p, [path, ..]| list_none(p, path, End::Follow)),
    (libc::SYS_llistxattr, |p, [path, ..]| list_none(p, path, End::Stay)),
    (libc::SYS_flistxattr, flistxattr),
    (libc::SYS_setxattr, |p, [path, ..]| refuse_path(p, path, End::Follow, Errno::OPNOTSUPP)),
    (libc::SYS_lsetxattr, |p, [path, ..]| refuse_path(p, path, End::Stay, Errno::OPNOTSUPP)),
    (libc::SYS_fsetxattr, |p, [n, ..]| refuse_open(p, n, Errno::OPNOTSUPP)),
    (libc::SYS_removexattr, |p, [path, ..]| refuse_path(p, path, End::Follow, Errno::OPNOTSUPP)),
    (libc::SYS_lremovexattr, |p, [path, ..]| refuse_path(p, path, End::Stay, Errno::OPNOTSUPP)),
    (libc::SYS_fremovexattr, |p, [n, ..]| refuse_open(p, n, Errno::OPNOTSUPP)),
];

/// The file that a `*at` call with flags names.
fn find(process: &mut Process, dirfd: u64, path: u64, flags: i32) -> Result<Place, Errno> {
    if flags & !(NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let path = process.path(path)?;
    let end = if flags & NOFOLLOW != 0 { End::Stay } else { End::Follow };
    process.files.find(fd(dirfd), &path, end, flags & libc::AT_EMPTY_PATH != 0)
}

/// The open file `n`, which must not be `O_PATH`.
fn open_place(process: &mut Process, n: u64) -> Result<Place, Errno> {
    process.files.status(fd(n))?;
    process.files.find(fd(n), b"", End::Stay, true)
}

fn chmod_at(process: &mut Process, dirfd: u64, path: u64, mode: u64, flags: i32) -> Result<Outcome, Errno> {
    let place = find(process, dirfd, path, flags)?;
    let done = process.files.change_mode(place, mode as u32);
    process.done(done)
}

fn fchmod(process: &mut Process, [n, mode, ..]: Args) -> Result<Outcome, Errno> {
    let place = open_place(process, n)?;
    let done = process.files.change_mode(place, mode as u32);
    process.done(done)
}

/// -1 leaves it.
fn owner(id: u64) -> Option<u32> {
    Some(id as u32).filter(|id| *id != u32::MAX)
}

fn chown_at(
    process: &mut Process,
    dirfd: u64,
    path: u64,
    uid: u64,
    gid: u64,
    flags: i32,
) -> Result<Outcome, Errno> {
    let place = find(process, dirfd, path, flags)?;
    let done = process.files.change_owner(place, owner(uid), owner(gid));
    process.done(done)
}

fn fchown(process: &mut Process, [n, uid, gid, ..]: Args) -> Result<Outcome, Errno> {
    let place = open_place(process, n)?;
    let done = process.files.change_owner(place, owner(uid), owner(gid));
    process.done(done)
}

/// A `struct timespec` or, with `micros`, a `struct timeval`.
fn time(seconds: i64, fraction: i64, micros: bool) -> Result<SetTime, Errno> {
    let (limit, scale) = if micros { (1_000_000, 1000) } else { (1_000_000_000, 1) };
    match fraction {
        libc::UTIME_NOW if !micros => Ok(SetTime::Now),
        libc::UTIME_OMIT if !micros => Ok(SetTime::Omit),
        f if (0..limit).contains(&f) => Ok(SetTime::To(Time { seconds, nanos: (f * scale) as u32 })),
        _ => Err(Errno::INVAL),
    }
}

fn times(process: &Process, address: u64, micros: bool) -> Result<[SetTime; 2], Errno> {
    if address == 0 {
        return Ok([SetTime::Now; 2]);
    }
    let raw: [i64; 4] = process.memory.get(address)?;
    Ok([time(raw[0], raw[1], micros)?, time(raw[2], raw[3], micros)?])
}

fn utimensat(process: &mut Process, [dirfd, path, at, flags, ..]: Args) -> Result<Outcome, Errno> {
    let [atime, mtime] = times(process, at, false)?;
    let place = if path == 0 {
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        open_place(process, dirfd)?
    } else {
        find(process, dirfd, path, flags as i32)?
    };
    let done = process.files.set_times(place, atime, mtime);
    process.done(done)
}

fn utimes_at(process: &mut Process, dirfd: u64, path: u64, at: u64) -> Result<Outcome, Errno> {
    let [atime, mtime] = times(process, at, true)?;
    let place = if path == 0 { open_place(process, dirfd)? } else { find(process, dirfd, path, 0)? };
    let done = process.files.set_times(place, atime, mtime);
    process.done(done)
}

fn utime(process: &mut Process, [path, at, ..]: Args) -> Result<Outcome, Errno> {
    let set = match at {
        0 => [SetTime::Now; 2],
        at => {
            let raw: [i64; 2] = process.memory.get(at)?;
            raw.map(|seconds| SetTime::To(Time { seconds, nanos: 0 }))
        }
    };
    let place = find(process, CWD, path, 0)?;
    let done = process.files.set_times(place, set[0], set[1]);
    process.done(done)
}

fn umask(process: &mut Process, [mask, ..]: Args) -> Result<Outcome, Errno> {
    Ok(Outcome::Value(u64::from(process.files.set_umask(mask as u32))))
}

fn exists(process: &mut Process, path: u64, end: End) -> Result<(), Errno> {
    let path = process.path(path)?;
    process.files.find(libc::AT_FDCWD, &path, end, false).map(drop)
}

fn no_attribute(process: &mut Process, path: u64, name: u64, end: End) -> Result<Outcome, Errno> {
    exists(process, path, end)?;
    let name =
        process.memory.cstr(name, 256).map_err(|e| if e == Errno::NAMETOOLONG { Errno::RANGE } else { e })?;
    // Access control lists are looked for by tools that copy: say that there is no such thing.
    Err(if name.starts_with(b"system.") { Errno::OPNOTSUPP } else { Errno::NODATA })
}

fn list_none(process: &mut Process, path: u64, end: End) -> Result<Outcome, Errno> {
    exists(process, path, end)?;
    Ok(Outcome::ZERO)
}

fn flistxattr(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    process.files.status(fd(n))?;
    Ok(Outcome::ZERO)
}

fn refuse_path(process: &mut Process, path: u64, end: End, e: Errno) -> Result<Outcome, Errno> {
    exists(process, path, end)?;
    Err(e)
}

fn refuse_open(process: &mut Process, n: u64, e: Errno) -> Result<Outcome, Errno> {
    process.files.status(fd(n))?;
    Err(e)
}
