//! Making, removing and renaming names. Errors and their order follow Linux `fs/namei.c`.

use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::tree::{Body, Content, Dir, Node, join};
use super::walk::{Last, Walked};
use super::{End, Files, Object, Place};
use crate::share::Links;

/// A name in a directory.
type Spot = (Place, Vec<u8>);

impl Files {
    fn walk_name(&mut self, dirfd: i32, path: &[u8]) -> Result<Walked, Errno> {
        let start = self.start(dirfd, path)?;
        self.walk(&start, path, End::Name)
    }

    /// Where a new name shall be; `dir` lets it end in a slash.
    fn free_spot(&mut self, dirfd: i32, path: &[u8], dir: bool) -> Result<Spot, Errno> {
        let walked = self.walk_name(dirfd, path)?;
        let Last::Name(name) = walked.last else { return Err(Errno::EXIST) };
        if walked.found.is_some() {
            return Err(Errno::EXIST);
        }
        if walked.slash && !dir {
            return Err(Errno::NOENT);
        }
        Ok((walked.dir, name))
    }

    /// `mkdirat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn make_dir(&mut self, dirfd: i32, path: &[u8], mode: u32) -> Result<(), Errno> {
        let (dir, name) = self.free_spot(dirfd, path, true)?;
        let mode = mode & 0o1777 & !self.umask;
        match dir {
            Place::Tree(dir) => {
                let node = Node::new(libc::S_IFDIR | mode, Body::Dir(Dir::new(dir, &name)));
                self.tree.create(dir, &name, node).map(drop)
            }
            Place::Shared(n, dir) => self.mounts[n].share.make_dir(&join(&dir, &name), Links::Refuse, mode),
            Place::Open(_) => Err(Errno::NOENT),
            Place::Live(_) => Err(Errno::ACCESS),
        }
    }

    /// `mknodat(2)`, for regular files only.
    ///
    /// # Errors
    /// `EPERM` for everything else.
    pub(crate) fn make_node(&mut self, dirfd: i32, path: &[u8], mode: u32) -> Result<(), Errno> {
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG => {}
            libc::S_IFDIR | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK => {
                return Err(Errno::PERM);
            }
            _ => return Err(Errno::INVAL),
        }
        let (dir, name) = self.free_spot(dirfd, path, false)?;
        let mode = mode & 0o7777 & !self.umask;
        match dir {
            Place::Tree(dir) => {
                let body = Body::File(Content::Bytes(Arc::default()));
                self.tree.create(dir, &name, Node::new(libc::S_IFREG | mode, body)).map(drop)
            }
            Place::Shared(n, dir) => {
                let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::EXCL;
                let share = &self.mounts[n].share;
                share.open(&join(&dir, &name), Links::Refuse, flags, mode).map(drop)
            }
            Place::Open(_) => Err(Errno::NOENT),
            Place::Live(_) => Err(Errno::ACCESS),
        }
    }

    /// `symlinkat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn make_link(&mut self, text: &[u8], dirfd: i32, path: &[u8]) -> Result<(), Errno> {
        if text.is_empty() {
            return Err(Errno::NOENT);
        }
        let (dir, name) = self.free_spot(dirfd, path, false)?;
        match dir {
            Place::Tree(dir) => {
                let node = Node::new(libc::S_IFLNK | 0o777, Body::Link(text.into()));
                self.tree.create(dir, &name, node).map(drop)
            }
            Place::Shared(n, dir) => self.mounts[n].share.symlink(text, &join(&dir, &name), Links::Refuse),
            Place::Open(_) => Err(Errno::NOENT),
            Place::Live(_) => Err(Errno::ACCESS),
        }
    }

    /// `linkat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn link(
        &mut self,
        old: (i32, &[u8]),
        new: (i32, &[u8]),
        follow: bool,
        empty: bool,
    ) -> Result<(), Errno> {
        let end = if follow { End::Follow } else { End::Stay };
        let mut from = self.find(old.0, old.1, end, empty)?;
        if let Place::Open(id) = &from {
            from = self.place_of_open(*id).ok_or(Errno::XDEV)?;
        }
        let (dir, name) = self.free_spot(new.0, new.1, false)?;
        match (from, dir) {
            (Place::Tree(id), Place::Tree(dir)) => self.tree.link(id, dir, &name),
            (Place::Shared(n, old), Place::Shared(m, dir)) if n == m => {
                self.mounts[n].share.link(&old, &join(&dir, &name), Links::Refuse)
            }
            _ => Err(Errno::XDEV),
        }
    }

    /// `unlinkat(2)`, with or without `AT_REMOVEDIR`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn remove(&mut self, dirfd: i32, path: &[u8], remove_dir: bool) -> Result<(), Errno> {
        let walked = self.walk_name(dirfd, path)?;
        let name = match walked.last {
            Last::Name(name) => name,
            _ if !remove_dir => return Err(Errno::ISDIR),
            Last::Dot => return Err(Errno::INVAL),
            Last::DotDot => return Err(Errno::NOTEMPTY),
            Last::Root => return Err(Errno::BUSY),
        };
        let found = walked.found.ok_or(Errno::NOENT)?;
        let is_dir = self.kind(&found)? == FileType::Directory;
        match (remove_dir, is_dir) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (false, false) if walked.slash => return Err(Errno::NOTDIR),
            _ if self.is_mount_root(&found) => return Err(Errno::BUSY),
            _ => {}
        }
        match walked.dir {
            Place::Tree(dir) if remove_dir => self.tree.rmdir(dir, &name),
            Place::Tree(dir) => self.tree.unlink(dir, &name),
            Place::Shared(n, dir) => {
                self.mounts[n].share.remove(&join(&dir, &name), Links::Refuse, remove_dir)
            }
            Place::Open(_) => Err(Errno::NOENT),
            Place::Live(_) => Err(Errno::ACCESS),
        }
    }

    /// `renameat2(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn rename(&mut self, old: (i32, &[u8]), new: (i32, &[u8]), flags: u32) -> Result<(), Errno> {
        // The type keeps bits that it does not know.
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        let flags = RenameFlags::from_bits_retain(flags);
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let no_replace = flags.contains(RenameFlags::NOREPLACE);
        if flags.contains(RenameFlags::WHITEOUT) || (exchange && no_replace) {
            return Err(Errno::INVAL);
        }
        let from = self.walk_name(old.0, old.1)?;
        let to = self.walk_name(new.0, new.1)?;
        if [&from.dir, &to.dir].iter().any(|dir| matches!(dir, Place::Open(_))) {
            return Err(Errno::NOENT);
        }
        if !same_file_system(&from.dir, &to.dir) {
            return Err(Errno::XDEV);
        }
        let Last::Name(old_name) = from.last else { return Err(Errno::BUSY) };
        let Last::Name(new_name) = to.last else {
            return Err(if no_replace { Errno::EXIST } else { Errno::BUSY });
        };
        let moved = from.found.ok_or(Errno::NOENT)?;
        match &to.found {
            Some(_) if no_replace => return Err(Errno::EXIST),
            None if exchange => return Err(Errno::NOENT),
            Some(place) if exchange && to.slash && self.kind(place)? != FileType::Directory => {
                return Err(Errno::NOTDIR);
            }
            _ => {}
        }
        if self.kind(&moved)? != FileType::Directory && (from.slash || (to.slash && !exchange)) {
            return Err(Errno::NOTDIR);
        }
        if [Some(&moved), to.found.as_ref()].into_iter().flatten().any(|place| self.is_mount_root(place)) {
            return Err(Errno::BUSY);
        }
        self.rename_spots((from.dir, old_name), (to.dir, new_name), flags)
    }

    fn rename_spots(&mut self, from: Spot, to: Spot, flags: RenameFlags) -> Result<(), Errno> {
        let paths = (self.spot_path(&from), self.spot_path(&to));
        match (&from.0, &to.0) {
            (Place::Tree(a), Place::Tree(b)) => {
                let same = self.tree.lookup(*a, &from.1)? == self.tree.lookup(*b, &to.1)?;
                self.tree.rename((*a, &from.1), (*b, &to.1), flags)?;
                if same {
                    return Ok(());
                }
            }
            (Place::Shared(n, a), Place::Shared(_, b)) => {
                let (a, b) = (join(a, &from.1), join(b, &to.1));
                self.check_busy(*n, &a, &b)?;
                self.mounts[*n].share.rename(&a, &b, Links::Refuse, flags)?;
                // Two names of one file: nothing was renamed.
                let share = &self.mounts[*n].share;
                let stays =
                    !flags.contains(RenameFlags::EXCHANGE) && share.stat(&a, Links::Refuse, false).is_ok();
                if stays {
                    return Ok(());
                }
                self.move_places(*n, &a, &b, flags.contains(RenameFlags::EXCHANGE));
            }
            _ => return Err(Errno::ACCESS),
        }
        if let (Some(old), Some(new)) = paths {
            self.move_paths(&old, &new, flags.contains(RenameFlags::EXCHANGE));
        }
        Ok(())
    }

    /// A share mounted inside another keeps the directories above it in place.
    fn check_busy(&self, n: usize, a: &[u8], b: &[u8]) -> Result<(), Errno> {
        let busy = self.mounts.iter().any(|mount| match &mount.point {
            Place::Shared(m, point) if *m == n => under(point, a).is_some() || under(point, b).is_some(),
            _ => false,
        });
        if busy { Err(Errno::BUSY) } else { Ok(()) }
    }

    fn spot_path(&self, spot: &Spot) -> Option<Vec<u8>> {
        let mut path = self.path(&spot.0)?;
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(&spot.1);
        Some(path)
    }

    /// Open files and the working directory follow a rename in a share.
    fn move_places(&mut self, n: usize, old: &[u8], new: &[u8], exchange: bool) {
        let renamed = |place: &mut Place| {
            if let Place::Shared(m, path) = place
                && *m == n
                && let Some(moved) = moved(path, old, new, exchange)
            {
                *path = moved.into();
            }
        };
        self.table.files_mut().filter_map(|file| file.place.as_mut()).for_each(renamed);
        renamed(&mut self.cwd);
    }

    /// The paths that `/proc/self/fd` shows follow a rename.
    fn move_paths(&mut self, old: &[u8], new: &[u8], exchange: bool) {
        for file in self.table.files_mut() {
            if !matches!(file.object, Object::Console(_) | Object::Pipe(..))
                && let Some(moved) = moved(&file.path, old, new, exchange)
            {
                file.path = moved.into();
            }
        }
    }

    /// `readlinkat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn read_link(&mut self, dirfd: i32, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let place = match self.find(dirfd, path, End::Stay, true)? {
            // An empty path: the link that an O_PATH descriptor refers to.
            Place::Open(id) => {
                let file = self.table.file(id);
                file.place.clone().filter(|_| file.is_path()).ok_or(Errno::NOENT)?
            }
            place if path.is_empty() => return self.link_text(&place).map_err(|_| Errno::NOENT),
            place => place,
        };
        if self.kind(&place)? != FileType::Symlink {
            return Err(if path.is_empty() { Errno::NOENT } else { Errno::INVAL });
        }
        self.link_text(&place)
    }

    /// `chdir(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn change_dir(&mut self, path: &[u8]) -> Result<(), Errno> {
        let place = self.find(libc::AT_FDCWD, path, End::Follow, false)?;
        self.enter(place)
    }

    /// `fchdir(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn change_dir_open(&mut self, fd: i32) -> Result<(), Errno> {
        let id = self.table.fd(fd)?.file;
        match self.place_of_open(id) {
            Some(Place::Open(_)) => Err(Errno::NOENT),
            Some(place) => self.enter(place),
            None => Err(Errno::NOTDIR),
        }
    }

    fn enter(&mut self, place: Place) -> Result<(), Errno> {
        if self.kind(&place)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        self.pin(&place);
        let old = std::mem::replace(&mut self.cwd, place);
        self.unpin(&old);
        Ok(())
    }

    /// `getcwd(2)`, without the NUL byte.
    ///
    /// # Errors
    /// `ENOENT` where it is removed.
    pub(crate) fn working_dir(&self) -> Result<Vec<u8>, Errno> {
        self.kind(&self.cwd)?;
        self.path(&self.cwd).ok_or(Errno::NOENT)
    }

    pub(super) fn pin(&mut self, place: &Place) {
        if let Place::Tree(id) = place {
            self.tree.pin(*id);
        }
    }

    pub(super) fn unpin(&mut self, place: &Place) {
        if let Place::Tree(id) = place {
            self.tree.unpin(*id);
        }
    }

    /// `umask(2)`: sets it and returns the old one.
    pub(crate) fn set_umask(&mut self, mask: u32) -> u32 {
        std::mem::replace(&mut self.umask, mask & 0o777)
    }
}

fn same_file_system(a: &Place, b: &Place) -> bool {
    match (a, b) {
        (Place::Tree(_), Place::Tree(_)) => true,
        (Place::Shared(n, _), Place::Shared(m, _)) => n == m,
        _ => false,
    }
}

/// What comes after `prefix` in `path`, if it is that file or lies below it.
fn under<'a>(path: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest[0] == b'/')
}

/// `path` after `old` was renamed to `new` (or the two exchanged); `None` where that does not concern it.
fn moved(path: &[u8], old: &[u8], new: &[u8], exchange: bool) -> Option<Vec<u8>> {
    if let Some(rest) = under(path, old) {
        return Some([new, rest].concat());
    }
    let rest = under(path, new).filter(|_| exchange)?;
    Some([old, rest].concat())
}
