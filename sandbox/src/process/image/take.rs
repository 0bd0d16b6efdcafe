//! Running a program to its first wait for input, or to the line that its manifest names, and keeping it there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Image, Prologue};
use crate::error::Error;
use crate::process::Process;
use crate::process::control::Control;
use crate::process::files::{Console, ConsoleRead, ConsoleWrite, Stream};
use crate::process::memory::{MemoryImage, Unfit};
use crate::process::run::{Ended, Machine, RunError};
use crate::process::setup::Setup;

/// Most bytes that a program may write before it reads: they are kept with the image.
pub(super) const LONGEST_PROLOGUE: usize = 64 << 10;
/// A program that has not come to its input after this time is started in full each time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a program has no image. It is started in full for every sandbox instead.
#[derive(Debug, thiserror::Error)]
pub(in crate::process) enum Refused {
    /// It never waited for input.
    #[error("the program ends, fails or works on without waiting for standard input")]
    NoInput,
    /// It never said that it is ready.
    #[error("the program has not written the line {marker:?} to standard error within {within:?}")]
    NotReady {
        /// The manifest's `ready`.
        marker: String,
        /// How long it ran.
        within: Duration,
    },
    /// What it does cannot be undone.
    #[error("the program changes a shared directory before it reads standard input")]
    Change,
    /// It said too much before.
    #[error("the program writes more than {LONGEST_PROLOGUE} bytes before it reads standard input")]
    Prologue,
    /// Its memory cannot be kept.
    #[error(transparent)]
    Memory(#[from] Unfit),
    /// The host failed.
    #[error("the program could not be run")]
    Run(#[from] RunError),
    /// It cannot be loaded any more.
    #[error(transparent)]
    Load(Error),
}

/// No input yet; output is kept.
struct Recorder {
    prologue: Arc<Mutex<Prologue>>,
    control: Arc<Control>,
    marker: Option<Marker>,
}

/// The line on standard error by which a program says that it is ready.
struct Marker {
    line: Vec<u8>,
    seen: Arc<AtomicBool>,
}

impl Marker {
    /// Whether one of the lines that end in the last `new` bytes of `log` is the marker.
    fn ends_in(&self, log: &[u8], new: usize) -> bool {
        let mut ends = (log.len() - new..log.len()).filter(|&at| log[at] == b'\n');
        ends.any(|end| {
            let start = log[..end].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let line = log[start..end].strip_suffix(b"\r").unwrap_or(&log[start..end]);
            line == self.line
        })
    }
}

impl Console for Recorder {
    fn read(&mut self, _: usize) -> ConsoleRead {
        ConsoleRead::Empty
    }

    fn pending(&mut self) -> Option<usize> {
        Some(0)
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> ConsoleWrite {
        let mut prologue = self.prologue.lock();
        let kept = if stream == Stream::Output { &mut prologue.output } else { &mut prologue.log };
        if kept.len() + bytes.len() > LONGEST_PROLOGUE {
            self.control.cancel();
            return ConsoleWrite::Closed;
        }
        kept.extend_from_slice(bytes);
        if let Some(marker) = &self.marker
            && stream == Stream::Log
            && marker.ends_in(kept, bytes.len())
        {
            marker.seen.store(true, Ordering::SeqCst);
            // Leaves the guest as soon as this call is over.
            self.control.visit(Box::new(|_| ()));
        }
        ConsoleWrite::Taken(bytes.len())
    }

    fn writable(&mut self, _: Stream) -> bool {
        true
    }
}

/// Runs `setup`'s program to where its image is taken, on the calling thread, for at most `timeout`.
pub(in crate::process) fn prepare(setup: &Setup, timeout: Duration) -> Result<Image, Refused> {
    let program = setup.load().map_err(Refused::Load)?;
    let mut process = setup.begin(program, &[]).map_err(Refused::Load)?;
    let control = Control::new().map_err(RunError::host("create an event descriptor"))?;
    let prologue = Arc::new(Mutex::new(Prologue::default()));
    let seen = Arc::new(AtomicBool::new(false));
    let marker = setup.ready.as_ref().map(|line| Marker { line: line.clone().into(), seen: seen.clone() });
    let recorder = Recorder { prologue: prologue.clone(), control: control.clone(), marker };
    process.files.set_console(Box::new(recorder));
    let changed = Arc::new(AtomicBool::new(false));
    let (tell, to_stop) = (changed.clone(), control.clone());
    process.files.hold_shares(Some(Arc::new(move || {
        tell.store(true, Ordering::SeqCst);
        to_stop.cancel();
    })));
    process.files.watch_shares();
    let mut machine = Machine::new(process, control.clone())?;
    let ended = match &setup.ready {
        None => machine.run_to_input(Instant::now() + timeout.min(PATIENCE))?,
        // Warming up may take its time, as a run may.
        Some(_) => machine.run_to_marker(Instant::now() + timeout, seen)?,
    };
    if changed.load(Ordering::SeqCst) {
        return Err(Refused::Change);
    }
    if control.is_cancelled() {
        return Err(Refused::Prologue);
    }
    match (ended, &setup.ready) {
        (Ended::WantsInput | Ended::Marked, _) => {}
        (_, None) => return Err(Refused::NoInput),
        (_, Some(marker)) => return Err(Refused::NotReady { marker: marker.clone(), within: timeout }),
    }
    let prologue = std::mem::take(&mut *prologue.lock());
    let process = machine.into_process()?;
    process.files.hold_shares(None);
    Image::take(process, prologue)
}

impl Image {
    /// Of a program that does not run.
    pub(in crate::process) fn take(mut process: Process, prologue: Prologue) -> Result<Self, Refused> {
        let moment = process.moment();
        let clocks = process.time.page().cloned();
        let memory = MemoryImage::take(&mut process.memory, clocks.as_ref())?;
        process.files.checkpoint();
        Ok(Self {
            memory: Arc::new(memory),
            files: Mutex::new(process.files),
            threads: process.threads,
            actions: process.actions,
            pending: process.pending,
            futexes: process.futexes,
            credentials: process.credentials,
            limits: process.limits,
            nice: process.nice,
            timers: process.timers,
            recent: process.recent,
            unserved: process.unserved,
            stack: process.stack,
            moment,
            taken: Instant::now(),
            working_set: OnceLock::new(),
            home: OnceLock::new(),
            prologue,
        })
    }
}
