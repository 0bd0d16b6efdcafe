//! Open files of a shared directory, across a snapshot too: what 9p and virtio-fs have in common.
//!
//! ```text
//! File, Dir ── save: Kept (flags, which file, locks; the path is with who has it open) ── section
//!                                                                                          │
//!  File, Dir <── opened by its path, is the same file, has its locks again ──┬── restore <─┘
//!  Lost      <── otherwise: ESTALE for the guest, the host's log names it ───┘
//! ```
//! A file is the same where device, inode and time of birth are; the time of birth tells an inode from a later one with
//! its number, as a generation would. Files of a share that the guest may change are opened at once, so that nothing can
//! happen to their names in between. Those of a read-only share are opened when they are first used: a clone uses few of
//! the files that its parent had open. A file without a name cannot be found again.

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::share::{Access, Dir, Identity, Links, Lock, LockKind, OpenFile, Share, Time};

/// Most ranges that one open file may have locked.
const MOST_LOCKS: usize = 4096;
/// What of `open(2)`'s flags is kept.
const KEPT_FLAGS: OFlags = OFlags::RWMODE.union(OFlags::APPEND).union(OFlags::DSYNC).union(OFlags::SYNC);

/// What a guest has open.
pub(super) enum Opened {
    /// A regular file.
    File(OpenFile),
    /// A directory.
    Dir(Dir),
    /// What a snapshot has brought and nobody has used yet.
    Asleep(Kept),
    /// What was open and cannot be found again.
    Lost,
}

/// What a snapshot keeps of an open file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kept {
    File { flags: u32, which: Which, locks: Locks },
    Dir { which: Which },
    Lost,
}

/// Which file it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Which {
    id: Identity,
    born: Time,
}

impl Opened {
    /// What is kept of it, which is `locks` besides.
    pub(super) fn keep(&self, locks: &Locks) -> Kept {
        match self {
            Self::File(file) => {
                let attr = file.attr_at_open();
                // It is open: its flags can be had.
                let flags = fcntl_getfl(file.fd()).unwrap_or(OFlags::RDONLY) & KEPT_FLAGS;
                let which = Which { id: attr.id, born: attr.btime };
                Kept::File { flags: flags.bits(), which, locks: locks.clone() }
            }
            Self::Dir(dir) => {
                let attr = dir.attr_at_open();
                Kept::Dir { which: Which { id: attr.id, born: attr.btime } }
            }
            Self::Asleep(kept) => kept.clone(),
            Self::Lost => Kept::Lost,
        }
    }
}

impl Kept {
    /// After a restore: opened at once, or when it is used. `path` is `None` where it had no name.
    pub(super) fn restore(mut self, share: &Share, devices: Devices, path: Option<&[u8]>) -> Opened {
        if let Self::File { which, .. } | Self::Dir { which } = &mut self {
            which.id = devices.now(which.id);
        }
        let locked = matches!(&self, Self::File { locks, .. } if !locks.0.is_empty());
        match share.access() {
            Access::ReadOnly if !locked && path.is_some() => Opened::Asleep(self),
            _ => self.open(share, path),
        }
    }

    /// The file again, or [`Opened::Lost`] with a word in the log.
    pub(super) fn open(self, share: &Share, path: Option<&[u8]>) -> Opened {
        let result = match (&self, path) {
            (Self::Lost, _) => return Opened::Lost,
            (_, None) => Err("it had no name any more".to_owned()),
            (Self::File { flags, which, locks }, Some(path)) => {
                open_file(share, path, *flags, *which, locks).map(Opened::File)
            }
            (Self::Dir { which }, Some(path)) => open_dir(share, path, *which).map(Opened::Dir),
        };
        result.unwrap_or_else(|reason| {
            let file = String::from_utf8_lossy(path.unwrap_or_default()).into_owned();
            tracing::warn!(
                file,
                reason,
                "a file that the guest has open is not there as it was: the guest gets ESTALE"
            );
            Opened::Lost
        })
    }
}

fn open_file(
    share: &Share,
    path: &[u8],
    flags: u32,
    which: Which,
    locks: &Locks,
) -> Result<OpenFile, String> {
    let flags = OFlags::from_bits_truncate(flags) & KEPT_FLAGS;
    let file = share.open(path, Links::Refuse, flags, 0).map_err(|error| error.to_string())?;
    which.check(file.id(), file.attr_at_open().btime)?;
    if locks.0.len() > MOST_LOCKS {
        return Err("it has more locks than a file can have".to_owned());
    }
    for lock in locks.iter() {
        file.set_lock(lock).map_err(|error| format!("its locks are not to be had: {error}"))?;
    }
    Ok(file)
}

fn open_dir(share: &Share, path: &[u8], which: Which) -> Result<Dir, String> {
    let dir = share.open_dir_at(path, Links::Refuse).map_err(|error| error.to_string())?;
    which.check(dir.attr_at_open().id, dir.attr_at_open().btime)?;
    Ok(dir)
}

#[cfg(test)]
impl Kept {
    /// One with all that there can be, for tests of how it is written.
    pub(super) fn example() -> Self {
        let which = Which { id: Identity { dev: 1, ino: 2 }, born: Time { seconds: 3, nanos: 4 } };
        Self::File { flags: 2, which, locks: Locks(vec![(5, 6, true)]) }
    }
}

impl Which {
    fn check(self, id: Identity, born: Time) -> Result<(), String> {
        // A file system that does not know the time says nothing.
        let unknown = [self.born, born].contains(&Time::default());
        if self.id == id && (self.born == born || unknown) {
            Ok(())
        } else {
            Err("its name is another file's".to_owned())
        }
    }
}

/// Devices get their numbers anew when they are mounted: what was on the device of the share's root still is.
#[derive(Clone, Copy)]
pub(super) struct Devices {
    then: u64,
    now: u64,
}

impl Devices {
    /// `then` is the root of the share that was saved.
    pub(super) fn new(share: &Share, then: Identity) -> Result<Self, Errno> {
        Ok(Self { then: then.dev, now: root(share)?.dev })
    }

    /// What the file `id` of then is called now.
    pub(super) fn now(self, id: Identity) -> Identity {
        if id.dev == self.then { Identity { dev: self.now, ..id } } else { id }
    }
}

/// The root of a share.
pub(super) fn root(share: &Share) -> Result<Identity, Errno> {
    share.stat(b"", Links::Refuse, false).map(|attr| attr.id)
}

/// Whether `path` is one that a server makes: names with one slash between them.
pub(super) fn is_plain(path: &[u8]) -> bool {
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    path.len() < libc::PATH_MAX as usize && (path.is_empty() || path.split(|byte| *byte == b'/').all(plain))
}

/// The ranges of bytes that an open file has locked: (first, behind the last, exclusive), none of which overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Locks(Vec<(i64, i64, bool)>);

impl Locks {
    /// Before a lock is asked of the host.
    ///
    /// # Errors
    /// `ENOLCK` where the guest would have too many ranges; unlocking may divide one too.
    pub(super) fn has_room(&self, lock: Lock) -> Result<(), Errno> {
        if self.0.len() < MOST_LOCKS - 1 {
            return Ok(());
        }
        let mut then = self.clone();
        then.note(lock);
        if then.0.len() > MOST_LOCKS { Err(Errno::NOLCK) } else { Ok(()) }
    }

    /// The host has set or removed `lock`.
    pub(super) fn note(&mut self, lock: Lock) {
        let start = lock.start;
        let end = if lock.length == 0 { i64::MAX } else { start.saturating_add(lock.length) };
        let mut rest = Vec::with_capacity(self.0.len() + 2);
        let (mut first, mut last) = (start, end);
        for (from, to, exclusive) in self.0.drain(..) {
            let same = exclusive == (lock.kind == LockKind::Write) && lock.kind != LockKind::Unlock;
            if same && from <= end && to >= start {
                (first, last) = (first.min(from), last.max(to));
                continue;
            }
            rest.extend((from < start).then(|| (from, to.min(start), exclusive)));
            rest.extend((to > end).then(|| (from.max(end), to, exclusive)));
        }
        if lock.kind != LockKind::Unlock && first < last {
            rest.push((first, last, lock.kind == LockKind::Write));
        }
        self.0 = rest;
    }

    fn iter(&self) -> impl Iterator<Item = Lock> {
        self.0.iter().map(|(start, end, exclusive)| Lock {
            kind: if *exclusive { LockKind::Write } else { LockKind::Read },
            start: *start,
            length: if *end == i64::MAX { 0 } else { end.saturating_sub(*start) },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn noted_locks_are_those_that_the_host_has(
            locks in proptest::collection::vec((0u8..3, 0i64..40, 0i64..20), 0..30)
        ) {
            let (mut noted, mut bytes) = (Locks::default(), [None; 100]);
            for (kind, start, length) in locks {
                let kind = [LockKind::Read, LockKind::Write, LockKind::Unlock][usize::from(kind)];
                noted.note(Lock { kind, start, length });
                let end = if length == 0 { 100 } else { start + length };
                let new = (kind != LockKind::Unlock).then_some(kind == LockKind::Write);
                bytes[start as usize..end as usize].fill(new);
            }
            let mut seen = [None; 100];
            for lock in noted.iter() {
                let end = if lock.length == 0 { 100 } else { lock.start + lock.length };
                let part = &mut seen[lock.start as usize..end as usize];
                prop_assert!(part.iter().all(Option::is_none), "two overlap");
                part.fill(Some(lock.kind == LockKind::Write));
            }
            prop_assert_eq!(seen, bytes);
        }
    }

    #[test]
    fn a_guest_has_no_more_locks_than_a_bound_however_it_makes_them() {
        let mut locks = Locks::default();
        locks.note(Lock { kind: LockKind::Write, start: 0, length: 0 });
        let holes = (0..i64::MAX).map(|at| Lock { kind: LockKind::Unlock, start: at * 2, length: 1 });
        let made =
            holes.take_while(|hole| locks.has_room(*hole).inspect(|()| locks.note(*hole)).is_ok()).count();
        assert_eq!((made, locks.0.len()), (MOST_LOCKS, MOST_LOCKS));
        let all = Lock { kind: LockKind::Unlock, start: 0, length: 0 };
        assert!(locks.has_room(all).is_ok());
        locks.note(all);
        assert!(locks.0.is_empty());
    }

    #[test]
    fn plain_paths_are_those_of_a_server() {
        assert!([&b""[..], b"a", b"a/b.c/..d"].into_iter().all(is_plain));
        assert!(
            ![&b"/"[..], b"a//b", b"..", b"a/../b", b"a/", b"a\0b", &[b'x'; 5000]].into_iter().any(is_plain)
        );
    }
}
