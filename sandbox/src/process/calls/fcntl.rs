//! Descriptors: dup(2), fcntl(2), flock(2), ioctl(2).

use rustix::io::Errno;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::Status;
use crate::share::{Lock, LockKind};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_dup, dup),
    (libc::SYS_dup2, dup2),
    (libc::SYS_dup3, dup3),
    (libc::SYS_fcntl, fcntl),
    (libc::SYS_flock, flock),
    (libc::SYS_ioctl, ioctl),
];

fn dup(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    let made = process.files.duplicate(fd(n), 0, false);
    process.made(made)
}

fn dup2(process: &mut Process, [n, to, ..]: Args) -> Result<Outcome, Errno> {
    let made = process.files.duplicate_to(fd(n), fd(to), false, true);
    process.made(made)
}

fn dup3(process: &mut Process, [n, to, flags, ..]: Args) -> Result<Outcome, Errno> {
    if flags as i32 & !libc::O_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    let made = process.files.duplicate_to(fd(n), fd(to), flags != 0, false);
    process.made(made)
}

fn fcntl(process: &mut Process, [n, command, argument, ..]: Args) -> Result<Outcome, Errno> {
    let n = fd(n);
    let command = command as i32;
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let made = process.files.duplicate(n, argument as i32, command == libc::F_DUPFD_CLOEXEC);
            process.made(made)
        }
        libc::F_GETFD => Ok(Outcome::Value(u64::from(process.files.cloexec(n)?))),
        libc::F_SETFD => {
            process.files.set_cloexec(n, argument as i32 & libc::FD_CLOEXEC != 0)?;
            Ok(Outcome::ZERO)
        }
        libc::F_GETFL => Ok(Outcome::Value(u64::from(process.files.status_flags(n)?))),
        libc::F_SETFL => {
            process.files.set_status_flags(n, argument as u32)?;
            Ok(Outcome::ZERO)
        }
        libc::F_GETLK | libc::F_OFD_GETLK => get_lock(process, n, argument),
        libc::F_SETLK | libc::F_OFD_SETLK => set_lock(process, n, argument, false),
        libc::F_SETLKW | libc::F_OFD_SETLKW => set_lock(process, n, argument, true),
        libc::F_GETPIPE_SZ => match process.files.status(n)? {
            Status::Pipe(capacity) => Ok(Outcome::Value(capacity as u64)),
            _ => Err(Errno::BADF),
        },
        libc::F_SETPIPE_SZ => {
            let size = process.files.set_pipe_capacity(n, argument as u32 as usize)?;
            Ok(Outcome::Value(size as u64))
        }
        // Signals for input are not had; asking who gets them is answered.
        libc::F_GETOWN | libc::F_SETOWN | F_GETSIG | F_SETSIG => {
            process.files.status(n)?;
            Ok(Outcome::ZERO)
        }
        libc::F_GETLEASE => {
            process.files.status(n)?;
            Ok(Outcome::Value(libc::F_UNLCK as u64))
        }
        _ => {
            process.files.status_flags(n)?;
            Err(Errno::INVAL)
        }
    }
}

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// `struct flock`: type, whence, start, length, process; 32 bytes.
fn read_lock(process: &Process, n: i32, address: u64) -> Result<Lock, Errno> {
    let raw: [u8; 32] = process.memory.get(address)?;
    let half = |at: usize| i16::from_le_bytes([raw[at], raw[at + 1]]);
    let word = |at: usize| i64::from_le_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
    let kind = match i32::from(half(0)) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Errno::INVAL),
    };
    let base = match i32::from(half(2)) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => process.files.position_and_size(n)?.0,
        libc::SEEK_END => process.files.position_and_size(n)?.1,
        _ => return Err(Errno::INVAL),
    };
    let (mut start, mut length) = (word(8), word(16));
    start = i64::try_from(base).ok().and_then(|base| base.checked_add(start)).ok_or(Errno::OVERFLOW)?;
    if length < 0 {
        start = start.checked_add(length).ok_or(Errno::INVAL)?;
        length = length.checked_neg().ok_or(Errno::INVAL)?;
    }
    if start < 0 {
        return Err(Errno::INVAL);
    }
    Ok(Lock { kind, start, length })
}

fn set_lock(process: &mut Process, n: i32, address: u64, wait: bool) -> Result<Outcome, Errno> {
    process.files.status(n)?;
    let lock = read_lock(process, n, address)?;
    let flags = process.files.status_flags(n)? as i32 & libc::O_ACCMODE;
    match lock.kind {
        LockKind::Read if flags == libc::O_WRONLY => return Err(Errno::BADF),
        LockKind::Write if flags == libc::O_RDONLY => return Err(Errno::BADF),
        _ => {}
    }
    let done = process.files.set_record_lock(n, lock, wait);
    process.filed(done.map(|()| 0))
}

fn get_lock(process: &mut Process, n: i32, address: u64) -> Result<Outcome, Errno> {
    process.files.status(n)?;
    let lock = read_lock(process, n, address)?;
    if lock.kind == LockKind::Unlock {
        return Err(Errno::INVAL);
    }
    let mut raw: [u8; 32] = process.memory.get(address)?;
    match process.files.record_lock(n, lock)? {
        None => raw[..2].copy_from_slice(&(libc::F_UNLCK as i16).to_le_bytes()),
        Some(other) => {
            let kind = if other.kind == LockKind::Read { libc::F_RDLCK } else { libc::F_WRLCK };
            raw[..2].copy_from_slice(&(kind as i16).to_le_bytes());
            raw[2..4].copy_from_slice(&(libc::SEEK_SET as i16).to_le_bytes());
            raw[8..16].copy_from_slice(&other.start.to_le_bytes());
            raw[16..24].copy_from_slice(&other.length.to_le_bytes());
            raw[24..28].copy_from_slice(&(-1_i32).to_le_bytes());
        }
    }
    process.memory.write(address, &raw)?;
    Ok(Outcome::ZERO)
}

fn flock(process: &mut Process, [n, operation, ..]: Args) -> Result<Outcome, Errno> {
    let operation = operation as i32;
    let lock = match operation & !libc::LOCK_NB {
        libc::LOCK_SH => Some(false),
        libc::LOCK_EX => Some(true),
        libc::LOCK_UN => None,
        _ => return Err(Errno::INVAL),
    };
    let done = process.files.flock(fd(n), lock, operation & libc::LOCK_NB != 0);
    process.filed(done.map(|()| 0))
}

/// Only what works on any descriptor; terminals, disks and networks there are none.
fn ioctl(process: &mut Process, [n, request, argument, ..]: Args) -> Result<Outcome, Errno> {
    let n = fd(n);
    process.files.status(n)?;
    match request as u32 as u64 {
        libc::FIOCLEX => process.files.set_cloexec(n, true)?,
        libc::FIONCLEX => process.files.set_cloexec(n, false)?,
        libc::FIONBIO => {
            let on: i32 = process.memory.get(argument)?;
            let flags = process.files.status_flags(n)? & !(libc::O_NONBLOCK as u32);
            let on = if on != 0 { libc::O_NONBLOCK as u32 } else { 0 };
            process.files.set_status_flags(n, flags | on)?;
        }
        libc::FIONREAD => {
            let pending = i32::try_from(process.files.pending(n)?).unwrap_or(i32::MAX);
            process.memory.put(argument, &pending)?;
        }
        _ => return Err(Errno::NOTTY),
    }
    Ok(Outcome::ZERO)
}
