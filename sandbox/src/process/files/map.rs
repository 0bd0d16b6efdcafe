//! Files as memory: what `mmap` and the loader map.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::synth::Device;
use super::table::Object;
use super::tree::Mapped;
use super::{Files, Limits, Mapping, Place};
use crate::share::Access;

/// What stands behind a mapping.
#[derive(Clone, Debug)]
pub(crate) enum MapSource {
    /// A file of the host.
    File(Mapping),
    /// Anonymous memory (`/dev/zero`).
    Zeroes,
}

impl Files {
    /// What `mmap(2)` maps for `fd`, with `MAP_SHARED` or without; `write` with the right to store from the beginning.
    ///
    /// # Errors
    /// `EBADF`, `EACCES` where the access mode forbids it, `ENODEV` for what cannot be mapped.
    pub(crate) fn map(&mut self, fd: i32, shared: bool, write: bool) -> Result<MapSource, Errno> {
        let file = self.table.get(fd)?;
        if file.is_path() {
            return Err(Errno::BADF);
        }
        if !file.readable() || (shared && write && !file.writable()) {
            return Err(Errno::ACCESS);
        }
        let how = match (shared, file.writable()) {
            (false, _) => Mapped::Private,
            (true, false) => Mapped::ReadOnly,
            // Also without `write`: `mprotect` may give the right later.
            (true, true) => Mapped::Writable,
        };
        match &file.object {
            Object::File(node) => {
                let node = *node;
                let mapping = match self.tree.map(node, how) {
                    // Too large to be changed here; it can still be read.
                    Err(Errno::NOSPC) if !write => self.tree.map(node, Mapped::ReadOnly),
                    done => done,
                };
                mapping.map(MapSource::File)
            }
            Object::Shared(open) => {
                let fd = Arc::new(open.fd().try_clone_to_owned().map_err(|_| Errno::NFILE)?);
                let read_only = how == Mapped::ReadOnly;
                let outside = match file.place {
                    Some(Place::Shared(n, _)) => self.mounts[n].share.access() == Access::ReadWrite,
                    _ => true,
                };
                Ok(MapSource::File(Mapping { fd, hold: None, read_only, outside }))
            }
            Object::Device(Device::Zero) => Ok(MapSource::Zeroes),
            _ => Err(Errno::NODEV),
        }
    }

    /// A regular file to load a program or interpreter from: its path without links, and its host descriptor.
    ///
    /// # Errors
    /// What the walk says; `EACCES` for what is no regular file or has no execute bit.
    pub(crate) fn open_program(&mut self, path: &[u8]) -> Result<(Vec<u8>, Mapping), Errno> {
        let fd = self.open(libc::AT_FDCWD, path, libc::O_RDONLY as u32, 0, Limits::default())?;
        let found = self.program_of(fd);
        self.close(fd)?;
        found
    }

    fn program_of(&mut self, fd: i32) -> Result<(Vec<u8>, Mapping), Errno> {
        let id = self.table.fd(fd)?.file;
        let file = self.table.file(id);
        let path = file.path.to_vec();
        let attr = self.attr_of_open(id)?;
        if attr.kind() != FileType::RegularFile || attr.mode & 0o111 == 0 {
            return Err(Errno::ACCESS);
        }
        match self.map(fd, false, false)? {
            MapSource::File(mapping) => Ok((path, mapping)),
            MapSource::Zeroes => Err(Errno::ACCESS),
        }
    }
}
