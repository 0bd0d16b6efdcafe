//! The descriptor table and the open files behind it.
//!
//! ```text
//! fds[n] = (open file, close-on-exec) ──┐
//! fds[m] = (open file, close-on-exec) ──┴─> Description { object, flags, position }   (dup shares it)
//! ```

use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Place;
use super::epoll::Epoll;
use super::event::{Event, Timer};
use super::pipe::{End, PipeId};
use super::socket::SocketEnd;
use super::synth::{Device, Render};
use super::tree::NodeId;
use crate::share::{Anchor, OpenFile};

/// Names an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct FileId(u32);

impl FileId {
    /// Its place in the table.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// The standard streams of the invocation contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// The request.
    Input,
    /// The reply.
    Output,
    /// The log.
    Log,
}

/// What an open file refers to.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// A regular file of the private tree.
    File(NodeId),
    /// A regular file of a share.
    Shared(Arc<OpenFile>),
    /// A directory; its listing is taken at the first read.
    Dir(Option<Arc<[DirItem]>>),
    /// `O_PATH`.
    Path,
    Device(Device),
    /// A generated text: before and after it is made.
    Unmade {
        render: Render,
        tid: u32,
    },
    Text(Arc<[u8]>),
    Console(Stream),
    Pipe(PipeId, End),
    Event(Event),
    Timer(Timer),
    Epoll(Epoll),
    Socket(SocketEnd),
}

/// One entry of an open directory's listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirItem {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    /// `d_type`.
    pub(crate) kind: u8,
}

/// An open file.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) object: Object,
    /// Where it was opened; `None` for what has no name.
    pub(crate) place: Option<Place>,
    /// For a directory or `O_PATH` in a share: the file itself, by which a path that meanwhile names another one is
    /// found out.
    pub(crate) anchor: Option<Arc<Anchor>>,
    /// Its absolute path, kept up to date by renames; for what has no path a label such as `pipe:[7]`.
    pub(crate) path: Arc<[u8]>,
    /// Access mode and status flags.
    pub(crate) flags: u32,
    pub(crate) position: u64,
    /// Descriptors that refer to it.
    refs: u32,
}

impl Description {
    pub(crate) fn new(object: Object, place: Option<Place>, path: Arc<[u8]>, flags: u32) -> Self {
        Self { object, place, anchor: None, path, flags, position: 0, refs: 0 }
    }

    pub(crate) fn readable(&self) -> bool {
        self.flags & (libc::O_PATH | libc::O_ACCMODE) as u32 != libc::O_WRONLY as u32 && !self.is_path()
    }

    pub(crate) fn writable(&self) -> bool {
        self.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32 && !self.is_path()
    }

    pub(crate) fn is_path(&self) -> bool {
        self.flags & libc::O_PATH as u32 != 0
    }

    pub(crate) fn nonblocking(&self) -> bool {
        self.flags & libc::O_NONBLOCK as u32 != 0
    }
}

/// One descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fd {
    pub(crate) file: FileId,
    pub(crate) cloexec: bool,
}

/// Most descriptors of a stored image: Linux's `fs.nr_open`.
const MOST: usize = 1 << 20;

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    fds: Vec<Option<Fd>>,
    files: Vec<Option<Description>>,
    /// Descriptors must be below (`RLIMIT_NOFILE`).
    limit: usize,
    /// `RLIMIT_FSIZE`.
    pub(super) file_bytes: u64,
}

impl Table {
    pub(crate) fn new(limit: u32) -> Self {
        Self { fds: Vec::new(), files: Vec::new(), limit: limit as usize, file_bytes: u64::MAX }
    }

    /// The descriptors and the open files, by number.
    pub(super) fn parts(&self) -> (&[Option<Fd>], &[Option<Description>]) {
        (&self.fds, &self.files)
    }

    /// Of such parts; `None` where they cannot be. A descriptor leads to an open file, and every open file has one.
    pub(super) fn from_parts(
        fds: Vec<Option<Fd>>,
        mut files: Vec<Option<Description>>,
        limit: u32,
        file_bytes: u64,
    ) -> Option<Self> {
        for fd in fds.iter().flatten() {
            files.get_mut(fd.file.0 as usize)?.as_mut()?.refs += 1;
        }
        let named = files.iter().flatten().all(|file| file.refs > 0);
        let few = fds.len() <= MOST && limit as usize <= MOST;
        (named && few).then_some(Self { fds, files, limit: limit as usize, file_bytes })
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Lowers or raises the limit; open descriptors above it stay.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit as usize;
    }

    /// Length of the table.
    pub(crate) fn slots(&self) -> usize {
        self.fds.len()
    }

    /// The descriptor `fd`.
    pub(crate) fn fd(&self, fd: i32) -> Result<Fd, Errno> {
        usize::try_from(fd).ok().and_then(|fd| *self.fds.get(fd)?).ok_or(Errno::BADF)
    }

    pub(crate) fn set_cloexec(&mut self, fd: i32, cloexec: bool) -> Result<(), Errno> {
        let slot = usize::try_from(fd).ok().and_then(|fd| self.fds.get_mut(fd)?.as_mut());
        slot.ok_or(Errno::BADF)?.cloexec = cloexec;
        Ok(())
    }

    /// The open descriptors.
    pub(crate) fn open_fds(&self) -> impl Iterator<Item = i32> + '_ {
        self.fds.iter().enumerate().filter(|(_, fd)| fd.is_some()).map(|(n, _)| n as i32)
    }

    pub(crate) fn file(&self, id: FileId) -> &Description {
        self.files[id.0 as usize].as_ref().expect("a FileId in use names an open file")
    }

    pub(crate) fn file_mut(&mut self, id: FileId) -> &mut Description {
        self.files[id.0 as usize].as_mut().expect("a FileId in use names an open file")
    }

    /// The open file behind `fd`.
    pub(crate) fn get(&self, fd: i32) -> Result<&Description, Errno> {
        Ok(self.file(self.fd(fd)?.file))
    }

    /// All open files.
    pub(crate) fn files(&self) -> impl Iterator<Item = (FileId, &Description)> {
        self.files.iter().enumerate().filter_map(|(n, f)| Some((FileId(n as u32), f.as_ref()?)))
    }

    /// All open files, to be changed.
    pub(crate) fn files_mut(&mut self) -> impl Iterator<Item = &mut Description> {
        self.files.iter_mut().flatten()
    }

    /// Whether one more descriptor at or above `from` fits.
    pub(crate) fn room(&self, from: i32) -> Result<usize, Errno> {
        let from = usize::try_from(from).ok().filter(|from| *from < self.limit).ok_or(Errno::INVAL)?;
        let free = (from..self.limit).find(|n| self.fds.get(*n).is_none_or(Option::is_none));
        free.ok_or(Errno::MFILE)
    }

    /// Adds an open file without a descriptor yet.
    pub(crate) fn add(&mut self, file: Description) -> FileId {
        match self.files.iter().position(Option::is_none) {
            Some(n) => {
                self.files[n] = Some(file);
                FileId(n as u32)
            }
            None => {
                self.files.push(Some(file));
                FileId(self.files.len() as u32 - 1)
            }
        }
    }

    /// Points the free descriptor `at` to `file`.
    pub(crate) fn point(&mut self, at: usize, file: FileId, cloexec: bool) -> i32 {
        if self.fds.len() <= at {
            self.fds.resize(at + 1, None);
        }
        self.fds[at] = Some(Fd { file, cloexec });
        self.file_mut(file).refs += 1;
        at as i32
    }

    /// Takes the descriptor away; hands out the open file if that was its last.
    pub(crate) fn take(&mut self, fd: i32) -> Result<Option<(FileId, Description)>, Errno> {
        let Fd { file, .. } = self.fd(fd)?;
        self.fds[fd as usize] = None;
        let open = self.file_mut(file);
        open.refs -= 1;
        if open.refs > 0 {
            return Ok(None);
        }
        Ok(self.files[file.0 as usize].take().map(|open| (file, open)))
    }

    /// Whether `fd` may be used as a target of `dup2`.
    pub(crate) fn check_target(&self, fd: i32) -> Result<usize, Errno> {
        usize::try_from(fd).ok().filter(|fd| *fd < self.limit).ok_or(Errno::BADF)
    }
}
