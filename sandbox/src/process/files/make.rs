//! Descriptors that no path leads to: pipes, event counters, timers, epoll instances, memory files, socket pairs.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::ClockId;

use super::epoll::Epoll;
use super::event::{Event, Timer};
use super::pipe::{End, Pipe, PipeId};
use super::socket::{Pair, SocketEnd, SocketKind};
use super::stop::Stop;
use super::table::Description;
use super::transfer::{Sink, Source};
use super::{Files, Object, Place};

const RDWR: u32 = libc::O_RDWR as u32;

/// What `recvmsg` reports beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketMessage {
    /// Bytes copied.
    pub(crate) copied: usize,
    /// The message's whole length.
    pub(crate) length: usize,
}

/// Puts `value` into a free slot.
fn add<T>(slots: &mut Vec<Option<T>>, value: T) -> u32 {
    match slots.iter().position(Option::is_none) {
        Some(n) => {
            slots[n] = Some(value);
            n as u32
        }
        None => {
            slots.push(Some(value));
            slots.len() as u32 - 1
        }
    }
}

impl Files {
    fn install_nameless(
        &mut self,
        object: Object,
        label: &str,
        flags: u32,
        cloexec: bool,
    ) -> Result<i32, Errno> {
        let at = self.table.room(0)?;
        Ok(self.install(at, Description::new(object, None, Arc::from(label.as_bytes()), flags), cloexec))
    }

    /// Installs two descriptors or none.
    fn install_two(&mut self, files: [Description; 2], cloexec: bool) -> Result<[i32; 2], Errno> {
        let first = self.table.room(0)?;
        let second = self.table.room(first as i32 + 1).map_err(|_| Errno::MFILE)?;
        let [a, b] = files;
        Ok([self.install(first, a, cloexec), self.install(second, b, cloexec)])
    }

    /// `pipe2(2)`: the read and the write end.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn make_pipe(&mut self, nonblocking: bool, cloexec: bool) -> Result<[i32; 2], Errno> {
        let id = PipeId(add(&mut self.pipes, Pipe::new()));
        let status = if nonblocking { libc::O_NONBLOCK as u32 } else { 0 };
        let label: Arc<[u8]> = Arc::from(format!("pipe:[{}]", id.ino()).as_bytes());
        let end = |end, access: i32| {
            Description::new(Object::Pipe(id, end), None, label.clone(), access as u32 | status)
        };
        let ends = [end(End::Read, libc::O_RDONLY), end(End::Write, libc::O_WRONLY)];
        self.install_two(ends, cloexec).inspect_err(|_| self.pipes[id.0 as usize] = None)
    }

    /// `eventfd2(2)`.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn make_event(
        &mut self,
        count: u64,
        semaphore: bool,
        nonblocking: bool,
        cloexec: bool,
    ) -> Result<i32, Errno> {
        let flags = RDWR | if nonblocking { libc::O_NONBLOCK as u32 } else { 0 };
        self.install_nameless(
            Object::Event(Event::new(count, semaphore)),
            "anon_inode:[eventfd]",
            flags,
            cloexec,
        )
    }

    /// `timerfd_create(2)`.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn make_timer(
        &mut self,
        clock: ClockId,
        nonblocking: bool,
        cloexec: bool,
    ) -> Result<i32, Errno> {
        let flags = RDWR | if nonblocking { libc::O_NONBLOCK as u32 } else { 0 };
        self.install_nameless(
            Object::Timer(Timer::new(clock, self.clock_shift_ns)),
            "anon_inode:[timerfd]",
            flags,
            cloexec,
        )
    }

    /// The program's forward-only clocks are so far ahead of the host's.
    pub(crate) fn set_clock_shift(&mut self, shift_ns: i64) {
        self.clock_shift_ns = shift_ns;
        for file in self.table.files_mut() {
            if let Object::Timer(timer) = &mut file.object {
                timer.set_shift(shift_ns);
            }
        }
    }

    fn timer(&mut self, fd: i32) -> Result<&mut Timer, Errno> {
        let id = self.table.fd(fd)?.file;
        match &mut self.table.file_mut(id).object {
            Object::Timer(timer) => Ok(timer),
            _ => Err(Errno::INVAL),
        }
    }

    /// `timerfd_settime(2)`: returns what was left and the old interval.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn set_timer(
        &mut self,
        fd: i32,
        value: Duration,
        interval: Duration,
        absolute: bool,
    ) -> Result<(Duration, Duration), Errno> {
        let old = self.timer(fd)?.set(value, interval, absolute);
        self.changed = true;
        Ok(old)
    }

    /// `timerfd_gettime(2)`.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn timer_left(&mut self, fd: i32) -> Result<(Duration, Duration), Errno> {
        Ok(self.timer(fd)?.left())
    }

    /// `epoll_create1(2)`.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn make_epoll(&mut self, cloexec: bool) -> Result<i32, Errno> {
        self.install_nameless(Object::Epoll(Epoll::default()), "anon_inode:[eventpoll]", RDWR, cloexec)
    }

    /// `memfd_create(2)`.
    ///
    /// # Errors
    /// `EMFILE`, `ENOSPC`.
    pub(crate) fn make_memory_file(&mut self, name: &[u8], cloexec: bool) -> Result<i32, Errno> {
        let at = self.table.room(0)?;
        let id = self.tree.create_unnamed(0o777, false)?;
        let path = [b"/memfd:", name].concat();
        let file = Description::new(Object::File(id), Some(Place::Tree(id)), path.into(), RDWR);
        Ok(self.install(at, file, cloexec))
    }

    /// `socketpair(2)`.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn make_socket_pair(
        &mut self,
        kind: SocketKind,
        nonblocking: bool,
        cloexec: bool,
    ) -> Result<[i32; 2], Errno> {
        let pair = add(&mut self.pairs, Pair::new(kind));
        let flags = RDWR | if nonblocking { libc::O_NONBLOCK as u32 } else { 0 };
        let ends = [0, 1].map(|side| {
            let end = SocketEnd { pair, side };
            let label = format!("socket:[{}]", end.ino());
            Description::new(Object::Socket(end), None, Arc::from(label.as_bytes()), flags)
        });
        self.install_two(ends, cloexec).inspect_err(|_| self.pairs[pair as usize] = None)
    }

    /// The pair and side of a socket, and whether it waits.
    fn socket(&mut self, fd: i32) -> Result<(&mut Pair, usize, bool), Errno> {
        let file = self.table.get(fd)?;
        let nonblocking = file.nonblocking();
        match file.object {
            Object::Socket(end) => {
                let pair = self.pairs[end.pair as usize].as_mut().ok_or(Errno::NOTSOCK)?;
                Ok((pair, end.side, nonblocking))
            }
            Object::Path => Err(Errno::BADF),
            _ => Err(Errno::NOTSOCK),
        }
    }

    /// The type of a socket.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`.
    pub(crate) fn socket_kind(&mut self, fd: i32) -> Result<SocketKind, Errno> {
        Ok(self.socket(fd)?.0.kind)
    }

    /// `recvmsg(2)` without addresses and control messages.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn receive(
        &mut self,
        fd: i32,
        sink: &mut dyn Sink,
        nonblocking: bool,
        peek: bool,
    ) -> Result<SocketMessage, Stop> {
        let (pair, side, own) = self.socket(fd)?;
        let (copied, length) = pair.receive(side, sink, nonblocking || own, peek)?;
        self.changed = true;
        Ok(SocketMessage { copied, length })
    }

    /// `sendmsg(2)` without addresses and control messages.
    ///
    /// # Errors
    /// As the manual page says; for `EPIPE` the caller raises the signal.
    pub(crate) fn send(
        &mut self,
        fd: i32,
        source: &mut dyn Source,
        nonblocking: bool,
    ) -> Result<usize, Stop> {
        let (pair, side, own) = self.socket(fd)?;
        let sent = pair.send(side, source, nonblocking || own)?;
        self.changed = true;
        Ok(sent)
    }

    /// `shutdown(2)`.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`, `EINVAL`.
    pub(crate) fn shut_down(&mut self, fd: i32, how: i32) -> Result<(), Errno> {
        let (pair, side, _) = self.socket(fd)?;
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::INVAL),
        };
        pair.shutdown(side, read, write);
        self.changed = true;
        Ok(())
    }
}
