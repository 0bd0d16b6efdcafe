//! File locks: `flock(2)` and `fcntl(2)` record locks.
//!
//! Record locks of one process never stand in its own way, so in the private tree they always succeed. On a
//! writable share they are taken on the host, for the open file, so that sandboxes and host processes exclude each
//! other; so is `flock`, as a lock on the whole file.

use std::collections::BTreeMap;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::stop::{Need, Stop};
use super::table::FileId;
use super::tree::NodeId;
use super::{Files, Object};
use crate::share::Lock;

/// `flock` locks on files of the private tree: who holds one, and whether exclusively.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    held: BTreeMap<FileId, (NodeId, bool)>,
}

impl Locks {
    /// An open file is closed.
    pub(crate) fn forget(&mut self, id: FileId) {
        self.held.remove(&id);
    }

    fn conflict(&self, id: FileId, node: NodeId, exclusive: bool) -> bool {
        let mut others = self.held.iter().filter(|(holder, (on, _))| **holder != id && *on == node);
        others.any(|(_, (_, other))| *other || exclusive)
    }
}

/// A lock on the host has no event when it is given up: it is asked for again after this time.
const RETRY: std::time::Duration = std::time::Duration::from_millis(5);

fn retry() -> Need {
    Need { until: std::time::Instant::now().checked_add(RETRY), ..Need::INSIDE }
}

impl Files {
    /// `flock(2)`: `Some(exclusive)` locks, `None` unlocks.
    ///
    /// # Errors
    /// `EWOULDBLOCK`, `EBADF`.
    pub(crate) fn flock(&mut self, fd: i32, lock: Option<bool>, nonblocking: bool) -> Result<(), Stop> {
        let id = self.table.fd(fd)?.file;
        let file = self.table.file(id);
        match &file.object {
            Object::Path => Err(Errno::BADF.into()),
            Object::Shared(open) => {
                let operation = match lock {
                    Some(true) => FlockOperation::NonBlockingLockExclusive,
                    Some(false) => FlockOperation::NonBlockingLockShared,
                    None => FlockOperation::NonBlockingUnlock,
                };
                match rustix::fs::flock(open.fd(), operation) {
                    Err(Errno::AGAIN) => Err(Stop::unless(retry(), nonblocking)),
                    other => Ok(other?),
                }
            }
            Object::File(node) => {
                let node = *node;
                match lock {
                    None => drop(self.locks.held.remove(&id)),
                    Some(exclusive) if self.locks.conflict(id, node, exclusive) => {
                        return Err(Stop::unless(Need::INSIDE, nonblocking));
                    }
                    Some(exclusive) => drop(self.locks.held.insert(id, (node, exclusive))),
                }
                self.changed = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// `F_SETLK`, `F_SETLKW` (`wait`) and their open-file-description forms. `lock` is from the file's start.
    ///
    /// # Errors
    /// `EAGAIN`, `EBADF`.
    pub(crate) fn set_record_lock(&mut self, fd: i32, lock: Lock, wait: bool) -> Result<(), Stop> {
        match &self.table.get(fd)?.object {
            Object::Path => Err(Errno::BADF.into()),
            Object::Shared(open) => match open.set_lock(lock) {
                Err(Errno::AGAIN) => Err(Stop::unless(retry(), !wait)),
                other => Ok(other?),
            },
            _ => Ok(()),
        }
    }

    /// `F_GETLK`: the lock in the way, if any.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn record_lock(&self, fd: i32, lock: Lock) -> Result<Option<Lock>, Errno> {
        match &self.table.get(fd)?.object {
            Object::Path => Err(Errno::BADF),
            Object::Shared(open) => open.get_lock(lock),
            _ => Ok(None),
        }
    }

    /// The position and size from which `l_whence` counts.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn position_and_size(&self, fd: i32) -> Result<(u64, u64), Errno> {
        let id = self.table.fd(fd)?.file;
        Ok((self.table.file(id).position, self.attr_of_open(id)?.size))
    }

    /// An open file's position.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn position_of(&self, fd: i32) -> Result<u64, Errno> {
        Ok(self.table.get(fd)?.position)
    }
}
