//! The files of one process: its name space, its descriptors and what is behind them.
//!
//! ```text
//! path ──walk──> Place ─┬─ Tree    root directory of the host, read only, under a private layer in memory
//!                       ├─ Shared  a shared directory, straight through to the host
//!                       └─ Live    entries of /proc/self
//! fd ──table──> Description ──> file, directory, device, console, pipe, event, timer, epoll, socket pair
//! ```
//!
//! [`Files`] knows nothing of KVM or of the program's memory: paths are bytes, buffers are [`Sink`]s and
//! [`Source`]s, and an operation that would wait returns [`Stop::Wait`]. The program is root in its sandbox: permission
//! bits are kept and shown, not enforced. The rules are written down in `docs/files.md`.

mod attributes;
mod checkpoint;
mod console;
mod copy;
mod descriptors;
mod epoll;
mod event;
mod host;
mod io;
mod locks;
mod make;
mod map;
mod names;
mod open;
mod pipe;
mod place;
mod random;
mod saved;
mod session;
mod socket;
mod stop;
mod synth;
mod table;
mod transfer;
mod tree;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::function;
use crate::share::{Access, Share};
use pipe::Pipe;
use socket::Pair;
use synth::Planted;
use table::{Description, Object, Table};
use tree::{Body, Content, Node, NodeId, Tree};

pub(crate) use attributes::{AccessCheck, StatFsView};
pub use console::{Console, ConsoleRead, ConsoleWrite, NoConsole};
pub(crate) use descriptors::Status;
pub(crate) use map::MapSource;
pub(crate) use place::Place;
pub(crate) use random::{fill_all as fill_random, uuid};
pub(crate) use saved::{BadFiles, FilesState, Stamp, Unstorable};
pub(crate) use session::Write;
pub(crate) use socket::SocketKind;
pub use stop::{Need, Stop};
pub use synth::{MemoryView, ProcessView};
pub use table::Stream;
pub use transfer::{Sink, Source};
pub(crate) use tree::{Hold, Mapping};
pub(crate) use walk::{End, Limits, PATH_MAX};

/// What a process's files are made from.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// The host directory that is the root; without one the root is empty.
    pub root: Option<PathBuf>,
    /// A host file placed into the root: its absolute path in the sandbox and on the host.
    pub program: Option<(Vec<u8>, PathBuf)>,
    /// The manifest's shared directories.
    pub shares: Vec<function::Share>,
    /// `RLIMIT_NOFILE`.
    pub open_files: u32,
    /// Most bytes of the private layer.
    pub private_bytes: u64,
    /// The process number in `/proc`.
    pub pid: u32,
    /// Processors in `/sys`.
    pub cpus: u32,
}

impl FilesConfig {
    /// An empty root, no shares and the usual limits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            root: None,
            program: None,
            shares: Vec::new(),
            open_files: 1024,
            private_bytes: 64 << 20,
            pid: 1,
            cpus: 1,
        }
    }
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a process's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A host directory or file does not open.
    #[error("{what} {path:?} does not open")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Its host path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A path in the sandbox cannot be made.
    #[error("{path:?} cannot be made in the sandbox")]
    Target {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// A shared directory in its place.
#[derive(Clone, Debug)]
struct Mount {
    share: Arc<Share>,
    point: Place,
}

/// See the module.
pub struct Files {
    tree: Tree,
    mounts: Vec<Mount>,
    planted: Planted,
    table: Table,
    pipes: Vec<Option<Pipe>>,
    pairs: Vec<Option<Pair>>,
    locks: locks::Locks,
    cwd: Place,
    umask: u32,
    exe: Arc<[u8]>,
    console: Box<dyn Console>,
    /// Reads and writes that found nothing or no room, by stream: a new edge may follow each.
    console_dry: [u64; 3],
    /// The process's threads, for `/proc/self/task`.
    threads: Vec<u32>,
    /// How far the program's forward-only clocks are ahead of the host's.
    clock_shift_ns: i64,
    /// Something changed that another thread may wait for.
    changed: bool,
    saved: Option<checkpoint::Saved>,
    /// Files of shares that were opened, while somebody wants to know.
    opened: Option<saved::Opened>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("mounts", &self.mounts.len()).field("nodes", &self.tree.live()).finish()
    }
}

impl Files {
    /// The files of a new process, with descriptors 0, 1 and 2 on a console that has no input yet.
    ///
    /// # Errors
    /// Where a host directory does not open or a share's target cannot be made.
    pub fn new(config: &FilesConfig) -> Result<Self, FilesError> {
        let lower = match &config.root {
            Some(path) => Some(open_share("the root directory", path, Access::ReadOnly)?),
            None => None,
        };
        let tree = Tree::new(lower, config.private_bytes);
        let mut tree = tree.map_err(|source| FilesError::Open {
            what: "the root directory",
            path: config.root.clone().unwrap_or_default(),
            source,
        })?;
        let planted = synth::plant(&mut tree, config.pid, config.cpus);
        let mut files = Self {
            tree,
            mounts: Vec::new(),
            planted,
            table: Table::new(config.open_files),
            pipes: Vec::new(),
            pairs: Vec::new(),
            locks: locks::Locks::default(),
            cwd: Place::Tree(NodeId::ROOT),
            umask: 0o022,
            exe: Arc::from(&b"/"[..]),
            console: Box::new(NoConsole),
            console_dry: [0; 3],
            threads: vec![config.pid],
            clock_shift_ns: 0,
            changed: false,
            saved: None,
            opened: None,
        };
        files.tree.pin(NodeId::ROOT);
        if let Some((target, path)) = &config.program {
            files.place_program(target, path)?;
        }
        for share in &config.shares {
            files.mount(share)?;
        }
        files.open_console();
        Ok(files)
    }

    fn open_console(&mut self) {
        let streams = [
            (Stream::Input, "pipe:[1]", libc::O_RDONLY),
            (Stream::Output, "pipe:[2]", libc::O_WRONLY),
            (Stream::Log, "pipe:[3]", libc::O_WRONLY),
        ];
        for (at, (stream, label, flags)) in streams.into_iter().enumerate() {
            let file =
                Description::new(Object::Console(stream), None, Arc::from(label.as_bytes()), flags as u32);
            let id = self.table.add(file);
            self.table.point(at, id, false);
        }
    }

    /// Puts one host file at `target`, executable for everyone.
    fn place_program(&mut self, target: &[u8], path: &std::path::Path) -> Result<(), FilesError> {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let opened = opened.and_then(|fd| {
            let stat = rustix::fs::fstat(&fd)?;
            let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if regular { Ok((fd, stat.st_size as u64)) } else { Err(Errno::NOEXEC) }
        });
        let (fd, size) = opened.map_err(|source| FilesError::Open {
            what: "the program",
            path: path.to_owned(),
            source,
        })?;
        let body = Body::File(Content::Host(Arc::new(fd)));
        let node = Node { size, ..Node::new(libc::S_IFREG | 0o755, body) };
        let failed =
            |source| FilesError::Target { path: String::from_utf8_lossy(target).into_owned(), source };
        let slash = target.iter().rposition(|b| *b == b'/').ok_or_else(|| failed(Errno::INVAL))?;
        let dir = self.make_dirs(&target[..slash]).map_err(failed)?;
        let Place::Tree(dir) = dir else { return Err(failed(Errno::INVAL)) };
        self.tree.plant(dir, &target[slash + 1..], node);
        Ok(())
    }

    /// The directory `path`, made where it is missing.
    fn make_dirs(&mut self, path: &[u8]) -> Result<Place, Errno> {
        let mut at = Place::Tree(NodeId::ROOT);
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let walked = self.walk(&at, name, End::Follow)?;
            at = match (walked.found, &walked.dir) {
                (Some(place), _) => place,
                (None, Place::Tree(dir)) => {
                    let body = Body::Dir(tree::Dir::new(*dir, name));
                    Place::Tree(self.tree.create(*dir, name, Node::new(libc::S_IFDIR | 0o755, body))?)
                }
                (None, _) => return Err(Errno::NOENT),
            };
        }
        match self.kind(&at)? {
            FileType::Directory => Ok(at),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Mounts a shared directory at its target. A target inside another share must exist there.
    fn mount(&mut self, share: &function::Share) -> Result<(), FilesError> {
        let access = if share.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let opened = open_share("the shared directory", &share.source, access)?;
        let failed = |source| FilesError::Target { path: share.target.clone(), source };
        let point = self.make_dirs(share.target.as_bytes()).map_err(failed)?;
        match &point {
            Place::Tree(NodeId::ROOT) => return Err(failed(Errno::BUSY)),
            Place::Tree(id) => self.tree.set_mount(*id, self.mounts.len()).map_err(failed)?,
            Place::Shared(_, path) if !path.is_empty() => {}
            _ => return Err(failed(Errno::BUSY)),
        }
        self.mounts.push(Mount { share: Arc::new(opened), point });
        Ok(())
    }

    /// Refuses every change in a shared directory from now on, and tells of each attempt; `None` ends that.
    pub(crate) fn hold_shares(&self, tell: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.mounts.iter().for_each(|mount| mount.share.hold_changes(tell.clone()));
    }

    /// Connects descriptors 0, 1 and 2 of the present invocation.
    pub fn set_console(&mut self, console: Box<dyn Console>) {
        self.console = console;
        self.changed = true;
    }

    /// The program's path, for `/proc/self/exe`.
    pub fn set_exe(&mut self, path: &[u8]) {
        self.exe = Arc::from(path);
    }

    /// The process's threads, for `/proc/self/task`.
    pub fn set_threads(&mut self, threads: Vec<u32>) {
        self.threads = threads;
    }

    /// Whether something changed since the last time that a waiting thread may wait for ([`Need::inside`]).
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Bytes of the private layer in use, and the limit.
    #[must_use]
    pub fn private_bytes(&self) -> (u64, u64) {
        self.tree.usage()
    }

    /// Bytes of the private layer, each shared one divided by those who share it.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.tree.held_bytes()
    }

    /// The mount table as `/proc/self/mounts` shows it: point, type, read-only.
    pub(crate) fn mount_table(&self) -> Vec<(Vec<u8>, &'static str, bool)> {
        let own = [
            ("/", "overlay", false),
            ("/proc", "proc", false),
            ("/dev", "tmpfs", false),
            ("/sys", "sysfs", true),
        ];
        let own = own.into_iter().map(|(point, kind, ro)| (point.as_bytes().to_vec(), kind, ro));
        let shares = self.mounts.iter().map(|mount| {
            let point = self.path(&mount.point).unwrap_or_default();
            (point, "share", mount.share.access() == Access::ReadOnly)
        });
        own.chain(shares).collect()
    }
}

fn open_share(what: &'static str, path: &std::path::Path, access: Access) -> Result<Share, FilesError> {
    Share::open_dir(path, access).map_err(|source| FilesError::Open { what, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
