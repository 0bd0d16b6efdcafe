//! Memory: `mmap`, `munmap`, `mprotect`, `mremap`, `madvise`, `brk` and what belongs to them.

use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::{Args, Entry, Outcome};
use crate::kvm::layout::{PAGE, USER_END};
use crate::kvm::sys::Advice;
use crate::process::Process;
use crate::process::memory::{At, FilePart, MappedFile, Move, Prot, Request};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_mmap, mmap),
    (libc::SYS_munmap, munmap),
    (libc::SYS_mprotect, mprotect),
    (libc::SYS_mremap, mremap),
    (libc::SYS_madvise, madvise),
    (libc::SYS_brk, brk),
    (libc::SYS_msync, msync),
    (libc::SYS_mincore, mincore),
    (libc::SYS_mlock, mlock),
    (libc::SYS_mlock2, mlock),
    (libc::SYS_munlock, mlock),
    (libc::SYS_munlockall, nothing),
    (libc::SYS_mlockall, nothing),
    // As on a CPU without protection keys.
    (libc::SYS_pkey_alloc, |_, _| Err(Errno::NOSPC)),
    (libc::SYS_pkey_free, |_, _| Err(Errno::INVAL)),
];

/// Flags that `MAP_SHARED_VALIDATE` knows.
const KNOWN_FLAGS: i32 = libc::MAP_SHARED_VALIDATE
    | libc::MAP_FIXED
    | libc::MAP_FIXED_NOREPLACE
    | libc::MAP_ANONYMOUS
    | libc::MAP_32BIT
    | libc::MAP_GROWSDOWN
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_LOCKED
    | libc::MAP_NORESERVE
    | libc::MAP_POPULATE
    | libc::MAP_NONBLOCK
    | libc::MAP_STACK;

fn mmap(process: &mut Process, [address, len, prot, flags, fd, offset]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    let has = |flag: i32| flags & flag == flag;
    let shared = match flags & libc::MAP_TYPE {
        libc::MAP_SHARED => true,
        libc::MAP_SHARED_VALIDATE if flags & !KNOWN_FLAGS != 0 => return Err(Errno::OPNOTSUPP),
        libc::MAP_SHARED_VALIDATE => true,
        libc::MAP_PRIVATE => false,
        _ => return Err(Errno::INVAL),
    };
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    if len == 0 {
        return Err(Errno::INVAL);
    }
    if has(libc::MAP_HUGETLB) {
        // No such pages are set aside, as on a machine with none.
        return Err(Errno::NOMEM);
    }
    // Linux ignores unknown protection bits here.
    let known = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let prot = Prot::from_bits(prot & known).ok_or(Errno::INVAL)?;
    let file = if has(libc::MAP_ANONYMOUS) {
        if shared { Some(shared_zeroes(process, len)?) } else { None }
    } else {
        let mapped = process.mappable(fd as i32, shared, prot.write)?;
        mapped.map(|file| FilePart { file, offset, shared })
    };
    let data = file.is_none() && prot.write;
    process.limits.allow_mapping(&process.memory, len, data)?;
    let request = Request {
        at: place(address, flags),
        len,
        prot,
        file,
        grows_down: has(libc::MAP_GROWSDOWN),
        stack: flags & (libc::MAP_STACK | libc::MAP_GROWSDOWN) != 0,
        no_reserve: has(libc::MAP_NORESERVE),
        populate: flags & (libc::MAP_POPULATE | libc::MAP_LOCKED) != 0 && !has(libc::MAP_NONBLOCK),
        written: false,
        label: "",
    };
    process.memory.map(request).map(Outcome::Value)
}

fn place(address: u64, flags: i32) -> At {
    if flags & libc::MAP_FIXED_NOREPLACE != 0 {
        At::FixedFree(address)
    } else if flags & libc::MAP_FIXED != 0 {
        At::Fixed(address)
    } else if flags & libc::MAP_32BIT != 0 {
        At::Low
    } else {
        At::Hint(address)
    }
}

/// Memory that `MAP_SHARED | MAP_ANONYMOUS` gives: a file without a name.
fn shared_zeroes(process: &Process, len: u64) -> Result<FilePart, Errno> {
    let len = len.checked_next_multiple_of(PAGE).filter(|&len| len <= USER_END).ok_or(Errno::NOMEM)?;
    let fd = rustix::fs::memfd_create(c"shared", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, len).map_err(|_| Errno::NOMEM)?;
    let file = MappedFile { own: true, ..MappedFile::new(Arc::new(fd), "/dev/zero (deleted)".into()) };
    Ok(FilePart { file: process.memory.count_file(file)?, offset: 0, shared: true })
}

fn munmap(process: &mut Process, [address, len, ..]: Args) -> Result<Outcome, Errno> {
    process.memory.unmap(address, len)?;
    Ok(Outcome::ZERO)
}

fn mprotect(process: &mut Process, [address, len, prot, ..]: Args) -> Result<Outcome, Errno> {
    const GROWS: u64 = (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP) as u64;
    let prot = Prot::from_bits(prot & !GROWS).ok_or(Errno::INVAL)?;
    process.memory.protect(address, len, prot)?;
    Ok(Outcome::ZERO)
}

fn mremap(process: &mut Process, [old, old_len, new_len, flags, to, _]: Args) -> Result<Outcome, Errno> {
    const MAY: u64 = libc::MREMAP_MAYMOVE as u64;
    const FIXED: u64 = libc::MREMAP_FIXED as u64;
    let how = match flags {
        0 => Move::Never,
        MAY => Move::May,
        both if both == MAY | FIXED => Move::To(to),
        _ => return Err(Errno::INVAL),
    };
    process.limits.allow_mapping(&process.memory, new_len.saturating_sub(old_len), false)?;
    process.memory.remap(old, old_len, new_len, how).map(Outcome::Value)
}

fn madvise(process: &mut Process, [address, len, advice, ..]: Args) -> Result<Outcome, Errno> {
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::INVAL)?;
    let end = address.checked_add(len).ok_or(Errno::INVAL)?;
    let advice = match advice as i32 {
        libc::MADV_DONTNEED => Advice::DontNeed,
        libc::MADV_FREE => Advice::Free,
        libc::MADV_REMOVE => Advice::Remove,
        libc::MADV_POPULATE_READ => Advice::PopulateRead,
        libc::MADV_POPULATE_WRITE => Advice::PopulateWrite,
        // About what the host may do when it likes, or what only fork and core dumps would show. The size of pages is chosen when
        // memory is mapped: advice about parts of it would cut the host's mappings, which are counted for all programs together.
        libc::MADV_NORMAL
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_DONTFORK
        | libc::MADV_DOFORK
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_DONTDUMP
        | libc::MADV_DODUMP
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT => return whole(process, address, end),
        _ => return Err(Errno::INVAL),
    };
    if len > 0 {
        process.memory.advise(address, end, advice)?;
    }
    Ok(Outcome::ZERO)
}

fn whole(process: &Process, start: u64, end: u64) -> Result<Outcome, Errno> {
    if start == end || process.memory.vmas().is_whole(start, end) {
        Ok(Outcome::ZERO)
    } else {
        Err(Errno::NOMEM)
    }
}

fn brk(process: &mut Process, [end, ..]: Args) -> Result<Outcome, Errno> {
    let now = process.memory.set_break(0);
    let more = end.saturating_sub(now);
    // brk(2) has no errors: the end that is told is the old one.
    let allowed = more == 0 || process.limits.allow_mapping(&process.memory, more, true).is_ok();
    Ok(Outcome::Value(if allowed { process.memory.set_break(end) } else { now }))
}

fn msync(process: &mut Process, [address, len, flags, ..]: Args) -> Result<Outcome, Errno> {
    const ASYNC: u64 = libc::MS_ASYNC as u64;
    const INVALIDATE: u64 = libc::MS_INVALIDATE as u64;
    const SYNC: u64 = libc::MS_SYNC as u64;
    let unknown = flags & !(ASYNC | INVALIDATE | SYNC) != 0;
    if unknown || flags & (ASYNC | SYNC) == ASYNC | SYNC || !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?;
    let end = address.checked_add(len).ok_or(Errno::NOMEM)?;
    if flags & SYNC != 0 {
        process.memory.sync(address, end)?;
    }
    whole(process, address, end)
}

fn mincore(process: &mut Process, [address, len, into, ..]: Args) -> Result<Outcome, Errno> {
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?;
    let end = address.checked_add(len).ok_or(Errno::NOMEM)?;
    if len == 0 {
        return Ok(Outcome::ZERO);
    }
    whole(process, address, end)?;
    let mut at = address;
    while at < end {
        let piece_end = end.min(at + 4096 * PAGE);
        let pages = process.memory.resident_pages(at, piece_end);
        process.memory.write(into.wrapping_add((at - address) / PAGE), &pages)?;
        at = piece_end;
    }
    Ok(Outcome::ZERO)
}

/// Locking pages only has to look as if it worked: what is swapped out is the host's business.
fn mlock(process: &mut Process, [address, len, ..]: Args) -> Result<Outcome, Errno> {
    let start = address & !(PAGE - 1);
    let end =
        address.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE)).ok_or(Errno::INVAL)?;
    whole(process, start, end)
}

fn nothing(_: &mut Process, _: Args) -> Result<Outcome, Errno> {
    Ok(Outcome::ZERO)
}
