//! Going back to a known state, at a cost in what changed since.
//!
//! After [`Tree::checkpoint`], the first change of a node keeps a copy of it as it was; [`Tree::reset`] puts the
//! copies back. Contents are shared between the two (`Arc`): plain bytes are copied when written, a memfd of an
//! earlier epoch is copied before its first write.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::{NodeId, Tree};

impl Tree {
    /// From here on, [`Tree::reset`] leads back to the present state.
    pub(crate) fn checkpoint(&mut self) {
        self.epoch += 1;
        self.undo = Some(BTreeMap::new());
        self.collect();
        // What the image maps it maps for good.
        self.orphans.clear();
        self.undo_bytes = self.used_bytes;
    }

    /// Nothing leads back any more, and nothing is kept for it. Only right after a checkpoint.
    pub(crate) fn forget_checkpoint(&mut self) {
        self.undo = None;
    }

    /// Back to the checkpoint. Every reference must have been unpinned and is pinned anew by the caller. Without a
    /// checkpoint nothing happens.
    pub(crate) fn reset(&mut self) {
        let Some(undo) = self.undo.take() else { return };
        for (id, saved) in undo {
            match saved {
                Some(node) => self.restore(id, node),
                None if self.cells[id.0 as usize].is_some() => self.discard(id),
                None => {}
            }
        }
        // The mappings made since are gone by now.
        self.orphans.clear();
        (self.used_bytes, self.memfds) = (self.undo_bytes, 0);
        self.checkpoint();
    }

    /// The nodes that are not as on the host.
    #[cfg(test)]
    pub(in crate::process::files) fn describe(&self) -> String {
        let cells = self.cells.iter().enumerate();
        let cells = cells.filter_map(|(n, cell)| Some((n, cell.as_ref()?)));
        let mut text = format!("{} bytes\n", self.used_bytes);
        for (n, cell) in cells {
            text += &format!("{n} {} {:?}\n", cell.refs, cell.node);
        }
        text
    }

    fn restore(&mut self, id: NodeId, node: Arc<super::Node>) {
        match &mut self.cells[id.0 as usize] {
            Some(cell) => {
                cell.node = node;
                (cell.host, cell.mapped) = (None, Weak::new());
            }
            empty => {
                *empty = Some(super::Cell::new(node, 0));
                self.live += 1;
            }
        }
    }
}
