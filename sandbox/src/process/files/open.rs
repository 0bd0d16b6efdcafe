//! Opening (open(2), openat2(2)).

use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::place::LivePlace;
use super::synth::{Device, Synth, task_texts};
use super::table::{Description, FileId, Object};
use super::tree::{Body, Content, Node, join};
use super::walk::{Last, Limits};
use super::{End, Files, Place};
use crate::share::{Attr, Links};

const CREATE: u32 = libc::O_CREAT as u32;
const EXCL: u32 = libc::O_EXCL as u32;
const TRUNC: u32 = libc::O_TRUNC as u32;
const DIRECTORY: u32 = libc::O_DIRECTORY as u32;
const NOFOLLOW: u32 = libc::O_NOFOLLOW as u32;
const PATH: u32 = libc::O_PATH as u32;
const CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const TMPFILE: u32 = libc::O_TMPFILE as u32;
const ACCESS: u32 = libc::O_ACCMODE as u32;
/// On x86-64 the C library calls it 0; the kernel sets it on every open file.
const LARGEFILE: u32 = 0o100_000;
/// Bytes of generated texts that all open files hold together.
const MOST_TEXT: usize = 16 << 20;
/// Flags that are gone once the file is open.
const AT_OPEN: u32 = CREATE | EXCL | TRUNC | CLOEXEC | libc::O_NOCTTY as u32;

impl Files {
    /// `openat2(2)`: the descriptor. `mode` is the mode argument, without the umask applied. Of unknown bits in
    /// `flags` nothing is said, as with `open(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn open(
        &mut self,
        dirfd: i32,
        path: &[u8],
        flags: u32,
        mode: u32,
        limits: Limits,
    ) -> Result<i32, Errno> {
        let flags = check_flags(flags)?;
        let room = self.table.room(0)?;
        let start = self.start(dirfd, path)?;
        let stays = flags & NOFOLLOW != 0 || flags & (CREATE | EXCL) == CREATE | EXCL;
        let end = match (flags & CREATE != 0, stays) {
            (true, true) => End::CreateStay,
            (true, false) => End::Create,
            (false, true) => End::Stay,
            (false, false) => End::Follow,
        };
        let walked = self.walk_within(&start, path, end, limits)?;
        let file = match (walked.found, walked.last) {
            (Some(_), _) if flags & (CREATE | EXCL) == CREATE | EXCL => return Err(Errno::EXIST),
            (Some(place), _) if flags & TMPFILE == TMPFILE => self.open_unnamed(place, flags, mode)?,
            (Some(place), last) => {
                let path = match last {
                    Last::Name(name) => self.path_in(&walked.dir, &name),
                    _ => self.name_of(&place),
                };
                self.open_place(place, path, flags, walked.seen)?
            }
            (None, Last::Name(name)) if flags & CREATE != 0 => {
                self.create_file(&walked.dir, &name, flags, mode)?
            }
            (None, _) => return Err(Errno::NOENT),
        };
        Ok(self.install(room, file, flags & CLOEXEC != 0))
    }

    /// Gives an open file a descriptor.
    pub(super) fn install(&mut self, at: usize, file: Description, cloexec: bool) -> i32 {
        if let Some(Place::Tree(id)) = &file.place {
            self.tree.pin(*id);
        }
        let id = self.table.add(file);
        let fd = self.table.point(at, id, cloexec);
        self.tree.trim();
        fd
    }

    fn describe(object: Object, place: Place, path: Vec<u8>, flags: u32) -> Description {
        let large = if flags & PATH != 0 { 0 } else { LARGEFILE };
        Description::new(object, Some(place), path.into(), flags & !AT_OPEN | large)
    }

    fn describe_anchored(
        &self,
        object: Object,
        place: Place,
        path: Vec<u8>,
        flags: u32,
    ) -> Result<Description, Errno> {
        let anchor = match &place {
            Place::Shared(n, host) => Some(Arc::new(self.mounts[*n].share.anchor(host, Links::Refuse)?)),
            _ => None,
        };
        let mut file = Self::describe(object, place, path, flags);
        file.anchor = anchor;
        Ok(file)
    }

    fn path_in(&self, dir: &Place, name: &[u8]) -> Vec<u8> {
        let mut path = self.path(dir).unwrap_or_default();
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn create_file(&mut self, dir: &Place, name: &[u8], flags: u32, mode: u32) -> Result<Description, Errno> {
        let mode = mode & !self.umask & 0o7777;
        let path = self.path_in(dir, name);
        match dir {
            Place::Tree(dir) => {
                let body = Body::File(Content::Bytes(Arc::default()));
                let id = self.tree.create(*dir, name, Node::new(libc::S_IFREG | mode, body))?;
                Ok(Self::describe(Object::File(id), Place::Tree(id), path, flags))
            }
            Place::Shared(n, dir) => {
                let host = join(dir, name);
                let file = self.mounts[*n].share.open(
                    &host,
                    Links::Refuse,
                    OFlags::from_bits_retain(flags),
                    mode,
                )?;
                Ok(Self::describe(
                    Object::Shared(Arc::new(file)),
                    Place::Shared(*n, host.into()),
                    path,
                    flags,
                ))
            }
            Place::Open(_) => Err(Errno::NOENT),
            Place::Live(_) => Err(Errno::ACCESS),
        }
    }

    fn open_unnamed(&mut self, dir: Place, flags: u32, mode: u32) -> Result<Description, Errno> {
        if self.kind(&dir)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let mode = mode & !self.umask & 0o7777;
        let path = self.path_in(&dir, b"#unnamed");
        match &dir {
            Place::Tree(id) if self.tree.node(*id).dir().is_some_and(|dir| !dir.fixed) => {
                let id = self.tree.create_unnamed(mode, flags & EXCL == 0)?;
                Ok(Self::describe(Object::File(id), Place::Tree(id), path, flags))
            }
            Place::Shared(n, host) => {
                let share = &self.mounts[*n].share;
                let file = share.open_unnamed(host, Links::Refuse, OFlags::from_bits_retain(flags), mode)?;
                let unnamed = join(host, b"#unnamed");
                Ok(Self::describe(
                    Object::Shared(Arc::new(file)),
                    Place::Shared(*n, unnamed.into()),
                    path,
                    flags,
                ))
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Opens what exists. `seen` is what the host said about it during the walk.
    fn open_place(
        &mut self,
        place: Place,
        path: Vec<u8>,
        flags: u32,
        seen: Option<Attr>,
    ) -> Result<Description, Errno> {
        let kind = self.kind_seen(&place, seen.as_ref())?;
        if flags & DIRECTORY != 0 && kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if flags & PATH != 0 {
            return self.describe_anchored(Object::Path, place, path, flags);
        }
        let writes = flags & ACCESS != libc::O_RDONLY as u32 || flags & (TRUNC | CREATE) != 0;
        match kind {
            FileType::Symlink => return Err(Errno::LOOP),
            FileType::Directory if writes => return Err(Errno::ISDIR),
            FileType::Directory => return self.describe_anchored(Object::Dir(None), place, path, flags),
            _ => {}
        }
        let object = match &place {
            Place::Tree(id) => self.open_node(*id, flags)?,
            Place::Shared(n, host) => {
                let share = &self.mounts[*n].share;
                let flags = OFlags::from_bits_retain(flags);
                let file = share.open_seen(host, Links::Refuse, flags, 0, seen)?;
                if let Some(opened) = &mut self.opened {
                    opened.note(*n, host, file.attr_at_open());
                }
                Object::Shared(Arc::new(file))
            }
            Place::Live(live) => self.open_live(*live, flags)?,
            Place::Open(id) => return self.open_again(*id, flags),
        };
        Ok(Self::describe(object, place, path, flags))
    }

    /// The path to show for a place that was not reached by a name: a directory's own, or that of the open file
    /// whose link in `/proc/self/fd` led here.
    fn name_of(&self, place: &Place) -> Vec<u8> {
        if let Ok(FileType::Directory) = self.kind(place) {
            return self.path(place).unwrap_or_default();
        }
        let open = self.table.files().find(|(_, file)| file.place.as_ref() == Some(place));
        open.map(|(_, file)| file.path.to_vec()).unwrap_or_default()
    }

    fn open_node(&mut self, id: super::NodeId, flags: u32) -> Result<Object, Errno> {
        let writes = flags & ACCESS != libc::O_RDONLY as u32 || flags & TRUNC != 0;
        let node = self.tree.node(id);
        match &node.body {
            Body::File(_) => {
                if flags & TRUNC != 0 {
                    self.tree.truncate(id, 0)?;
                } else {
                    self.tree.check_readable(id)?;
                }
                Ok(Object::File(id))
            }
            Body::Synth(Synth::Device(Device::Tty)) => Err(Errno::NXIO),
            Body::Synth(Synth::Device(device)) => Ok(Object::Device(*device)),
            Body::Synth(Synth::Text(_)) if writes => Err(Errno::ACCESS),
            Body::Synth(Synth::Text(render)) => Ok(Object::Unmade { render: *render, tid: self.threads[0] }),
            Body::Foreign if node.kind() == FileType::Socket => Err(Errno::NXIO),
            _ => Err(Errno::ACCESS),
        }
    }

    fn open_live(&mut self, live: LivePlace, flags: u32) -> Result<Object, Errno> {
        if flags & ACCESS != libc::O_RDONLY as u32 || flags & TRUNC != 0 {
            return Err(Errno::ACCESS);
        }
        match live {
            LivePlace::TaskText(tid, row) => Ok(Object::Unmade { render: task_texts()[row].2, tid }),
            LivePlace::FdInfo(fd) => {
                let cloexec = self.table.fd(fd)?.cloexec;
                let file = self.table.get(fd)?;
                let flags = file.flags | if cloexec { CLOEXEC } else { 0 };
                let text = format!("pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t20\nino:\t0\n", file.position);
                Ok(Object::Text(Arc::from(text.as_bytes())))
            }
            LivePlace::Fd(_) | LivePlace::Task(_) => Err(Errno::ACCESS),
        }
    }

    /// Opens through `/proc/self/fd/N` what has no name.
    fn open_again(&mut self, id: FileId, flags: u32) -> Result<Description, Errno> {
        let access = flags & ACCESS;
        let file = self.table.file(id);
        let path = file.path.clone();
        let object = match &file.object {
            Object::Console(stream) => Object::Console(*stream),
            Object::Pipe(pipe, _) => {
                let (pipe, end) = (
                    *pipe,
                    match access as i32 {
                        libc::O_RDONLY => super::pipe::End::Read,
                        libc::O_WRONLY => super::pipe::End::Write,
                        _ => return Err(Errno::ACCESS),
                    },
                );
                self.count_pipe_end(pipe, end, 1);
                Object::Pipe(pipe, end)
            }
            _ => return Err(Errno::NXIO),
        };
        Ok(Description::new(object, None, path, flags & !AT_OPEN | LARGEFILE))
    }

    /// If `fd` is a generated text that is not made yet: how to make it, and for which thread.
    pub(crate) fn unmade(&self, fd: i32) -> Option<(super::synth::Render, u32)> {
        match self.table.get(fd).ok()?.object {
            Object::Unmade { render, tid } => Some((render, tid)),
            _ => None,
        }
    }

    /// Makes the text of every open file that waits for it. Call after an open.
    pub(crate) fn make_text(&mut self, fd: i32, view: &dyn super::ProcessView) {
        let Some((render, tid)) = self.unmade(fd) else { return };
        let scene = super::synth::Scene {
            process: view,
            tid,
            mounts: &self.mount_table(),
            open_files: u64::from(self.table.limit()),
            fd_slots: self.table.slots(),
        };
        let text = render(&scene);
        let held = |object: &Object| if let Object::Text(text) = object { text.len() } else { 0 };
        let others: usize = self.table.files().map(|(_, file)| held(&file.object)).sum();
        // What does not fit any more reads as empty.
        let text: Arc<[u8]> = if others + text.len() > MOST_TEXT { Arc::default() } else { text.into() };
        if let Ok(at) = self.table.fd(fd) {
            self.table.file_mut(at.file).object = Object::Text(text);
        }
    }

    /// Where a relative `path` starts.
    pub(crate) fn start(&self, dirfd: i32, path: &[u8]) -> Result<Place, Errno> {
        if dirfd == libc::AT_FDCWD || path.starts_with(b"/") {
            return Ok(self.cwd.clone());
        }
        let id = self.table.fd(dirfd)?.file;
        if self.attr_of_open(id)?.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        self.place_of_open(id).ok_or(Errno::NOTDIR)
    }

    /// The place of an open file; where its path names another file by now, the open file itself.
    pub(super) fn place_of_open(&self, id: FileId) -> Option<Place> {
        let file = self.table.file(id);
        let place = file.place.clone()?;
        match (&place, &file.anchor) {
            (Place::Shared(n, path), Some(anchor)) => {
                let there = self.mounts[*n].share.stat(path, Links::Refuse, false);
                let same = there.is_ok_and(|attr| attr.id == anchor.id());
                Some(if same { place } else { Place::Open(id) })
            }
            _ => Some(place),
        }
    }

    /// The file that `dirfd` and `path` name. With `empty`, an empty path names what `dirfd` refers to.
    pub(crate) fn find(&mut self, dirfd: i32, path: &[u8], end: End, empty: bool) -> Result<Place, Errno> {
        if path.is_empty() && empty {
            if dirfd == libc::AT_FDCWD {
                return Ok(self.cwd.clone());
            }
            return Ok(Place::Open(self.table.fd(dirfd)?.file));
        }
        let start = self.start(dirfd, path)?;
        self.walk(&start, path, end)?.found()
    }

    /// The attributes of the file that `dirfd` and `path` name, and its place.
    pub(super) fn find_attr(
        &mut self,
        dirfd: i32,
        path: &[u8],
        end: End,
        empty: bool,
    ) -> Result<(Place, Attr), Errno> {
        if path.is_empty() && empty {
            let place = self.find(dirfd, path, end, empty)?;
            let attr = self.attr(&place)?;
            return Ok((place, attr));
        }
        let start = self.start(dirfd, path)?;
        let mut walked = self.walk(&start, path, end)?;
        let seen = walked.seen.take();
        let place = walked.found()?;
        let attr = self.attr_seen(&place, seen)?;
        Ok((place, attr))
    }
}

fn check_flags(flags: u32) -> Result<u32, Errno> {
    if flags & PATH != 0 {
        return Ok(flags & (PATH | DIRECTORY | NOFOLLOW | CLOEXEC));
    }
    let access = flags & ACCESS;
    if access == ACCESS {
        return Err(Errno::INVAL);
    }
    if flags & TMPFILE == TMPFILE {
        let writes = access != libc::O_RDONLY as u32;
        return if writes && flags & CREATE == 0 { Ok(flags) } else { Err(Errno::INVAL) };
    }
    if flags & (CREATE | DIRECTORY) == CREATE | DIRECTORY {
        return Err(Errno::INVAL);
    }
    Ok(flags)
}
