//! Names: making, removing, linking and renaming. Errors and their order follow Linux `fs/namei.c`.

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::{Body, Dir, Node, NodeId, Slot, Tree};

impl Tree {
    /// Whether names in `dir` may change at all.
    fn changeable(&self, dir: NodeId) -> Result<(), Errno> {
        let node = self.node(dir);
        match node.dir() {
            None => Err(Errno::NOTDIR),
            Some(Dir { fixed: true, .. }) => Err(Errno::ACCESS),
            Some(_) if node.nlink == 0 => Err(Errno::NOENT),
            Some(_) => Ok(()),
        }
    }

    fn slot(&self, dir: NodeId, name: &[u8]) -> Option<Slot> {
        self.node(dir).dir()?.children.get(name).copied()
    }

    fn set_slot(&mut self, dir: NodeId, name: &[u8], id: NodeId, hides: bool) {
        self.edit_dir(dir).children.insert(name.into(), Slot::Node { id, hides });
        if let Body::Dir(child) = &mut self.edit(id).body {
            child.parent = dir;
            child.name = name.into();
        }
    }

    /// Takes the name away; what the host has under it stays hidden.
    fn clear_slot(&mut self, dir: NodeId, name: &[u8]) {
        let hides = matches!(self.slot(dir, name), Some(Slot::Node { hides: true, .. } | Slot::Whiteout));
        let children = &mut self.edit_dir(dir).children;
        if hides {
            children.insert(name.into(), Slot::Whiteout);
        } else {
            children.remove(name);
        }
    }

    fn hides(&self, dir: NodeId, name: &[u8]) -> bool {
        matches!(self.slot(dir, name), Some(Slot::Whiteout | Slot::Node { hides: true, .. }))
    }

    fn count_subdir(&mut self, dir: NodeId, change: i32) {
        let node = self.edit(dir);
        node.nlink = node.nlink.saturating_add_signed(change);
    }

    /// Puts `node` into `dir` under a name that is free.
    ///
    /// # Errors
    /// `ENOSPC` at the limit, `EACCES` in a generated directory, `ENOENT` in a removed one.
    pub(crate) fn create(&mut self, dir: NodeId, name: &[u8], node: Node) -> Result<NodeId, Errno> {
        self.changeable(dir)?;
        self.charge(Self::cost_of_new(&node))?;
        let is_dir = node.kind() == FileType::Directory;
        let id = self.insert(node);
        let hides = self.hides(dir, name);
        self.set_slot(dir, name, id, hides);
        if is_dir {
            self.count_subdir(dir, 1);
        }
        self.edit(dir).modified();
        Ok(id)
    }

    /// A regular file without a name (`memfd_create`, `O_TMPFILE`); it lives while it is pinned.
    /// `linkable` lets [`Tree::link`] name it later.
    pub(crate) fn create_unnamed(&mut self, mode: u32, linkable: bool) -> Result<NodeId, Errno> {
        let body = Body::File(super::Content::Bytes(std::sync::Arc::default()));
        let mut node = Node::new(libc::S_IFREG | mode, body);
        self.charge(Self::cost_of_new(&node))?;
        node.nlink = 0;
        node.linkable = linkable;
        Ok(self.insert(node))
    }

    /// Removes the name of a file that is no directory.
    pub(crate) fn unlink(&mut self, dir: NodeId, name: &[u8]) -> Result<(), Errno> {
        let id = self.lookup(dir, name)?.ok_or(Errno::NOENT)?;
        if self.node(id).dir().is_some() {
            return Err(Errno::ISDIR);
        }
        self.changeable(dir)?;
        self.clear_slot(dir, name);
        self.edit(dir).modified();
        self.lose_name(id);
        Ok(())
    }

    fn lose_name(&mut self, id: NodeId) {
        let node = self.edit(id);
        // Further names of a host's file are other nodes here.
        node.nlink = if node.ino < super::FIRST_INO { 0 } else { node.nlink - 1 };
        node.changed();
        self.drop_if_dead(id);
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&mut self, dir: NodeId, name: &[u8]) -> Result<(), Errno> {
        let id = self.lookup(dir, name)?.ok_or(Errno::NOENT)?;
        let target = self.dir(id)?;
        if target.mount.is_some() || target.fixed {
            return Err(Errno::BUSY);
        }
        self.changeable(dir)?;
        if !self.empty(id)? {
            return Err(Errno::NOTEMPTY);
        }
        self.remove_empty_dir(dir, name, id);
        self.edit(dir).modified();
        Ok(())
    }

    fn remove_empty_dir(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        self.clear_slot(dir, name);
        self.count_subdir(dir, -1);
        let node = self.edit(id);
        node.nlink = 0;
        node.changed();
        // It may live on as a working directory: empty, for ever.
        if let Body::Dir(gone) = &mut node.body {
            gone.lower = None;
            gone.children.clear();
        }
        self.drop_if_dead(id);
    }

    /// A further name for a file that is no directory.
    pub(crate) fn link(&mut self, id: NodeId, dir: NodeId, name: &[u8]) -> Result<(), Errno> {
        let node = self.node(id);
        if node.dir().is_some() {
            return Err(Errno::PERM);
        }
        if matches!(node.body, Body::Synth(_)) {
            return Err(Errno::XDEV);
        }
        if node.nlink == 0 && !node.linkable {
            return Err(Errno::NOENT);
        }
        if node.nlink == u32::MAX {
            return Err(Errno::MLINK);
        }
        self.changeable(dir)?;
        self.adopt(id)?;
        let hides = self.hides(dir, name);
        self.set_slot(dir, name, id, hides);
        let node = self.edit(id);
        node.nlink += 1;
        node.changed();
        self.edit(dir).modified();
        Ok(())
    }

    /// A host's file that gets a second name here is counted by its names here from now on.
    fn adopt(&mut self, id: NodeId) -> Result<(), Errno> {
        if self.node(id).ino >= super::FIRST_INO {
            return Ok(());
        }
        if !matches!(&self.node(id).body, Body::File(c) if c.private()) {
            self.charge(super::NODE_BYTES)?;
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        let node = self.edit(id);
        node.ino = ino;
        node.nlink = 1;
        node.clean = false;
        Ok(())
    }

    /// `renameat2(2)` inside the tree. `from` and `to` are (directory, name) pairs.
    ///
    /// # Errors
    /// As the manual page says; `EBUSY` for mount points and generated directories.
    pub(crate) fn rename(
        &mut self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let old = self.lookup(from.0, from.1)?.ok_or(Errno::NOENT)?;
        let new = self.lookup(to.0, to.1)?;
        if new == Some(old) {
            return Ok(());
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        self.check_ancestry(old, new, from.0, to.0, exchange)?;
        for id in [Some(old), new].into_iter().flatten() {
            if self.node(id).dir().is_some_and(|dir| dir.mount.is_some() || dir.fixed) {
                return Err(Errno::BUSY);
            }
        }
        self.changeable(from.0)?;
        self.changeable(to.0)?;
        match new {
            Some(new) if exchange => self.exchange(from, old, to, new),
            new => self.replace(from, old, to, new)?,
        }
        self.edit(old).changed();
        self.edit(from.0).modified();
        self.edit(to.0).modified();
        Ok(())
    }

    fn check_ancestry(
        &self,
        old: NodeId,
        new: Option<NodeId>,
        from: NodeId,
        to: NodeId,
        exchange: bool,
    ) -> Result<(), Errno> {
        if self.node(old).dir().is_some() && self.below(to, old) {
            return Err(Errno::INVAL);
        }
        match new {
            Some(new) if self.node(new).dir().is_some() && self.below(from, new) => {
                Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY })
            }
            _ => Ok(()),
        }
    }

    fn replace(
        &mut self,
        from: (NodeId, &[u8]),
        old: NodeId,
        to: (NodeId, &[u8]),
        new: Option<NodeId>,
    ) -> Result<(), Errno> {
        let moves_dir = self.node(old).dir().is_some();
        if let Some(new) = new {
            match (moves_dir, self.node(new).dir().is_some()) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.empty(new)? => return Err(Errno::NOTEMPTY),
                (true, true) => self.remove_empty_dir(to.0, to.1, new),
                (false, false) => {
                    self.clear_slot(to.0, to.1);
                    self.lose_name(new);
                }
            }
        }
        let hides = self.hides(to.0, to.1);
        self.clear_slot(from.0, from.1);
        self.set_slot(to.0, to.1, old, hides);
        self.edit(old).clean = false;
        if moves_dir && from.0 != to.0 {
            self.count_subdir(from.0, -1);
            self.count_subdir(to.0, 1);
        }
        Ok(())
    }

    fn exchange(&mut self, from: (NodeId, &[u8]), old: NodeId, to: (NodeId, &[u8]), new: NodeId) {
        let (hides_from, hides_to) = (self.hides(from.0, from.1), self.hides(to.0, to.1));
        self.set_slot(from.0, from.1, new, hides_from);
        self.set_slot(to.0, to.1, old, hides_to);
        for id in [old, new] {
            self.edit(id).changed();
        }
        let dirs = [old, new].map(|id| i32::from(self.node(id).dir().is_some()));
        self.count_subdir(from.0, dirs[1] - dirs[0]);
        self.count_subdir(to.0, dirs[0] - dirs[1]);
    }

    /// Makes `dir` the point where share `mount` is mounted.
    ///
    /// # Errors
    /// `EBUSY` where another one is.
    pub(crate) fn set_mount(&mut self, dir: NodeId, mount: usize) -> Result<(), Errno> {
        match self.edit_dir(dir) {
            Dir { mount: Some(_), .. } => Err(Errno::BUSY),
            dir => {
                dir.mount = Some(mount);
                Ok(())
            }
        }
    }

    /// Adds a generated node while the tree is being built; replaces what the host has there.
    pub(crate) fn plant(&mut self, dir: NodeId, name: &[u8], node: Node) -> NodeId {
        let is_dir = node.dir().is_some();
        let id = self.insert(node);
        let hides = self.node(dir).dir().is_some_and(|dir| dir.lower.is_some());
        self.set_slot(dir, name, id, hides);
        if is_dir {
            self.count_subdir(dir, 1);
        }
        self.edit(dir).clean = false;
        id
    }
}
