//! `stat`, and changing attributes.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::host::now;
use super::tree::{Body, Node, NodeId, TREE_DEV};
use super::{End, Files, Object, Place};
use crate::share::{Access, Attr, Links, SetTime, Time};

/// What `access(2)` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccessCheck {
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// What `statfs(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatFsView {
    pub(crate) magic: i64,
    pub(crate) block_size: u64,
    pub(crate) blocks: u64,
    pub(crate) free: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
    pub(crate) id: u64,
    pub(crate) read_only: bool,
}

const TMPFS_MAGIC: i64 = 0x0102_1994;
const PROC_MAGIC: i64 = 0x9fa0;
const PIPEFS_MAGIC: i64 = 0x5049_5045;
const NAME_MAX_FILES: u64 = 1 << 20;

impl Files {
    /// `fstatat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn stat(&mut self, dirfd: i32, path: &[u8], end: End, empty: bool) -> Result<Attr, Errno> {
        self.find_attr(dirfd, path, end, empty).map(|(_, attr)| attr)
    }

    /// `fstat(2)`.
    ///
    /// # Errors
    /// `EBADF`, or what the host says.
    pub(crate) fn stat_open(&self, fd: i32) -> Result<Attr, Errno> {
        self.attr_of_open(self.table.fd(fd)?.file)
    }

    /// `faccessat2(2)` for root: what exists may be read; a file without any execute bit cannot be executed.
    ///
    /// # Errors
    /// `EACCES`, `EROFS`, or what the walk says.
    pub(crate) fn check_access(
        &mut self,
        dirfd: i32,
        path: &[u8],
        end: End,
        empty: bool,
        check: AccessCheck,
    ) -> Result<(), Errno> {
        let (place, attr) = self.find_attr(dirfd, path, end, empty)?;
        if check.execute && attr.kind() != FileType::Directory && attr.mode & 0o111 == 0 {
            return Err(Errno::ACCESS);
        }
        if let Place::Shared(n, _) = place
            && check.write
            && self.mounts[n].share.access() == Access::ReadOnly
        {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    /// The node to change, if the place is one of the tree.
    fn node_to_change(&mut self, id: NodeId) -> Result<&mut Node, Errno> {
        match self.tree.node(id).body {
            Body::Synth(_) => Err(Errno::PERM),
            Body::Dir(ref dir) if dir.fixed => Err(Errno::PERM),
            _ => Ok(self.tree.edit(id)),
        }
    }

    /// From `Place::Open` to the place of the open file, where its operations go through the path.
    fn named(&self, place: Place) -> Result<Place, Errno> {
        match place {
            Place::Open(id) => match self.place_of_open(id) {
                Some(Place::Open(_)) => Err(Errno::NOENT),
                Some(place) => Ok(place),
                None => Err(Errno::PERM),
            },
            place => Ok(place),
        }
    }

    /// `fchmodat(2)`, `fchmod(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn change_mode(&mut self, place: Place, mode: u32) -> Result<(), Errno> {
        if let Place::Open(id) = &place
            && let Object::Shared(open) = &self.table.file(*id).object
        {
            return open.chmod(mode);
        }
        match self.named(place)? {
            Place::Tree(id) => {
                if self.tree.node(id).kind() == FileType::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                let node = self.node_to_change(id)?;
                node.mode = node.mode & libc::S_IFMT | mode & 0o7777;
                node.changed();
                Ok(())
            }
            Place::Shared(n, path) => self.mounts[n].share.chmod(&path, Links::Refuse, false, mode),
            _ => Err(Errno::PERM),
        }
    }

    /// `fchownat(2)`, `fchown(2)`: `None` leaves the owner or group.
    ///
    /// # Errors
    /// As the manual page says; on shares `EPERM` for a real change.
    pub(crate) fn change_owner(
        &mut self,
        place: Place,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        if let Place::Open(id) = &place
            && let Object::Shared(open) = &self.table.file(*id).object
        {
            return open.chown(uid, gid);
        }
        match self.named(place)? {
            Place::Tree(id) => {
                let node = self.node_to_change(id)?;
                node.uid = uid.unwrap_or(node.uid);
                node.gid = gid.unwrap_or(node.gid);
                if node.kind() == FileType::RegularFile && node.mode & 0o111 != 0 {
                    let group = if node.mode & 0o010 != 0 { libc::S_ISGID } else { 0 };
                    node.mode &= !(libc::S_ISUID | group);
                }
                node.changed();
                Ok(())
            }
            Place::Shared(n, path) => self.mounts[n].share.chown(&path, Links::Refuse, false, uid, gid),
            _ => Err(Errno::PERM),
        }
    }

    /// `utimensat(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn set_times(&mut self, place: Place, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
        if let Place::Open(id) = &place
            && let Object::Shared(open) = &self.table.file(*id).object
        {
            return open.set_times(atime, mtime);
        }
        match self.named(place)? {
            Place::Tree(id) => {
                let node = self.node_to_change(id)?;
                let pick = |old: Time, set| match set {
                    SetTime::Omit => old,
                    SetTime::Now => now(),
                    SetTime::To(time) => time,
                };
                node.atime = pick(node.atime, atime);
                node.mtime = pick(node.mtime, mtime);
                node.changed();
                Ok(())
            }
            Place::Shared(n, path) => {
                self.mounts[n].share.set_times(&path, Links::Refuse, false, atime, mtime)
            }
            _ => Err(Errno::PERM),
        }
    }

    /// `truncate(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn truncate(&mut self, path: &[u8], size: i64) -> Result<(), Errno> {
        let size = u64::try_from(size).map_err(|_| Errno::INVAL)?;
        let place = self.find(libc::AT_FDCWD, path, End::Follow, false)?;
        match self.kind(&place)? {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        match place {
            Place::Tree(id) if matches!(self.tree.node(id).body, Body::Synth(_)) => Err(Errno::ACCESS),
            _ if size > self.table.file_bytes => Err(Errno::FBIG),
            Place::Tree(id) => self.tree.truncate(id, size),
            Place::Shared(n, path) => self.mounts[n].share.truncate(&path, Links::Refuse, size),
            _ => Err(Errno::ACCESS),
        }
    }

    /// `statfs(2)`.
    ///
    /// # Errors
    /// What the walk or the host says.
    pub(crate) fn statfs(&mut self, path: &[u8]) -> Result<StatFsView, Errno> {
        let place = self.find(libc::AT_FDCWD, path, End::Follow, false)?;
        self.statfs_of(&place)
    }

    /// `fstatfs(2)`.
    ///
    /// # Errors
    /// `EBADF`, or what the host says.
    pub(crate) fn statfs_open(&mut self, fd: i32) -> Result<StatFsView, Errno> {
        match self.table.get(fd)?.place.clone() {
            Some(place) => self.statfs_of(&place),
            None => Ok(StatFsView { magic: PIPEFS_MAGIC, ..self.own_statfs() }),
        }
    }

    fn own_statfs(&self) -> StatFsView {
        let (used, limit) = self.tree.usage();
        let files = self.tree.live() as u64;
        StatFsView {
            magic: TMPFS_MAGIC,
            block_size: 4096,
            blocks: limit / 4096,
            free: limit.saturating_sub(used) / 4096,
            files: NAME_MAX_FILES,
            files_free: NAME_MAX_FILES.saturating_sub(files),
            id: TREE_DEV,
            read_only: false,
        }
    }

    fn statfs_of(&self, place: &Place) -> Result<StatFsView, Errno> {
        let live = match place {
            Place::Shared(n, _) => return self.share_statfs(*n),
            Place::Tree(id) => matches!(self.tree.node(*id).body, Body::Synth(_)),
            _ => true,
        };
        Ok(StatFsView { magic: if live { PROC_MAGIC } else { TMPFS_MAGIC }, ..self.own_statfs() })
    }

    fn share_statfs(&self, n: usize) -> Result<StatFsView, Errno> {
        let share = &self.mounts[n].share;
        let host = share.statfs()?;
        Ok(StatFsView {
            magic: host.f_type,
            block_size: host.f_bsize as u64,
            blocks: host.f_blocks,
            free: host.f_bavail,
            files: host.f_files,
            files_free: host.f_ffree,
            id: 0x40 + n as u64,
            read_only: share.access() == Access::ReadOnly,
        })
    }

    /// `sync(2)`, `syncfs(2)`: the files of writable shares that the program has open for writing. Not more of their file systems,
    /// which others use too: a tenant must not make the host write everything out.
    pub(crate) fn sync_all(&self) {
        let writes = |flags: u32| flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        for (_, file) in self.table.files() {
            if let Object::Shared(open) = &file.object
                && writes(file.flags)
            {
                // As with `sync`, nobody is told what fails.
                let _ = rustix::fs::fsync(open.fd());
            }
        }
    }
}
