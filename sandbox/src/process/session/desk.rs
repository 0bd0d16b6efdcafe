//! Where a session's files are: here, or with the program that runs. Whoever wants something of them asks here.
//!
//! The lock is held to look where the files are, never while something is done with them: who works on them takes them out
//! (`Busy`), and whoever else wants them waits for their return without holding a thread.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::blocking;
use crate::process::Process;
use crate::process::control::Control;
use crate::process::files::Files;
use crate::session::SessionError;

/// See the module.
pub(super) struct Desk {
    state: Mutex<State>,
    /// The files came back.
    returned: Notify,
    usage: Arc<Usage>,
}

/// What the files hold in memory, as last asked.
#[derive(Default)]
struct Usage {
    bytes: AtomicU64,
    /// Whoever has the files will say it.
    asked: AtomicBool,
}

impl Usage {
    fn note(&self, files: &Files) {
        self.bytes.store(files.held_bytes(), Ordering::Relaxed);
    }
}

/// A question that a program's thread is to answer. However it goes, the next one may be asked afterwards.
struct Asked(Arc<Usage>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.asked.store(false, Ordering::Relaxed);
    }
}

struct State {
    holder: Holder,
    paused: bool,
}

impl State {
    /// The files go from here to `next`, where they are here.
    fn hand_over(&mut self, next: impl FnOnce() -> Holder) -> Option<Box<Files>> {
        match std::mem::replace(&mut self.holder, Holder::Busy) {
            Holder::Here(files) => {
                self.holder = next();
                Some(files)
            }
            other => {
                self.holder = other;
                None
            }
        }
    }
}

enum Holder {
    Here(Box<Files>),
    /// Somebody works on them for a moment.
    Busy,
    Program(Arc<Control>),
    /// The program's thread died with them.
    Lost,
}

/// Who has the files, for somebody who wants them.
enum Found {
    Taken(Taken),
    Program(Arc<Control>),
}

/// The files, taken out to work on them. They go back with its drop.
struct Taken {
    desk: Arc<Desk>,
    files: Option<Box<Files>>,
}

impl Deref for Taken {
    type Target = Files;

    fn deref(&self) -> &Files {
        self.files.as_ref().expect("there until the drop")
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Files {
        self.files.as_mut().expect("there until the drop")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(files) = self.files.take() {
            if self.desk.usage.asked.swap(false, Ordering::Relaxed) {
                self.desk.usage.note(&files);
            }
            self.desk.give(Holder::Here(files));
        }
    }
}

fn lost() -> SessionError {
    SessionError::Ended("its files were lost in a failure of the host".into())
}

fn paused() -> SessionError {
    SessionError::Busy("the sandbox is paused; resume it first".into())
}

impl Desk {
    pub(super) fn new(files: Files) -> Arc<Self> {
        let usage = Arc::<Usage>::default();
        usage.note(&files);
        let state = State { holder: Holder::Here(Box::new(files)), paused: false };
        Arc::new(Self { state: Mutex::new(state), returned: Notify::new(), usage })
    }

    /// Gives the files to a program. Somebody at work on them, or a program that was cancelled, gives them back in a
    /// moment, which is waited for.
    pub(super) async fn take(&self, control: &Arc<Control>) -> Result<Box<Files>, SessionError> {
        loop {
            let returned = self.returned.notified();
            {
                let mut state = self.state.lock();
                if state.paused {
                    return Err(paused());
                }
                if let Some(files) = state.hand_over(|| Holder::Program(control.clone())) {
                    self.usage.asked.store(false, Ordering::Relaxed);
                    return Ok(files);
                }
                match &state.holder {
                    Holder::Lost => return Err(lost()),
                    Holder::Program(running) if !running.is_cancelled() => {
                        let reason = "a program runs in the sandbox; the process engine runs one at a time";
                        return Err(SessionError::Busy(reason.into()));
                    }
                    Holder::Here(_) | Holder::Program(_) | Holder::Busy => {}
                }
            }
            returned.await;
        }
    }

    /// The program is over; `None` where the files went with it.
    pub(super) fn put_back(&self, files: Option<Box<Files>>) {
        self.give(files.map_or(Holder::Lost, |files| {
            self.usage.note(&files);
            Holder::Here(files)
        }));
    }

    fn give(&self, holder: Holder) {
        self.state.lock().holder = holder;
        self.returned.notify_waiters();
    }

    /// The control of the program that runs.
    pub(super) fn running(&self) -> Option<Arc<Control>> {
        match &self.state.lock().holder {
            Holder::Program(control) => Some(control.clone()),
            Holder::Here(_) | Holder::Busy | Holder::Lost => None,
        }
    }

    /// The files, where they are here and nobody works on them.
    fn take_out(self: &Arc<Self>, state: &mut State) -> Option<Taken> {
        let files = state.hand_over(|| Holder::Busy)?;
        Some(Taken { desk: self.clone(), files: Some(files) })
    }

    /// The files, or the program that has them, once nobody else works on them.
    async fn find(self: &Arc<Self>) -> Result<Found, SessionError> {
        loop {
            let returned = self.returned.notified();
            {
                let mut state = self.state.lock();
                if let Some(taken) = self.take_out(&mut state) {
                    return Ok(Found::Taken(taken));
                }
                match &state.holder {
                    Holder::Program(control) if !control.is_closed() => {
                        return Ok(Found::Program(control.clone()));
                    }
                    Holder::Lost => return Err(lost()),
                    // A program that is over brings them back in a moment.
                    Holder::Here(_) | Holder::Busy | Holder::Program(_) => {}
                }
            }
            returned.await;
        }
    }

    /// Does something with the files, wherever they are: here, or on the program's thread.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Fn(&mut Files) -> T + Send + Sync + 'static,
    ) -> Result<T, SessionError> {
        let work = Arc::new(work);
        loop {
            let work = work.clone();
            match self.find().await? {
                Found::Taken(mut files) => return blocking(move || work(&mut files)).await,
                Found::Program(control) => {
                    if let Some(value) = ask(control, move |process| work(&mut process.files)).await {
                        return Ok(value);
                    }
                    // It ended meanwhile: its thread is about to bring the files back.
                }
            }
        }
    }

    /// Does something with the files that no program may have meanwhile.
    pub(super) async fn with_idle<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Files) -> T + Send + 'static,
    ) -> Result<T, SessionError> {
        match self.find().await? {
            Found::Taken(mut files) => blocking(move || work(&mut files)).await,
            Found::Program(_) => Err(SessionError::Busy(
                "a program runs in the sandbox; the process engine keeps files, not running programs: wait for its end"
                    .into(),
            )),
        }
    }

    /// What the files hold in memory: now where they are here, else as whoever has them said last.
    pub(super) fn held_bytes(self: &Arc<Self>) -> u64 {
        let taken = self.take_out(&mut self.state.lock());
        if let Some(files) = taken {
            self.usage.note(&files);
        } else if !self.usage.asked.swap(true, Ordering::Relaxed)
            && let Some(control) = self.running()
        {
            let asked = Asked(self.usage.clone());
            // Where it is over, its end says it.
            control.visit(Box::new(move |process| asked.0.note(&process.files)));
        }
        self.usage.bytes.load(Ordering::Relaxed)
    }

    /// Stops the program, or lets it go on; when it returns, that is so.
    pub(super) async fn set_paused(&self, paused: bool) {
        let running = {
            let mut state = self.state.lock();
            state.paused = paused;
            match &state.holder {
                Holder::Program(control) => Some(control.clone()),
                Holder::Here(_) | Holder::Busy | Holder::Lost => None,
            }
        };
        if let Some(control) = running
            && control.set_paused(paused)
            && paused
        {
            // Let in only once it stands still. Where it ends instead, it runs no more either.
            let _ = ask(control, |_| ()).await;
        }
    }
}

/// Has something done on a program's thread; `None` where it ended before.
pub(super) async fn ask<T: Send + 'static>(
    control: Arc<Control>,
    work: impl FnOnce(&mut Process) -> T + Send + 'static,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let visit = move |process: &mut Process| {
        // Who asked may have left.
        let _ = reply.send(work(process));
    };
    if !control.visit(Box::new(visit)) {
        return None;
    }
    drop(control);
    answer.await.ok()
}
