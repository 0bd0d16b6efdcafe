//! The WASI preview 1 calls that every program makes, served here.
//!
//! wasmtime-wasi serves all of preview 1, by way of preview 2: a descriptor table, resources, random generators, a
//! buffer and a boxed future per write. For a program that reads standard input and writes standard output that is
//! more than a third of its run (docs/wasm.md has the measurement). So the calls below serve the three standard descriptors,
//! arguments, environment, clocks and random numbers straight from the [`Call`](super::call::Call), and pass everything else on to
//! wasmtime-wasi, whose state is made only then. Once a program closes or renumbers a standard descriptor, every
//! later call goes there.
//!
//! Source: WASI preview 1, `wasi_snapshot_preview1.witx`. A pointer outside the memory is a trap, as it says.

use std::future::poll_fn;
use std::ops::Range;
use std::time::SystemTime;

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as library, WasiSnapshotPreview1 as _};
use wasmtime_wasi::{I32Exit, p1};
use wiggle::GuestMemory;

use super::call::nanoseconds;
use super::preview1::{NAMESPACE, Preview1};
use super::stdout::Offer;
use super::tenant::Tenant;

type Guest<'a> = Caller<'a, Tenant<Preview1>>;

/// `errno`, as far as it is answered here.
mod errno {
    pub(super) const SUCCESS: i32 = 0;
    pub(super) const BADF: i32 = 8;
    pub(super) const INVAL: i32 = 28;
    pub(super) const IO: i32 = 29;
    pub(super) const SPIPE: i32 = 70;
}

/// Most buffers of one read or write, as Linux has it (`IOV_MAX`).
const MAX_VECTORS: u32 = 1024;
/// Most bytes of one read or write: how long a program can hold its thread in one call.
const MAX_TRANSFER: usize = 1 << 20;
/// Most random bytes of one call.
const MAX_RANDOM: u32 = 1 << 20;
/// What wasmtime-wasi may copy for one call.
const LIBRARY_FUEL: usize = 128 << 20;
/// `rights`: fd_read and fd_write.
const RIGHTS: [u64; 3] = [1 << 1, 1 << 6, 1 << 6];

/// Adds the calls over those of wasmtime-wasi.
pub(super) fn add_to_linker(linker: &mut Linker<Tenant<Preview1>>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, |tenant: &mut Tenant<Preview1>| tenant.wasi.library())?;
    linker.allow_shadowing(true);
    linker.func_wrap_async(NAMESPACE, "fd_read", |guest, args| Box::new(fd_read(guest, args)))?;
    linker.func_wrap_async(NAMESPACE, "fd_write", |guest, args| Box::new(fd_write(guest, args)))?;
    linker.func_wrap_async(NAMESPACE, "fd_fdstat_get", |guest, args| Box::new(fd_fdstat_get(guest, args)))?;
    linker.func_wrap_async(NAMESPACE, "fd_seek", |guest, args| Box::new(fd_seek(guest, args)))?;
    linker.func_wrap_async(NAMESPACE, "fd_close", |guest, args| Box::new(fd_close(guest, args)))?;
    linker.func_wrap_async(NAMESPACE, "fd_renumber", |guest, args| Box::new(fd_renumber(guest, args)))?;
    linker.func_wrap(NAMESPACE, "fd_prestat_get", fd_prestat_get)?;
    linker.func_wrap(NAMESPACE, "args_sizes_get", args_sizes_get)?;
    linker.func_wrap(NAMESPACE, "args_get", args_get)?;
    linker.func_wrap(NAMESPACE, "environ_sizes_get", environ_sizes_get)?;
    linker.func_wrap(NAMESPACE, "environ_get", environ_get)?;
    linker.func_wrap(NAMESPACE, "clock_time_get", clock_time_get)?;
    linker.func_wrap(NAMESPACE, "random_get", random_get)?;
    // The library refuses codes above 125, which programs use.
    linker.func_wrap(NAMESPACE, "proc_exit", |code: u32| -> wasmtime::Result<()> {
        Err(I32Exit(code.cast_signed()).into())
    })?;
    Ok(())
}

/// The program's memory and its WASI state.
fn split<'a>(guest: &'a mut Guest<'_>) -> wasmtime::Result<(&'a mut [u8], &'a mut Preview1)> {
    let memory = match guest.data().wasi.memory {
        Some(memory) => memory,
        // The instance is still being made.
        None => guest
            .get_export("memory")
            .and_then(Extern::into_memory)
            .ok_or_else(|| wasmtime::Error::msg("a WASI call needs an exported memory named `memory`"))?,
    };
    let (memory, tenant) = memory.data_and_store_mut(guest);
    Ok((memory, &mut tenant.wasi))
}

/// The program's memory and wasmtime-wasi's state.
fn pass_on<'a>(guest: &'a mut Guest<'_>) -> wasmtime::Result<(GuestMemory<'a>, &'a mut WasiP1Ctx)> {
    let (memory, wasi) = split(guest)?;
    let library = wasi.library();
    library.set_hostcall_fuel(LIBRARY_FUEL);
    Ok((GuestMemory::Unshared(memory), library))
}

fn range(memory: &[u8], at: u32, len: u32) -> wasmtime::Result<Range<usize>> {
    let range = at as usize..at as usize + len as usize;
    if range.end <= memory.len() {
        return Ok(range);
    }
    Err(wasmtime::Error::msg("a WASI call points outside the program's memory"))
}

fn put(memory: &mut [u8], at: u32, bytes: &[u8]) -> wasmtime::Result<()> {
    let range = range(memory, at, bytes.len() as u32)?;
    memory[range].copy_from_slice(bytes);
    Ok(())
}

fn word(memory: &[u8], at: u32) -> wasmtime::Result<u32> {
    let range = range(memory, at, 4)?;
    Ok(memory[range].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
}

/// The buffer at `at` of a read or write (`iovec`).
fn vector(memory: &[u8], at: u32) -> wasmtime::Result<Range<usize>> {
    range(memory, word(memory, at)?, word(memory, at + 4)?)
}

/// The length of all buffers of a read or write, as far as [`MAX_TRANSFER`] goes. The array and every buffer are
/// inside the memory then.
fn vectors(memory: &[u8], at: u32, count: u32) -> wasmtime::Result<usize> {
    range(memory, at, count * 8)?;
    let mut total = 0;
    for i in 0..count {
        total += vector(memory, at + i * 8)?.len();
    }
    Ok(total.min(MAX_TRANSFER))
}

async fn fd_read(
    mut guest: Guest<'_>,
    (fd, iovs, count, out): (u32, u32, u32, u32),
) -> wasmtime::Result<i32> {
    loop {
        let (memory, wasi) = split(&mut guest)?;
        let Some(run) = wasi.serves(fd, 0..1) else { break };
        let Some(run) = run else { return Ok(errno::IO) };
        if count > MAX_VECTORS {
            return Ok(errno::INVAL);
        }
        let mut left = vectors(memory, iovs, count)?;
        let next = |memory: &[u8], i: u32| -> wasmtime::Result<Range<usize>> {
            let mut part = vector(memory, iovs + i * 8)?;
            part.end = part.end.min(part.start + left);
            left -= part.len();
            Ok(part)
        };
        if let Some(read) = run.stdin.try_read(memory, count, next)? {
            put(memory, out, &(read as u32).to_le_bytes())?;
            return Ok(errno::SUCCESS);
        }
        let stdin = run.stdin.clone();
        poll_fn(|cx| stdin.poll_ready(cx)).await;
    }
    let (mut memory, wasi) = pass_on(&mut guest)?;
    let [fd, iovs, count, out] = [fd, iovs, count, out].map(u32::cast_signed);
    library::fd_read(wasi, &mut memory, fd, iovs, count, out).await
}

async fn fd_write(
    mut guest: Guest<'_>,
    (fd, iovs, count, out): (u32, u32, u32, u32),
) -> wasmtime::Result<i32> {
    loop {
        let (memory, wasi) = split(&mut guest)?;
        let Some(run) = wasi.serves(fd, 1..3) else { break };
        let Some(run) = run else { return Ok(errno::IO) };
        if count > MAX_VECTORS {
            return Ok(errno::INVAL);
        }
        let total = vectors(memory, iovs, count)?;
        let mut left = total;
        let pieces = (0..count).filter_map(|i| vector(memory, iovs + i * 8).ok()).map(|mut part| {
            part.end = part.end.min(part.start + left);
            left -= part.len();
            &memory[part]
        });
        let written = match fd {
            1 => run.call.stdout.offer(total, pieces)?,
            _ => Offer::Taken(run.call.stderr.write_all(pieces)),
        };
        if let Offer::Taken(written) = written {
            put(memory, out, &(written as u32).to_le_bytes())?;
            return Ok(errno::SUCCESS);
        }
        let stdout = run.call.stdout.clone();
        stdout.room_or_end().await;
    }
    let (mut memory, wasi) = pass_on(&mut guest)?;
    let [fd, iovs, count, out] = [fd, iovs, count, out].map(u32::cast_signed);
    library::fd_write(wasi, &mut memory, fd, iovs, count, out).await
}

async fn fd_fdstat_get(mut guest: Guest<'_>, (fd, out): (u32, u32)) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    if wasi.serves(fd, 0..3).is_some() {
        // Type unknown, no flags, then what may be done with it and with what it opens.
        let rights = RIGHTS[fd as usize].to_le_bytes();
        let stat: Vec<u8> = [[0; 8], rights, rights].concat();
        return put(memory, out, &stat).map(|()| errno::SUCCESS);
    }
    let (mut memory, wasi) = pass_on(&mut guest)?;
    library::fd_fdstat_get(wasi, &mut memory, fd.cast_signed(), out.cast_signed()).await
}

async fn fd_seek(
    mut guest: Guest<'_>,
    (fd, offset, whence, out): (u32, i64, i32, i32),
) -> wasmtime::Result<i32> {
    let (_, wasi) = split(&mut guest)?;
    if wasi.serves(fd, 0..3).is_some() {
        return Ok(errno::SPIPE);
    }
    let (mut memory, wasi) = pass_on(&mut guest)?;
    library::fd_seek(wasi, &mut memory, fd.cast_signed(), offset, whence, out).await
}

async fn fd_close(mut guest: Guest<'_>, (fd,): (u32,)) -> wasmtime::Result<i32> {
    split(&mut guest)?.1.give_up(fd);
    let (mut memory, wasi) = pass_on(&mut guest)?;
    library::fd_close(wasi, &mut memory, fd.cast_signed()).await
}

async fn fd_renumber(mut guest: Guest<'_>, (fd, to): (u32, u32)) -> wasmtime::Result<i32> {
    split(&mut guest)?.1.give_up(fd.min(to));
    let (mut memory, wasi) = pass_on(&mut guest)?;
    library::fd_renumber(wasi, &mut memory, fd.cast_signed(), to.cast_signed()).await
}

fn fd_prestat_get(mut guest: Guest<'_>, fd: u32, out: u32) -> wasmtime::Result<i32> {
    let (_, wasi) = split(&mut guest)?;
    if wasi.has_no_directories() {
        return Ok(errno::BADF);
    }
    let (mut memory, wasi) = pass_on(&mut guest)?;
    library::fd_prestat_get(wasi, &mut memory, fd.cast_signed(), out.cast_signed())
}

/// Writes how many strings there are and how many bytes they take with their ends.
fn sizes(memory: &mut [u8], strings: &[Vec<u8>], count: u32, bytes: u32) -> wasmtime::Result<i32> {
    let total: usize = strings.iter().map(Vec::len).sum();
    put(memory, count, &(strings.len() as u32).to_le_bytes())?;
    put(memory, bytes, &(total as u32).to_le_bytes())?;
    Ok(errno::SUCCESS)
}

/// Writes the strings one after the other from `buffer` on, and where each begins from `pointers` on.
fn strings(memory: &mut [u8], strings: &[Vec<u8>], pointers: u32, buffer: u32) -> wasmtime::Result<i32> {
    let (mut pointer, mut at) = (pointers, buffer);
    for string in strings {
        put(memory, pointer, &at.to_le_bytes())?;
        put(memory, at, string)?;
        // Neither can wrap: the writes were inside the memory, which is smaller than 4 GiB or ends there.
        pointer = pointer.wrapping_add(4);
        at = at.wrapping_add(string.len() as u32);
    }
    Ok(errno::SUCCESS)
}

fn args_sizes_get(mut guest: Guest<'_>, count: u32, bytes: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    sizes(memory, &wasi.args(), count, bytes)
}

fn args_get(mut guest: Guest<'_>, pointers: u32, buffer: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    strings(memory, &wasi.args(), pointers, buffer)
}

fn environ_sizes_get(mut guest: Guest<'_>, count: u32, bytes: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    sizes(memory, &wasi.env(), count, bytes)
}

fn environ_get(mut guest: Guest<'_>, pointers: u32, buffer: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    strings(memory, &wasi.env(), pointers, buffer)
}

fn clock_time_get(mut guest: Guest<'_>, clock: u32, _precision: u64, out: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    let time = match clock {
        0 => SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        1 => wasi.elapsed(),
        // Processor time clocks, which tell about neighbours.
        2 | 3 => return Ok(errno::BADF),
        _ => return Ok(errno::INVAL),
    };
    put(memory, out, &nanoseconds(time).to_le_bytes())?;
    Ok(errno::SUCCESS)
}

fn random_get(mut guest: Guest<'_>, buffer: u32, len: u32) -> wasmtime::Result<i32> {
    let (memory, wasi) = split(&mut guest)?;
    wasi.touch();
    let range = range(memory, buffer, len)?;
    if len > MAX_RANDOM {
        return Ok(errno::INVAL);
    }
    let mut rest = &mut memory[range];
    while !rest.is_empty() {
        let Ok(filled) = rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) else {
            return Ok(errno::IO);
        };
        rest = &mut rest[filled..];
    }
    Ok(errno::SUCCESS)
}
