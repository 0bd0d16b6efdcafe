//! Running a program to its first wait for input, and keeping it there.

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
        ConsoleWrite::Taken(bytes.len())
    }

    fn writable(&mut self, _: Stream) -> bool {
        true
    }
}

/// Runs `setup`'s program to its first wait for input, on the calling thread, for at most `timeout`.
pub(in crate::process) fn prepare(setup: &Setup, timeout: Duration) -> Result<Image, Refused> {
    let program = setup.load().map_err(Refused::Load)?;
    let mut process = setup.begin(program, &[]).map_err(Refused::Load)?;
    let control = Control::new().map_err(RunError::host("create an event descriptor"))?;
    let prologue = Arc::new(Mutex::new(Prologue::default()));
    let recorder = Recorder { prologue: prologue.clone(), control: control.clone() };
    process.files.set_console(Box::new(recorder));
    let changed = Arc::new(AtomicBool::new(false));
    let (tell, to_stop) = (changed.clone(), control.clone());
    process.files.hold_shares(Some(Arc::new(move || {
        tell.store(true, Ordering::SeqCst);
        to_stop.cancel();
    })));
    process.files.watch_shares();
    let mut machine = Machine::new(process, control.clone())?;
    let ended = machine.run_to_input(Instant::now() + timeout.min(PATIENCE))?;
    if changed.load(Ordering::SeqCst) {
        return Err(Refused::Change);
    }
    if control.is_cancelled() {
        return Err(Refused::Prologue);
    }
    if !matches!(ended, Ended::WantsInput) {
        return Err(Refused::NoInput);
    }
    let prologue = std::mem::take(&mut *prologue.lock());
    let process = machine.into_process()?;
    process.files.hold_shares(None);
    Image::take(process, prologue)
}

impl Image {
    fn take(mut process: Process, prologue: Prologue) -> Result<Self, Refused> {
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
            prologue,
        })
    }
}
