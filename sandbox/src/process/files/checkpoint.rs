//! A state to go back to.
//!
//! [`Files::checkpoint`] keeps the descriptors, pipes and the working directory, which are small and plain, and
//! starts an undo log of the private tree; [`Files::reset`] goes back at a cost in what changed since. Shares are
//! the host's and stay as they are, but for the positions in their open files; locks are given up.

use std::sync::Arc;

use rustix::io::Errno;

use super::locks::Locks;
use super::table::Table;
use super::{Files, NoConsole, Object, Pair, Pipe, Place};
use crate::share::{Lock, LockKind, OpenState};

/// What a reset goes back to, beside the tree.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    table: Table,
    pipes: Vec<Option<Pipe>>,
    pairs: Vec<Option<Pair>>,
    cwd: Place,
    umask: u32,
    exe: Arc<[u8]>,
    threads: Vec<u32>,
}

impl Files {
    /// From here on, [`Files::reset`] leads back to the present state.
    pub fn checkpoint(&mut self) {
        self.tree.checkpoint();
        self.saved = Some(Saved {
            table: self.table.clone(),
            pipes: self.pipes.clone(),
            pairs: self.pairs.clone(),
            cwd: self.cwd.clone(),
            umask: self.umask,
            exe: self.exe.clone(),
            threads: self.threads.clone(),
        });
    }

    /// Further files in the state of the checkpoint, for another sandbox; the two share what neither changes. Open
    /// files of shares are opened again, so that each sandbox has its own locks.
    ///
    /// # Errors
    /// `EINVAL` without a checkpoint, `ESTALE` where an open file of a share is gone or another one by now.
    pub fn fork(&self) -> Result<Self, Errno> {
        let saved = self.saved.clone().ok_or(Errno::INVAL)?;
        let mut files = Self {
            tree: self.tree.clone(),
            mounts: self.mounts.clone(),
            planted: self.planted,
            table: self.table.clone(),
            pipes: Vec::new(),
            pairs: Vec::new(),
            locks: Locks::default(),
            cwd: self.cwd.clone(),
            umask: self.umask,
            exe: self.exe.clone(),
            console: Box::new(NoConsole),
            console_dry: [0; 3],
            threads: Vec::new(),
            clock_shift_ns: self.clock_shift_ns,
            changed: true,
            saved: Some(Saved { table: self.reopened(&saved.table)?, ..saved }),
            opened: None,
        };
        files.reset();
        Ok(files)
    }

    /// All that a program could find out about its files.
    #[cfg(test)]
    pub(crate) fn inventory(&self) -> String {
        let Self { table, pipes, pairs, cwd, umask, exe, threads, .. } = self;
        let parts = format!("{table:?}\n{pipes:?}\n{pairs:?}\n{cwd:?} {umask:o} {exe:?} {threads:?}");
        format!("{parts}\n{}", self.tree.describe())
    }

    /// The descriptors with their own open files of the host.
    fn reopened(&self, table: &Table) -> Result<Table, Errno> {
        let mut table = table.clone();
        for file in table.files_mut() {
            let (Object::Shared(open), Some(Place::Shared(n, path))) = (&file.object, &file.place) else {
                continue;
            };
            let state =
                OpenState { path: path.to_vec(), flags: file.flags, position: file.position, id: open.id() };
            file.object = Object::Shared(Arc::new(self.mounts[*n].share.reopen(&state)?));
        }
        Ok(table)
    }

    /// Back to the checkpoint, with a console without input. Without a checkpoint nothing happens.
    pub fn reset(&mut self) {
        let Some(saved) = self.saved.clone() else { return };
        for place in self.pinned() {
            self.unpin(&place);
        }
        self.tree.reset();
        self.table = saved.table;
        self.pipes = saved.pipes;
        self.pairs = saved.pairs;
        self.cwd = saved.cwd;
        self.umask = saved.umask;
        self.exe = saved.exe;
        self.threads = saved.threads;
        self.locks = Locks::default();
        self.console = Box::new(NoConsole);
        self.console_dry = [0; 3];
        self.changed = true;
        for place in self.pinned() {
            self.pin(&place);
        }
        self.restore_host_files();
        self.set_clock_shift(self.clock_shift_ns);
    }

    /// Every place that is kept alive by an open file or as the working directory.
    pub(super) fn pinned(&self) -> Vec<Place> {
        let open = self.table.files().filter_map(|(_, file)| file.place.clone());
        open.chain([self.cwd.clone()]).collect()
    }

    /// Open files of the host as they were: without locks, and with their mode of appending.
    fn restore_host_files(&self) {
        let all = Lock { kind: LockKind::Unlock, start: 0, length: 0 };
        for (_, file) in self.table.files() {
            if let Object::Shared(open) = &file.object {
                // Giving up locks and setting a flag of an open file cannot fail.
                let _ = open.set_lock(all);
                let _ = rustix::fs::flock(open.fd(), rustix::fs::FlockOperation::Unlock);
                let _ = open.set_append(file.flags & libc::O_APPEND as u32 != 0);
            }
        }
    }
}
