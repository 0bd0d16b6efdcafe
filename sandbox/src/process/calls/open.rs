//! Opening and closing: open(2), openat2(2), creat(2), close(2), close_range(2).

use rustix::io::Errno;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::Limits;
use crate::process::view::View;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_open, open),
    (libc::SYS_openat, openat),
    (libc::SYS_openat2, openat2),
    (libc::SYS_creat, creat),
    (libc::SYS_close, close),
    (libc::SYS_close_range, close_range),
];

fn open_at(
    process: &mut Process,
    dirfd: i32,
    path: u64,
    flags: u32,
    mode: u32,
    limits: Limits,
) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    process.files.set_threads(process.threads.iter().map(|thread| thread.id).collect());
    let opened = process.files.open(dirfd, &path, flags, mode, limits);
    if let Ok(fd) = opened
        && process.files.unmade(fd).is_some()
    {
        let (memory, threads, stack) = (&process.memory, &process.threads, &process.stack);
        let (uptime, credentials, limits) = (process.uptime(), &process.credentials, &process.limits);
        let generation = &process.generation;
        let view = View { memory, threads, stack, uptime, credentials, limits, generation };
        process.files.make_text(fd, &view);
    }
    process.made(opened)
}

fn open(process: &mut Process, [path, flags, mode, ..]: Args) -> Result<Outcome, Errno> {
    open_at(process, libc::AT_FDCWD, path, flags as u32, mode as u32, Limits::default())
}

fn creat(process: &mut Process, [path, mode, ..]: Args) -> Result<Outcome, Errno> {
    let flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32;
    open_at(process, libc::AT_FDCWD, path, flags, mode as u32, Limits::default())
}

fn openat(process: &mut Process, [dirfd, path, flags, mode, ..]: Args) -> Result<Outcome, Errno> {
    open_at(process, fd(dirfd), path, flags as u32, mode as u32, Limits::default())
}

/// `struct open_how`: flags, mode, resolve; 24 bytes so far.
const HOW_BYTES: u64 = 24;
/// Flags that exist; openat2 refuses others.
const KNOWN_FLAGS: u64 = (libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | 0o100_000
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_CLOEXEC
    | libc::O_PATH
    | libc::O_TMPFILE) as u64;

fn openat2(process: &mut Process, [dirfd, path, how, size, ..]: Args) -> Result<Outcome, Errno> {
    if size < HOW_BYTES {
        return Err(Errno::INVAL);
    }
    if size > 4096 {
        return Err(Errno::TOOBIG);
    }
    let bytes = process.memory.read_vec(how, size as usize)?;
    if bytes[HOW_BYTES as usize..].iter().any(|b| *b != 0) {
        return Err(Errno::TOOBIG);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let (flags, mode, resolve) = (word(0), word(8), word(16));
    let makes = flags & libc::O_CREAT as u64 != 0 || flags & libc::O_TMPFILE as u64 == libc::O_TMPFILE as u64;
    if flags & !KNOWN_FLAGS != 0 || mode & !0o7777 != 0 || (mode != 0 && !makes) {
        return Err(Errno::INVAL);
    }
    open_at(process, fd(dirfd), path, flags as u32, mode as u32, limits(resolve)?)
}

fn limits(resolve: u64) -> Result<Limits, Errno> {
    let has = |bit: u64| resolve & bit != 0;
    let known = libc::RESOLVE_NO_XDEV
        | libc::RESOLVE_NO_MAGICLINKS
        | libc::RESOLVE_NO_SYMLINKS
        | libc::RESOLVE_BENEATH
        | libc::RESOLVE_IN_ROOT
        | libc::RESOLVE_CACHED;
    if resolve & !known != 0 || (has(libc::RESOLVE_BENEATH) && has(libc::RESOLVE_IN_ROOT)) {
        return Err(Errno::INVAL);
    }
    if has(libc::RESOLVE_CACHED) {
        return Err(Errno::AGAIN);
    }
    Ok(Limits {
        no_links: has(libc::RESOLVE_NO_SYMLINKS),
        no_magic: has(libc::RESOLVE_NO_MAGICLINKS),
        no_crossing: has(libc::RESOLVE_NO_XDEV),
        beneath: has(libc::RESOLVE_BENEATH),
        in_root: has(libc::RESOLVE_IN_ROOT),
    })
}

fn close(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    let closed = process.files.close(fd(n));
    process.done(closed)
}

fn close_range(process: &mut Process, [first, last, flags, ..]: Args) -> Result<Outcome, Errno> {
    const CLOEXEC: u32 = libc::CLOSE_RANGE_CLOEXEC;
    let flags = flags as u32;
    if flags & !(CLOEXEC | libc::CLOSE_RANGE_UNSHARE) != 0 {
        return Err(Errno::INVAL);
    }
    let closed = process.files.close_range(first as u32, last as u32, flags & CLOEXEC != 0);
    process.done(closed)
}
