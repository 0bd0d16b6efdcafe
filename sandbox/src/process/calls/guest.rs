//! The program's memory as the source and sink of file operations, and small helpers that the file calls share.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::Outcome;
use crate::kvm::sys::{read_into, write_from};
use crate::process::Process;
use crate::process::files::{Files, Need, PATH_MAX, Sink, Source, Stop};
use crate::process::memory::{Access, AddressSpace, Buffer, MAX_TRANSFER};
use crate::process::wait::Wait;

/// Buffers of the program, used from the front.
pub(super) struct Guest<'a> {
    memory: &'a AddressSpace,
    buffers: Vec<Buffer>,
    /// The buffer in use and the bytes of it that are done.
    index: usize,
    offset: u64,
    left: usize,
}

impl<'a> Guest<'a> {
    /// Several buffers.
    pub(super) fn new(memory: &'a AddressSpace, buffers: Vec<Buffer>) -> Self {
        let left = buffers.iter().map(|buffer| buffer.len as usize).sum();
        Self { memory, buffers, index: 0, offset: 0, left }
    }

    /// One buffer of at most `MAX_RW_COUNT` bytes.
    pub(super) fn one(memory: &'a AddressSpace, address: u64, len: u64) -> Self {
        Self::new(memory, vec![Buffer { address, len: len.min(MAX_TRANSFER) }])
    }

    /// Moves up to `most` bytes by `copy(memory, guest address, done, piece)`, buffer by buffer, as far as `access`
    /// reaches.
    fn each(
        &mut self,
        most: usize,
        access: Access,
        mut copy: impl FnMut(&AddressSpace, u64, usize, usize) -> Result<(), Errno>,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        while done < most && self.index < self.buffers.len() {
            let buffer = self.buffers[self.index];
            let left = buffer.len - self.offset;
            if left == 0 {
                self.index += 1;
                self.offset = 0;
                continue;
            }
            let address = buffer.address.wrapping_add(self.offset);
            let wanted = left.min((most - done) as u64);
            let reach = self.memory.reachable(address, wanted, access);
            let copied =
                if reach == 0 { Err(Errno::FAULT) } else { copy(self.memory, address, done, reach as usize) };
            match copied {
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
                Ok(()) => {}
            }
            self.offset += reach;
            self.left -= reach as usize;
            done += reach as usize;
            if reach < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// The buffers that are left, the first one's done part cut off.
    fn rest(&self, most: usize) -> Vec<Buffer> {
        let mut room = most as u64;
        let mut skip = self.offset;
        let rest = self.buffers[self.index..].iter().map(|buffer| {
            let start = std::mem::take(&mut skip);
            let len = (buffer.len - start).min(room);
            room -= len;
            Buffer { address: buffer.address.wrapping_add(start), len }
        });
        rest.filter(|buffer| buffer.len > 0).collect()
    }

    /// Leaves out the first `bytes`: they were written by an earlier attempt.
    fn skip(&mut self, bytes: u64) {
        self.advance(usize::try_from(bytes).map_or(self.left, |bytes| bytes.min(self.left)));
    }

    /// Notes that `bytes` were moved by the host.
    fn advance(&mut self, mut bytes: usize) {
        self.left -= bytes;
        while bytes > 0 {
            let left = (self.buffers[self.index].len - self.offset) as usize;
            let step = left.min(bytes);
            self.offset += step as u64;
            bytes -= step;
            if step == left {
                self.index += 1;
                self.offset = 0;
            }
        }
    }
}

impl Sink for Guest<'_> {
    fn room(&self) -> usize {
        self.left
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        self.each(bytes.len(), Access::Write, |memory, address, done, piece| {
            memory.write(address, &bytes[done..done + piece])
        })
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>, position: u64) -> Result<usize, Errno> {
        let ranges = self.memory.host_ranges(&self.rest(self.left), Access::Write)?;
        let done = read_into(fd, &ranges, Some(position))?;
        drop(ranges);
        self.advance(done);
        Ok(done)
    }
}

impl Source for Guest<'_> {
    fn left(&self) -> usize {
        self.left
    }

    fn take(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        self.each(into.len(), Access::Read, |memory, address, done, piece| {
            memory.read(address, &mut into[done..done + piece])
        })
    }

    fn write_to(&mut self, fd: BorrowedFd<'_>, position: u64, max: usize) -> Result<usize, Errno> {
        let ranges = self.memory.host_ranges(&self.rest(max.min(self.left)), Access::Read)?;
        let done = write_from(fd, &ranges, Some(position))?;
        drop(ranges);
        self.advance(done);
        Ok(done)
    }
}

/// A descriptor as the kernel takes it from a register: the low 32 bits.
pub(super) fn fd(argument: u64) -> i32 {
    argument as i32
}

impl Process {
    /// A path argument.
    pub(crate) fn path(&self, address: u64) -> Result<Vec<u8>, Errno> {
        self.memory.cstr(address, PATH_MAX)
    }

    /// Writes the program's `buffers` by `write`. A descriptor that waits for room (a pipe, a stream socket, standard
    /// output) gets all of it, in as many attempts as it takes; a signal in between ends the call with what is
    /// written (`pipe(7)`, `write(2)`). `signals` says whether a missing reader raises `SIGPIPE`.
    pub(super) fn write_all(
        &mut self,
        fd: i32,
        buffers: Vec<Buffer>,
        signals: bool,
        mut write: impl FnMut(&mut Files, &mut Guest<'_>) -> Result<usize, Stop>,
    ) -> Result<Outcome, Errno> {
        let goes_on = self.files.is_stream(fd);
        let mut done = self.resumed().map_or(0, |wait| wait.done);
        let stop = loop {
            // Anew each time: what was read from the program is not always what was taken.
            let mut guest = Guest::new(&self.memory, buffers.clone());
            guest.skip(done);
            let left = guest.left();
            match write(&mut self.files, &mut guest) {
                Ok(n) => {
                    done += n as u64;
                    if !goes_on || n == 0 || n == left {
                        break None;
                    }
                }
                Err(stop) => break Some(stop),
            }
        };
        if stop == Some(Stop::Errno(Errno::PIPE)) && signals {
            self.broken_pipe();
        }
        if let Some(Stop::Errno(errno)) = stop {
            self.note_file_limit(errno);
        }
        match stop {
            Some(Stop::Wait(need)) => {
                let outcome = self.filed(Err(Stop::Wait(need)))?;
                Ok(match outcome {
                    Outcome::Block(wait) => Outcome::Block(Wait { done, ..wait }),
                    other => other,
                })
            }
            Some(stop) if done == 0 => self.filed(Err(stop)),
            _ => self.filed(Ok(done)),
        }
    }

    /// Ends a file call: waits become a block, and others are woken where something changed.
    pub(super) fn filed(&mut self, result: Result<u64, Stop>) -> Result<Outcome, Errno> {
        if self.files.take_changed() {
            self.changed();
        }
        match result {
            Ok(value) => Ok(Outcome::Value(value)),
            Err(Stop::Errno(e)) => Err(e),
            Err(Stop::Wait(need)) => Ok(Outcome::Block(wait(need))),
        }
    }

    /// The same for an operation that never waits.
    pub(in crate::process) fn done<T>(&mut self, result: Result<T, Errno>) -> Result<Outcome, Errno> {
        self.filed(result.map(|_| 0).map_err(Stop::from))
    }

    /// The same for an operation that makes a descriptor.
    pub(super) fn made(&mut self, fd: Result<i32, Errno>) -> Result<Outcome, Errno> {
        self.filed(fd.map(|fd| fd as u64).map_err(Stop::from))
    }
}

pub(super) fn wait(need: Need) -> Wait {
    Wait { inside: need.inside, input: need.input, output: need.output, until: need.until, ..Wait::default() }
}
