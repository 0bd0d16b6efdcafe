//! What one file of the private tree is.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::process::files::host::now;
use crate::process::files::synth::Synth;
use crate::share::{Attr, Identity, Time};

/// Device number of the private tree as the tenant sees it.
pub(crate) const TREE_DEV: u64 = 0x1e;
const BLOCK_BYTES: u64 = 4096;

/// Names a node. Numbers are reused after a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct NodeId(pub(super) u32);

impl NodeId {
    /// The tree's root.
    pub(crate) const ROOT: Self = Self(0);
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Inode number shown to the tenant: the host's for what comes from there.
    pub(crate) ino: u64,
    /// Type and permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    /// Names, and for a directory the usual count of subdirectories; 0 once it is removed.
    pub(crate) nlink: u32,
    /// Length of a regular file.
    pub(crate) size: u64,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    pub(crate) btime: Time,
    /// As found on the host: can be forgotten and looked up again.
    pub(crate) clean: bool,
    /// Was made without a name and may get one (`O_TMPFILE`).
    pub(crate) linkable: bool,
    pub(crate) body: Body,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Dir(Dir),
    File(Content),
    /// A symbolic link's text.
    Link(Arc<[u8]>),
    /// A generated file, device or magic link.
    Synth(Synth),
    /// A FIFO, socket or device of the host: seen, never opened.
    Foreign,
}

/// A directory.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    pub(crate) parent: NodeId,
    pub(crate) name: Arc<[u8]>,
    pub(crate) children: BTreeMap<Arc<[u8]>, Slot>,
    /// Path of the host's directory whose entries show through, relative to the root's share.
    pub(crate) lower: Option<Arc<[u8]>>,
    /// The share mounted here.
    pub(crate) mount: Option<usize>,
    /// Generated: nothing can be made, removed or renamed here.
    pub(crate) fixed: bool,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// A file. `hides` is set where the host's directory has that name too.
    Node { id: NodeId, hides: bool },
    /// The host's entry of that name is gone.
    Whiteout,
}

/// Where a regular file's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// In the host's root, at this path.
    Lower(Arc<[u8]>),
    /// In one host file, read only (the program of a deployment without a root).
    Host(Arc<OwnedFd>),
    /// Private and small.
    Bytes(Arc<Vec<u8>>),
    /// Private and large, or mapped. Written in place only while `epoch` is the tree's.
    Memfd { fd: Arc<OwnedFd>, epoch: u32 },
}

impl Content {
    /// Whether its bytes count against the limit of the private layer.
    pub(crate) fn private(&self) -> bool {
        matches!(self, Self::Bytes(_) | Self::Memfd { .. })
    }
}

impl Node {
    /// A new node of the private layer.
    pub(crate) fn new(mode: u32, body: Body) -> Self {
        let now = now();
        let nlink = if matches!(body, Body::Dir(_)) { 2 } else { 1 };
        let size = match &body {
            Body::Link(text) => text.len() as u64,
            Body::Dir(_) => BLOCK_BYTES,
            _ => 0,
        };
        Self {
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink,
            size,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            clean: false,
            linkable: false,
            body,
        }
    }

    /// A node as found on the host.
    pub(crate) fn from_lower(attr: &Attr, body: Body) -> Self {
        Self {
            ino: attr.id.ino,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            nlink: attr.nlink,
            size: attr.size,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime,
            clean: true,
            linkable: false,
            body,
        }
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    pub(crate) fn dir(&self) -> Option<&Dir> {
        if let Body::Dir(dir) = &self.body { Some(dir) } else { None }
    }

    pub(crate) fn attr(&self) -> Attr {
        Attr {
            id: Identity { dev: TREE_DEV, ino: self.ino },
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            block_size: BLOCK_BYTES as u32,
            blocks: self.size.div_ceil(BLOCK_BYTES) * (BLOCK_BYTES / 512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    /// Notes a change of the content.
    pub(crate) fn modified(&mut self) {
        self.mtime = now();
        self.ctime = self.mtime;
        self.clean = false;
    }

    /// Notes a change of an attribute.
    pub(crate) fn changed(&mut self) {
        self.ctime = now();
        self.clean = false;
    }
}

impl Dir {
    /// An empty directory of the private layer.
    pub(crate) fn new(parent: NodeId, name: &[u8]) -> Self {
        Self { parent, name: name.into(), children: BTreeMap::new(), lower: None, mount: None, fixed: false }
    }
}
