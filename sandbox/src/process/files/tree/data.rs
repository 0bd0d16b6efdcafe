//! The bytes of regular files: reading, copy-up, writing, mapping, and what they cost.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, ftruncate, memfd_create};
use rustix::io::Errno;

use super::{Body, Content, FIRST_INO, MEMFDS, NODE_BYTES, Node, NodeId, Tree};
use crate::process::files::host;
use crate::process::files::transfer::{Sink, Source, put_all};
use crate::share::Links;

/// Private files up to this length are kept as plain bytes, without a host descriptor.
pub(super) const SMALL_BYTES: u64 = 64 << 10;
const PAGE_BYTES: u64 = 4096;

/// Kept by whoever maps a private file: as long as one lives the file costs what it costs, also without a name and closed.
pub(crate) type Hold = Arc<()>;

/// A file's host descriptor, for `mmap`.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// What to map.
    pub(crate) fd: Arc<OwnedFd>,
    /// For private files.
    pub(crate) hold: Option<Hold>,
    /// A shared mapping of it can never be stored into.
    pub(crate) read_only: bool,
    /// It is a writable share's: others may store into it.
    pub(crate) outside: bool,
}

/// How a file is to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// Stores go to private copies of its pages.
    Private,
    /// Shared, without the right to store ever.
    ReadOnly,
    /// Shared; stores go to the file, now or once `mprotect` allows them.
    Writable,
}

fn pages(size: u64) -> u64 {
    size.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES)
}

impl Tree {
    /// Takes `bytes` of the limit.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), Errno> {
        self.collect();
        let used = self.used_bytes.checked_add(bytes).filter(|used| *used <= self.limit_bytes);
        self.used_bytes = used.ok_or(Errno::NOSPC)?;
        Ok(())
    }

    fn uncharge(&mut self, bytes: u64) {
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// What a node of the private layer is charged: those that were made here, and copies of the host's.
    fn cost(node: &Node) -> u64 {
        match &node.body {
            Body::File(content) if content.private() => NODE_BYTES + pages(node.size),
            _ if node.ino < FIRST_INO => 0,
            Body::Link(text) => NODE_BYTES + pages(text.len() as u64),
            _ => NODE_BYTES,
        }
    }

    /// What a node will be charged that is about to be made.
    pub(super) fn cost_of_new(node: &Node) -> u64 {
        match &node.body {
            Body::Link(text) => NODE_BYTES + pages(text.len() as u64),
            _ => NODE_BYTES,
        }
    }

    /// Gives back what a file that is going cost, once nothing maps it any more.
    pub(super) fn release(&mut self, id: NodeId) {
        let (cost, mapped) = (Self::cost(self.node(id)), self.cell(id).mapped.clone());
        if mapped.strong_count() > 0 {
            self.collect();
            self.orphans.push((mapped, cost));
        } else {
            self.uncharge(cost);
        }
    }

    /// Gives back what files cost that were gone but for mappings, where those are gone too.
    pub(super) fn collect(&mut self) {
        let mut free = 0;
        self.orphans.retain(|(mapped, cost)| {
            let lives = mapped.strong_count() > 0;
            free += if lives { 0 } else { *cost };
            lives
        });
        self.uncharge(free);
    }

    /// What that would give back.
    pub(super) fn collectable(&self) -> u64 {
        self.orphans.iter().filter(|(mapped, _)| mapped.strong_count() == 0).map(|(_, cost)| cost).sum()
    }

    /// What its private nodes cost, and files without a name that a program still maps. A node that several trees have counts in each with its part, so that their sum is what
    /// all of them hold together.
    pub(crate) fn held_bytes(&self) -> u64 {
        let nodes = self.cells.iter().flatten().map(|cell| &cell.node);
        let named: u64 = nodes.map(|node| Self::cost(node) / Arc::strong_count(node) as u64).sum();
        let mapped = self.orphans.iter().filter(|(mapped, _)| mapped.strong_count() > 0);
        named + mapped.map(|(_, cost)| cost).sum::<u64>()
    }

    fn content(&self, id: NodeId) -> Result<&Content, Errno> {
        match &self.node(id).body {
            Body::File(content) => Ok(content),
            Body::Dir(_) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// The host's file of a node that still is as on the host.
    pub(super) fn host_file(&mut self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = &self.cell(id).host {
            return Ok(fd.clone());
        }
        let Content::Lower(path) = self.content(id)? else { return Err(Errno::INVAL) };
        let share = self.lower.as_ref().ok_or(Errno::NOENT)?;
        let fd = Arc::new(share.open(path, Links::Refuse, OFlags::RDONLY, 0)?.into_fd());
        let cell = self.cell_mut(id);
        if cell.refs > 0 {
            cell.host = Some(fd.clone());
        }
        Ok(fd)
    }

    /// Opens the host's file now, so that what the host refuses is refused at `open` and not at `read`.
    pub(crate) fn check_readable(&mut self, id: NodeId) -> Result<(), Errno> {
        if let Content::Lower(_) = self.content(id)? { self.host_file(id).map(drop) } else { Ok(()) }
    }

    /// Reads at `position`; 0 is the end of the file.
    pub(crate) fn read(&mut self, id: NodeId, sink: &mut dyn Sink, position: u64) -> Result<usize, Errno> {
        match self.content(id)? {
            Content::Lower(_) => sink.read_from(self.host_file(id)?.as_fd(), position),
            Content::Host(fd) | Content::Memfd { fd, .. } => sink.read_from(fd.as_fd(), position),
            Content::Bytes(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                put_all(sink, &bytes[start..])
            }
        }
    }

    /// Writes at `position`, as much as the limit lets.
    pub(crate) fn write(
        &mut self,
        id: NodeId,
        source: &mut dyn Source,
        position: u64,
    ) -> Result<usize, Errno> {
        let wanted = source.left();
        if wanted == 0 {
            return Ok(0);
        }
        if position > i64::MAX as u64 - wanted as u64 {
            return Err(Errno::FBIG);
        }
        self.make_private(id, u64::MAX)?;
        self.collect();
        let size = self.node(id).size;
        let room = pages(size) + (self.limit_bytes.saturating_sub(self.used_bytes)) / PAGE_BYTES * PAGE_BYTES;
        let room = room.saturating_sub(position).min(wanted as u64) as usize;
        if room == 0 {
            return Err(Errno::NOSPC);
        }
        let end = position + room as u64;
        if end > size {
            self.resize(id, end)?;
        }
        let done = self.store(id, source, position, room);
        let done = done.inspect_err(|_| {
            // Nothing was written: the file has its old length.
            let _ = self.resize(id, size);
        })?;
        if position + (done as u64) < end && end > size {
            self.resize(id, size.max(position + done as u64))?;
        }
        self.edit(id).modified();
        Ok(done)
    }

    fn store(
        &mut self,
        id: NodeId,
        source: &mut dyn Source,
        position: u64,
        room: usize,
    ) -> Result<usize, Errno> {
        match &mut self.edit(id).body {
            Body::File(Content::Bytes(bytes)) => {
                let start = position as usize;
                source.take(&mut Arc::make_mut(bytes)[start..start + room])
            }
            Body::File(Content::Memfd { fd, .. }) => source.write_to(fd.as_fd(), position, room),
            _ => Err(Errno::INVAL),
        }
    }

    /// Sets the length.
    pub(crate) fn truncate(&mut self, id: NodeId, size: u64) -> Result<(), Errno> {
        if size > i64::MAX as u64 {
            return Err(Errno::FBIG);
        }
        self.make_private(id, size)?;
        self.resize(id, size)?;
        self.edit(id).modified();
        Ok(())
    }

    /// Changes a private file's length and what it is charged.
    fn resize(&mut self, id: NodeId, size: u64) -> Result<(), Errno> {
        let old = self.node(id).size;
        if pages(size) > pages(old) {
            self.charge(pages(size) - pages(old))?;
        }
        let done = self.resize_content(id, size);
        match (done.is_ok(), pages(old) < pages(size)) {
            (true, true) | (false, false) => {}
            (true, false) => self.uncharge(pages(old) - pages(size)),
            (false, true) => self.uncharge(pages(size) - pages(old)),
        }
        done?;
        self.edit(id).size = size;
        Ok(())
    }

    fn resize_content(&mut self, id: NodeId, size: u64) -> Result<(), Errno> {
        let epoch = self.epoch;
        if size > SMALL_BYTES && matches!(self.content(id)?, Content::Bytes(_)) {
            self.count_memfd()?;
        }
        let Body::File(content) = &mut self.edit(id).body else { return Err(Errno::INVAL) };
        match content {
            Content::Bytes(bytes) if size <= SMALL_BYTES => Arc::make_mut(bytes).resize(size as usize, 0),
            Content::Bytes(bytes) => {
                let fd = new_memfd(bytes)?;
                ftruncate(&fd, size)?;
                *content = Content::Memfd { fd, epoch };
            }
            Content::Memfd { fd, .. } => ftruncate(fd, size)?,
            Content::Lower(_) | Content::Host(_) => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// Copy-up: makes the content private and writable in place, keeping the first `keep` bytes at most (a caller
    /// that will cut the file needs no more). The length is then at most `keep`.
    fn make_private(&mut self, id: NodeId, keep: u64) -> Result<(), Errno> {
        let epoch = self.epoch;
        match self.content(id)? {
            Content::Bytes(_) => Ok(()),
            Content::Memfd { epoch: of, .. } if *of == epoch => Ok(()),
            Content::Memfd { fd, .. } => {
                let fd = fd.clone();
                self.count_memfd()?;
                let copy = copy_of(&fd, self.node(id).size)?;
                self.edit(id).body = Body::File(Content::Memfd { fd: copy, epoch });
                Ok(())
            }
            Content::Lower(_) | Content::Host(_) => self.copy_up(id, keep),
        }
    }

    fn copy_up(&mut self, id: NodeId, keep: u64) -> Result<(), Errno> {
        let (from, size) = if keep == 0 {
            (None, 0)
        } else {
            let fd = match self.content(id)? {
                Content::Host(fd) => fd.clone(),
                _ => self.host_file(id)?,
            };
            let size = rustix::fs::fstat(&fd)?.st_size as u64;
            (Some(fd), size.min(keep))
        };
        if size > SMALL_BYTES {
            self.count_memfd()?;
        }
        let node_bytes = if self.node(id).ino < FIRST_INO { NODE_BYTES } else { 0 };
        self.charge(node_bytes + pages(size))?;
        let content = match from {
            None => Ok(Content::Bytes(Arc::default())),
            Some(fd) if size <= SMALL_BYTES => {
                host::read_all(fd, size as usize).map(|mut bytes| {
                    // It has become shorter just now.
                    bytes.resize(size as usize, 0);
                    Content::Bytes(Arc::new(bytes))
                })
            }
            Some(fd) => copy_of(&fd, size).map(|fd| Content::Memfd { fd, epoch: self.epoch }),
        };
        let content = content.inspect_err(|_| self.uncharge(node_bytes + pages(size)))?;
        let node = self.edit(id);
        node.body = Body::File(content);
        node.size = size;
        node.clean = false;
        self.cell_mut(id).host = None;
        Ok(())
    }

    /// `fallocate(2)`: reserves (by making the file that long), punches or zeroes.
    pub(crate) fn allocate(
        &mut self,
        id: NodeId,
        mode: FallocateFlags,
        start: u64,
        length: u64,
    ) -> Result<(), Errno> {
        let end = start.checked_add(length).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::FBIG)?;
        let keep = mode.contains(FallocateFlags::KEEP_SIZE);
        self.make_private(id, u64::MAX)?;
        let size = self.node(id).size;
        let zero = match mode.difference(FallocateFlags::KEEP_SIZE) {
            m if m.is_empty() => false,
            FallocateFlags::PUNCH_HOLE if keep => true,
            FallocateFlags::ZERO_RANGE => true,
            _ => return Err(Errno::OPNOTSUPP),
        };
        if end > size && !keep {
            self.resize(id, end)?;
        }
        let size = self.node(id).size;
        if zero && start < size {
            self.zero(id, start, end.min(size))?;
        }
        self.edit(id).modified();
        Ok(())
    }

    fn zero(&mut self, id: NodeId, start: u64, end: u64) -> Result<(), Errno> {
        match &mut self.edit(id).body {
            Body::File(Content::Bytes(bytes)) => {
                Arc::make_mut(bytes)[start as usize..end as usize].fill(0);
                Ok(())
            }
            Body::File(Content::Memfd { fd, .. }) => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(fd, mode, start, end - start)
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// One more memory file is made: `ENFILE` where there are too many.
    fn count_memfd(&mut self) -> Result<(), Errno> {
        if self.memfds >= MEMFDS {
            self.fold_memfds()?;
        }
        self.memfds += 1;
        if self.memfds > MEMFDS { Err(Errno::NFILE) } else { Ok(()) }
    }

    /// Small files that nothing maps any more become plain bytes again; the others are counted.
    fn fold_memfds(&mut self) -> Result<(), Errno> {
        self.memfds = 0;
        for cell in self.cells.iter_mut().flatten() {
            let Body::File(Content::Memfd { fd, epoch }) = &cell.node.body else { continue };
            let size = cell.node.size;
            if *epoch != self.epoch {
                continue;
            }
            if size > SMALL_BYTES || cell.mapped.strong_count() > 0 {
                self.memfds += 1;
                continue;
            }
            let mut bytes = host::read_all(fd, size as usize)?;
            bytes.resize(size as usize, 0);
            // Made since the checkpoint, so is its copy for the reset.
            Arc::make_mut(&mut cell.node).body = Body::File(Content::Bytes(Arc::new(bytes)));
        }
        Ok(())
    }

    /// A host descriptor to map. One to store into makes the file private first; one that is shared for reading must
    /// not lead to stores by any way, because the file's memory may be that of other sandboxes too.
    ///
    /// # Errors
    /// `ENODEV` for what is no regular file, `ENOSPC` where there is no room for the copy.
    pub(crate) fn map(&mut self, id: NodeId, how: Mapped) -> Result<Mapping, Errno> {
        if how == Mapped::Writable {
            self.make_private(id, u64::MAX).map_err(no_device)?;
        }
        let (read_only, outside) = (how == Mapped::ReadOnly, false);
        let fd = match self.content(id).map_err(no_device)? {
            Content::Lower(_) => {
                return Ok(Mapping { fd: self.host_file(id)?, hold: None, read_only, outside });
            }
            Content::Host(fd) => return Ok(Mapping { fd: fd.clone(), hold: None, read_only, outside }),
            Content::Memfd { fd, .. } => fd.clone(),
            Content::Bytes(bytes) => {
                let bytes = bytes.clone();
                self.count_memfd()?;
                let (fd, epoch) = (new_memfd(&bytes)?, self.epoch);
                self.edit(id).body = Body::File(Content::Memfd { fd: fd.clone(), epoch });
                fd
            }
        };
        let fd = if read_only { Arc::new(host::reopen_to_read(&fd)?) } else { fd };
        let cell = self.cell_mut(id);
        let hold = cell.mapped.upgrade().unwrap_or_else(|| {
            let hold = Hold::default();
            cell.mapped = Arc::downgrade(&hold);
            hold
        });
        Ok(Mapping { fd, hold: Some(hold), read_only, outside })
    }
}

fn no_device(e: Errno) -> Errno {
    if matches!(e, Errno::INVAL | Errno::ISDIR) { Errno::NODEV } else { e }
}

fn empty_memfd() -> Result<OwnedFd, Errno> {
    memfd_create(c"novum-file", MemfdFlags::CLOEXEC)
}

pub(super) fn new_memfd(bytes: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
    let fd = empty_memfd()?;
    host::write_all(&fd, bytes)?;
    Ok(Arc::new(fd))
}

/// A memfd with the first `size` bytes of `from`; where the file is shorter, zeroes follow.
fn copy_of(from: &Arc<OwnedFd>, size: u64) -> Result<Arc<OwnedFd>, Errno> {
    let to = empty_memfd()?;
    ftruncate(&to, size)?;
    let mut position = 0;
    while position < size {
        let piece = usize::try_from(size - position).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::sendfile(to.as_fd(), from.as_fd(), Some(&mut position), piece)? {
            0 => break,
            _ => continue,
        }
    }
    Ok(Arc::new(to))
}
