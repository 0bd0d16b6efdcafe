//! VM shells without a tenant, made ahead: what a start from an image does not have to wait for.
//!
//! ```text
//! take ──> [ready shells, one waiting thread each] ──> the thread becomes the sandbox's
//!            ^                        │ one fewer
//!            └── refill thread ───────┘
//! ```
//! One pool for the process: a shell knows no function. A shell is used once.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Once};

use parking_lot::{Condvar, Mutex};

use super::memory::{first_slot, region_bytes};
use super::run::RunError;
use super::sandbox::Begin;
use super::shell::Shell;
use crate::kvm::sys::Region;

/// Shells that are kept: each costs 0.35 MiB of kernel memory. Enough for a burst; further starts make their own.
const KEPT: usize = 4;

#[derive(Default)]
struct State {
    ready: Vec<Sender<Begin>>,
    coming: usize,
    /// Making the last one failed; tried again at the next use.
    failed: bool,
}

#[derive(Default)]
struct Shells {
    state: Mutex<State>,
    used: Condvar,
}

static SHELLS: LazyLock<Shells> = LazyLock::new(Shells::default);

/// Gives `begin` to a ready shell; hands it back where there is none.
pub(super) fn take(mut begin: Begin) -> Result<(), Begin> {
    loop {
        let mut state = SHELLS.state.lock();
        state.failed = false;
        let shell = state.ready.pop();
        drop(state);
        SHELLS.used.notify_one();
        let Some(shell) = shell else { return Err(begin) };
        match shell.send(begin) {
            Ok(()) => return Ok(()),
            Err(back) => begin = back.0,
        }
    }
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
        while state.failed || state.ready.len() + state.coming >= KEPT {
            SHELLS.used.wait(&mut state);
        }
        state.coming += 1;
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
    state.coming -= 1;
    match shell {
        Some(shell) => state.ready.push(shell),
        None => state.failed = true,
    }
    drop(state);
    SHELLS.used.notify_one();
}

/// The life of a shell's thread.
fn wait(sender: Sender<Begin>, receiver: &Receiver<Begin>) {
    let (shell, region) = match make() {
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

fn make() -> Result<(Shell, Arc<Region>), RunError> {
    let region =
        Region::reserve(region_bytes(0)).map_err(RunError::host("reserve addresses for a sandbox"))?;
    let region = Arc::new(region);
    Ok((Shell::new(region.clone(), [first_slot()])?, region))
}
