//! What the program is told ahead: calls that it will probably make next are answered before it makes them, where an
//! answer within the VM ([`crate::kvm::answers`]) saves an exit.
//!
//! After a file was opened come, in most programs, `fstat`, a look whether it is a terminal, and its position; after a read that
//! reached its end, another one; after `stat`, `stat` of the same path. Answers hold until the next exit.

use std::sync::Arc;

use rustix::io::Errno;

use super::Process;
use super::calls::stat::stat_bytes;
use super::calls::{Args, Outcome};
use super::files::End;
use super::foresight::{Course, Foresight};
use super::signal::{Action, Signal};
use crate::kvm::answers::{self, Known, KnownPath, LIFETIME, PATHS, Told};
use crate::share::Attr;

/// The descriptors of standard output and standard error.
const REPLY: i32 = 1;
const LOG: i32 = 2;

/// How far the program is told ahead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ahead {
    /// Answers' lifetime in ticks of the program's counter; `None`: it is told nothing.
    ticks: Option<u64>,
    /// There are answers.
    told: bool,
    /// They are of this exit.
    now: bool,
    /// The descriptor that the program may close by itself.
    closes: Option<i32>,
    /// Descriptors whose writes are gathered.
    gathers: u64,
    /// See [`Process::set_ends_with_reply`].
    ends_with_reply: bool,
    /// It takes locks on files.
    locks: bool,
    /// It asks for its working directory.
    asks_directory: bool,
    /// What the present call, a `stat` of a path, found.
    looked: Option<KnownPath>,
    /// Where its start has come to, and what is known of starts.
    course: Course,
    foresight: Option<Arc<Foresight>>,
}

impl Process {
    /// The program is about to begin, or to begin again: `possible` where calls can be answered within the VM.
    pub(crate) fn begin_answers(&mut self, possible: bool, counter_khz: Option<u32>) {
        let ticks = |khz| u64::from(khz) * LIFETIME.as_millis() as u64;
        self.ahead.ticks = counter_khz.filter(|_| possible).map(ticks);
        self.renew_answers();
    }

    /// The program is another one, or at another point of its life.
    pub(crate) fn renew_answers(&mut self) {
        let Ahead { ticks, foresight, ends_with_reply, .. } = std::mem::take(&mut self.ahead);
        self.ahead = Ahead { ticks, foresight, ends_with_reply, ..Ahead::default() };
        let region = self.memory.region();
        answers::clear(region);
        answers::gather(region, 0);
        answers::clear_scratch(region);
        for signal in (1..=64).filter_map(Signal::new) {
            answers::write_action(region, signal.number(), &self.actions.get(signal).bytes());
        }
    }

    /// Sets what is to be done about a signal.
    pub(crate) fn set_action(&mut self, signal: Signal, action: Action) {
        self.actions.set(signal, action);
        if self.ahead.ticks.is_some() {
            answers::write_action(self.memory.region(), signal.number(), &action.bytes());
        }
    }

    /// The program is about to run: what was told at an exit before this one does not count any more.
    pub(crate) fn settle_answers(&mut self) {
        self.gather();
        if self.ahead.told && !std::mem::take(&mut self.ahead.now) {
            self.take_closed();
            self.ahead.closes = None;
            answers::forget(self.memory.region());
            self.ahead.told = false;
        }
    }

    /// A call was served: answers those that probably follow.
    pub(crate) fn answer_ahead(&mut self, number: u64, args: Args, outcome: &Result<Outcome, Errno>) {
        let Some(ticks) = self.ahead.ticks else { return };
        let value = match outcome {
            Ok(Outcome::Value(value)) => Ok(*value),
            Err(_) => Err(()),
            _ => return,
        };
        let looked =
            self.ahead.looked.take().filter(|_| number as i64 == libc::SYS_newfstatat && args[3] as u32 == 0);
        let number = number as i64;
        self.note_habits(number, args);
        let fd = match (number, value) {
            (libc::SYS_openat | libc::SYS_open, Ok(fd)) => self.known(fd, false),
            (libc::SYS_read, Ok(done)) => self.after_read(args, done),
            (
                libc::SYS_newfstatat | libc::SYS_fstat | libc::SYS_fcntl | libc::SYS_lseek | libc::SYS_ioctl,
                _,
            ) => self.known(args[0], false),
            (libc::SYS_getdents64, Ok(1..)) => self.after_list(args[0]),
            _ => None,
        };
        let paths = self.foresee(number as u64, value, looked);
        let directory = if self.ahead.asks_directory { self.files.working_dir().ok() } else { None };
        let told = Told { fd, paths, directory };
        if told.is_nothing() || self.memory.shares_file() {
            return;
        }
        answers::write(self.memory.region(), &told, ticks);
        self.ahead.closes = told.fd.filter(|known| known.may_close).map(|known| known.fd as i32);
        (self.ahead.told, self.ahead.now) = (true, true);
    }

    fn note_habits(&mut self, number: i64, args: Args) {
        const LOCKS: [i32; 4] = [libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];
        self.ahead.asks_directory |= number == libc::SYS_getcwd;
        let locks = number == libc::SYS_fcntl && LOCKS.contains(&(args[1] as i32));
        self.ahead.locks |= locks || number == libc::SYS_flock;
    }

    /// The paths that the program has looked at and will look at.
    fn foresee(&mut self, number: u64, value: Result<u64, ()>, looked: Option<KnownPath>) -> Vec<KnownPath> {
        let mut known: Vec<KnownPath> = looked.into_iter().collect();
        let Some(foresight) = self.ahead.foresight.clone() else { return known };
        match known.first() {
            Some(looked) => foresight.learn(self.ahead.course, &looked.path, PATHS),
            None if !may_be_answered(number, value) => self.ahead.course.pass(number, mark(number, value)),
            None => {}
        }
        for path in foresight.after(self.ahead.course) {
            if known.iter().all(|other| *other.path != *path) {
                let found = self.files.stat(libc::AT_FDCWD, &path, End::Follow, false);
                known.extend(known_path(&path, found.as_ref().map_err(|errno| *errno)));
            }
        }
        known
    }

    /// It is another start of a program of which this is known.
    pub(super) fn set_foresight(&mut self, foresight: Arc<Foresight>) {
        self.ahead.foresight = Some(foresight);
    }

    /// Where its start has come to.
    pub(super) fn course(&self) -> Course {
        self.ahead.course
    }

    /// Its start goes on from there.
    pub(super) fn set_course(&mut self, course: Course) {
        self.ahead.course = course;
    }

    /// What calls about an open file would answer.
    fn known(&self, fd: u64, at_end: bool) -> Option<Known> {
        let fd = fd as i32;
        let attr = self.files.stat_open(fd).ok()?;
        let flags = self.files.status_flags(fd).ok()? as i32;
        let kind = attr.mode & libc::S_IFMT;
        let regular = kind == libc::S_IFREG;
        if flags & libc::O_PATH != 0 || !(regular || kind == libc::S_IFDIR) {
            return None;
        }
        Some(Known {
            fd: fd as u32,
            stat: stat_bytes(&attr).try_into().ok(),
            no_terminal: true,
            position: if regular { Some(self.files.position_of(fd).ok()?) } else { None },
            // A read can be short for other reasons.
            at_end: at_end && self.files.position_of(fd).ok()? == attr.size,
            all_listed: false,
            // A lock ends with any descriptor of its file.
            may_close: flags & libc::O_ACCMODE == libc::O_RDONLY && !self.ahead.locks,
        })
    }

    /// A read at the beginning is often one of a header, and one that came to the end is made again to see it.
    fn after_read(&self, args: Args, done: u64) -> Option<Known> {
        self.files.check_regular(args[0] as i32).ok()?;
        let at_end = done < args[2];
        let first = self.files.position_of(args[0] as i32).ok()? == done;
        if at_end || first { self.known(args[0], at_end) } else { None }
    }

    /// A directory was read: whether that was all of it.
    fn after_list(&mut self, fd: u64) -> Option<Known> {
        let mut more = false;
        let looked = self.files.read_dir(fd as i32, |_, _| {
            more = true;
            false
        });
        looked.ok()?;
        let known = self.known(fd, false)?;
        Some(Known { all_listed: !more, ..known })
    }

    /// What the program did without leaving the VM is done: it wrote, and closed what it was told of.
    pub(crate) fn take_done(&mut self) {
        if self.ahead.gathers != 0 {
            for (fd, bytes) in answers::take_gathered(self.memory.region()) {
                // It was told that all is written. What the console has against it, it says to the next call, or ends the run.
                let written = self.files.write(fd, &mut bytes.as_slice(), None);
                let _ = self.done(written.map_err(|_| Errno::IO));
            }
        }
        self.take_closed();
    }

    /// The program is about to run: its writes to these descriptors are gathered.
    pub(crate) fn gather(&mut self) {
        let possible = |fd: &i32| {
            self.ahead.ticks.is_some()
                && (*fd != REPLY || self.ahead.ends_with_reply)
                && self.files.gathers(*fd)
        };
        let bits = [REPLY, LOG].into_iter().filter(possible).fold(0, |bits, fd| bits | 1 << fd);
        if self.ahead.gathers != bits {
            answers::gather(self.memory.region(), bits);
            self.ahead.gathers = bits;
        }
    }

    /// Whether the program may have written to its log without anybody knowing.
    pub(crate) fn gathers_log(&self) -> bool {
        self.ahead.gathers & (1 << LOG) != 0
    }

    /// Whether the program does next to nothing after its reply, so that this may lie with it until it leaves.
    pub(crate) fn set_ends_with_reply(&mut self, ends: bool) {
        self.ahead.ends_with_reply = ends;
    }

    fn take_closed(&mut self) {
        if let Some(fd) = self.ahead.closes
            && answers::take_closed(self.memory.region())
        {
            self.ahead.closes = None;
            // It was open.
            let closed = self.files.close(fd);
            let _ = self.done(closed);
        }
    }

    /// A `stat` of `path` found this.
    pub(crate) fn note_look(&mut self, path: &[u8], found: Result<&Attr, Errno>) {
        if self.ahead.ticks.is_some() {
            self.ahead.looked = known_path(path, found);
        }
    }
}

fn known_path(path: &[u8], found: Result<&Attr, Errno>) -> Option<KnownPath> {
    let result = match found {
        Ok(attr) => Ok(stat_bytes(attr).try_into().ok()?),
        Err(Errno::NOENT) => Err(libc::ENOENT),
        Err(_) => return None,
    };
    KnownPath::fits(path).then(|| KnownPath { path: path.to_vec(), result })
}

/// Whether the call may have left the VM only because its answer had grown old: it says nothing about the start's course.
fn may_be_answered(number: u64, value: Result<u64, ()>) -> bool {
    match number as i64 {
        libc::SYS_read | libc::SYS_getdents64 => value == Ok(0),
        libc::SYS_close | libc::SYS_getcwd | libc::SYS_rt_sigaction | libc::SYS_write => true,
        libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_ioctl | libc::SYS_lseek => true,
        _ => false,
    }
}

/// What tells a call from others in a [`Course`]: results that are the same in every start, so no addresses.
fn mark(number: u64, value: Result<u64, ()>) -> u64 {
    match (number as i64, value) {
        (libc::SYS_openat | libc::SYS_read | libc::SYS_getdents64, Ok(value)) => value,
        (_, Ok(_)) => 0,
        (_, Err(())) => u64::MAX,
    }
}
