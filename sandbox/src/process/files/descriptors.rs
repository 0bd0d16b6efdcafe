//! The descriptor calls: close(2), dup(2), fcntl(2), and what ioctl(2) asks of a descriptor.

use rustix::io::Errno;

use super::pipe::{End, PipeId};
use super::table::{Description, FileId};
use super::{Files, Object, SocketKind, Stream};

/// Capacity of all pipes of a program together, above which none is made larger (`/proc/sys/fs/pipe-user-pages-soft`).
const MOST_IN_PIPES: usize = 64 << 20;

const CHANGEABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// What a descriptor is, for calls that only work on some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// A pipe, with its capacity.
    Pipe(usize),
    /// A socket.
    Socket,
    /// Anything else.
    Other,
}

impl Files {
    /// `close(2)`.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn close(&mut self, fd: i32) -> Result<(), Errno> {
        if let Some((id, file)) = self.table.take(fd)? {
            self.closed(id, file);
        }
        Ok(())
    }

    /// Cleans up behind an open file whose last descriptor is gone.
    fn closed(&mut self, id: FileId, file: Description) {
        for other in self.table.files_mut() {
            if let Object::Epoll(epoll) = &mut other.object {
                epoll.forget(id);
            }
        }
        self.locks.forget(id);
        match file.object {
            Object::Pipe(pipe, end) => self.count_pipe_end(pipe, end, -1),
            Object::Socket(end) => {
                let pair = &mut self.pairs[end.pair as usize];
                if pair.as_mut().is_some_and(|pair| pair.close(end.side)) {
                    *pair = None;
                }
            }
            _ => {}
        }
        if let Some(place) = &file.place {
            self.unpin(place);
        }
        self.changed = true;
    }

    /// One open file more or fewer at a pipe's end; a pipe without any is gone.
    pub(super) fn count_pipe_end(&mut self, id: PipeId, end: End, change: i32) {
        let slot = &mut self.pipes[id.0 as usize];
        let Some(pipe) = slot else { return };
        let count = match end {
            End::Read => &mut pipe.readers,
            End::Write => &mut pipe.writers,
        };
        *count = count.saturating_add_signed(change);
        if pipe.readers == 0 && pipe.writers == 0 {
            *slot = None;
        }
        self.changed = true;
    }

    /// `close_range(2)`; with `cloexec` the descriptors are only marked.
    ///
    /// # Errors
    /// `EINVAL`.
    pub(crate) fn close_range(&mut self, first: u32, last: u32, cloexec: bool) -> Result<(), Errno> {
        if first > last {
            return Err(Errno::INVAL);
        }
        let open: Vec<i32> =
            self.table.open_fds().filter(|fd| (first..=last).contains(&(*fd as u32))).collect();
        for fd in open {
            if cloexec {
                self.table.set_cloexec(fd, true)?;
            } else {
                self.close(fd)?;
            }
        }
        Ok(())
    }

    /// `dup(2)` and `F_DUPFD`: the lowest free descriptor from `from` on.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`, `EMFILE`.
    pub(crate) fn duplicate(&mut self, fd: i32, from: i32, cloexec: bool) -> Result<i32, Errno> {
        let file = self.table.fd(fd)?.file;
        let at = self.table.room(from)?;
        Ok(self.table.point(at, file, cloexec))
    }

    /// `dup3(2)`; with `same` equal numbers are allowed (`dup2(2)`).
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn duplicate_to(&mut self, fd: i32, to: i32, cloexec: bool, same: bool) -> Result<i32, Errno> {
        if fd == to {
            return match same {
                true => self.table.fd(fd).map(|_| to),
                false => Err(Errno::INVAL),
            };
        }
        let at = self.table.check_target(to)?;
        let file = self.table.fd(fd)?.file;
        match self.close(to) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(e) => return Err(e),
        }
        Ok(self.table.point(at, file, cloexec))
    }

    /// `F_GETFD`.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn cloexec(&self, fd: i32) -> Result<bool, Errno> {
        Ok(self.table.fd(fd)?.cloexec)
    }

    /// `F_SETFD`.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn set_cloexec(&mut self, fd: i32, cloexec: bool) -> Result<(), Errno> {
        self.table.set_cloexec(fd, cloexec)
    }

    /// `F_GETFL`.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn status_flags(&self, fd: i32) -> Result<u32, Errno> {
        Ok(self.table.get(fd)?.flags)
    }

    /// `F_SETFL`: of `flags`, those that may change.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn set_status_flags(&mut self, fd: i32, flags: u32) -> Result<(), Errno> {
        let id = self.table.fd(fd)?.file;
        let file = self.table.file_mut(id);
        if file.is_path() {
            return Err(Errno::BADF);
        }
        if let Object::Shared(open) = &file.object {
            open.set_append(flags & libc::O_APPEND as u32 != 0)?;
        }
        file.flags = file.flags & !CHANGEABLE | flags & CHANGEABLE;
        Ok(())
    }

    /// The path of what `fd` refers to, as `/proc/self/fd` shows it.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn path_of(&self, fd: i32) -> Result<String, Errno> {
        Ok(String::from_utf8_lossy(&self.table.get(fd)?.path).into_owned())
    }

    /// What kind of thing `fd` is.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn status(&self, fd: i32) -> Result<Status, Errno> {
        let file = self.table.get(fd)?;
        Ok(match &file.object {
            Object::Path => return Err(Errno::BADF),
            Object::Pipe(id, _) => {
                let capacity = self.pipes[id.0 as usize].as_ref().map_or(0, super::Pipe::capacity);
                Status::Pipe(capacity)
            }
            Object::Console(_) => Status::Pipe(super::pipe::CAPACITY),
            Object::Socket(_) => Status::Socket,
            _ => Status::Other,
        })
    }

    /// Whether writes to `fd` go to a stream that takes a part and then waits for room: a pipe, a stream socket,
    /// standard output.
    pub(crate) fn is_stream(&self, fd: i32) -> bool {
        match self.table.get(fd).map(|file| &file.object) {
            Ok(Object::Console(_) | Object::Pipe(..)) => true,
            Ok(Object::Socket(end)) => {
                self.pairs[end.pair as usize].as_ref().is_some_and(|pair| pair.kind == SocketKind::Stream)
            }
            _ => false,
        }
    }

    /// `F_SETPIPE_SZ`.
    ///
    /// # Errors
    /// `EBADF` for what is no pipe, `EBUSY`, `EPERM`.
    pub(crate) fn set_pipe_capacity(&mut self, fd: i32, size: usize) -> Result<usize, Errno> {
        match self.table.get(fd)?.object {
            Object::Pipe(id, _) => {
                let pipes = self.pipes.iter().flatten().map(super::pipe::Pipe::capacity);
                if size > super::pipe::CAPACITY && pipes.sum::<usize>() + size > MOST_IN_PIPES {
                    return Err(Errno::PERM);
                }
                self.changed = true;
                self.pipes[id.0 as usize].as_mut().ok_or(Errno::BADF)?.set_capacity(size)
            }
            Object::Console(_) => Ok(super::pipe::CAPACITY),
            _ => Err(Errno::BADF),
        }
    }

    /// `FIONREAD`: bytes that a read would give now.
    ///
    /// # Errors
    /// `EBADF`, `ENOTTY` for what cannot say.
    pub(crate) fn pending(&mut self, fd: i32) -> Result<u64, Errno> {
        let id = self.table.fd(fd)?.file;
        let file = self.table.file(id);
        let position = file.position;
        match &file.object {
            Object::Console(Stream::Input) => Ok(self.console.pending().unwrap_or(0) as u64),
            Object::Console(_) => Ok(0),
            Object::Pipe(pipe, _) => {
                Ok(self.pipes[pipe.0 as usize].as_ref().map_or(0, super::Pipe::len) as u64)
            }
            Object::Socket(end) => {
                Ok(self.pairs[end.pair as usize].as_ref().map_or(0, |pair| pair.pending(end.side)) as u64)
            }
            Object::File(_) | Object::Shared(_) => Ok(self.attr_of_open(id)?.size.saturating_sub(position)),
            Object::Path => Err(Errno::BADF),
            _ => Err(Errno::NOTTY),
        }
    }

    /// `RLIMIT_NOFILE`.
    #[must_use]
    pub fn open_files_limit(&self) -> u32 {
        self.table.limit()
    }

    /// Sets `RLIMIT_FSIZE`.
    pub(crate) fn set_file_limit(&mut self, bytes: u64) {
        self.table.file_bytes = bytes;
    }

    /// Sets `RLIMIT_NOFILE`.
    pub fn set_open_files_limit(&mut self, limit: u32) {
        self.table.set_limit(limit);
    }
}
