//! Nodes and open files as a section of a snapshot. FUSE gives the offset with each message, so that no position is kept.

use novum_snapshot::{Snapshot, State, Writer};
use serde::{Deserialize, Serialize};

use super::nodes::{Node, Nodes};
use super::server::{Handle, MAX_HANDLES, Opened, Server};
use crate::linux::devices::files::{Devices, Kept, Locks, root};
use crate::linux::devices::p9::wire::Decoder;
use crate::linux::virtio::StateError;
use crate::linux::virtio::state::{put, take};
use crate::share::Identity;

/// A guest's view of a share.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Files {
    root: Identity,
    nodes: Vec<(u64, Node)>,
    next_node: u64,
    /// Number, node, and what is open.
    handles: Vec<(u64, u64, Kept)>,
    next_handle: u64,
}

impl State for Files {
    const KIND: &'static str = "virtio-fs";
    const VERSION: u32 = 1;
}

impl Server {
    pub(super) fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        let root = root(&self.share)
            .map_err(|error| StateError::host(owner, "looking at the share")(error.into()))?;
        // Locks are the guest's own here.
        let none = Locks::default();
        let handle = |(number, handle): (&u64, &Handle)| (*number, handle.node, handle.opened.keep(&none));
        let mut handles: Vec<_> = self.handles.iter().map(handle).collect();
        handles.sort_unstable_by_key(|(number, ..)| *number);
        let (nodes, next_node) = self.nodes.table();
        put(to, owner, &Files { root, nodes, next_node, handles, next_handle: self.next_handle })
    }

    pub(super) fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        let state: Files = take(from, owner)?;
        if state.handles.len() > MAX_HANDLES || state.next_handle > u64::MAX / 2 {
            return Err(StateError::refused(owner, "more open files than a server has"));
        }
        let devices = Devices::new(&self.share, state.root)
            .map_err(|error| StateError::host(owner, "looking at the share")(error.into()))?;
        self.nodes = Nodes::from_table(state.nodes, state.next_node, devices)
            .map_err(|reason| StateError::refused(owner, reason))?;
        self.next_handle = state.next_handle;
        for (number, node, kept) in state.handles {
            let opened = kept.restore(&self.share, devices, self.nodes.path(node).ok());
            let again = self.handles.insert(number, Handle { node, opened }).is_some();
            if again || number >= self.next_handle {
                return Err(StateError::refused(owner, format!("no file can have the number {number}")));
            }
        }
        Ok(())
    }

    /// Opens what a restored guest uses for the first time. A message about something open begins with its number.
    pub(super) fn wake(&mut self, message: &Decoder<'_>) {
        let Ok(number) = Decoder(message.0).u64() else { return };
        let Some(handle) = self.handles.get_mut(&number) else { return };
        if let Opened::Asleep(kept) = &handle.opened {
            handle.opened = kept.clone().open(&self.share, self.nodes.path(handle.node).ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::virtio::testing::golden;

    #[test]
    fn nodes_are_written_as_they_always_were() {
        let mut known = Nodes::new();
        known.look_up(b"a".to_vec(), Identity { dev: 1, ino: 2 }).unwrap();
        let (nodes, next_node) = known.table();
        let handles = vec![(1, 2, Kept::example())];
        golden(
            &Files { root: Identity { dev: 7, ino: 8 }, nodes, next_node, handles, next_handle: 2 },
            "virtio-fs 1 0708020101000001020101610101020103010102000201020604010a0c0102",
        );
    }
}
