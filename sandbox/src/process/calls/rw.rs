//! Reading and writing: read(2), readv(2), preadv2(2), lseek(2), sendfile(2), copy_file_range(2), splice(2), ftruncate(2),
//! fallocate(2), fsync(2), posix_fadvise(2).

use rustix::io::Errno;

use super::guest::{Guest, fd};
use super::{Args, Entry, Outcome};
use crate::kvm::layout::USER_END;
use crate::process::Process;
use crate::process::files::Stop;
use crate::process::memory::{AddressSpace, Buffer, MAX_TRANSFER};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_read, read),
    (libc::SYS_pread64, pread),
    (libc::SYS_readv, readv),
    (libc::SYS_preadv, preadv),
    (libc::SYS_preadv2, preadv2),
    (libc::SYS_write, write),
    (libc::SYS_pwrite64, pwrite),
    (libc::SYS_writev, writev),
    (libc::SYS_pwritev, pwritev),
    (libc::SYS_pwritev2, pwritev2),
    (libc::SYS_lseek, lseek),
    (libc::SYS_sendfile, sendfile),
    (libc::SYS_copy_file_range, copy_file_range),
    (libc::SYS_truncate, truncate),
    (libc::SYS_ftruncate, ftruncate),
    (libc::SYS_fallocate, fallocate),
    (libc::SYS_fsync, |process, [n, ..]| sync(process, n, false)),
    (libc::SYS_fdatasync, |process, [n, ..]| sync(process, n, true)),
    (libc::SYS_sync, sync_all),
    (libc::SYS_syncfs, syncfs),
    (libc::SYS_sync_file_range, |process, [n, ..]| sync(process, n, true)),
    (libc::SYS_readahead, advise),
    (libc::SYS_fadvise64, fadvise),
    (libc::SYS_splice, splice),
    (libc::SYS_tee, |_, _| Err(Errno::INVAL)),
    (libc::SYS_vmsplice, |_, _| Err(Errno::INVAL)),
];

/// Where a call's buffers are.
enum Buffers {
    One(u64, u64),
    Many(u64, u64),
}

fn checked(memory: &AddressSpace, buffers: &Buffers) -> Result<Vec<Buffer>, Errno> {
    match *buffers {
        Buffers::One(address, len) if address.checked_add(len).is_none_or(|end| end > USER_END) => {
            Err(Errno::FAULT)
        }
        Buffers::One(address, len) => Ok(vec![Buffer { address, len: len.min(MAX_TRANSFER) }]),
        Buffers::Many(address, count) => memory.iovecs(address, count),
    }
}

fn transfer(
    process: &mut Process,
    n: u64,
    buffers: &Buffers,
    at: Option<i64>,
    writes: bool,
) -> Result<Outcome, Errno> {
    // A bad descriptor comes before a bad buffer.
    process.files.status_flags(fd(n))?;
    let mut buffers = checked(&process.memory, buffers)?;
    if writes {
        return process.write_all(fd(n), buffers, true, |files, guest| files.write(fd(n), guest, at));
    }
    process.memory.clip(&mut buffers);
    let mut guest = Guest::new(&process.memory, buffers);
    let done = process.files.read(fd(n), &mut guest, at);
    process.filed(done.map(|n| n as u64))
}

fn read(process: &mut Process, [n, address, len, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::One(address, len), None, false)
}

fn write(process: &mut Process, [n, address, len, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::One(address, len), None, true)
}

fn pread(process: &mut Process, [n, address, len, at, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::One(address, len), Some(at as i64), false)
}

fn pwrite(process: &mut Process, [n, address, len, at, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::One(address, len), Some(at as i64), true)
}

fn readv(process: &mut Process, [n, address, count, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::Many(address, count), None, false)
}

fn writev(process: &mut Process, [n, address, count, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::Many(address, count), None, true)
}

fn preadv(process: &mut Process, [n, address, count, at, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::Many(address, count), Some(at as i64), false)
}

fn pwritev(process: &mut Process, [n, address, count, at, ..]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::Many(address, count), Some(at as i64), true)
}

/// -1 is the file's own position. Of the flags only hints are had.
fn checked_v2(at: u64, flags: u64) -> Result<Option<i64>, Errno> {
    const HINTS: i32 = libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC;
    if flags as i32 & !HINTS != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(Some(at as i64).filter(|at| *at != -1))
}

fn preadv2(process: &mut Process, [n, address, count, at, _, flags]: Args) -> Result<Outcome, Errno> {
    transfer(process, n, &Buffers::Many(address, count), checked_v2(at, flags)?, false)
}

fn pwritev2(process: &mut Process, [n, address, count, at, _, flags]: Args) -> Result<Outcome, Errno> {
    let at = checked_v2(at, flags)?;
    let outcome = transfer(process, n, &Buffers::Many(address, count), at, true)?;
    if flags as i32 & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0 && matches!(outcome, Outcome::Value(_)) {
        sync(process, n, true)?;
    }
    Ok(outcome)
}

fn lseek(process: &mut Process, [n, offset, whence, ..]: Args) -> Result<Outcome, Errno> {
    process.files.seek(fd(n), offset as i64, whence as i32).map(Outcome::Value)
}

/// A position that the program keeps: read, used, and written back moved on.
fn own_position(process: &Process, address: u64) -> Result<Option<i64>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let at: i64 = process.memory.get(address)?;
    if at < 0 { Err(Errno::INVAL) } else { Ok(Some(at)) }
}

fn moved_on(process: &Process, address: u64, at: Option<i64>, done: usize) -> Result<(), Errno> {
    match at {
        Some(at) => process.memory.put(address, &(at + done as i64)),
        None => Ok(()),
    }
}

fn sendfile(process: &mut Process, [to, from, position, count, ..]: Args) -> Result<Outcome, Errno> {
    let at = own_position(process, position)?;
    process.files.check_regular(fd(from))?;
    if process.files.status_flags(fd(to))? & libc::O_APPEND as u32 != 0 {
        return Err(Errno::INVAL);
    }
    copy(process, (fd(from), position, at), (fd(to), 0, None), count)
}

fn copy_file_range(
    process: &mut Process,
    [from, from_at, to, to_at, count, flags]: Args,
) -> Result<Outcome, Errno> {
    if flags != 0 {
        return Err(Errno::INVAL);
    }
    let (a, b) = (own_position(process, from_at)?, own_position(process, to_at)?);
    process.files.check_regular(fd(from))?;
    process.files.check_regular(fd(to))?;
    if process.files.status_flags(fd(to))? & libc::O_APPEND as u32 != 0 {
        return Err(Errno::BADF);
    }
    copy(process, (fd(from), from_at, a), (fd(to), to_at, b), count)
}

/// A pipe at one end at least. The bytes are copied, whatever `SPLICE_F_MOVE` asks for.
fn splice(process: &mut Process, [from, from_at, to, to_at, count, flags]: Args) -> Result<Outcome, Errno> {
    const KNOWN: u32 =
        libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;
    if flags as u32 & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if count == 0 {
        return Ok(Outcome::ZERO);
    }
    let pipes = process.files.check_splice(fd(from), fd(to))?;
    if (pipes.0 && from_at != 0) || (pipes.1 && to_at != 0) {
        return Err(Errno::SPIPE);
    }
    let (a, b) = (own_position(process, from_at)?, own_position(process, to_at)?);
    match copy(process, (fd(from), from_at, a), (fd(to), to_at, b), count)? {
        Outcome::Block(_) if flags as u32 & libc::SPLICE_F_NONBLOCK != 0 => Err(Errno::AGAIN),
        outcome => Ok(outcome),
    }
}

/// Descriptor, where the program keeps the position, and the position.
type Side = (i32, u64, Option<i64>);

fn copy(process: &mut Process, from: Side, to: Side, count: u64) -> Result<Outcome, Errno> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let done = process.files.copy((from.0, from.2), (to.0, to.2), count);
    if let Ok(done) = done {
        moved_on(process, from.1, from.2, done)?;
        moved_on(process, to.1, to.2, done)?;
    }
    if done == Err(Stop::Errno(Errno::PIPE)) {
        process.broken_pipe();
    }
    process.filed(done.map(|n| n as u64))
}

fn truncate(process: &mut Process, [path, size, ..]: Args) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let done = process.files.truncate(&path, size as i64);
    done.map_err(|errno| process.note_file_limit(errno)).ok();
    process.done(done)
}

fn ftruncate(process: &mut Process, [n, size, ..]: Args) -> Result<Outcome, Errno> {
    let done = process.files.truncate_open(fd(n), size as i64);
    done.map_err(|errno| process.note_file_limit(errno)).ok();
    process.done(done)
}

fn fallocate(process: &mut Process, [n, mode, start, length, ..]: Args) -> Result<Outcome, Errno> {
    let done = process.files.allocate(fd(n), mode as i32, start as i64, length as i64);
    done.map_err(|errno| process.note_file_limit(errno)).ok();
    process.done(done)
}

fn sync(process: &mut Process, n: u64, data_only: bool) -> Result<Outcome, Errno> {
    process.files.sync_open(fd(n), data_only)?;
    Ok(Outcome::ZERO)
}

fn sync_all(process: &mut Process, _: Args) -> Result<Outcome, Errno> {
    process.files.sync_all();
    Ok(Outcome::ZERO)
}

fn syncfs(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    process.files.status_flags(fd(n))?;
    process.files.sync_all();
    Ok(Outcome::ZERO)
}

/// Reading ahead is the host's business.
fn advise(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    process.files.check_regular(fd(n))?;
    Ok(Outcome::ZERO)
}

fn fadvise(process: &mut Process, [n, _, _, advice, ..]: Args) -> Result<Outcome, Errno> {
    use crate::process::files::Status;
    match process.files.status(fd(n))? {
        Status::Pipe(_) => Err(Errno::SPIPE),
        _ if advice as i32 > libc::POSIX_FADV_NOREUSE => Err(Errno::INVAL),
        _ => Ok(Outcome::ZERO),
    }
}
