//! The private tree in a stored image.
//!
//! Nodes keep their numbers. What the host has is named by its path and looked at again; generated files are taken from a
//! tree that was planted anew, in which they have the same numbers and names, or the image is not of this novum.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::data::{SMALL_BYTES, new_memfd};
use super::{Body, Cell, Content, Dir, FIRST_INO, Node, NodeId, Slot, Tree};
use crate::process::files::{Stamp, host};
use crate::share::{Links, Time};

/// Directories within each other.
const DEEPEST: usize = 4096;
/// Last inode number that is ever given, far beyond any that a program can reach.
const LAST_INO: u64 = 1 << 60;

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TreeState {
    nodes: Vec<Option<NodeState>>,
    used_bytes: u64,
    next_ino: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct NodeState {
    ino: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    nlink: u32,
    size: u64,
    times: [Time; 4],
    clean: bool,
    linkable: bool,
    body: BodyState,
}

/// `None`: the host's entry of that name is gone. The flag: the host has that name too.
type Child = Option<(NodeId, bool)>;

#[derive(Debug, Serialize, Deserialize)]
enum BodyState {
    Dir {
        parent: NodeId,
        name: Vec<u8>,
        children: Vec<(Vec<u8>, Child)>,
        lower: Option<Vec<u8>>,
        mount: Option<usize>,
        fixed: bool,
    },
    Lower(Vec<u8>),
    Program,
    Private(Vec<u8>),
    /// Private too, large or mapped.
    Memory(Vec<u8>),
    Link(Vec<u8>),
    /// Generated, with its name.
    Synth(Vec<u8>),
    Foreign,
}

/// What was read is no tree, or not one over this root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTree {
    /// It cannot be.
    #[error("the private files cannot be: {0}")]
    Impossible(&'static str),
    /// The host's file is another one by now.
    #[error("{path} of the root has changed since")]
    Changed {
        /// Which.
        path: String,
    },
    /// The host failed.
    #[error("private files cannot be made")]
    Host(#[from] Errno),
}

fn demand(condition: bool, what: &'static str) -> Result<(), BadTree> {
    if condition { Ok(()) } else { Err(BadTree::Impossible(what)) }
}

impl Tree {
    /// What is to be kept.
    ///
    /// # Errors
    /// Where a private file cannot be read.
    pub(in crate::process::files) fn state(&self) -> Result<TreeState, Errno> {
        let names = self.names();
        let state = |(number, cell): (usize, &Option<Cell>)| {
            let Some(cell) = cell else { return Ok(None) };
            let name = names.get(&NodeId(number as u32));
            NodeState::of(&cell.node, name.map_or(&[], |name| name)).map(Some)
        };
        let nodes = self.cells.iter().enumerate().map(state).collect::<Result<_, Errno>>()?;
        Ok(TreeState { nodes, used_bytes: self.used_bytes, next_ino: self.next_ino })
    }

    /// A name of every node that has one.
    fn names(&self) -> HashMap<NodeId, Arc<[u8]>> {
        let dirs = self.cells.iter().flatten().filter_map(|cell| cell.node.dir());
        let children = dirs.flat_map(|dir| &dir.children);
        let named = children.filter_map(|(name, slot)| match slot {
            Slot::Node { id, .. } => Some((*id, name.clone())),
            Slot::Whiteout => None,
        });
        named.collect()
    }

    /// Puts what was kept in the place of a tree that was just planted. Nothing but the root is pinned then.
    ///
    /// # Errors
    /// What cannot be, or is another file by now; the tree must not be used then.
    pub(in crate::process::files) fn restore_state(&mut self, state: TreeState) -> Result<(), BadTree> {
        demand(state.used_bytes <= self.limit_bytes, "they take more than they may")?;
        demand((FIRST_INO..LAST_INO).contains(&state.next_ino), "their numbers are used up")?;
        demand(!state.nodes.is_empty() && state.nodes.len() < 1 << 24, "there are too many")?;
        let names = self.names();
        let fresh = std::mem::take(&mut self.cells);
        let planted = |id: u32| fresh.get(id as usize)?.as_ref();
        let mut cells = Vec::with_capacity(state.nodes.len());
        for (id, node) in (0..).zip(state.nodes) {
            let name = names.get(&NodeId(id)).map_or(&[][..], |name| name);
            let node = node.map(|node| node.restore(planted(id), name)).transpose()?;
            cells.push(node.map(|node| Cell::new(Arc::new(node), u32::from(id == 0))));
        }
        self.free = (0..).zip(&cells).filter(|(_, cell)| cell.is_none()).map(|(id, _)| NodeId(id)).collect();
        self.live = cells.len() - self.free.len();
        self.cells = cells;
        (self.used_bytes, self.next_ino) = (state.used_bytes, state.next_ino);
        self.check_shape()?;
        let mounts = |cells: &[Option<Cell>]| -> Vec<(u32, usize)> {
            let dirs =
                (0..).zip(cells).filter_map(|(id, cell)| Some((id, cell.as_ref()?.node.dir()?.mount?)));
            dirs.collect()
        };
        demand(mounts(&self.cells) == mounts(&fresh), "shares are mounted elsewhere")?;
        self.check_host()
    }

    /// Whether `id` names a node.
    pub(in crate::process::files) fn has(&self, id: NodeId) -> bool {
        self.cells.get(id.0 as usize).is_some_and(Option::is_some)
    }

    /// Directories form one tree, which is not too deep; every file has as many names as it says.
    fn check_shape(&self) -> Result<(), BadTree> {
        let mut names = vec![0_u32; self.cells.len()];
        let dir = |id: NodeId| self.cells.get(id.0 as usize)?.as_ref()?.node.dir();
        demand(dir(NodeId::ROOT).is_some(), "there is no root")?;
        let ids = (0..self.cells.len() as u32).map(NodeId).filter(|id| self.has(*id));
        for id in ids {
            let Some(here) = dir(id) else { continue };
            for slot in here.children.values() {
                let Slot::Node { id: child, .. } = slot else { continue };
                demand(self.has(*child), "a directory names what is not there")?;
                let inside = dir(*child).is_none_or(|dir| dir.parent == id && *child != NodeId::ROOT);
                demand(inside, "a directory lies in another than it says")?;
                names[child.0 as usize] += 1;
            }
            let mut up = id;
            for _ in 0..DEEPEST {
                if up == NodeId::ROOT {
                    break;
                }
                up = dir(up).map(|dir| dir.parent).ok_or(BadTree::Impossible("a parent is no directory"))?;
            }
            demand(up == NodeId::ROOT, "a directory does not lie below the root")?;
        }
        let counted = |(cell, names): (&Option<Cell>, &u32)| {
            let Some(node) = cell.as_ref().map(|cell| &cell.node) else { return true };
            // Of the host's files, and of directories, the count is another one.
            let one = node.ino < FIRST_INO || node.dir().is_some();
            if one { *names == 0 || *names == 1 && node.nlink > 0 } else { *names == node.nlink }
        };
        demand(self.cells.iter().zip(&names).all(counted), "a file has other names than it says")
    }

    /// What is as on the host still is.
    fn check_host(&mut self) -> Result<(), BadTree> {
        let lower = self.lower.clone();
        for cell in self.cells.iter().flatten() {
            let Body::File(Content::Lower(path)) = &cell.node.body else { continue };
            let share = lower.as_ref().ok_or(BadTree::Impossible("there is no root of the host"))?;
            let node = &cell.node;
            let attr = share.stat(path, Links::Refuse, false).ok();
            let same = attr.is_some_and(|attr| {
                (attr.id.ino, attr.size) == (node.ino, node.size) && (!node.clean || attr.mtime == node.mtime)
            });
            if !same {
                return Err(BadTree::Changed { path: String::from_utf8_lossy(path).into_owned() });
            }
        }
        Ok(())
    }

    /// The host's file of a node that is not private: for what is mapped.
    pub(in crate::process::files) fn host_stamp(&mut self, id: NodeId) -> Result<Option<Stamp>, Errno> {
        let fd = match &self.node(id).body {
            Body::File(Content::Lower(_)) => self.host_file(id)?,
            Body::File(Content::Host(fd)) => fd.clone(),
            _ => return Ok(None),
        };
        Stamp::of_fd(fd.as_fd()).map(Some)
    }
}

impl NodeState {
    fn of(node: &Node, name: &[u8]) -> Result<Self, Errno> {
        // Every field is named: a new one must say what becomes of it.
        let Node { ino, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, .. } = *node;
        let Node { clean, linkable, ref body, .. } = *node;
        let body = match body {
            Body::Dir(Dir { parent, name, children, lower, mount, fixed }) => BodyState::Dir {
                parent: *parent,
                name: name.to_vec(),
                children: children.iter().map(|(name, slot)| (name.to_vec(), child(slot))).collect(),
                lower: lower.as_ref().map(|path| path.to_vec()),
                mount: *mount,
                fixed: *fixed,
            },
            Body::File(Content::Lower(path)) => BodyState::Lower(path.to_vec()),
            Body::File(Content::Host(_)) => BodyState::Program,
            Body::File(Content::Bytes(bytes)) => BodyState::Private(bytes.to_vec()),
            Body::File(Content::Memfd { fd, .. }) => {
                let mut bytes = host::read_all(fd.clone(), size as usize)?;
                bytes.resize(size as usize, 0);
                BodyState::Memory(bytes)
            }
            Body::Link(text) => BodyState::Link(text.to_vec()),
            Body::Synth(_) => BodyState::Synth(name.to_vec()),
            Body::Foreign => BodyState::Foreign,
        };
        let times = [atime, mtime, ctime, btime];
        Ok(Self { ino, mode, uid, gid, rdev, nlink, size, times, clean, linkable, body })
    }

    /// `planted`: what a tree that was just planted has under this number, and called what.
    fn restore(self, planted: Option<&Cell>, planted_name: &[u8]) -> Result<Node, BadTree> {
        let Self { ino, mode, uid, gid, rdev, nlink, size, times, clean, linkable, body } = self;
        let [atime, mtime, ctime, btime] = times;
        let kind = FileType::from_raw_mode(mode);
        let expected = match &body {
            BodyState::Dir { .. } => Some(FileType::Directory),
            BodyState::Lower(_) | BodyState::Program | BodyState::Private(_) | BodyState::Memory(_) => {
                Some(FileType::RegularFile)
            }
            BodyState::Link(_) => Some(FileType::Symlink),
            BodyState::Synth(_) | BodyState::Foreign => None,
        };
        demand(expected.is_none_or(|expected| expected == kind), "a file has another type than its content")?;
        let body = body.restore(size, planted, planted_name)?;
        let node = Node {
            ino,
            mode,
            uid,
            gid,
            rdev,
            nlink,
            size,
            atime,
            mtime,
            ctime,
            btime,
            clean,
            linkable,
            body,
        };
        Ok(node)
    }
}

impl BodyState {
    fn restore(self, size: u64, planted: Option<&Cell>, planted_name: &[u8]) -> Result<Body, BadTree> {
        let planted = planted.map(|cell| &cell.node.body);
        Ok(match self {
            Self::Dir { parent, name, children, lower, mount, fixed } => {
                let slot = |child: Child| match child {
                    Some((id, hides)) => Slot::Node { id, hides },
                    None => Slot::Whiteout,
                };
                let children = children.into_iter().map(|(name, child)| (name.into(), slot(child)));
                Body::Dir(Dir {
                    parent,
                    name: name.into(),
                    children: children.collect(),
                    lower: lower.map(Into::into),
                    mount,
                    fixed,
                })
            }
            Self::Lower(path) => Body::File(Content::Lower(path.into())),
            Self::Program => match planted {
                Some(program @ Body::File(Content::Host(_))) => program.clone(),
                _ => return Err(BadTree::Impossible("the program stands elsewhere")),
            },
            Self::Private(bytes) => {
                demand(bytes.len() as u64 == size, "a file has another length than its content")?;
                demand(size <= SMALL_BYTES, "a small file is large")?;
                Body::File(Content::Bytes(Arc::new(bytes)))
            }
            Self::Memory(bytes) => {
                demand(bytes.len() as u64 == size, "a file has another length than its content")?;
                // Before the checkpoint that follows: copied before it is written.
                Body::File(Content::Memfd { fd: new_memfd(&bytes)?, epoch: 0 })
            }
            Self::Link(text) => Body::Link(text.into()),
            Self::Synth(name) => match planted {
                Some(body @ Body::Synth(_)) if name == planted_name => body.clone(),
                _ => return Err(BadTree::Impossible("generated files are others")),
            },
            Self::Foreign => Body::Foreign,
        })
    }
}

fn child(slot: &Slot) -> Child {
    match slot {
        Slot::Node { id, hides } => Some((*id, *hides)),
        Slot::Whiteout => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_as_many_names_as_they_say() {
        let mut tree = Tree::new(None, 1 << 20).unwrap();
        let file = || Node::new(libc::S_IFREG | 0o644, Body::File(Content::Bytes(Arc::default())));
        let dir = Node::new(libc::S_IFDIR | 0o755, Body::Dir(Dir::new(NodeId::ROOT, b"d")));
        let dir = tree.create(NodeId::ROOT, b"d", dir).unwrap();
        let id = tree.create(dir, b"a", file()).unwrap();
        tree.link(id, NodeId::ROOT, b"b").unwrap();
        tree.create_unnamed(0o600, true).unwrap();
        let restored = |spoil: &dyn Fn(&mut NodeState)| {
            let mut state = tree.state().unwrap();
            spoil(state.nodes[id.0 as usize].as_mut().unwrap());
            Tree::new(None, 1 << 20).unwrap().restore_state(state)
        };
        restored(&|_| ()).unwrap();
        for links in [0, 1, 3] {
            assert!(restored(&|node| node.nlink = links).is_err(), "{links}");
        }
        assert!(restored(&|node| node.ino = 5).is_err(), "two names of a file of the host");
    }
}
