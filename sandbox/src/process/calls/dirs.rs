//! Directories and names: getdents64(2), getcwd(2), mkdir(2), unlink(2), rename(2), link(2), symlink(2), readlink(2).

use rustix::io::Errno;

use super::guest::fd;
use super::{Args, Entry, Outcome};
use crate::process::Process;

const CWD: u64 = libc::AT_FDCWD as u64;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_getdents64, getdents64),
    (libc::SYS_getcwd, getcwd),
    (libc::SYS_chdir, chdir),
    (libc::SYS_fchdir, fchdir),
    (libc::SYS_mkdir, |p, [path, mode, ..]| mkdirat(p, [CWD, path, mode, 0, 0, 0])),
    (libc::SYS_mkdirat, mkdirat),
    (libc::SYS_mknod, |p, [path, mode, ..]| mknodat(p, [CWD, path, mode, 0, 0, 0])),
    (libc::SYS_mknodat, mknodat),
    (libc::SYS_rmdir, |p, [path, ..]| unlinkat(p, [CWD, path, libc::AT_REMOVEDIR as u64, 0, 0, 0])),
    (libc::SYS_unlink, |p, [path, ..]| unlinkat(p, [CWD, path, 0, 0, 0, 0])),
    (libc::SYS_unlinkat, unlinkat),
    (libc::SYS_rename, |p, [old, new, ..]| renameat2(p, [CWD, old, CWD, new, 0, 0])),
    (libc::SYS_renameat, |p, [a, old, b, new, ..]| renameat2(p, [a, old, b, new, 0, 0])),
    (libc::SYS_renameat2, renameat2),
    (libc::SYS_link, |p, [old, new, ..]| linkat(p, [CWD, old, CWD, new, 0, 0])),
    (libc::SYS_linkat, linkat),
    (libc::SYS_symlink, |p, [text, path, ..]| symlinkat(p, [text, CWD, path, 0, 0, 0])),
    (libc::SYS_symlinkat, symlinkat),
    (libc::SYS_readlink, |p, [path, into, len, ..]| readlinkat(p, [CWD, path, into, len, 0, 0])),
    (libc::SYS_readlinkat, readlinkat),
];

/// Most bytes of entries that one call hands out; the caller asks again.
const LISTING_BYTES: usize = 1 << 20;
/// `struct linux_dirent64` before the name.
const ENTRY_BYTES: usize = 19;

fn getdents64(process: &mut Process, [n, into, len, ..]: Args) -> Result<Outcome, Errno> {
    let limit = (len as u32 as usize).min(LISTING_BYTES);
    let mut bytes: Vec<u8> = Vec::new();
    let mut refused = false;
    let before = process.files.position_and_size(fd(n))?.0;
    process.files.read_dir(fd(n), |item, next| {
        let size = (ENTRY_BYTES + item.name.len() + 1).next_multiple_of(8);
        if bytes.len() + size > limit {
            refused = true;
            return false;
        }
        let start = bytes.len();
        bytes.extend(item.ino.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes.extend((size as u16).to_le_bytes());
        bytes.push(item.kind);
        bytes.extend(&item.name);
        bytes.resize(start + size, 0);
        true
    })?;
    if bytes.is_empty() && refused {
        return Err(Errno::INVAL);
    }
    if let Err(e) = process.memory.write(into, &bytes) {
        process.files.seek(fd(n), before as i64, libc::SEEK_SET)?;
        return Err(e);
    }
    Ok(Outcome::Value(bytes.len() as u64))
}

fn getcwd(process: &mut Process, [into, len, ..]: Args) -> Result<Outcome, Errno> {
    let mut path = process.files.working_dir()?;
    path.push(0);
    if len < path.len() as u64 {
        return Err(Errno::RANGE);
    }
    process.memory.write(into, &path)?;
    Ok(Outcome::Value(path.len() as u64))
}

fn chdir(process: &mut Process, [path, ..]: Args) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let done = process.files.change_dir(&path);
    process.done(done)
}

fn fchdir(process: &mut Process, [n, ..]: Args) -> Result<Outcome, Errno> {
    let done = process.files.change_dir_open(fd(n));
    process.done(done)
}

fn mkdirat(process: &mut Process, [dirfd, path, mode, ..]: Args) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let done = process.files.make_dir(fd(dirfd), &path, mode as u32);
    process.done(done)
}

fn mknodat(process: &mut Process, [dirfd, path, mode, ..]: Args) -> Result<Outcome, Errno> {
    let path = process.path(path)?;
    let done = process.files.make_node(fd(dirfd), &path, mode as u32);
    process.done(done)
}

fn unlinkat(process: &mut Process, [dirfd, path, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(Errno::INVAL);
    }
    let path = process.path(path)?;
    let done = process.files.remove(fd(dirfd), &path, flags != 0);
    process.done(done)
}

fn renameat2(process: &mut Process, [old_dir, old, new_dir, new, flags, _]: Args) -> Result<Outcome, Errno> {
    let (old, new) = (process.path(old)?, process.path(new)?);
    let done = process.files.rename((fd(old_dir), &old), (fd(new_dir), &new), flags as u32);
    process.done(done)
}

fn linkat(process: &mut Process, [old_dir, old, new_dir, new, flags, _]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let (old, new) = (process.path(old)?, process.path(new)?);
    let follow = flags & libc::AT_SYMLINK_FOLLOW != 0;
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    let done = process.files.link((fd(old_dir), &old), (fd(new_dir), &new), follow, empty);
    process.done(done)
}

fn symlinkat(process: &mut Process, [text, dirfd, path, ..]: Args) -> Result<Outcome, Errno> {
    let (text, path) = (process.path(text)?, process.path(path)?);
    let done = process.files.make_link(&text, fd(dirfd), &path);
    process.done(done)
}

fn readlinkat(process: &mut Process, [dirfd, path, into, len, ..]: Args) -> Result<Outcome, Errno> {
    let len = usize::try_from(len as i32).ok().filter(|len| *len > 0).ok_or(Errno::INVAL)?;
    let path = process.path(path)?;
    let text = process.files.read_link(fd(dirfd), &path)?;
    let text = &text[..text.len().min(len)];
    process.memory.write(into, text)?;
    Ok(Outcome::Value(text.len() as u64))
}
