//! Where a path leads: one type over the private tree, the shares and the entries of `/proc/self`.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::synth::{Live, Magic, Synth, task_texts};
use super::table::{DirItem, FileId, Object};
use super::tree::{Body, Entry, NodeId, join};
use super::{Files, host};
use crate::share::{Attr, Identity, Links};

/// Device numbers of the shares as the tenant sees them, counting up.
const SHARE_DEV: u64 = 0x40;
/// Device number of what has no name: pipes, sockets, event files.
const NAMELESS_DEV: u64 = 0x0e;

/// A file that a path or descriptor names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A node of the private tree.
    Tree(NodeId),
    /// A path in the share of that number, relative, without links or dots.
    Shared(usize, Arc<[u8]>),
    /// An entry of `/proc/self` that comes and goes.
    Live(LivePlace),
    /// An open file that has no name (the target of a link in `/proc/self/fd`).
    Open(FileId),
}

/// See [`Place::Live`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LivePlace {
    /// `/proc/self/fd/N`.
    Fd(i32),
    /// `/proc/self/fdinfo/N`.
    FdInfo(i32),
    /// `/proc/self/task/T`.
    Task(u32),
    /// A text in there, by its row.
    TaskText(u32, usize),
}

/// What a symbolic link leads to.
pub(crate) enum Target {
    /// A path to walk.
    Text(Vec<u8>),
    /// The thing itself.
    Jump(Place),
}

impl Files {
    /// The device number that files of share `n` show.
    pub(super) fn shared_attr(n: usize, mut attr: Attr) -> Attr {
        attr.id.dev = SHARE_DEV + n as u64;
        attr
    }

    /// `lstat` of a place.
    pub(super) fn attr(&self, place: &Place) -> Result<Attr, Errno> {
        match place {
            Place::Tree(id) => Ok(self.tree.node(*id).attr()),
            Place::Shared(n, path) => {
                let attr = self.mounts[*n].share.stat(path, Links::Refuse, false)?;
                Ok(Self::shared_attr(*n, attr))
            }
            Place::Live(live) => self.live_attr(*live),
            Place::Open(id) => self.attr_of_open(*id),
        }
    }

    pub(super) fn kind(&self, place: &Place) -> Result<FileType, Errno> {
        match place {
            Place::Tree(id) => Ok(self.tree.node(*id).kind()),
            _ => Ok(self.attr(place)?.kind()),
        }
    }

    /// [`Files::kind`] where the host may have said so already.
    pub(super) fn kind_seen(&self, place: &Place, seen: Option<&Attr>) -> Result<FileType, Errno> {
        seen.map_or_else(|| self.kind(place), |attr| Ok(attr.kind()))
    }

    /// [`Files::attr`] where the host may have said it already.
    pub(super) fn attr_seen(&self, place: &Place, seen: Option<Attr>) -> Result<Attr, Errno> {
        match (place, seen) {
            (Place::Shared(n, _), Some(attr)) => Ok(Self::shared_attr(*n, attr)),
            _ => self.attr(place),
        }
    }

    /// What the host says about a path of share `n`.
    pub(super) fn look(&self, n: usize, path: &[u8]) -> Result<Attr, Errno> {
        self.mounts[n].share.stat(path, Links::Refuse, false)
    }

    /// Whether something is mounted inside of share `n`.
    pub(super) fn holds_mounts(&self, n: usize) -> bool {
        self.mounts.iter().any(|mount| matches!(mount.point, Place::Shared(m, _) if m == n))
    }

    fn live_attr(&self, live: LivePlace) -> Result<Attr, Errno> {
        let (mode, ino) = match live {
            LivePlace::Fd(fd) => {
                self.table.fd(fd).map_err(|_| Errno::NOENT)?;
                (libc::S_IFLNK | 0o700, 0x1_0000 + fd as u64)
            }
            LivePlace::FdInfo(fd) => {
                self.table.fd(fd).map_err(|_| Errno::NOENT)?;
                (libc::S_IFREG | 0o400, 0x2_0000 + fd as u64)
            }
            LivePlace::Task(tid) => (libc::S_IFDIR | 0o555, 0x100_0000 + u64::from(tid) * 64),
            LivePlace::TaskText(tid, row) => {
                (libc::S_IFREG | task_texts()[row].1, 0x100_0001 + u64::from(tid) * 64 + row as u64)
            }
        };
        let size = if mode & libc::S_IFMT == libc::S_IFLNK { 64 } else { 0 };
        Ok(Attr { size, ..nameless(mode, ino) })
    }

    /// `fstat` of an open file.
    pub(super) fn attr_of_open(&self, id: FileId) -> Result<Attr, Errno> {
        let file = self.table.file(id);
        let label = |mode, ino: u64| Ok(nameless(mode, ino));
        match &file.object {
            Object::File(node) => Ok(self.tree.node(*node).attr()),
            Object::Shared(open) => match &file.place {
                Some(Place::Shared(n, _)) => Ok(Self::shared_attr(*n, open.stat()?)),
                _ => open.stat(),
            },
            Object::Console(stream) => label(libc::S_IFIFO | 0o600, 1 + *stream as u64),
            Object::Pipe(pipe, _) => label(libc::S_IFIFO | 0o600, pipe.ino()),
            Object::Socket(end) => label(libc::S_IFSOCK | 0o777, end.ino()),
            Object::Event(_) | Object::Timer(_) | Object::Epoll(_) => label(0o600, 9),
            _ => match (&file.anchor, &file.place) {
                (Some(anchor), Some(Place::Shared(n, _))) => Ok(Self::shared_attr(*n, anchor.stat()?)),
                (_, Some(place)) => self.attr(place),
                (_, None) => Err(Errno::BADF),
            },
        }
    }

    /// The entry `name` of the directory `dir`, mounts crossed, with what the host said about it where it lies in a share;
    /// `None` where there is none.
    pub(super) fn lookup_seen(
        &mut self,
        dir: &Place,
        name: &[u8],
    ) -> Result<Option<(Place, Option<Attr>)>, Errno> {
        let mut seen = None;
        let found = match dir {
            Place::Tree(id) => match self.tree.node(*id).body {
                Body::Synth(Synth::Live(live)) => self.lookup_live(live, name),
                _ => self.tree.lookup(*id, name)?.map(Place::Tree),
            },
            Place::Shared(n, path) => {
                if name.len() > crate::share::NAME_MAX {
                    return Err(Errno::NAMETOOLONG);
                }
                let path = join(path, name);
                match self.look(*n, &path) {
                    Ok(attr) => {
                        seen = Some(attr);
                        Some(Place::Shared(*n, path.into()))
                    }
                    Err(Errno::NOENT) => None,
                    Err(e) => return Err(e),
                }
            }
            Place::Live(LivePlace::Task(tid)) => task_texts()
                .iter()
                .position(|(text, ..)| text.as_bytes() == name)
                .map(|row| Place::Live(LivePlace::TaskText(*tid, row))),
            // A directory of a share that is gone.
            Place::Open(_) => None,
            Place::Live(_) => return Err(Errno::NOTDIR),
        };
        Ok(found.map(|place| {
            let crossed = self.cross(&place);
            match crossed {
                Some(root) => (root, None),
                None => (place, seen),
            }
        }))
    }

    fn lookup_live(&self, live: Live, name: &[u8]) -> Option<Place> {
        let text = std::str::from_utf8(name).ok()?;
        let plain = text == "0" || !text.starts_with(['0', '+', '-']);
        let number: i32 = text.parse().ok().filter(|_| plain)?;
        let place = match live {
            Live::Tasks => {
                let tid = number as u32;
                return self.threads.contains(&tid).then_some(Place::Live(LivePlace::Task(tid)));
            }
            Live::Fds => LivePlace::Fd(number),
            Live::FdInfo => LivePlace::FdInfo(number),
        };
        self.table.fd(number).ok().map(|_| Place::Live(place))
    }

    /// From a mount point to what is mounted there; `None` where nothing is.
    fn cross(&self, place: &Place) -> Option<Place> {
        let mount = match place {
            Place::Tree(id) => self.tree.node(*id).dir().and_then(|dir| dir.mount),
            Place::Shared(..) => self.mounts.iter().position(|mount| mount.point == *place),
            _ => None,
        };
        mount.map(|n| Place::Shared(n, Arc::default()))
    }

    /// Whether something is mounted on this name of `dir`.
    pub(super) fn is_mount_root(&self, place: &Place) -> bool {
        matches!(place, Place::Shared(_, path) if path.is_empty())
    }

    /// The directory above, mounts crossed; the root is above itself.
    pub(super) fn parent(&self, place: &Place) -> Place {
        match place {
            Place::Tree(id) => match self.tree.node(*id).body {
                Body::Synth(Synth::Live(_)) => Place::Tree(self.planted.process),
                _ => Place::Tree(self.tree.parent(*id)),
            },
            Place::Shared(n, path) if path.is_empty() => self.parent(&self.mounts[*n].point),
            Place::Shared(n, path) => Place::Shared(*n, parent_path(path).into()),
            Place::Live(_) => Place::Tree(self.planted.tasks),
            Place::Open(id) => match &self.table.file(*id).place {
                Some(place) => self.parent(place),
                None => Place::Tree(NodeId::ROOT),
            },
        }
    }

    /// What the symbolic link at `place` leads to; `None` where it is no link.
    pub(super) fn target(&self, place: &Place) -> Result<Option<Target>, Errno> {
        match place {
            Place::Tree(id) => match &self.tree.node(*id).body {
                Body::Link(text) => Ok(Some(Target::Text(text.to_vec()))),
                Body::Synth(Synth::Magic(magic)) => Ok(Some(match magic {
                    Magic::Cwd => Target::Jump(self.cwd.clone()),
                    Magic::Root => Target::Jump(Place::Tree(NodeId::ROOT)),
                    Magic::Exe => Target::Text(self.exe.to_vec()),
                })),
                _ => Ok(None),
            },
            Place::Shared(n, path) => match self.mounts[*n].share.read_link(path, Links::Refuse) {
                Ok(text) => Ok(Some(Target::Text(text))),
                Err(Errno::INVAL) => Ok(None),
                Err(e) => Err(e),
            },
            Place::Live(LivePlace::Fd(fd)) => {
                let id = self.table.fd(*fd).map_err(|_| Errno::NOENT)?.file;
                let place = self.place_of_open(id).unwrap_or(Place::Open(id));
                Ok(Some(Target::Jump(place)))
            }
            _ => Ok(None),
        }
    }

    /// `readlink` of a place.
    pub(super) fn link_text(&self, place: &Place) -> Result<Vec<u8>, Errno> {
        match place {
            Place::Live(LivePlace::Fd(fd)) => {
                let file = self.table.get(*fd).map_err(|_| Errno::NOENT)?;
                let gone = match &file.place {
                    Some(Place::Tree(id)) => self.tree.node(*id).nlink == 0,
                    _ => false,
                };
                let mut text = file.path.to_vec();
                text.extend_from_slice(if gone { b" (deleted)" } else { b"" });
                Ok(text)
            }
            _ => match self.target(place)?.ok_or(Errno::INVAL)? {
                Target::Text(text) => Ok(text),
                Target::Jump(place) => self.path(&place).ok_or(Errno::NOENT),
            },
        }
    }

    /// The absolute path of a directory or share's file; `None` where it is removed.
    pub(super) fn path(&self, place: &Place) -> Option<Vec<u8>> {
        let path = match place {
            Place::Tree(id) => match self.tree.node(*id).body {
                Body::Synth(Synth::Live(live)) => {
                    let mut path = self.tree.path(self.planted.process)?;
                    path.extend(match live {
                        Live::Fds => &b"/fd"[..],
                        Live::FdInfo => b"/fdinfo",
                        Live::Tasks => b"/task",
                    });
                    path
                }
                _ => self.tree.path(*id)?,
            },
            Place::Shared(n, path) => {
                let mut whole = self.path(&self.mounts[*n].point)?;
                if !path.is_empty() {
                    whole.push(b'/');
                    whole.extend_from_slice(path);
                }
                whole
            }
            Place::Live(LivePlace::Task(tid)) => format!("/proc/self/task/{tid}").into_bytes(),
            Place::Live(_) => return None,
            Place::Open(id) => self.table.file(*id).path.to_vec(),
        };
        Some(if path.is_empty() { b"/".to_vec() } else { path })
    }

    /// The listing of the directory `place`, with `.` and `..` in front.
    pub(super) fn list(&self, place: &Place) -> Result<Vec<DirItem>, Errno> {
        let entries = match place {
            Place::Tree(id) => match self.tree.node(*id).body {
                Body::Synth(Synth::Live(live)) => self.list_live(live),
                _ => self.tree.list(*id)?,
            },
            Place::Shared(n, path) => {
                let mut entries = Vec::new();
                self.mounts[*n].share.open_dir_at(path, Links::Refuse)?.read(0, |e| {
                    entries.push(Entry { name: e.name, ino: e.ino, kind: e.kind });
                    true
                })?;
                entries
            }
            Place::Live(LivePlace::Task(tid)) => (0..task_texts().len())
                .map(|row| Entry {
                    name: task_texts()[row].0.into(),
                    ino: 0x100_0001 + u64::from(*tid) * 64 + row as u64,
                    kind: FileType::RegularFile,
                })
                .collect(),
            _ => return Err(Errno::NOTDIR),
        };
        let own = self.attr(place)?.id.ino;
        let up = self.attr(&self.parent(place)).map_or(own, |attr| attr.id.ino);
        let dots = [(&b"."[..], own), (b"..", up)];
        let dots = dots.map(|(name, ino)| Entry { name: name.to_vec(), ino, kind: FileType::Directory });
        Ok(dots.into_iter().chain(entries).map(item).collect())
    }

    fn list_live(&self, live: Live) -> Vec<Entry> {
        let entry = |name: String, ino, kind| Entry { name: name.into_bytes(), ino, kind };
        match live {
            Live::Tasks => self
                .threads
                .iter()
                .map(|t| entry(t.to_string(), 0x100_0000 + u64::from(*t) * 64, FileType::Directory))
                .collect(),
            Live::Fds | Live::FdInfo => {
                let (base, kind) = match live {
                    Live::Fds => (0x1_0000, FileType::Symlink),
                    _ => (0x2_0000, FileType::RegularFile),
                };
                self.table.open_fds().map(|fd| entry(fd.to_string(), base + fd as u64, kind)).collect()
            }
        }
    }
}

fn item(entry: Entry) -> DirItem {
    let kind = match entry.kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    };
    DirItem { name: entry.name, ino: entry.ino, kind }
}

/// The path without its last name.
pub(super) fn parent_path(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(&[], |slash| &path[..slash])
}

fn nameless(mode: u32, ino: u64) -> Attr {
    let now = host::now();
    Attr {
        id: Identity { dev: NAMELESS_DEV, ino },
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        block_size: 4096,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    }
}
