//! A program's files in a stored image.
//!
//! Kept are the private tree, the descriptors with their positions, pipes, socket pairs, event counters, timers, epoll
//! instances and the working directory. Files of the host are kept as their paths and a [`Stamp`] each, and opened again: what is
//! another file by then, or has another content, makes the image useless. That goes for every file of a share which the program
//! opened before, whether it still has it open or not ([`Opened`]).

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use novum_snapshot::State;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::epoll::Epoll;
use super::event::{Event, TimerState};
use super::pipe::{End as PipeEnd, Pipe, PipeId};
use super::place::LivePlace;
use super::socket::{Pair, SocketEnd};
use super::synth::{Device, Synth, task_texts};
use super::table::{Description, DirItem, Fd, FileId, Object, Stream, Table};
use super::tree::{BadTree, Body, Mapped, NodeId, TreeState};
use super::walk::End;
use super::{Files, FilesConfig, FilesError, Place};
use crate::share::{Attr, Identity, Links, OpenState, Time};

/// Most files of shares whose stamps are kept.
const MOST_OPENED: usize = 10_000;

/// What tells whether a file of the host is the same, with the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    id: Identity,
    size: u64,
    modified: Time,
}

impl Stamp {
    fn of(attr: &Attr) -> Self {
        Self { id: attr.id, size: attr.size, modified: attr.mtime }
    }

    /// Of an open file.
    pub(crate) fn of_fd(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        crate::share::stat_fd(fd).map(|attr| Self::of(&attr))
    }
}

/// The files of shares that a program has opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    files: BTreeMap<(usize, Vec<u8>), Stamp>,
    overflow: bool,
}

impl Opened {
    pub(super) fn note(&mut self, share: usize, path: &[u8], attr: &Attr) {
        if self.files.len() < MOST_OPENED {
            self.files.entry((share, path.to_vec())).or_insert_with(|| Stamp::of(attr));
        } else {
            self.overflow = true;
        }
    }
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FilesState {
    tree: TreeState,
    fds: Vec<Option<Fd>>,
    files: Vec<Option<FileState>>,
    limit: u32,
    file_bytes: u64,
    pipes: Vec<Option<Pipe>>,
    pairs: Vec<Option<Pair>>,
    cwd: PlaceState,
    umask: u32,
    exe: Vec<u8>,
    threads: Vec<u32>,
    shares: usize,
    opened: Vec<(usize, Vec<u8>, Stamp)>,
}

impl State for FilesState {
    const KIND: &'static str = "process-files";
    const VERSION: u32 = 1;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum PlaceState {
    Tree(NodeId),
    Shared(usize, Vec<u8>),
    Live(LivePlace),
    Open(FileId),
}

#[derive(Debug, Serialize, Deserialize)]
struct FileState {
    object: ObjectState,
    place: Option<PlaceState>,
    path: Vec<u8>,
    flags: u32,
    position: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum ObjectState {
    File(NodeId),
    Shared(Stamp),
    Dir(Option<Vec<DirItem>>, Option<Identity>),
    Path(Option<Identity>),
    Device(Device),
    Unmade { tid: u32 },
    Text(Vec<u8>),
    Console(Stream),
    Pipe(PipeId, PipeEnd),
    Event(Event),
    Timer(TimerState),
    Epoll(Epoll),
    Socket(SocketEnd),
}

/// Why files cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unstorable {
    /// Its path leads elsewhere by now.
    #[error("{0} is in use and cannot be found again by its path")]
    Lost(String),
    /// Too many to look at again.
    #[error("the program opens more than {MOST_OPENED} files of shared directories")]
    Many,
    /// A private file cannot be read.
    #[error("a private file cannot be read")]
    Read(#[source] Errno),
}

/// What was read cannot be the files of this program, or the host's files are others by now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFiles {
    /// The root, the program or a share cannot be opened.
    #[error(transparent)]
    Open(#[from] FilesError),
    /// The private tree.
    #[error(transparent)]
    Tree(#[from] BadTree),
    /// A file of the host is another one, or has another content.
    #[error("{0} has changed since")]
    Changed(String),
    /// It cannot be.
    #[error("the open files cannot be: {0}")]
    Impossible(&'static str),
}

fn demand(condition: bool, what: &'static str) -> Result<(), BadFiles> {
    if condition { Ok(()) } else { Err(BadFiles::Impossible(what)) }
}

fn changed(path: &[u8]) -> BadFiles {
    BadFiles::Changed(String::from_utf8_lossy(path).into_owned())
}

impl Files {
    /// From here on every file of a share that is opened is remembered.
    pub(crate) fn watch_shares(&mut self) {
        self.opened = Some(Opened::default());
    }

    /// What is to be kept.
    ///
    /// # Errors
    /// What cannot be kept.
    pub(crate) fn state(&self) -> Result<FilesState, Unstorable> {
        let opened = self.opened.clone().unwrap_or_default();
        if opened.overflow {
            return Err(Unstorable::Many);
        }
        let (fds, files) = self.table.parts();
        let file = |file: &Option<Description>| file.as_ref().map(|file| self.file_state(file)).transpose();
        Ok(FilesState {
            tree: self.tree.state().map_err(Unstorable::Read)?,
            fds: fds.to_vec(),
            files: files.iter().map(file).collect::<Result<_, _>>()?,
            limit: self.table.limit(),
            file_bytes: self.table.file_bytes,
            pipes: self.pipes.clone(),
            pairs: self.pairs.clone(),
            cwd: place_state(&self.cwd),
            umask: self.umask,
            exe: self.exe.to_vec(),
            threads: self.threads.clone(),
            shares: self.mounts.len(),
            opened: opened.files.into_iter().map(|((n, path), stamp)| (n, path, stamp)).collect(),
        })
    }

    fn file_state(&self, file: &Description) -> Result<FileState, Unstorable> {
        let lost = || Unstorable::Lost(String::from_utf8_lossy(&file.path).into_owned());
        let anchor = file.anchor.as_ref().map(|anchor| anchor.id());
        let object = match &file.object {
            Object::File(node) => ObjectState::File(*node),
            Object::Shared(open) => {
                let Some(Place::Shared(n, path)) = &file.place else { return Err(lost()) };
                let there = self.mounts[*n].share.stat(path, Links::Refuse, false).map_err(|_| lost())?;
                if there.id != open.id() {
                    return Err(lost());
                }
                ObjectState::Shared(Stamp::of(&there))
            }
            Object::Dir(items) => ObjectState::Dir(items.as_ref().map(|items| items.to_vec()), anchor),
            Object::Path => ObjectState::Path(anchor),
            Object::Device(device) => ObjectState::Device(*device),
            Object::Unmade { tid, .. } => ObjectState::Unmade { tid: *tid },
            Object::Text(text) => ObjectState::Text(text.to_vec()),
            Object::Console(stream) => ObjectState::Console(*stream),
            Object::Pipe(pipe, end) => ObjectState::Pipe(*pipe, *end),
            Object::Event(event) => ObjectState::Event(event.clone()),
            Object::Timer(timer) => ObjectState::Timer(TimerState::of(timer)),
            Object::Epoll(epoll) => ObjectState::Epoll(epoll.clone()),
            Object::Socket(end) => ObjectState::Socket(*end),
        };
        let (flags, position) = (file.flags, file.position);
        let place = file.place.as_ref().map(place_state);
        Ok(FileState { object, place, path: file.path.to_vec(), flags, position })
    }

    /// The files that were kept, at a checkpoint.
    ///
    /// # Errors
    /// What cannot be, or has changed since.
    pub(crate) fn restore(config: &FilesConfig, state: FilesState) -> Result<Self, BadFiles> {
        let mut files = Self::new(config)?;
        demand(state.shares == files.mounts.len(), "there are other shares")?;
        demand(!state.threads.is_empty(), "there is no thread")?;
        files.check_opened(&state.opened)?;
        files.tree.restore_state(state.tree)?;
        let numbers: HashSet<u32> =
            (0..).zip(&state.files).filter(|(_, file)| file.is_some()).map(|(n, _)| n).collect();
        let open = |file: Option<FileState>| file.map(|file| files.reopen(file, &numbers)).transpose();
        let table = state.files.into_iter().map(open).collect::<Result<_, _>>()?;
        files.cwd = files.place(&state.cwd, &numbers)?;
        files.table = Table::from_parts(state.fds, table, state.limit, state.file_bytes)
            .ok_or(BadFiles::Impossible("a descriptor leads nowhere"))?;
        (files.pipes, files.pairs) = (state.pipes, state.pairs);
        files.check_queues()?;
        (files.umask, files.exe) = (state.umask & 0o777, state.exe.into());
        files.threads = state.threads;
        for place in files.pinned() {
            files.pin(&place);
        }
        files.open_pinned();
        files.checkpoint();
        Ok(files)
    }

    /// The files of shares that the program opened are as they were.
    fn check_opened(&self, opened: &[(usize, Vec<u8>, Stamp)]) -> Result<(), BadFiles> {
        for (n, path, stamp) in opened {
            let mount = self.mounts.get(*n).ok_or(BadFiles::Impossible("a share is missing"))?;
            let there = mount.share.stat(path, Links::Refuse, false).ok();
            if there.map(|attr| Stamp::of(&attr)) != Some(*stamp) {
                let mut shown = self.path(&mount.point).unwrap_or_default();
                shown.extend([&b"/"[..], path].concat());
                return Err(changed(&shown));
            }
        }
        Ok(())
    }

    fn place(&self, state: &PlaceState, numbers: &HashSet<u32>) -> Result<Place, BadFiles> {
        let (there, place) = match state {
            PlaceState::Tree(id) => (self.tree.has(*id), Place::Tree(*id)),
            PlaceState::Shared(n, path) => {
                (*n < self.mounts.len(), Place::Shared(*n, path.as_slice().into()))
            }
            PlaceState::Live(live) => (is_row(*live), Place::Live(*live)),
            PlaceState::Open(id) => (numbers.contains(&id.number()), Place::Open(*id)),
        };
        demand(there, "a file is at no place").map(|()| place)
    }

    fn reopen(&self, file: FileState, numbers: &HashSet<u32>) -> Result<Description, BadFiles> {
        let FileState { object, place, path, flags, position } = file;
        let place = place.map(|place| self.place(&place, numbers)).transpose()?;
        let mut anchor = None;
        let object = match object {
            ObjectState::File(id) => {
                let file = self.tree.has(id) && matches!(self.tree.node(id).body, Body::File(_));
                demand(file && place == Some(Place::Tree(id)), "an open file is none")?;
                Object::File(id)
            }
            ObjectState::Shared(stamp) => {
                let Some(Place::Shared(n, host)) = &place else {
                    return Err(BadFiles::Impossible("a file of a share lies in none"));
                };
                let saved = OpenState { path: host.to_vec(), flags, position, id: stamp.id };
                let open = self.mounts[*n].share.reopen(&saved).map_err(|_| changed(&path))?;
                if Stamp::of(open.attr_at_open()) != stamp {
                    return Err(changed(&path));
                }
                Object::Shared(Arc::new(open))
            }
            ObjectState::Dir(items, id) => {
                anchor = id;
                Object::Dir(items.map(Into::into))
            }
            ObjectState::Path(id) => {
                anchor = id;
                Object::Path
            }
            ObjectState::Device(device) => Object::Device(device),
            ObjectState::Unmade { tid } => Object::Unmade { render: self.render(place.as_ref())?, tid },
            ObjectState::Text(text) => Object::Text(text.into()),
            ObjectState::Console(stream) => Object::Console(stream),
            ObjectState::Pipe(pipe, end) => Object::Pipe(pipe, end),
            ObjectState::Event(event) => Object::Event(event),
            ObjectState::Timer(timer) => {
                let timer = timer.restore();
                Object::Timer(timer.ok_or(BadFiles::Impossible("a timer has no clock"))?)
            }
            ObjectState::Epoll(epoll) => {
                let known = epoll.watched().all(|file| numbers.contains(&file.number()));
                demand(known, "an epoll instance watches what is not open")?;
                Object::Epoll(epoll)
            }
            ObjectState::Socket(end) => Object::Socket(end),
        };
        let mut file = Description::new(object, place, path.into(), flags);
        file.position = position;
        if let Some(id) = anchor {
            let Some(Place::Shared(n, host)) = &file.place else {
                return Err(BadFiles::Impossible("a directory of a share lies in none"));
            };
            let there = self.mounts[*n].share.anchor(host, Links::Refuse);
            let there = there.ok().filter(|anchor| anchor.id() == id).ok_or_else(|| changed(&file.path))?;
            file.anchor = Some(Arc::new(there));
        }
        Ok(file)
    }

    /// How the generated text at `place` is made.
    fn render(&self, place: Option<&Place>) -> Result<super::synth::Render, BadFiles> {
        match place {
            Some(Place::Tree(id)) => match self.tree.node(*id).body {
                Body::Synth(Synth::Text(render)) => Ok(render),
                _ => Err(BadFiles::Impossible("a generated text is none")),
            },
            Some(Place::Live(LivePlace::TaskText(_, row))) => Ok(task_texts()[*row].2),
            _ => Err(BadFiles::Impossible("a generated text is none")),
        }
    }

    /// Pipes and socket pairs have the open files that they think they have.
    fn check_queues(&self) -> Result<(), BadFiles> {
        let (mut pipes, mut ends) = (BTreeMap::new(), BTreeMap::new());
        for (_, file) in self.table.files() {
            match file.object {
                Object::Pipe(PipeId(n), PipeEnd::Read) => pipes.entry(n).or_insert((0, 0)).0 += 1,
                Object::Pipe(PipeId(n), PipeEnd::Write) => pipes.entry(n).or_insert((0, 0)).1 += 1,
                Object::Socket(end) => {
                    demand(end.side < 2, "a socket has two ends")?;
                    ends.entry(end.pair).or_insert([false; 2])[end.side] = true;
                }
                _ => {}
            }
        }
        for (n, pipe) in (0..).zip(&self.pipes) {
            let (readers, writers) = pipes.remove(&n).unwrap_or_default();
            let good = match pipe {
                Some(pipe) => pipe.is_possible(readers, writers),
                None => (readers, writers) == (0, 0),
            };
            demand(good, "a pipe has other ends than it says")?;
        }
        for (n, pair) in (0..).zip(&self.pairs) {
            let open = ends.remove(&n).unwrap_or_default();
            let good = pair.as_ref().map_or(open == [false; 2], |pair| pair.is_possible(open));
            demand(good, "a socket pair has other ends than it says")?;
        }
        demand(pipes.is_empty() && ends.is_empty(), "a pipe or socket is missing")
    }

    /// Opens the host's files behind open files once, for all sandboxes.
    fn open_pinned(&mut self) {
        for place in self.pinned() {
            if let Place::Tree(id) = place {
                // What does not open is an error of the program's own when it reads.
                let _ = self.tree.host_stamp(id);
            }
        }
    }

    /// A regular file of the host by its path in the sandbox, to be mapped again, with what tells whether it is the same.
    /// `None` where there is none of that name.
    pub(crate) fn host_file_at(&mut self, path: &[u8]) -> Option<(Arc<OwnedFd>, Stamp)> {
        let place = self.walk(&Place::Tree(NodeId::ROOT), path, End::Stay).ok()?.found().ok()?;
        match &place {
            Place::Tree(id) => {
                let stamp = self.tree.host_stamp(*id).ok()??;
                Some((self.tree.map(*id, Mapped::Private).ok()?.fd, stamp))
            }
            Place::Shared(n, host) => {
                let file = self.mounts[*n].share.open(host, Links::Refuse, OFlags::RDONLY, 0).ok()?;
                let stamp = Stamp::of(file.attr_at_open());
                Some((Arc::new(file.into_fd()), stamp))
            }
            _ => None,
        }
    }

    /// What tells whether the file that is mapped as `fd` is the one at `path`; `None` where it is not.
    pub(crate) fn stamp_at(&mut self, path: &[u8], fd: &OwnedFd) -> Option<Stamp> {
        let (_, stamp) = self.host_file_at(path)?;
        (Stamp::of_fd(fd.as_fd()).ok()? == stamp).then_some(stamp)
    }
}

fn place_state(place: &Place) -> PlaceState {
    match place {
        Place::Tree(id) => PlaceState::Tree(*id),
        Place::Shared(n, path) => PlaceState::Shared(*n, path.to_vec()),
        Place::Live(live) => PlaceState::Live(*live),
        Place::Open(id) => PlaceState::Open(*id),
    }
}

/// Whether a text of a thread's directory exists.
fn is_row(live: LivePlace) -> bool {
    match live {
        LivePlace::TaskText(_, row) => row < task_texts().len(),
        _ => true,
    }
}
