//! Node ids: what the guest's kernel calls files.
//!
//! A node is a path that was looked up, and which file it was then. It follows renames. A file with two names is two
//! nodes with one inode number. What is removed or replaced leaves its node without a path; its open files go on.

use std::collections::HashMap;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::devices::files::{Devices, is_plain};
use crate::share::Identity;

/// The node of the share's root.
pub(super) const ROOT: u64 = 1;
/// Most nodes, and most bytes of their paths: what a guest can make the host keep.
const MOST_NODES: usize = 1 << 18;
const MOST_PATH_BYTES: usize = 64 << 20;

/// One file that the guest knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    /// In the share; none where the name was taken away.
    pub(super) path: Option<Vec<u8>>,
    /// Which file it was when it was looked up.
    pub(super) id: Option<Identity>,
    /// How often it was told to the guest and not forgotten.
    lookups: u64,
}

/// All that the guest knows.
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_path: HashMap<Vec<u8>, u64>,
    path_bytes: usize,
    next: u64,
}

impl Nodes {
    pub(super) fn new() -> Self {
        let root = Node { path: Some(Vec::new()), id: None, lookups: 1 };
        let by_path = HashMap::from([(Vec::new(), ROOT)]);
        Self { nodes: HashMap::from([(ROOT, root)]), by_path, path_bytes: 0, next: ROOT + 1 }
    }

    pub(super) fn get(&self, node: u64) -> Result<&Node, Errno> {
        self.nodes.get(&node).ok_or(Errno::STALE)
    }

    /// Its path; `ESTALE` where it has none any more.
    pub(super) fn path(&self, node: u64) -> Result<&[u8], Errno> {
        self.get(node)?.path.as_deref().ok_or(Errno::STALE)
    }

    /// The node of `path`, told to the guest once more.
    pub(super) fn look_up(&mut self, path: Vec<u8>, id: Identity) -> Result<u64, Errno> {
        if let Some(number) = self.by_path.get(&path).copied() {
            if let Some(node) = self.nodes.get_mut(&number).filter(|node| node.id.is_none_or(|old| old == id))
            {
                node.lookups = node.lookups.saturating_add(1);
                return Ok(number);
            }
            // Another file has the name now.
            self.lose(&path);
        }
        if self.nodes.len() >= MOST_NODES || self.path_bytes + path.len() > MOST_PATH_BYTES {
            return Err(Errno::NOMEM);
        }
        let number = self.next;
        self.next += 1;
        self.path_bytes += path.len();
        self.by_path.insert(path.clone(), number);
        self.nodes.insert(number, Node { path: Some(path), id: Some(id), lookups: 1 });
        Ok(number)
    }

    /// The guest forgets a node `count` times.
    pub(super) fn forget(&mut self, number: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0
            && let Some(path) = self.nodes.remove(&number).and_then(|node| node.path)
        {
            self.path_bytes -= path.len();
            self.by_path.remove(&path);
        }
    }

    /// The name was taken away.
    pub(super) fn lose(&mut self, path: &[u8]) {
        let Some(number) = self.by_path.remove(path) else { return };
        self.path_bytes -= path.len();
        if let Some(node) = self.nodes.get_mut(&number) {
            node.path = None;
        }
    }

    /// `old` and all below it is called `new` now.
    pub(super) fn rename(&mut self, old: &[u8], new: &[u8]) {
        if old == new {
            return;
        }
        self.lose(new);
        self.change_paths(|path| {
            let rest = path.strip_prefix(old).filter(|rest| rest.is_empty() || rest[0] == b'/')?;
            Some([new, rest].concat())
        });
    }

    /// `one` and `two`, with all below them, change places.
    pub(super) fn exchange(&mut self, one: &[u8], two: &[u8]) {
        self.change_paths(|path| {
            let below = |from: &[u8], to: &[u8]| {
                let rest = path.strip_prefix(from).filter(|rest| rest.is_empty() || rest[0] == b'/')?;
                Some([to, rest].concat())
            };
            below(one, two).or_else(|| below(two, one))
        });
    }

    fn change_paths(&mut self, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        let moved: Vec<(u64, Vec<u8>, Vec<u8>)> = self
            .by_path
            .iter()
            .filter_map(|(path, number)| Some((*number, path.clone(), change(path)?)))
            .collect();
        for (_, old, _) in &moved {
            self.by_path.remove(old);
            self.path_bytes -= old.len();
        }
        for (number, _, path) in moved {
            self.path_bytes += path.len();
            if let Some(node) = self.nodes.get_mut(&number) {
                node.path = Some(path.clone());
            }
            self.by_path.insert(path, number);
        }
    }

    /// The nodes and the next number, for a snapshot.
    pub(super) fn table(&self) -> (Vec<(u64, Node)>, u64) {
        let mut nodes: Vec<_> = self.nodes.iter().map(|(number, node)| (*number, node.clone())).collect();
        nodes.sort_unstable_by_key(|(number, _)| *number);
        (nodes, self.next)
    }

    /// The nodes of a snapshot; `Err` says what no guest can have brought about.
    pub(super) fn from_table(
        table: Vec<(u64, Node)>,
        next: u64,
        devices: Devices,
    ) -> Result<Self, &'static str> {
        let mut nodes = Self { nodes: HashMap::new(), by_path: HashMap::new(), path_bytes: 0, next };
        let root = table.iter().find(|(number, _)| *number == ROOT);
        if root.is_none_or(|(_, root)| root.path != Some(Vec::new())) {
            return Err("its root is missing");
        }
        if table.len() > MOST_NODES || next > u64::MAX / 2 {
            return Err("it has too many nodes");
        }
        for (number, mut node) in table {
            node.id = node.id.map(|id| devices.now(id));
            if let Some(path) = &node.path {
                nodes.path_bytes += path.len();
                let again = nodes.by_path.insert(path.clone(), number).is_some();
                if again || !is_plain(path) || nodes.path_bytes > MOST_PATH_BYTES {
                    return Err("a node has a path that none can have");
                }
            }
            if number >= next || nodes.nodes.insert(number, node).is_some() {
                return Err("a node has a number that none can have");
            }
        }
        Ok(nodes)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }
}
