//! The private tree: a read-only host directory with a copy-on-write layer in memory over it.
//!
//! ```text
//! cells[NodeId] = Node { attributes, body }          body of a directory:
//!   Dir ── children: name ─> Node | Whiteout           children win, then, where `lower` is set,
//!     └─── lower: path in the host's root ─────────>   the host's entries show through
//!   File ── Lower(path) ──first write──> Bytes ──large or mapped──> Memfd
//! ```
//!
//! Nodes of the host's files are made when they are first looked up and kept, so a path is resolved on the host
//! once; the host's root must not change while a sandbox lives (an artifact is immutable). A directory keeps its
//! `lower` path wherever it is renamed to, so renames copy nothing. Nodes that are as on the host are forgotten when
//! there are too many.
//!
//! Private bytes are counted by the length of files (holes count), rounded up to pages, plus a fixed charge for each
//! node, and refused with `ENOSPC` beyond the limit.

mod change;
mod data;
mod node;
mod saved;
mod undo;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::share::{Links, Share};

pub(crate) use data::{Hold, Mapped, Mapping};
pub(crate) use node::{Body, Content, Dir, Node, NodeId, Slot, TREE_DEV};
pub(crate) use saved::{BadTree, TreeState};

/// What a private node costs, besides its bytes: its place in memory and its name.
const NODE_BYTES: u64 = 1024;
/// Nodes above which those that are as on the host are forgotten.
const CLEAN_NODES: usize = 32 << 10;
/// Bytes of a path that an open file keeps.
const LONGEST_PATH: usize = 16 << 10;
/// Memory files of one sandbox: each takes a descriptor of the host's process.
const MEMFDS: usize = 2048;
/// First inode number of files that are not the host's; no host file system counts so far.
const FIRST_INO: u64 = 1 << 48;

/// A node and what belongs to the running sandbox rather than to the file.
#[derive(Clone, Debug)]
struct Cell {
    /// Shared with the undo log and with forks until it is changed.
    node: Arc<Node>,
    /// Open files and working directories that refer to it.
    refs: u32,
    /// The host's file, while it is open.
    host: Option<Arc<OwnedFd>>,
    /// Alive while something maps the file.
    mapped: Weak<()>,
}

impl Cell {
    fn new(node: Arc<Node>, refs: u32) -> Self {
        Self { node, refs, host: None, mapped: Weak::new() }
    }
}

/// See the module. A clone is as cheap as its number of nodes; it must be taken from a tree at its checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    cells: Vec<Option<Cell>>,
    free: Vec<NodeId>,
    live: usize,
    lower: Option<Arc<Share>>,
    limit_bytes: u64,
    used_bytes: u64,
    next_ino: u64,
    /// Counts checkpoints: memfds of earlier epochs are copied before they are written.
    epoch: u32,
    /// Nodes as they were at the checkpoint, where they have changed since; `None` for those made since.
    undo: Option<BTreeMap<NodeId, Option<Arc<Node>>>>,
    /// `used_bytes` at the checkpoint.
    undo_bytes: u64,
    /// Files that are gone but for mappings of them, with what they go on costing.
    orphans: Vec<(Weak<()>, u64)>,
    /// Nodes above which clean ones are looked for.
    trim_above: usize,
    /// Memory files that were made since the checkpoint, at the most.
    memfds: usize,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
}

impl Tree {
    /// A tree over `lower`, or an empty one, with at most `limit_bytes` of private data.
    ///
    /// # Errors
    /// What `stat(2)` of the host's directory says.
    pub(crate) fn new(lower: Option<Share>, limit_bytes: u64) -> Result<Self, Errno> {
        let mut dir = Dir::new(NodeId::ROOT, b"");
        let root = match &lower {
            Some(share) => {
                let attr = share.stat(b"", Links::Refuse, false)?;
                dir.lower = Some(b""[..].into());
                Node::from_lower(&attr, Body::Dir(dir))
            }
            None => Node { ino: FIRST_INO - 1, ..Node::new(libc::S_IFDIR | 0o755, Body::Dir(dir)) },
        };
        Ok(Self {
            cells: vec![Some(Cell::new(Arc::new(root), 1))],
            free: Vec::new(),
            live: 1,
            lower: lower.map(Arc::new),
            limit_bytes,
            used_bytes: 0,
            next_ino: FIRST_INO,
            epoch: 0,
            undo: None,
            undo_bytes: 0,
            orphans: Vec::new(),
            trim_above: CLEAN_NODES,
            memfds: 0,
        })
    }

    fn cell(&self, id: NodeId) -> &Cell {
        self.cells[id.0 as usize].as_ref().expect("a NodeId in use names a live cell")
    }

    fn cell_mut(&mut self, id: NodeId) -> &mut Cell {
        self.cells[id.0 as usize].as_mut().expect("a NodeId in use names a live cell")
    }

    /// The node `id`.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.cell(id).node
    }

    /// The node `id`, to be changed: what it was is kept for [`Tree::reset`].
    pub(crate) fn edit(&mut self, id: NodeId) -> &mut Node {
        if let Some(undo) = &mut self.undo {
            let node = &self.cells[id.0 as usize].as_ref().expect("live").node;
            undo.entry(id).or_insert_with(|| Some(node.clone()));
        }
        Arc::make_mut(&mut self.cell_mut(id).node)
    }

    fn edit_dir(&mut self, id: NodeId) -> &mut Dir {
        match &mut self.edit(id).body {
            Body::Dir(dir) => dir,
            _ => unreachable!("the caller has looked the directory up"),
        }
    }

    fn dir(&self, id: NodeId) -> Result<&Dir, Errno> {
        self.node(id).dir().ok_or(Errno::NOTDIR)
    }

    fn insert(&mut self, mut node: Node) -> NodeId {
        if node.ino == 0 {
            node.ino = self.next_ino;
            self.next_ino += 1;
        }
        let clean = node.clean;
        let cell = Some(Cell::new(Arc::new(node), 0));
        let id = match self.free.pop() {
            Some(id) => {
                self.cells[id.0 as usize] = cell;
                id
            }
            None => {
                self.cells.push(cell);
                NodeId(u32::try_from(self.cells.len() - 1).expect("fewer than 2^32 nodes: each is charged"))
            }
        };
        self.live += 1;
        if let Some(undo) = &mut self.undo
            && !clean
        {
            undo.entry(id).or_insert(None);
        }
        id
    }

    fn discard(&mut self, id: NodeId) {
        self.cells[id.0 as usize] = None;
        self.live -= 1;
        match self.undo.as_mut().and_then(|undo| undo.get(&id)) {
            // It comes back at the reset: its number stays taken.
            Some(Some(_)) => return,
            Some(None) => drop(self.undo.as_mut().and_then(|undo| undo.remove(&id))),
            None => {}
        }
        self.free.push(id);
    }

    /// The child `name` of the directory `dir`, or `None` where there is none.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENAMETOOLONG`, or what the host says.
    pub(crate) fn lookup(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, Errno> {
        let from = self.dir(dir)?;
        if name.len() > crate::share::NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        match from.children.get(name) {
            Some(Slot::Node { id, .. }) => return Ok(Some(*id)),
            Some(Slot::Whiteout) => return Ok(None),
            None => {}
        }
        let (Some(path), Some(share)) = (&from.lower, &self.lower) else { return Ok(None) };
        let path = join(path, name);
        let attr = match share.stat(&path, Links::Refuse, false) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let body = match attr.kind() {
            FileType::Directory => Body::Dir(Dir { lower: Some(path.into()), ..Dir::new(dir, name) }),
            FileType::RegularFile => Body::File(Content::Lower(path.into())),
            FileType::Symlink => Body::Link(share.read_link(&path, Links::Refuse)?.into()),
            _ => Body::Foreign,
        };
        let id = self.insert(Node::from_lower(&attr, body));
        self.remember(dir, name, id);
        Ok(Some(id))
    }

    /// Puts a node found on the host into its directory, now and in what a reset goes back to.
    fn remember(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        let name: Arc<[u8]> = name.into();
        let slot = Slot::Node { id, hides: true };
        if let Some(undo) = &mut self.undo
            && let Some(Some(saved)) = undo.get_mut(&dir)
            && let Body::Dir(saved) = &mut Arc::make_mut(saved).body
        {
            saved.children.insert(name.clone(), slot);
        }
        if let Body::Dir(dir) = &mut Arc::make_mut(&mut self.cell_mut(dir).node).body {
            dir.children.insert(name, slot);
        }
    }

    /// What `dir` holds, without `.` and `..`.
    ///
    /// # Errors
    /// `ENOTDIR`, or what the host says.
    pub(crate) fn list(&self, dir: NodeId) -> Result<Vec<Entry>, Errno> {
        let from = self.dir(dir)?;
        let mut entries: Vec<Entry> = from
            .children
            .iter()
            .filter_map(|(name, slot)| match slot {
                Slot::Whiteout => None,
                Slot::Node { id, .. } => {
                    let node = self.node(*id);
                    Some(Entry { name: name.to_vec(), ino: node.ino, kind: node.kind() })
                }
            })
            .collect();
        let (Some(path), Some(share)) = (&from.lower, &self.lower) else { return Ok(entries) };
        share.open_dir_at(path, Links::Refuse)?.read(0, |entry| {
            if !from.children.contains_key(entry.name.as_slice()) {
                entries.push(Entry { name: entry.name, ino: entry.ino, kind: entry.kind });
            }
            true
        })?;
        Ok(entries)
    }

    fn empty(&self, dir: NodeId) -> Result<bool, Errno> {
        Ok(self.list(dir)?.is_empty())
    }

    /// The directory that holds the directory `id`.
    pub(crate) fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).dir().map_or(NodeId::ROOT, |dir| dir.parent)
    }

    /// The absolute path of the directory `id`; `None` where it, or one above it, is removed, or where it is far longer than any
    /// call could take.
    pub(crate) fn path(&self, mut id: NodeId) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut room = LONGEST_PATH;
        while id != NodeId::ROOT {
            let node = self.node(id);
            let dir = node.dir().filter(|_| node.nlink > 0)?;
            room = room.checked_sub(dir.name.len() + 1)?;
            names.push(&dir.name);
            id = dir.parent;
        }
        names.reverse();
        Some(names.iter().flat_map(|name| [&b"/"[..], name]).flatten().copied().collect())
    }

    /// Whether `id` is `ancestor` or lies below it.
    fn below(&self, mut id: NodeId, ancestor: NodeId) -> bool {
        while id != ancestor {
            if id == NodeId::ROOT {
                return false;
            }
            id = self.parent(id);
        }
        true
    }

    /// Keeps `id` while an open file or working directory refers to it.
    pub(crate) fn pin(&mut self, id: NodeId) {
        self.cell_mut(id).refs += 1;
    }

    /// The counterpart of [`Tree::pin`]: a file without names goes with its last user.
    pub(crate) fn unpin(&mut self, id: NodeId) {
        let cell = self.cell_mut(id);
        cell.refs -= 1;
        if cell.refs == 0 {
            cell.host = None;
        }
        self.drop_if_dead(id);
    }

    fn drop_if_dead(&mut self, id: NodeId) {
        let cell = self.cell(id);
        if cell.refs > 0 || cell.node.nlink > 0 {
            return;
        }
        // The parent may outlive it; a removed directory is empty.
        self.release(id);
        self.edit(id);
        self.discard(id);
    }

    /// Bytes of private data in use, and the limit.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.used_bytes - self.collectable(), self.limit_bytes)
    }

    /// Nodes in memory.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Forgets nodes that are as on the host when there are many. Call where no `NodeId` is held but pinned ones.
    pub(crate) fn trim(&mut self) {
        if self.live > self.trim_above {
            self.forget();
            // What could not be forgotten is not walked again at every call.
            self.trim_above = CLEAN_NODES.max(2 * self.live);
        }
    }

    /// Forgets clean, unused nodes. Without recursion: a program decides how deep directories lie in each other.
    fn forget(&mut self) {
        let mut dirs = vec![NodeId::ROOT];
        let mut next = 0;
        while let Some(&dir) = dirs.get(next) {
            let children = self.node(dir).dir().into_iter().flat_map(|dir| dir.children.values());
            let ids =
                children.filter_map(|slot| if let Slot::Node { id, .. } = slot { Some(*id) } else { None });
            dirs.extend(ids.filter(|id| self.node(*id).dir().is_some()));
            next += 1;
        }
        // What is below comes first.
        for dir in dirs.into_iter().rev() {
            self.forget_in(dir);
        }
    }

    fn forget_in(&mut self, dir: NodeId) {
        let Some(Dir { children, .. }) = self.node(dir).dir() else { return };
        let children: Vec<_> = children.iter().map(|(name, slot)| (name.clone(), *slot)).collect();
        for (name, slot) in children {
            let Slot::Node { id, .. } = slot else { continue };
            if !self.is_forgettable(id) {
                continue;
            }
            if let Some(undo) = &mut self.undo
                && let Some(Some(old)) = undo.get_mut(&dir)
                && let Body::Dir(old) = &mut Arc::make_mut(old).body
            {
                old.children.remove(&name);
            }
            if let Body::Dir(now) = &mut Arc::make_mut(&mut self.cell_mut(dir).node).body {
                now.children.remove(&name);
            }
            self.discard(id);
        }
    }

    fn is_forgettable(&self, id: NodeId) -> bool {
        let cell = self.cell(id);
        let needed = cell.node.dir().is_some_and(|dir| dir.mount.is_some() || !dir.children.is_empty());
        let saved = self.undo.as_ref().is_some_and(|undo| undo.contains_key(&id));
        !needed && cell.node.clean && cell.refs == 0 && !saved
    }
}

/// `dir/name`, without a slash in front.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
