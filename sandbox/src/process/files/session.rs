//! Files that outlive a program: what is left of them when it ends, what others read and write in them meanwhile, and
//! copies of them.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::locks::Locks;
use super::table::Table;
use super::tree::NodeId;
use super::walk::Limits;
use super::{Files, NoConsole, Place, Stop};

/// What is written by somebody outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write<'a> {
    /// Absolute.
    pub(crate) path: &'a [u8],
    /// `O_TRUNC`, `O_APPEND`, `O_CREAT`.
    pub(crate) flags: i32,
    /// Of a new file.
    pub(crate) mode: u32,
    /// Where, unless it is appended.
    pub(crate) position: Option<u64>,
}

impl Files {
    /// What a program leaves is forgotten, but for what it wrote: the next one begins with three open descriptors in the
    /// root directory.
    pub(crate) fn renew(&mut self, open_files: u32) {
        for place in self.pinned() {
            self.unpin(&place);
        }
        self.table = Table::new(open_files);
        (self.pipes, self.pairs) = (Vec::new(), Vec::new());
        self.locks = Locks::default();
        self.cwd = Place::Tree(NodeId::ROOT);
        self.tree.pin(NodeId::ROOT);
        self.umask = 0o022;
        self.exe = Arc::from(&b"/"[..]);
        self.console = Box::new(NoConsole);
        self.console_dry = [0; 3];
        self.clock_shift_ns = 0;
        self.changed = false;
        self.open_console();
    }

    /// Further files in the present state, which go their own way. Only between two programs.
    ///
    /// # Errors
    /// As [`Files::fork`].
    pub(crate) fn copy_layer(&mut self) -> Result<Self, Errno> {
        self.checkpoint();
        let copy = self.fork();
        self.forget();
        copy.map(|mut files| {
            files.forget();
            files
        })
    }

    /// Keeps nothing for a reset. Only right after a checkpoint.
    fn forget(&mut self) {
        self.saved = None;
        self.tree.forget_checkpoint();
    }

    /// A piece of a regular file from `offset` on; shorter than `length` only at its end.
    ///
    /// # Errors
    /// As open(2) and read(2) say; `EISDIR` and `EINVAL` for what is no regular file.
    pub(crate) fn read_piece(&mut self, path: &[u8], offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
        let fd = self.open_regular(path, libc::O_RDONLY, 0)?;
        let read = self.read_all_at(fd, offset, length);
        self.close(fd)?;
        read
    }

    fn read_all_at(&mut self, fd: i32, offset: i64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset.checked_add(done as i64).ok_or(Errno::INVAL)?;
            let mut rest = &mut bytes[done..];
            match self.read(fd, &mut rest, Some(at)).map_err(at_once)? {
                0 => break,
                count => done += count,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Writes all of `data`; the position behind it.
    ///
    /// # Errors
    /// As open(2) and write(2) say; `EISDIR` and `EINVAL` for what is no regular file.
    pub(crate) fn write_piece(&mut self, write: Write<'_>, data: &[u8]) -> Result<u64, Errno> {
        let umask = self.set_umask(0);
        let fd = self.open_regular(write.path, libc::O_WRONLY | write.flags, write.mode);
        self.set_umask(umask);
        let fd = fd?;
        let written = self.write_all_at(fd, write.position, data);
        let size = self.stat_open(fd).map(|attr| attr.size);
        self.close(fd)?;
        written?;
        match write.position {
            Some(position) => Ok(position + data.len() as u64),
            None => size,
        }
    }

    fn write_all_at(&mut self, fd: i32, position: Option<u64>, data: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < data.len() {
            let at = position.map(|position| position.saturating_add(done as u64));
            let at = at.map(|at| i64::try_from(at).map_err(|_| Errno::FBIG)).transpose()?;
            let mut rest = &data[done..];
            match self.write(fd, &mut rest, at).map_err(at_once)? {
                0 => return Err(Errno::NOSPC),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Makes the directories above the last name of `path`.
    ///
    /// # Errors
    /// As mkdir(2) says, but for those that are there.
    pub(crate) fn make_parents(&mut self, path: &[u8]) -> Result<(), Errno> {
        let ends = path.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'/').map(|(at, _)| at);
        for end in ends {
            match self.make_dir(libc::AT_FDCWD, &path[..end], 0o755) {
                Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
                // A share refuses before it looks whether the name is there.
                Err(errno) => self
                    .stat(libc::AT_FDCWD, &path[..end], super::End::Follow, false)
                    .map(drop)
                    .map_err(|_| errno)?,
            }
        }
        Ok(())
    }

    /// Opens a regular file for somebody outside: nothing that waits, is endless or is made for a program that asks.
    fn open_regular(&mut self, path: &[u8], flags: i32, mode: u32) -> Result<i32, Errno> {
        let flags = flags | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        let fd = self.open(libc::AT_FDCWD, path, flags as u32, mode, Limits::default())?;
        let refused = match self.stat_open(fd) {
            Err(errno) => Some(errno),
            Ok(attr) if attr.kind() == FileType::Directory => Some(Errno::ISDIR),
            Ok(attr) if attr.kind() != FileType::RegularFile => Some(Errno::INVAL),
            Ok(_) => self.unmade(fd).map(|_| Errno::INVAL),
        };
        match refused {
            None => Ok(fd),
            Some(errno) => {
                self.close(fd)?;
                Err(errno)
            }
        }
    }
}

/// A regular file does not wait.
fn at_once(stop: Stop) -> Errno {
    match stop {
        Stop::Errno(errno) => errno,
        Stop::Wait(_) => Errno::AGAIN,
    }
}
