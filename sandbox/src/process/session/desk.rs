//! Where a session's files are: here, or with the program that runs. Whoever wants something of them asks here.

use std::sync::Arc;

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
}

struct State {
    holder: Holder,
    paused: bool,
}

enum Holder {
    Here(Box<Files>),
    Program(Arc<Control>),
    /// The program's thread died with them.
    Lost,
}

/// What the present holder has to do with a request.
enum Route<T> {
    Done(T),
    Ask(Arc<Control>),
}

fn lost() -> SessionError {
    SessionError::Ended("its files were lost in a failure of the host".into())
}

impl Desk {
    pub(super) fn new(files: Files) -> Arc<Self> {
        let state = State { holder: Holder::Here(Box::new(files)), paused: false };
        Arc::new(Self { state: Mutex::new(state), returned: Notify::new() })
    }

    /// Gives the files to a program. One that was cancelled gives them back in a moment, which is waited for.
    pub(super) async fn take(&self, control: &Arc<Control>) -> Result<Box<Files>, SessionError> {
        loop {
            let returned = self.returned.notified();
            {
                let mut state = self.state.lock();
                if state.paused {
                    return Err(SessionError::Busy("the sandbox is paused; resume it first".into()));
                }
                match std::mem::replace(&mut state.holder, Holder::Program(control.clone())) {
                    Holder::Here(files) => return Ok(files),
                    before @ Holder::Lost => {
                        state.holder = before;
                        return Err(lost());
                    }
                    Holder::Program(running) => {
                        let ends = running.is_cancelled();
                        state.holder = Holder::Program(running);
                        if !ends {
                            return Err(SessionError::Busy(
                                "a program runs in the sandbox; the process engine runs one at a time".into(),
                            ));
                        }
                    }
                }
            }
            returned.await;
        }
    }

    /// The program is over; `None` where the files went with it.
    pub(super) fn put_back(&self, files: Option<Box<Files>>) {
        self.state.lock().holder = files.map_or(Holder::Lost, Holder::Here);
        self.returned.notify_waiters();
    }

    /// The control of the program that runs.
    pub(super) fn running(&self) -> Option<Arc<Control>> {
        match &self.state.lock().holder {
            Holder::Program(control) => Some(control.clone()),
            Holder::Here(_) | Holder::Lost => None,
        }
    }

    /// Does something with the files, wherever they are: here, or on the program's thread.
    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Fn(&mut Files) -> T + Send + Sync + 'static,
    ) -> Result<T, SessionError> {
        let work = Arc::new(work);
        loop {
            let (desk, here) = (self.clone(), work.clone());
            let route = blocking(move || match &mut desk.state.lock().holder {
                Holder::Here(files) => Ok(Route::Done(here(files))),
                Holder::Program(control) => Ok(Route::Ask(control.clone())),
                Holder::Lost => Err(lost()),
            });
            let control = match route.await?? {
                Route::Done(value) => return Ok(value),
                Route::Ask(control) => control,
            };
            let there = work.clone();
            if let Some(value) = ask(control, move |process| there(&mut process.files)).await {
                return Ok(value);
            }
            // The program ended meanwhile: its thread is about to bring the files back.
            self.settled().await;
        }
    }

    /// Waits until no program that is over has the files.
    async fn settled(&self) {
        loop {
            let returned = self.returned.notified();
            let over = |control: &Arc<Control>| control.is_closed();
            if !matches!(&self.state.lock().holder, Holder::Program(control) if over(control)) {
                return;
            }
            returned.await;
        }
    }

    /// Does something with the files that no program may have meanwhile.
    pub(super) async fn with_idle<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Files) -> T + Send + 'static,
    ) -> Result<T, SessionError> {
        let desk = self.clone();
        let done = blocking(move || {
            match &mut desk.state.lock().holder {
            Holder::Here(files) => Ok(work(files)),
            Holder::Program(_) => Err(SessionError::Busy(
                "a program runs in the sandbox; the process engine keeps files, not running programs: wait for its end"
                    .into(),
            )),
            Holder::Lost => Err(lost()),
        }
        });
        done.await?
    }

    /// Stops the program, or lets it go on; when it returns, that is so.
    pub(super) async fn set_paused(&self, paused: bool) {
        let running = {
            let mut state = self.state.lock();
            state.paused = paused;
            match &state.holder {
                Holder::Program(control) => Some(control.clone()),
                Holder::Here(_) | Holder::Lost => None,
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
