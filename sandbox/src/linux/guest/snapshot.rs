//! A guest with its agent, saved and restored: the machine, and the stream to the agent as it stands.
//!
//! ```text
//! saved    pause ── machine, streams, the channel's own bytes ── go on
//! restored machine, paused ── take over the agent's stream ── Adopt (randomness, time, name, ids) into it
//!          ── let it run ── the agent answers Adopted ── only then is there a Guest
//! ```
//! A guest that could not become itself is never handed out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_proto::guest::PORT;
use novum_proto::guest::v1::{Adopt, Signal, to_guest, to_host};
use novum_snapshot::{Digest, MigrateError, Snapshot, State, Store, Writer};
use serde::{Deserialize, Serialize};

use super::channel::{Channel, Pending, Wire};
use super::run::{self, Begun};
use super::{
    BootError, Command, CommandError, Console, Directory, Done, GUEST_CID, Guest, Network, Root, Streams,
    balloon, clock, devices, entropy,
};
use crate::kept::Held;
use crate::linux::balloon::Balloon;
use crate::linux::net::Net;
use crate::linux::vsock::{Stream, Vsock};
use crate::linux::{Device, Machine, Saved, SnapshotError, WorkingSet};

/// As Linux numbers it.
const SIGKILL: u32 = 9;
/// Why a guest with [`Root::Kept`] cannot be saved.
pub(crate) const NOT_SAVED: &str = "what it writes to its root goes into a directory of the host, which does not stand still \
                                    with it, and which one guest alone can use";

/// Who a restored guest is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its host name; the saved one's where empty.
    pub hostname: String,
    /// What its `/etc/machine-id` says; the saved one's where `None`.
    pub machine_id: Option<[u8; 16]>,
    /// Its root: of the same kind, with as many directories, as the saved one's.
    pub root: Root,
    /// Its directories: at the same places, in the same order.
    pub directories: Vec<Directory>,
    /// Its network card; exactly where the saved one had one.
    pub network: Option<Network>,
    /// It has a balloon, as the saved one.
    pub balloon: bool,
    /// How long it may take until it has become itself.
    pub patience: Duration,
}

/// Which directories and cards a guest has, as far as its kernel knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Places {
    writable: bool,
    layers: usize,
    /// (path in the guest, read-only)
    directories: Vec<(String, bool)>,
    network: bool,
}

impl Places {
    pub(super) fn of(root: &Root, directories: &[Directory], network: bool) -> Self {
        let place = |directory: &Directory| (directory.target.clone(), directory.read_only);
        let (writable, layers) = match root {
            Root::Writable(_) => (true, 1),
            Root::Layers(layers) | Root::Kept { layers, .. } => (false, layers.len()),
        };
        Self { writable, layers, directories: directories.iter().map(place).collect(), network }
    }
}

/// The section of a guest with an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AgentState {
    kernel: String,
    /// Commands that were started.
    commands: u32,
    places: Places,
    pending: Pending,
    begun: Option<Begun>,
}

impl State for AgentState {
    const KIND: &'static str = "agent";
    const VERSION: u32 = 2;

    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, MigrateError> {
        match version {
            1 => Ok(postcard::from_bytes::<v1::AgentState>(bytes)?.into()),
            _ => Err(MigrateError::Unsupported),
        }
    }
}

/// The section before guests had network cards.
mod v1 {
    use serde::Deserialize;

    use super::super::channel::Pending;
    use super::super::run::Begun;

    #[derive(Deserialize)]
    struct Places {
        writable: bool,
        layers: usize,
        directories: Vec<(String, bool)>,
    }

    #[derive(Deserialize)]
    pub(super) struct AgentState {
        kernel: String,
        commands: u32,
        places: Places,
        pending: Pending,
        begun: Option<Begun>,
    }

    impl From<AgentState> for super::AgentState {
        fn from(old: AgentState) -> Self {
            let AgentState { kernel, commands, places, pending, begun } = old;
            let Places { writable, layers, directories } = places;
            let places = super::Places { writable, layers, directories, network: false };
            Self { kernel, commands, places, pending, begun }
        }
    }
}

impl Guest {
    /// Starts `command` and waits until it waits for its standard input: [`Self::go_on`], here or in a guest restored from
    /// a snapshot of this one, then runs it. False where it ended without waiting.
    ///
    /// # Errors
    /// Where it does not start, or `patience` has passed.
    pub async fn begin(&mut self, command: &Command, patience: Duration) -> Result<bool, CommandError> {
        self.become_itself().await.map_err(not_itself)?;
        self.commands += 1;
        let deadline = Instant::now() + patience;
        self.begun = tokio::select! {
            biased;
            begun = run::begin(&mut self.channel, self.commands, command, deadline) => begun?,
            end = self.machine.ended() => return Err(CommandError::Ended(end)),
        };
        Ok(self.begun.is_some())
    }

    /// Whether a command waits for its input.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Ends the command that waits for its input, if there is one.
    pub fn give_up_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.channel.push(to_guest::Message::Signal(Signal { command: begun.number, number: SIGKILL }));
        }
    }

    /// Runs the command that waits for its input to its end.
    ///
    /// # Errors
    /// As [`Self::run`]; where none waits.
    pub async fn go_on(&mut self, streams: Streams) -> Result<Done, CommandError> {
        self.plug_in().await?;
        let adopting = self.adopting.clone();
        let done = tokio::select! {
            biased;
            done = run::go_on(&mut self.channel, &mut self.begun, streams, adopting) => match done {
                Err(error @ CommandError::Channel(_)) => Err(self.machine.end_now().map_or(error, CommandError::Ended)),
                other => other,
            },
            end = self.machine.ended() => Err(CommandError::Ended(end)),
        };
        if done.is_ok() {
            self.note_itself();
        }
        done
    }

    /// Saves the guest, which stands meanwhile and then goes on.
    ///
    /// # Errors
    /// Where it has ended, or the store or KVM fails; it then goes on all the same.
    pub async fn snapshot(&mut self, store: &Store) -> Result<Digest, SnapshotError> {
        self.save(store, None, false).await
    }

    /// As [`Self::snapshot`], with a name for it; a guest that `stands` already stays so.
    pub(super) async fn save(
        &mut self,
        store: &Store,
        held: Option<Arc<Held>>,
        stands: bool,
    ) -> Result<Digest, SnapshotError> {
        if self.kept {
            return Err(SnapshotError::Refused(NOT_SAVED.into()));
        }
        self.become_itself().await.map_err(|error| SnapshotError::Refused(error.to_string()))?;
        let state = AgentState {
            kernel: self.kernel.clone(),
            commands: self.commands,
            places: self.places.clone(),
            pending: self.channel.pending(),
            begun: self.begun.clone(),
        };
        let (machine, store) = (self.machine.clone(), store.clone());
        let work = move || {
            // Here until the snapshot is complete: a name that nobody waits for any more goes after it, not before.
            let more = |writer: &mut Writer| {
                held.iter().for_each(|held| writer.refer(held.name()));
                writer.put("", &state)
            };
            if !stands {
                return machine.snapshot(&store, more);
            }
            let digest = machine.save(&store, more)?;
            // It stood before and still does: not for this.
            Ok(Saved { digest, stood: Duration::ZERO })
        };
        // It takes milliseconds: not on a thread that serves others.
        let saved = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(SnapshotError::Host { doing: "saving the guest", source })
        })?;
        self.stood = saved.stood;
        Ok(saved.digest)
    }

    /// How long it stood when it was saved last.
    #[must_use]
    pub fn stood(&self) -> Duration {
        self.stood
    }

    /// Bytes of its memory that are its own, not shared with the snapshot it came from.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        self.machine.private_bytes()
    }

    /// A guest that goes on where the saved one stood, as somebody of its own.
    ///
    /// # Errors
    /// Where this host or the identity does not fit, KVM refuses, or the guest could not become itself in time.
    pub async fn restore(snapshot: &Snapshot, identity: &Identity) -> Result<Self, BootError> {
        let standing = Standing::make(snapshot, identity, None).await?;
        let mut guest = standing.wake(identity).await?;
        guest.become_itself().await?;
        Ok(guest)
    }

    /// Waits until a guest that was woken has become itself.
    ///
    /// # Errors
    /// Where it could not, or not in time: it is then of no use.
    pub async fn become_itself(&mut self) -> Result<(), BootError> {
        let Some(Adopting { until, after, .. }) = self.adopting else { return Ok(()) };
        let adopted = async {
            tokio::select! {
                adopted = wait_adopted(&mut self.channel, &mut self.begun) => adopted,
                end = self.machine.ended() => Err(BootError::Ended { end, console: self.console.tail() }),
            }
        };
        tokio::time::timeout_at(until.into(), adopted)
            .await
            .unwrap_or_else(|_| Err(BootError::TooSlow { after, console: self.console.tail() }))?;
        self.note_itself();
        Ok(())
    }

    /// A guest with a network card gets its link before it gets work.
    pub(super) async fn plug_in(&mut self) -> Result<(), CommandError> {
        match &self.adopting {
            Some(Adopting { card: Some(_), .. }) => self.become_itself().await.map_err(not_itself),
            _ => Ok(()),
        }
    }

    /// It has become itself: it may reach others, under its own address.
    pub(super) fn note_itself(&mut self) {
        if let Some(card) = self.adopting.take().and_then(|adopting| adopting.card) {
            card.set_link(true);
        }
    }

    /// What it has touched of the snapshot that it came from; for [`Standing::make`], from a guest that was made without one.
    #[must_use]
    pub fn working_set(&self) -> Option<WorkingSet> {
        self.machine.working_set().ok()
    }

    /// As many guests as there are identities, each of which goes on from here as somebody of its own; this one goes on
    /// as it is. They share their memory until they write to it.
    ///
    /// # Errors
    /// As [`Self::snapshot`] and [`Self::restore`]: all of them, or none.
    pub async fn fork(&mut self, store: &Store, identities: &[Identity]) -> Result<Vec<Self>, BootError> {
        let digest = self.snapshot(store).await?;
        let snapshot = Snapshot::open(store, &digest);
        let snapshot = snapshot.map_err(|error| SnapshotError::Refused(error.to_string()))?;
        let mut guests = Vec::new();
        for identity in identities {
            guests.push(Self::restore(&snapshot, identity).await?);
        }
        Ok(guests)
    }
}

/// A restored guest that has been told who it is and has not said yet that it has become so.
#[derive(Clone, Debug)]
pub(super) struct Adopting {
    until: Instant,
    after: Duration,
    /// Without a link until then.
    card: Option<Net>,
}

/// A guest that was restored and stands where the saved one stood: nobody yet, and without an instruction run. It can wait
/// so for as long as wanted, for [`Standing::wake`] to be quick.
#[derive(Debug)]
pub struct Standing {
    machine: Arc<Machine>,
    stream: Stream,
    console: Console,
    state: AgentState,
    card: Option<Net>,
    balloon: Option<Balloon>,
}

impl Standing {
    /// Makes it, with what `identity` says it stands for on the host and the pages of `working_set` at hand.
    ///
    /// # Errors
    /// Where this host or the directories do not fit, or KVM refuses.
    pub async fn make(
        snapshot: &Snapshot,
        identity: &Identity,
        working_set: Option<&Arc<WorkingSet>>,
    ) -> Result<Self, BootError> {
        let Identity { root, directories, network, .. } = identity;
        let state: AgentState = snapshot.take("").map_err(SnapshotError::from)?;
        if matches!(root, Root::Kept { .. }) {
            return Err(SnapshotError::Refused(NOT_SAVED.into()).into());
        }
        if state.places != Places::of(root, directories, network.is_some()) {
            let reason = format!(
                "its directories and network card are not those of the snapshot, which has {:?}",
                state.places
            );
            return Err(SnapshotError::Refused(reason).into());
        }
        let host = |doing| move |source| BootError::Host { doing, source };
        let vsock = Vsock::new(GUEST_CID).map_err(host("making a vsock device"))?;
        let console = Console::default();
        let (mut devices, ..) = devices(root, directories, network.as_ref(), vsock.clone())?;
        let balloon = balloon(identity.balloon)?;
        devices.extend(balloon.clone().map(Device::Balloon));
        let (from, log) = (snapshot.clone(), Box::new(console.clone()));
        let (set, card) = (working_set.cloned(), network.as_ref().map(|network| network.card.clone()));
        // Under its old address it reaches nobody.
        card.iter().for_each(|card| card.set_link(false));
        // It takes a millisecond or more: not on a thread that serves others.
        let made = tokio::task::spawn_blocking(move || {
            let machine = Machine::restore_with(&from, &devices, log, set.as_deref())?;
            let stream = vsock.take_over(PORT).into_iter().next();
            let stream =
                stream.ok_or_else(|| SnapshotError::Refused("it has no stream to an agent".into()))?;
            machine.start_devices()?;
            Ok::<_, BootError>((machine, stream))
        });
        let made = made.await.map_err(|error| host("making the machine")(std::io::Error::other(error)))?;
        let (machine, stream) = made?;
        Ok(Self { machine: Arc::new(machine), stream, console, state, card, balloon })
    }

    /// Lets it run as `identity`, of which directories, card and balloon were settled when it was made. Whatever is sent to it from now on
    /// it sees after it has become itself; where it cannot, it powers off instead. See [`Guest::become_itself`].
    ///
    /// # Errors
    /// Where KVM refuses.
    pub async fn wake(self, identity: &Identity) -> Result<Guest, BootError> {
        let Self { machine, stream, console, state, card, balloon } = self;
        let AgentState { kernel, commands, places, begun, pending } = state;
        let mut channel = Channel::resume(stream, pending);
        channel.push(to_guest::Message::Adopt(adopt(identity)?));
        // It lies in the stream before the guest's first instruction.
        channel.send_now().await?;
        machine.resume()?;
        let after = identity.patience;
        let adopting = Some(Adopting { until: Instant::now() + after, after, card });
        let stood = Duration::ZERO;
        let kept = false;
        Ok(Guest {
            machine,
            channel,
            console,
            commands,
            kernel,
            places,
            balloon,
            kept,
            begun,
            adopting,
            stood,
        })
    }
}

impl From<SnapshotError> for BootError {
    fn from(error: SnapshotError) -> Self {
        Self::Machine(error.into())
    }
}

/// A guest that could not become itself ran no command.
pub(super) fn not_itself(error: BootError) -> CommandError {
    match error {
        BootError::Channel(error) => CommandError::Channel(error),
        BootError::Ended { end, .. } => CommandError::Ended(end),
        error => CommandError::Agent(error.to_string()),
    }
}

impl Adopting {
    /// Waits until the guest has become itself, for a command that was sent behind its identity.
    pub(super) async fn wait<W: Wire>(
        self,
        channel: &mut W,
        begun: &mut Option<Begun>,
    ) -> Result<(), CommandError> {
        let adopted = tokio::time::timeout_at(self.until.into(), wait_adopted(channel, begun)).await;
        let slow = || CommandError::Agent(format!("the guest did not become itself within {:?}", self.after));
        adopted.map_err(|_| slow())?.map_err(not_itself)
    }
}

fn adopt(identity: &Identity) -> Result<Adopt, BootError> {
    Ok(Adopt {
        entropy: Some(entropy()?),
        clock: Some(clock()),
        hostname: identity.hostname.clone(),
        boot_id: uuid(entropy()?.bytes.first_chunk().copied().unwrap_or_default()),
        machine_id: identity.machine_id.map(|id| hex(&id)).unwrap_or_default(),
        network: identity.network.as_ref().map(Network::message),
    })
}

/// A random UUID (RFC 9562 §5.4) of these bytes.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let [a, b, c, d, e] = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].map(hex);
    format!("{a}-{b}-{c}-{d}-{e}")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The agent's answer. What the waiting command still wrote is kept; what else is said is about commands that ran when the
/// guest was saved, and who started them is not here.
pub(super) async fn wait_adopted<W: Wire>(
    channel: &mut W,
    begun: &mut Option<Begun>,
) -> Result<(), BootError> {
    let excess = || BootError::Setup("the agent sent more than it was granted".into());
    loop {
        let message = channel.next().await?;
        let waiting = |command: u32| begun.as_ref().is_some_and(|begun| begun.number == command);
        match message {
            to_host::Message::Adopted(_) => return Ok(()),
            to_host::Message::Failed(failed) if failed.command == 0 => {
                return Err(BootError::Setup(failed.reason));
            }
            to_host::Message::Output(output) if waiting(output.command) => {
                begun.as_mut().is_some_and(|begun| begun.keep(output)).then_some(()).ok_or_else(excess)?;
            }
            // It ended by itself: then none waits.
            to_host::Message::Exited(exited) if waiting(exited.command) => *begun = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_section_of_an_older_guest_is_read() {
        let state = crate::linux::snapshot::golden::check::<AgentState>("").unwrap();
        assert!(state.begun.is_some() && state.places.layers == 1 && !state.places.network);
        // As it was before guests had network cards.
        let Places { writable, layers, directories, .. } = &state.places;
        let places = (writable, layers, directories);
        let old = (&state.kernel, state.commands, places, &state.pending, &state.begun);
        let bytes = postcard::to_stdvec(&old).unwrap();
        assert_eq!(AgentState::migrate(1, &bytes).unwrap(), state);
        assert!(matches!(AgentState::migrate(0, &bytes), Err(MigrateError::Unsupported)));
    }

    #[test]
    fn a_boot_id_is_a_random_uuid() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn another_set_of_directories_is_another_guest() {
        let directory = |source: &str, target: &str, read_only| Directory {
            source: source.into(),
            target: target.into(),
            read_only,
        };
        let layers = |count| Root::Layers(vec!["/x".into(); count]);
        let one = Places::of(&layers(1), &[directory("/a", "/data", true)], false);
        assert_eq!(one, Places::of(&layers(1), &[directory("/other", "/data", true)], false));
        for other in [
            Places::of(&layers(2), &[directory("/a", "/data", true)], false),
            Places::of(&layers(1), &[directory("/a", "/data", false)], false),
            Places::of(&layers(1), &[], false),
            Places::of(&Root::Writable("/x".into()), &[directory("/a", "/data", true)], false),
            Places::of(&layers(1), &[directory("/a", "/data", true)], true),
        ] {
            assert_ne!(one, other);
        }
    }
}
