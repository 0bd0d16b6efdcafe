//! The onset of a program: the stretch before its own first instruction, in which only its interpreter (`ld.so`) runs.
//!
//! A program without an image at its input is started for every invocation. How it is mapped and linked is the same each time, as long
//! as the files that decide it are: so that is done once, at deployment, and kept as an image at the program's entry point.
//!
//! ```text
//! load ──> ld.so maps, links ──> entry point: image ──> start ──> nothing it looked at has changed? ──> the program runs
//!          [Watch] notes the files,                                no: load and start in full
//!          gives up at any other call
//! ```
//! What can differ from start to start must not have been asked for: a call that is not in [`is_the_same_each_time`], or a look at the
//! clocks' page, and there is no such image. What is looked at stands in [`Looks`], found or not, and is looked at
//! again right before the program runs. Fresh, as in all that start from an image, are the bytes of `AT_RANDOM` and the clocks; the
//! stack protector's value is derived anew from them ([`Onset::renew_canary`]), because nothing on the stack holds it yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Process;
use super::calls::{Args, Outcome};
use super::control::Control;
use super::files::{End, Files, MapSource};
use super::foresight::{Course, Foresight};
use super::image::{Image, Prologue, Refused};

use super::run::{Ended, Machine, RunError};
use super::setup::Setup;
use super::shell::Shell;
use crate::kvm::sys::Region;
use crate::share::{Attr, Identity, Time};

/// Longest onset.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most paths that are looked at again at each start: each costs about 4 us.
const MOST_LOOKS: usize = 256;
/// Where the thread's control block holds the stack protector's value (x86-64 psABI, GCC's -fstack-protector).
const CANARY: u64 = 0x28;

/// What tells a file from another one, and from itself after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    id: Identity,
    mode: u32,
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Found {
    fn of(attr: &Attr) -> Self {
        Self { id: attr.id, mode: attr.mode, size: attr.size, mtime: attr.mtime, ctime: attr.ctime }
    }
}

/// The paths that decide how a program is linked, and what was there.
#[derive(Clone, Debug, Default)]
struct Looks(BTreeMap<Vec<u8>, Result<Found, Errno>>);

impl Looks {
    /// What is at `path` now.
    fn look(files: &mut Files, path: &[u8]) -> Result<Found, Errno> {
        files.stat(libc::AT_FDCWD, path, End::Follow, false).map(|attr| Found::of(&attr))
    }

    /// `false` where the path was something else a moment ago, or there are too many.
    fn note(&mut self, path: Vec<u8>, found: Result<Found, Errno>) -> bool {
        let known = self.0.entry(path).or_insert_with(|| found.clone());
        *known == found && self.0.len() <= MOST_LOOKS
    }

    /// The first path where something else is now.
    fn changed(&self, files: &mut Files) -> Option<&[u8]> {
        let changed = self.0.iter().find(|(path, found)| Self::look(files, path) != **found);
        changed.map(|(path, _)| path.as_slice())
    }
}

/// Follows a program to its entry point.
#[derive(Debug)]
pub(crate) struct Watch {
    entry: u64,
    /// Pages that are taken away until somebody touches them.
    held: Vec<u64>,
    looks: Looks,
    spoilt: bool,
}

impl Watch {
    /// The program that is loaded in `process` and has not run. Its first instruction, and a look at the clocks, is made to leave the VM.
    fn new(process: &mut Process, entry: u64, looks: Looks) -> Option<Self> {
        let clocks = process.memory.vmas().iter().find(|(_, vma)| vma.label == "[vvar]").map(|(at, _)| at);
        let held: Vec<u64> = [entry].into_iter().chain(clocks).collect();
        held.iter().all(|page| process.memory.hold(*page).is_ok()).then_some(Self {
            entry,
            held,
            looks,
            spoilt: false,
        })
    }

    /// The program was refused an access at `rip`: its onset is over.
    pub(super) fn end(&mut self, process: &mut Process, rip: u64) {
        self.spoilt |= rip != self.entry;
        for page in std::mem::take(&mut self.held) {
            self.spoilt |= process.memory.release(page).is_err();
        }
    }

    /// A call was served; whether the onset may go on.
    pub(super) fn note(
        &mut self,
        process: &mut Process,
        number: u64,
        args: Args,
        outcome: &Result<Outcome, Errno>,
    ) -> bool {
        let found = match outcome {
            Ok(Outcome::Value(value)) => Ok(*value),
            Err(errno) => Err(*errno),
            Ok(_) => Err(Errno::INTR),
        };
        self.spoilt |= !self.is_harmless(process, number as i64, args, found);
        !self.spoilt
    }

    fn is_harmless(
        &mut self,
        process: &mut Process,
        number: i64,
        args: Args,
        outcome: Result<u64, Errno>,
    ) -> bool {
        let here = |dirfd: u64| dirfd as i32 == libc::AT_FDCWD;
        match number {
            libc::SYS_open => self.opened(process, args[0], args[1], outcome),
            libc::SYS_openat if here(args[0]) => self.opened(process, args[1], args[2], outcome),
            libc::SYS_access | libc::SYS_stat => self.looked(process, args[0]),
            libc::SYS_newfstatat if here(args[0]) && args[3] == 0 => self.looked(process, args[1]),
            libc::SYS_newfstatat => {
                args[3] as i32 == libc::AT_EMPTY_PATH
                    && process.path(args[1]) == Ok(Vec::new())
                    && is_file(process, args[0])
            }
            libc::SYS_read | libc::SYS_pread64 | libc::SYS_lseek | libc::SYS_fstat => {
                is_file(process, args[0])
            }
            libc::SYS_mmap => args[3] as i32 & libc::MAP_TYPE == libc::MAP_PRIVATE,
            libc::SYS_prlimit64 => args[2] == 0,
            _ => is_the_same_each_time(number),
        }
    }

    /// A file was opened, or not: for reading, and one that the host keeps.
    fn opened(&mut self, process: &mut Process, path: u64, flags: u64, outcome: Result<u64, Errno>) -> bool {
        const MORE: i32 = libc::O_CLOEXEC | libc::O_LARGEFILE;
        let Ok(path) = process.path(path) else { return false };
        if flags as i32 & !MORE != libc::O_RDONLY {
            return false;
        }
        let found = match outcome {
            Ok(fd) if matches!(process.files.map(fd as i32, false, false), Ok(MapSource::File(_))) => {
                process.files.stat_open(fd as i32).map(|attr| Found::of(&attr))
            }
            Ok(_) => return false,
            Err(_) => Looks::look(&mut process.files, &path),
        };
        self.looks.note(path, found)
    }

    fn looked(&mut self, process: &mut Process, path: u64) -> bool {
        let Ok(path) = process.path(path) else { return false };
        let found = Looks::look(&mut process.files, &path);
        self.looks.note(path, found)
    }
}

/// Whether the descriptor is of a file, and no console.
fn is_file(process: &Process, fd: u64) -> bool {
    process.files.check_regular(fd as i32).is_ok()
}

/// Calls whose result and effect come from the program and its files alone.
fn is_the_same_each_time(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_close
            | libc::SYS_brk
            | libc::SYS_mprotect
            | libc::SYS_munmap
            | libc::SYS_madvise
            | libc::SYS_arch_prctl
            | libc::SYS_set_tid_address
            | libc::SYS_set_robust_list
            | libc::SYS_rseq
            | libc::SYS_getpid
            | libc::SYS_gettid
            | libc::SYS_getuid
            | libc::SYS_geteuid
            | libc::SYS_getgid
            | libc::SYS_getegid
    )
}

/// See the module.
#[derive(Debug)]
pub(super) struct Onset {
    image: Arc<Image>,
    looks: Looks,
    course: Course,
    /// The bytes of `AT_RANDOM` with which it was linked.
    random: [u8; 16],
}

impl Onset {
    /// Of `setup`'s program, by running it to its entry point on the calling thread; `None` where it does more on the way than
    /// link.
    pub(super) fn prepare(setup: &Setup) -> Result<Option<Self>, Refused> {
        let looks = Self::program_files(setup)?;
        let program = setup.load().map_err(Refused::Load)?;
        let entry = program.entry();
        let mut process = setup.begin(program, &[]).map_err(Refused::Load)?;
        let random = process.memory.get(process.stack.random).unwrap_or_default();
        let Some(watch) = Watch::new(&mut process, entry, looks) else { return Ok(None) };
        let mut machine = Machine::new(process, Control::new().map_err(RunError::host("make an event"))?)?;
        let (ended, watch) = machine.run_to_entry(Instant::now() + PATIENCE, watch)?;
        let process = machine.into_process()?;
        let Some(watch) = watch.filter(|watch| !watch.spoilt) else { return Ok(None) };
        if !matches!(ended, Ended::Marked) || process.threads.len() != 1 {
            return Ok(None);
        }
        let course = process.course();
        let image = Arc::new(Image::take(process, Prologue::default())?);
        Ok(Some(Self { image, looks: watch.looks, course, random }))
    }

    /// The program and its interpreter as they are before they are loaded. A program that was deployed alone is not looked
    /// at: an artifact never changes, and its place in the root is made anew each time.
    fn program_files(setup: &Setup) -> Result<Looks, Refused> {
        let program = setup.load().map_err(Refused::Load)?;
        let process = setup.begin(program, &[]).map_err(Refused::Load)?;
        let Process { memory, mut files, .. } = process;
        let names = memory.vmas().iter().filter_map(|(_, vma)| vma.file.as_ref());
        let names: BTreeSet<&str> = names.map(|part| part.file.name.as_str()).collect();
        let lone = setup.files().program.as_ref().map(|(path, _)| path.as_slice());
        let mut looks = Looks::default();
        for name in names.into_iter().filter(|name| name.starts_with('/') && Some(name.as_bytes()) != lone) {
            let found = Looks::look(&mut files, name.as_bytes());
            looks.note(name.as_bytes().to_vec(), found);
        }
        Ok(looks)
    }

    /// The image, for what is the same with all images.
    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// A sandbox at the entry point, with everything made now.
    pub(super) fn start(
        &self,
        control: Arc<Control>,
        foresight: &Arc<Foresight>,
    ) -> Result<Machine, RunError> {
        let machine = self.image.start(control)?;
        Ok(self.begin(machine, foresight))
    }

    /// The same in a VM that was made ahead.
    pub(super) fn start_in(
        &self,
        shell: Shell,
        region: Arc<Region>,
        control: Arc<Control>,
        foresight: &Arc<Foresight>,
    ) -> Result<Machine, RunError> {
        let machine = self.image.start_in(shell, region, control)?;
        Ok(self.begin(machine, foresight))
    }

    fn begin(&self, mut machine: Machine, foresight: &Arc<Foresight>) -> Machine {
        machine.process.set_foresight(foresight.clone());
        machine.process.set_course(self.course);
        self.renew_canary(&mut machine.process);
        machine
    }

    /// Whether a program that is loaded now would find what this one found.
    pub(super) fn is_current(&self, files: &mut Files) -> bool {
        let changed = self.looks.changed(files);
        if let Some(path) = changed {
            tracing::debug!(path = %String::from_utf8_lossy(path), "changed since the deployment: a start in full");
        }
        changed.is_none()
    }

    /// The stack protector's value is the first 8 random bytes with a zero byte in front, in glibc; where it is that, it is made anew
    /// from this sandbox's. No frame on the stack holds the old one: the program has not begun.
    fn renew_canary(&self, process: &mut Process) {
        let value = |bytes: [u8; 16]| u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default()) & !0xff;
        let at = process.threads.current().state.fs_base.wrapping_add(CANARY);
        let Ok(fresh) = process.memory.get::<[u8; 16]>(process.stack.random) else { return };
        if process.memory.get::<u64>(at) == Ok(value(self.random)) {
            // It could be read; where it cannot be written it is not one that a program uses.
            let _ = process.memory.put(at, &value(fresh));
        }
    }
}

#[cfg(test)]
mod tests;
