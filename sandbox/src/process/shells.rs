//! VM shells without a tenant, made ahead: what a start from an image does not have to wait for.
//!
//! ```text
//! take ──> [ready shells, one waiting thread each] ──> the thread becomes the sandbox's
//!            ^                        │ one fewer
//!            └── refill thread ───────┘
//! ```
//! One pool for the process: a shell knows no function. A shell is used once. They are made one after the other, when the
//! sandbox that took one has answered its first call or waits for it: not on a start's path.

use std::sync::Once;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::{Condvar, Mutex};

use super::sandbox::Begin;
use super::shell::Shell;

/// Shells that are kept: each costs 0.35 MiB of kernel memory. Enough for a burst; further starts make their own.
const KEPT: usize = 4;

struct State {
    /// As many as there should be.
    kept: usize,
    ready: Vec<Sender<Begin>>,
    coming: bool,
    /// Making the last one failed; tried again at the next use.
    failed: bool,
}

struct Shells {
    state: Mutex<State>,
    /// Fewer are there than should be.
    used: Condvar,
}

static SHELLS: Shells = Shells {
    state: Mutex::new(State { kept: KEPT, ready: Vec::new(), coming: false, failed: false }),
    used: Condvar::new(),
};

/// How many are ready.
pub(super) fn ready() -> usize {
    SHELLS.state.lock().ready.len()
}

/// Keeps `count` of them from now on; 0: every start makes its own VM.
pub(super) fn set_kept(count: usize) {
    let mut state = SHELLS.state.lock();
    state.kept = count;
    let surplus = state.ready.len().saturating_sub(count);
    let gone: Vec<_> = state.ready.drain(..surplus).collect();
    drop(state);
    // Their threads find out and end.
    drop(gone);
    SHELLS.used.notify_one();
}

/// Gives `begin` to a ready shell; hands it back where there is none.
pub(super) fn take(mut begin: Begin) -> Result<(), Begin> {
    loop {
        let mut state = SHELLS.state.lock();
        state.failed = false;
        let shell = state.ready.pop();
        drop(state);
        let Some(shell) = shell else { return Err(begin) };
        match shell.send(begin) {
            Ok(()) => return Ok(()),
            Err(back) => begin = back.0,
        }
    }
}

/// A sandbox has started and has nothing to do: another shell is made for the one that it may have taken.
pub(super) fn refill_later() {
    SHELLS.used.notify_one();
}

/// From now on shells are made and kept.
pub(super) fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without the thread every start makes its own shell.
        let _ = std::thread::Builder::new().name("vm-shells".into()).spawn(refill);
    });
}

fn refill() {
    loop {
        let mut state = SHELLS.state.lock();
        while state.failed || state.coming || state.ready.len() >= state.kept {
            SHELLS.used.wait(&mut state);
        }
        state.coming = true;
        drop(state);
        let (sender, receiver) = channel();
        let spawned =
            std::thread::Builder::new().name("vm-shell".into()).spawn(move || wait(sender, &receiver));
        if spawned.is_err() {
            arrive(None);
        }
    }
}

/// A shell is there, or could not be made.
fn arrive(shell: Option<Sender<Begin>>) {
    let mut state = SHELLS.state.lock();
    state.coming = false;
    match shell {
        Some(shell) if state.ready.len() < state.kept => state.ready.push(shell),
        Some(_) => {}
        None => state.failed = true,
    }
    drop(state);
    SHELLS.used.notify_one();
}

/// The life of a shell's thread.
fn wait(sender: Sender<Begin>, receiver: &Receiver<Begin>) {
    let (shell, region) = match Shell::blank() {
        Ok(made) => made,
        Err(error) => {
            tracing::debug!(%error, "no VM shell");
            return arrive(None);
        }
    };
    arrive(Some(sender));
    if let Ok(begin) = receiver.recv() {
        begin.in_shell(shell, region);
    }
}
