//! A function's image: a guest in which its command waits for input, saved once, restored for each sandbox.
//!
//! ```text
//! prepare   boot ── start the command ── it waits for its input ── save
//!                                     └─ it ends without, or takes too long: boot again, save the guest without it
//! start     restore (shared memory, its own identity)
//! invoke    feed the waiting command, or start one: where none waits, or the call brings its own environment
//! ```
//! With a store (`stored.rs`) the image is kept there, and read from there when it is prepared again. Otherwise its file
//! has no name once it is open: it goes with its last sandbox.

mod stored;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use novum_snapshot::{Snapshot, Store};
use parking_lot::Mutex;

use super::engine::command_error;
use super::guest::{Command, CommandError, Guest, GuestConfig, Identity, Streams};
use super::memory::Memory;
use super::ready::Ready;
use super::snapshot::private_bytes;
use crate::engine::{Image, Invocation, Renewal, Reply, Sandbox};
use crate::error::Error;
use crate::share::Time;
pub(super) use stored::{Kept, key};

/// What the host keeps for a guest beside its memory: threads, rings, KVM's own tables.
pub(super) const HOST_BYTES: u64 = 2 << 20;

/// What a function's guests are.
#[derive(Clone, Debug)]
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
    ready: Ready,
}

impl LinuxImage {
    /// The image that is kept, or else a guest is booted and saved; `folder` is for the file until it has no name any more.
    pub(super) async fn make(
        template: Template,
        folder: &Path,
        kept: Option<Arc<Kept>>,
    ) -> Result<Self, Error> {
        if let Some(kept) = &kept
            && let Some(image) = Self::load(&template, kept).await
        {
            return Ok(image);
        }
        let begun = stored::now();
        let (mut guest, keep) = boot(&template).await?;
        std::fs::create_dir_all(folder).map_err(|error| save_error(&error))?;
        let folder = folder.join(format!("{}-{}", std::process::id(), unique()));
        let store = Store::open(&folder).map_err(|error| save_error(&error))?;
        let saved = guest.snapshot(&store).await.map_err(|error| save_error(&error));
        drop(guest);
        let snapshot =
            saved.and_then(|digest| Snapshot::open(&store, &digest).map_err(|error| save_error(&error)));
        let image = snapshot.map(|snapshot| Self {
            template,
            snapshot,
            live: Mutex::default(),
            ready: Ready::default(),
        });
        let image = match (image, kept.filter(|_| keep)) {
            (Ok(image), Some(kept)) => Ok(image.keep(kept, store, begun).await),
            (image, _) => image,
        };
        // Open files outlive their names.
        let _ = std::fs::remove_dir_all(&folder);
        image
    }

    /// The image that is kept, if it can be used here and now.
    async fn load(template: &Template, kept: &Arc<Kept>) -> Option<Self> {
        let function = &kept.origin.function;
        let reason = match Self::try_load(template, kept).await {
            Ok(image) => {
                tracing::debug!(%function, found = image.is_some(), "looked for an image in the store");
                return image;
            }
            Err(reason) => reason,
        };
        tracing::warn!(%function, reason, "the stored image cannot be used and is made anew");
        None
    }

    async fn try_load(template: &Template, kept: &Arc<Kept>) -> Result<Option<Self>, String> {
        let (from, guest) = (kept.clone(), template.guest.clone());
        let loaded = tokio::task::spawn_blocking(move || from.load(&guest)).await;
        let loaded = loaded.map_err(|error| error.to_string())?.map_err(|error| super::with_cause(&error))?;
        let Some(snapshot) = loaded else { return Ok(None) };
        let image =
            Self { template: template.clone(), snapshot, live: Mutex::default(), ready: Ready::default() };
        // What no check has found is found by the guest itself, before anybody waits for it.
        let mut guest = image.restore().await.map_err(|error| super::with_cause(&error))?;
        guest.become_itself().await.map_err(|error| super::with_cause(&error))?;
        Ok(Some(image))
    }

    /// Keeps the image, whose snapshot is in `store`. What is used then is the kept one, by the one way that there is.
    async fn keep(self, kept: Arc<Kept>, store: Store, begun: Time) -> Self {
        let (to, snapshot, guest) = (kept.clone(), self.snapshot.clone(), self.template.guest.clone());
        let work =
            move || to.store(&store, &snapshot, &guest, begun).map_err(|error| super::with_cause(&error));
        let stored = tokio::task::spawn_blocking(work).await;
        let reason = match stored.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(digest) => {
                tracing::debug!(function = %kept.origin.function, %digest, "stored an image");
                match Self::load(&self.template, &kept).await {
                    Some(image) => return image,
                    None => "it cannot be read back".to_owned(),
                }
            }
            Err(reason) => reason,
        };
        let function = &kept.origin.function;
        tracing::warn!(%function, reason, "the image stays in memory and is lost at a restart");
        kept.forget();
        self
    }

    /// Who each of its guests is.
    fn identity(&self) -> Identity {
        let GuestConfig { root, directories, patience, .. } = &self.template.guest;
        Identity {
            hostname: String::new(),
            machine_id: None,
            root: root.clone(),
            directories: directories.clone(),
            network: None,
            balloon: false,
            patience: *patience,
        }
    }

    /// A guest that becomes itself while it is already given work.
    async fn restore(&self) -> Result<Guest, Error> {
        let guest = self.ready.wake(&self.snapshot, &self.identity()).await?;
        let mut live = self.live.lock();
        live.retain(|memory| memory.strong_count() > 0);
        live.push(guest.memory());
        Ok(guest)
    }
}

/// A guest in which the command waits for its input, or has not run; and whether that would be so once more.
async fn boot(template: &Template) -> Result<(Guest, bool), Error> {
    let mut guest = Guest::boot(template.guest.clone()).await?;
    let again = match guest.begin(&template.command, template.patience).await {
        Ok(true) => return Ok((guest, true)),
        Ok(false) | Err(CommandError::OutputLimit { .. } | CommandError::Ended(_)) => true,
        // On another day it may be in time.
        Err(CommandError::Deadline { .. }) => false,
        Err(error) => return Err(command_error(error, &template.command)),
    };
    // It may have left traces: such a function starts from a guest in which it has not run.
    drop(guest);
    Ok((Guest::boot(template.guest.clone()).await?, again))
}

fn save_error(error: &dyn std::error::Error) -> Error {
    Error::host("save the function's guest", std::io::Error::other(super::with_cause(error)))
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
            self.image.ready.learn(&guest);
            self.guest = Some(guest);
        }
        let image = self.image.clone();
        tokio::spawn(async move { image.ready.refill(&image.snapshot, &image.identity()).await });
        Ok(reply)
    }

    async fn reset(&mut self) -> Result<(), Error> {
        self.guest = None;
        self.guest = Some(self.image.restore().await?);
        Ok(())
    }
}
