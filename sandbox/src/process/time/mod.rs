//! Time as the program sees it: its clocks, the vDSO that reads them without a call, its timers, its running time.

pub(crate) mod clock;
mod sys;
pub(crate) mod timers;
pub(crate) mod vdso;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use novum_snapshot::State;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Process;
use super::memory::{AddressSpace, At, FilePart, MappedFile, Prot, Request};
use sys::counter;

/// Running time, and what the program's own reading of the clocks needs.
#[derive(Debug, Default)]
pub(crate) struct Time {
    /// The page of [`vdso::Vvar`]: a file, so that we write what the program can only read.
    page: Option<Arc<MappedFile>>,
    /// The host's counter when the program last began to run; 0 where nobody asks.
    entered: u64,
    /// CPU time of the program before it came to the present vCPU thread.
    before: Duration,
    /// The vCPU thread's CPU time when the program began.
    began: Duration,
    /// The vCPU thread's CPU time when the current thread got the vCPU.
    switched: Duration,
}

/// The clocks of a program at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Moment {
    pub(crate) monotonic: Duration,
    pub(crate) cpu: Duration,
    pub(crate) uptime: Duration,
    /// Of the page of [`vdso::Vvar`].
    pub(crate) sequence: u32,
}

impl Moment {
    /// Whether any clock could have got there.
    pub(crate) fn is_possible(&self) -> bool {
        const LONGEST: Duration = Duration::from_secs(1 << 32);
        [self.monotonic, self.cpu, self.uptime].iter().all(|time| *time < LONGEST)
    }
}

impl State for Moment {
    const KIND: &'static str = "process-clock";
    const VERSION: u32 = 1;
}

fn host_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec as u32)
}

pub(crate) fn memory_file(name: &str, bytes: &[u8]) -> Result<MappedFile, Errno> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, vdso::PAGE_BYTES as u64)?;
    if !bytes.is_empty() {
        rustix::io::pwrite(&fd, bytes, 0)?;
    }
    Ok(MappedFile::new(Arc::new(fd), name.to_owned()))
}

/// The second page: the same file for every sandbox of this process.
pub(crate) fn object() -> Result<Arc<MappedFile>, Errno> {
    static OBJECT: OnceLock<Arc<MappedFile>> = OnceLock::new();
    if let Some(object) = OBJECT.get() {
        return Ok(object.clone());
    }
    let image = vdso::build().map_err(|_| Errno::NOEXEC)?;
    let made = Arc::new(memory_file("[vdso]", &image)?);
    Ok(OBJECT.get_or_init(|| made).clone())
}

impl Time {
    /// Maps the two pages; the vDSO's address.
    ///
    /// # Errors
    /// Those of making the page's file and of mapping. The program can then do without.
    pub(crate) fn map(&mut self, memory: &mut AddressSpace) -> Result<u64, Errno> {
        let page = Self::new_page()?;
        let bytes = vdso::PAGE_BYTES as u64;
        let part = |file: &Arc<MappedFile>, shared| Some(FilePart { file: file.clone(), offset: 0, shared });
        let read = Prot { read: true, write: false, exec: false };
        let base = memory.map(Request {
            file: part(&page, true),
            label: "[vvar]",
            ..Request::anonymous(At::Hint(0), 2 * bytes, read)
        })?;
        memory.map(Request {
            // Private: what a program writes there after `mprotect` is its own.
            file: part(&object()?, false),
            label: "[vdso]",
            ..Request::anonymous(At::Fixed(base + bytes), bytes, Prot { exec: true, ..read })
        })?;
        self.page = Some(page);
        Ok(base + bytes)
    }

    /// For a program that goes on from an image, with a page of its own.
    pub(crate) fn restored(page: Option<Arc<MappedFile>>) -> Self {
        Self { page, ..Self::default() }
    }

    /// The file of a page.
    ///
    /// # Errors
    /// Those of making it.
    pub(crate) fn new_page() -> Result<Arc<MappedFile>, Errno> {
        Ok(Arc::new(memory_file("[vvar]", &[])?))
    }

    /// The page's file.
    pub(crate) fn page(&self) -> Option<&Arc<MappedFile>> {
        self.page.as_ref()
    }

    /// Fills the page; the program sees it at once.
    fn publish(&self, bytes: &[u8]) {
        if let Some(page) = &self.page {
            // A short write cannot happen to a page of memory; without the page the program makes calls.
            let _ = rustix::io::pwrite(&page.fd, bytes, 0);
        }
    }
}

impl Process {
    /// The program begins to run on the calling thread.
    pub(crate) fn begin_time(&mut self, counter_khz: Option<u32>) {
        self.clock = clock::Clock::new(counter_khz);
        self.time.began = host_cpu_time();
        self.time.switched = self.time.began;
    }

    /// The program goes on where it stood when its clocks showed this, as if no time had passed but on the wall.
    pub(crate) fn resume_time(&mut self, at: &Moment) {
        let mut page = vec![0; vdso::PAGE_BYTES];
        let bytes = self.clock.resume_at(at.monotonic, at.sequence);
        page[..bytes.len()].copy_from_slice(&bytes);
        // All of it: the program may have made its page writable.
        self.time.publish(&page);
        self.time.began = host_cpu_time();
        (self.time.before, self.time.switched) = (at.cpu, self.time.began);
        self.files.set_clock_shift(self.clock.shift_ns());
        self.started = Instant::now().checked_sub(at.uptime).unwrap_or_else(Instant::now);
    }

    /// What the program's clocks show now.
    pub(crate) fn moment(&self) -> Moment {
        Moment {
            monotonic: self.clock.now(clock::MONOTONIC).unwrap_or_default(),
            cpu: self.cpu_time(false),
            uptime: self.uptime(),
            sequence: self.clock.sequence(),
        }
    }

    /// CPU time of the program, or of its current thread. What the VMM does for it counts, as the kernel's work does
    /// on Linux.
    pub(crate) fn cpu_time(&self, thread: bool) -> Duration {
        let now = host_cpu_time();
        match thread {
            true => self.threads.current().cpu + now.saturating_sub(self.time.switched),
            false => self.time.before + now.saturating_sub(self.time.began),
        }
    }

    /// The current thread gets the vCPU.
    pub(crate) fn start_slice(&mut self) {
        self.time.switched = host_cpu_time();
    }

    /// The current thread leaves the vCPU.
    pub(crate) fn end_slice(&mut self) {
        let ran = host_cpu_time().saturating_sub(self.time.switched);
        self.threads.current_mut().cpu += ran;
    }

    /// How long until the program's first timer goes off.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        if self.timers.any_armed() { self.timers.next(&self.times()) } else { None }
    }

    /// The same while none of its threads runs.
    pub(crate) fn next_timer_asleep(&self) -> Option<Duration> {
        if self.timers.any_armed() { self.timers.next_asleep(&self.times()) } else { None }
    }

    /// Sends the signals of the timers that have gone off.
    pub(crate) fn expire_timers(&mut self) {
        if self.timers.any_armed() {
            let now = self.times();
            for expiry in self.timers.expire(&now) {
                self.post(expiry.info, expiry.thread);
            }
        }
    }

    /// The present time on every base that timers have.
    pub(crate) fn times(&self) -> timers::Now {
        let on = |number| self.clock.now(number).unwrap_or_default();
        timers::Now { wall: on(clock::REALTIME), monotonic: on(clock::MONOTONIC), cpu: self.cpu_time(false) }
    }

    /// The program is about to run: the page is made anew if it has grown old.
    pub(crate) fn refresh_time(&mut self) {
        if let Some(bytes) = self.clock.refresh() {
            self.time.publish(&bytes);
        }
        self.time.entered = counter();
    }

    /// The vDSO says that the program's counter stood at `reading` a moment ago.
    pub(crate) fn prove_counter(&mut self, reading: u64) {
        if let Some(bytes) = self.clock.prove(reading, self.time.entered, counter()) {
            self.time.publish(&bytes);
        }
    }
}
