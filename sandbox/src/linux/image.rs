//! A function's image: a guest in which its command waits for input, saved once, restored for each sandbox.
//!
//! ```text
//! prepare   boot ── start the command ── it waits for its input ── save
//!                                     └─ it ends without, or takes too long: boot again, save the guest without it
//! start     restore (shared memory, its own identity)
//! invoke    feed the waiting command, or start one: where none waits, or the call brings its own environment
//! ```
//! The image's file has no name once it is open: it goes with its last sandbox.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use novum_snapshot::{Snapshot, Store};
use parking_lot::Mutex;

use super::engine::command_error;
use super::guest::{Command, CommandError, Guest, GuestConfig, Identity, Streams};
use super::memory::Memory;
use super::snapshot::private_bytes;
use crate::engine::{Image, Invocation, Renewal, Reply, Sandbox};
use crate::error::Error;

/// What the host keeps for a guest beside its memory: threads, rings, KVM's own tables.
pub(super) const HOST_BYTES: u64 = 2 << 20;

/// What a function's guests are.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) guest: GuestConfig,
    pub(super) command: Command,
    /// How long the command may take until it waits for its input.
    pub(super) patience: Duration,
}

/// A function that can be started.
#[derive(Debug)]
pub(super) struct LinuxImage {
    template: Template,
    snapshot: Snapshot,
    /// The memory of the living guests.
    live: Mutex<Vec<Weak<Memory>>>,
}

impl LinuxImage {
    /// Boots the guest and saves it; `folder` is for the file until it has no name any more.
    pub(super) async fn make(template: Template, folder: &Path) -> Result<Self, Error> {
        let mut guest = Guest::boot(template.guest.clone()).await?;
        match guest.begin(&template.command, template.patience).await {
            Ok(true) => {}
            // It may have left traces: such a function starts from a guest in which it has not run.
            Ok(false)
            | Err(
                CommandError::Deadline { .. } | CommandError::OutputLimit { .. } | CommandError::Ended(_),
            ) => {
                drop(guest);
                guest = Guest::boot(template.guest.clone()).await?;
            }
            Err(error) => return Err(command_error(error, &template.command)),
        }
        let failed = |error: &dyn std::error::Error| {
            let text = super::with_cause(error);
            Error::host("save the function's guest", std::io::Error::other(text))
        };
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        let folder = folder.join(format!("{}-{}", std::process::id(), unique()));
        let store = Store::open(&folder).map_err(|error| failed(&error))?;
        let saved = guest.snapshot(&store).await.map_err(|error| failed(&error));
        let snapshot =
            saved.and_then(|digest| Snapshot::open(&store, &digest).map_err(|error| failed(&error)));
        // Open files outlive their names.
        let _ = std::fs::remove_dir_all(&folder);
        Ok(Self { template, snapshot: snapshot?, live: Mutex::default() })
    }

    async fn restore(&self) -> Result<Guest, Error> {
        let GuestConfig { root, directories, patience, .. } = &self.template.guest;
        let identity = Identity {
            hostname: String::new(),
            machine_id: None,
            root: root.clone(),
            directories: directories.clone(),
            patience: *patience,
        };
        let guest = Guest::restore(&self.snapshot, &identity).await?;
        let mut live = self.live.lock();
        live.retain(|memory| memory.strong_count() > 0);
        live.push(guest.memory());
        Ok(guest)
    }
}

/// A number that no other image of this process has.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

#[async_trait]
impl Image for LinuxImage {
    async fn start(self: Arc<Self>) -> Result<Box<dyn Sandbox>, Error> {
        let guest = self.restore().await?;
        Ok(Box::new(LinuxSandbox { image: self, guest: Some(guest) }))
    }

    fn renewal(&self) -> Renewal {
        Renewal::Restart
    }

    fn private_bytes(&self) -> u64 {
        let living: Vec<_> = self.live.lock().iter().filter_map(Weak::upgrade).collect();
        living.iter().map(|memory| private_bytes(memory) + HOST_BYTES).sum()
    }
}

/// One guest.
struct LinuxSandbox {
    image: Arc<LinuxImage>,
    /// `None` when it has ended, or a command was left running in it.
    guest: Option<Guest>,
}

#[async_trait]
impl Sandbox for LinuxSandbox {
    async fn invoke(&mut self, call: Invocation) -> Result<Reply, Error> {
        // Taken out, so that a run that is given up leaves no guest behind.
        let ended = || Error::host("run the command", "the guest has ended");
        let mut guest = self.guest.take().ok_or_else(ended)?;
        let mut command = self.image.template.command.clone();
        let waits = guest.has_begun() && call.env.is_empty();
        for (name, value) in call.env {
            command.env.retain(|(other, _)| *other != name);
            command.env.push((name, value));
        }
        let log = call.log.clone();
        let streams = Streams {
            input: call.input,
            output: call.output,
            log: call.log,
            control: None,
            deadline: call.deadline,
        };
        let done = if waits {
            guest.go_on(streams).await
        } else {
            guest.give_up_begun();
            guest.run(&command, streams).await
        };
        let reply = guest.reply_of(done, &*log, &command)?;
        if guest.is_running() {
            self.guest = Some(guest);
        }
        Ok(reply)
    }

    async fn reset(&mut self) -> Result<(), Error> {
        self.guest = None;
        self.guest = Some(self.image.restore().await?);
        Ok(())
    }
}
