//! Readiness: poll(2) events of open files, and epoll(7) instances.

use std::collections::BTreeMap;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Files;
use super::pipe::End;
use super::stop::Need;
use super::table::{FileId, Object, Stream};

/// Instances nested in each other.
const MAX_DEPTH: u32 = 5;
/// Descriptors that all instances of a program watch together (`fs.epoll.max_user_watches`): `ENOSPC`.
const MOST_WATCHED: usize = 64 << 10;

/// What the instances that were looked at in this call are ready for: each is looked at once, on however many ways it is reached.
type Seen = BTreeMap<FileId, Ready>;

/// An epoll instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Epoll {
    interest: BTreeMap<(i32, FileId), Interest>,
    /// Where the next wait starts, so that every descriptor gets its turn.
    turn: Option<(i32, FileId)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Interest {
    events: u32,
    data: u64,
    /// The stamp that was last reported, for edge-triggered interest.
    seen: Option<u64>,
    /// False after a one-shot report.
    armed: bool,
}

/// What an open file is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// `POLL*`, which are `EPOLL*` too.
    pub(crate) events: u32,
    /// Changes whenever a new edge may have come.
    pub(crate) stamp: u64,
    /// What changes it.
    pub(crate) need: Need,
}

const IN: u32 = libc::EPOLLIN as u32 | libc::EPOLLRDNORM as u32;
const OUT: u32 = libc::EPOLLOUT as u32 | libc::EPOLLWRNORM as u32;
const ERR: u32 = libc::EPOLLERR as u32;
const HUP: u32 = libc::EPOLLHUP as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;

fn when(condition: bool, events: u32) -> u32 {
    if condition { events } else { 0 }
}

impl Epoll {
    /// The open files that it watches.
    pub(super) fn watched(&self) -> impl Iterator<Item = FileId> + '_ {
        self.interest.keys().map(|(_, file)| *file)
    }

    /// Forgets an open file that is closed.
    pub(crate) fn forget(&mut self, file: FileId) {
        self.interest.retain(|(_, id), _| *id != file);
    }
}

impl Files {
    /// What `id` is ready for now.
    pub(crate) fn ready(&mut self, id: FileId) -> Ready {
        self.ready_at(id, 0, &mut Seen::new())
    }

    /// What the descriptor `fd` is ready for now.
    ///
    /// # Errors
    /// `EBADF`; `O_PATH` descriptors count as none.
    pub(crate) fn ready_fd(&mut self, fd: i32) -> Result<Ready, Errno> {
        let id = self.table.fd(fd)?.file;
        if self.table.file(id).is_path() { Err(Errno::BADF) } else { Ok(self.ready(id)) }
    }

    fn ready_at(&mut self, id: FileId, depth: u32, seen: &mut Seen) -> Ready {
        let inside = |events, stamp| Ready { events, stamp, need: Need::INSIDE };
        match &self.table.file(id).object {
            Object::Console(stream) => self.console_ready(*stream),
            Object::Pipe(pipe, end) => {
                let pipe = &self.pipes[pipe.0 as usize].as_ref().expect("open");
                match end {
                    End::Read => {
                        let events = when(pipe.len() > 0, IN) | when(pipe.writers == 0, HUP);
                        inside(events, pipe.written + u64::from(pipe.writers == 0))
                    }
                    End::Write => {
                        let events = when(pipe.writable(), OUT) | when(pipe.readers == 0, ERR);
                        inside(events, pipe.taken + u64::from(pipe.readers == 0))
                    }
                }
            }
            Object::Event(event) => {
                let events = when(event.count > 0, IN) | when(event.count < u64::MAX - 1, OUT);
                inside(events, event.changes)
            }
            Object::Timer(timer) => {
                let expired = timer.expired();
                let stamp = timer.settings.wrapping_add(expired);
                Ready { events: when(expired > 0, IN), stamp, need: timer.need() }
            }
            Object::Socket(end) => {
                let state = self.pairs[end.pair as usize].as_ref().expect("open").state(end.side);
                let events = when(state.readable, IN)
                    | when(state.writable, OUT)
                    | when(state.read_end, RDHUP)
                    | when(state.hung_up, HUP);
                inside(events, state.stamp)
            }
            Object::Epoll(_) if depth < MAX_DEPTH => self.epoll_ready(id, depth, seen),
            Object::Epoll(_) => inside(0, 0),
            _ => Ready { events: IN | OUT, ..Ready::default() },
        }
    }

    fn console_ready(&mut self, stream: Stream) -> Ready {
        let stamp = self.console_dry[stream as usize];
        if stream != Stream::Input {
            return Ready { events: when(self.console.writable(stream), OUT), stamp, need: Need::OUTPUT };
        }
        // A pipe whose writer is gone: the end alone is no input.
        let has_bytes = self.console.pending().is_some_and(|bytes| bytes > 0);
        let events = when(has_bytes, IN) | when(self.console.is_complete(), HUP);
        Ready { events, stamp, need: Need::INPUT }
    }

    fn epoll_ready(&mut self, id: FileId, depth: u32, seen: &mut Seen) -> Ready {
        let mut ready = Ready { need: Need::INSIDE, ..Ready::default() };
        if let Some(known) = seen.get(&id) {
            return *known;
        }
        seen.insert(id, ready);
        for (key, interest) in self.interest(id) {
            let file = self.ready_at(key.1, depth + 1, seen);
            ready.need = ready.need.or(file.need);
            ready.stamp = ready.stamp.wrapping_add(file.stamp);
            if report(&interest, file) != 0 {
                ready.events = IN;
            }
        }
        seen.insert(id, ready);
        ready
    }

    fn interest(&self, id: FileId) -> Vec<((i32, FileId), Interest)> {
        match &self.table.file(id).object {
            Object::Epoll(epoll) => epoll.interest.iter().map(|(key, i)| (*key, *i)).collect(),
            _ => Vec::new(),
        }
    }

    fn epoll_mut(&mut self, id: FileId) -> Result<&mut Epoll, Errno> {
        match &mut self.table.file_mut(id).object {
            Object::Epoll(epoll) => Ok(epoll),
            _ => Err(Errno::INVAL),
        }
    }

    /// `epoll_ctl(2)`. `change` is the new events and data for `EPOLL_CTL_ADD` and `MOD`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn epoll_control(
        &mut self,
        epoll: i32,
        operation: i32,
        fd: i32,
        change: (u32, u64),
    ) -> Result<(), Errno> {
        let id = self.table.fd(epoll)?.file;
        let target = self.table.fd(fd)?.file;
        let object = &self.table.file(target).object;
        if matches!(object, Object::File(_) | Object::Shared(_) | Object::Dir(_) | Object::Path)
            || matches!(object, Object::Text(_) | Object::Unmade { .. })
        {
            return Err(Errno::PERM);
        }
        if id == target || !matches!(self.table.file(id).object, Object::Epoll(_)) {
            return Err(Errno::INVAL);
        }
        if operation == libc::EPOLL_CTL_ADD {
            if self.reaches(target, id, MAX_DEPTH, &mut BTreeMap::new())? {
                return Err(Errno::LOOP);
            }
            if self.watched() >= MOST_WATCHED {
                return Err(Errno::NOSPC);
            }
        }
        let key = (fd, target);
        let epoll = self.epoll_mut(id)?;
        let known = epoll.interest.contains_key(&key);
        let interest = Interest { events: change.0 | ERR | HUP, data: change.1, seen: None, armed: true };
        match operation {
            libc::EPOLL_CTL_ADD if known => return Err(Errno::EXIST),
            libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL if !known => return Err(Errno::NOENT),
            libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD => drop(epoll.interest.insert(key, interest)),
            libc::EPOLL_CTL_DEL => drop(epoll.interest.remove(&key)),
            _ => return Err(Errno::INVAL),
        }
        self.changed = true;
        Ok(())
    }

    /// Descriptors that all instances watch.
    fn watched(&self) -> usize {
        let watched =
            |object: &Object| if let Object::Epoll(epoll) = object { epoll.interest.len() } else { 0 };
        self.table.files().map(|(_, file)| watched(&file.object)).sum()
    }

    /// Whether the instance `from` watches `to`, directly or not. `seen` is down to which depth each has been followed.
    fn reaches(
        &self,
        from: FileId,
        to: FileId,
        depth: u32,
        seen: &mut BTreeMap<FileId, u32>,
    ) -> Result<bool, Errno> {
        if depth == 0 {
            return Err(Errno::LOOP);
        }
        let Object::Epoll(epoll) = &self.table.file(from).object else { return Ok(false) };
        if seen.get(&from).is_some_and(|followed| *followed >= depth) {
            return Ok(false);
        }
        seen.insert(from, depth);
        for file in epoll.watched() {
            if file == to || self.reaches(file, to, depth - 1, seen)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is ready: at most `max` pairs of events and data. If nothing is, what would change that.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn epoll_collect(&mut self, epoll: i32, max: usize) -> Result<(Vec<(u32, u64)>, Need), Errno> {
        let id = self.table.fd(epoll)?.file;
        let turn = self.epoll_mut(id)?.turn;
        let mut all = self.interest(id);
        let start = turn.map_or(0, |turn| all.partition_point(|(key, _)| *key <= turn));
        all.rotate_left(start);
        let (mut found, mut need) = (Vec::new(), Need::INSIDE);
        let mut seen = Seen::new();
        for (key, interest) in all {
            if found.len() == max {
                break;
            }
            let ready = self.ready_at(key.1, 1, &mut seen);
            need = need.or(ready.need);
            let events = report(&interest, ready);
            if events == 0 {
                continue;
            }
            found.push((events, interest.data));
            let epoll = self.epoll_mut(id)?;
            epoll.turn = Some(key);
            if let Some(interest) = epoll.interest.get_mut(&key) {
                interest.seen = Some(ready.stamp);
                interest.armed = interest.events & ONE_SHOT == 0;
            }
        }
        Ok((found, need))
    }
}

/// The events to report, 0 for none.
fn report(interest: &Interest, ready: Ready) -> u32 {
    let events = ready.events & interest.events;
    let old = interest.events & EDGE != 0 && interest.seen == Some(ready.stamp);
    if old || !interest.armed { 0 } else { events }
}
