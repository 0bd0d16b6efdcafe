//! A guest with the agent in it: boot to readiness, then commands.
//!
//! ```text
//! Guest::boot ── Machine (kernel, initramfs = agent, 9p for each directory, vsock, rng)
//!      │            └─ agent connects: Hello -> Setup -> Ready
//!      └ run ────── one command: run.rs over channel.rs
//! ```

pub(crate) mod channel;
mod kernel;
mod known;
mod mux;
mod network;
mod run;
mod snapshot;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use novum_proto::guest::v1::{self, Setup, to_guest, to_host};
use novum_proto::guest::{PORT, PROTOCOL};
use parking_lot::Mutex;

use super::balloon::Balloon;
use super::boot::{BootSource, EntryKind, Initramfs};
use super::vsock::{Stream, Vsock};
use super::{Device, End, Error, Machine, MachineConfig};
use crate::share::{Access, Share, UpperError};
use channel::{Channel, ChannelError};

pub use kernel::{Kernel, KernelMissing};
pub(crate) use known::{Known, known};
pub(crate) use mux::{FileFailed, Mux, MuxError, Saved};
pub use network::{Address, Network};
pub use run::{CommandEnd, Control, Done, Streams};
pub(crate) use snapshot::NOT_SAVED;
use snapshot::{Adopting, Places};
pub use snapshot::{Identity, Standing};

/// Address of a guest on its own vsock; every guest has a device of its own.
const GUEST_CID: u64 = 3;
/// Random bytes for the guest's generator.
const ENTROPY_BYTES: usize = 64;
/// How much of the console's end a report repeats.
const CONSOLE_TAIL_BYTES: usize = 2048;
/// Where the root's layers and the other directories have their mount tags from.
const LAYER: &str = "layer";
const SHARE: &str = "share";
/// The tag of the directory that keeps what the guest writes to its root.
const UPPER: &str = "upper";

/// The root file system of a guest.
#[derive(Clone, Debug)]
pub enum Root {
    /// These directories, read-only; an earlier one hides what a later one has. On top lies a tmpfs of the guest.
    Layers(Vec<PathBuf>),
    /// Layers as above, and on top instead of the tmpfs a directory that keeps what the guest writes, for its next run. No
    /// other guest can use that directory meanwhile, and this guest cannot be saved.
    Kept {
        /// Read-only, topmost first.
        layers: Vec<PathBuf>,
        /// Takes what is written (`share/upper.rs`).
        upper: PathBuf,
    },
    /// This directory, which the guest writes to.
    Writable(PathBuf),
}

/// A host directory in the guest.
#[derive(Clone, Debug)]
pub struct Directory {
    /// On the host.
    pub source: PathBuf,
    /// Absolute path in the guest.
    pub target: String,
    /// The guest only reads.
    pub read_only: bool,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its memory, a multiple of 4096.
    pub memory_bytes: u64,
    /// Its processors.
    pub vcpus: u8,
    /// Its root.
    pub root: Root,
    /// More directories, mounted in this order.
    pub directories: Vec<Directory>,
    /// Its host name.
    pub hostname: String,
    /// What its `/etc/machine-id` says; its root's where `None`.
    pub machine_id: Option<[u8; 16]>,
    /// Its network card.
    pub network: Option<Network>,
    /// It has a balloon: its memory can be resized while it runs, and what it frees goes back to the host.
    pub balloon: bool,
    /// How long it may take until its agent is ready.
    pub patience: Duration,
}

/// A guest could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A directory of the host cannot be shared.
    #[error("sharing the directory {}", path.display())]
    Share {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustix::io::Errno,
    },
    /// A directory cannot keep what the guest writes to its root.
    #[error("the directory {} cannot keep what is written to the root", path.display())]
    Upper {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: UpperError,
    },
    /// A layer of the root would change under the guest.
    #[error("{} cannot keep what is written to the root: it and the layer {} lie in each other", path.display(), layer.display())]
    UpperInLayer {
        /// What was to be the upper layer.
        path: PathBuf,
        /// The layer.
        layer: PathBuf,
    },
    /// The machine could not be made.
    #[error("making the machine")]
    Machine(#[from] Error),
    /// The host has no resources for it.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It ended before its agent was ready.
    #[error("{end} before its agent was ready; its console ended with:\n{console}")]
    Ended {
        /// How.
        end: End,
        /// The console's last lines.
        console: String,
    },
    /// Its agent was not ready in time.
    #[error("the guest's agent was not ready after {after:?}; its console ended with:\n{console}")]
    TooSlow {
        /// How long that was.
        after: Duration,
        /// The console's last lines.
        console: String,
    },
    /// Its agent speaks another protocol.
    #[error("the guest's agent speaks protocol {0}, not {PROTOCOL}; it is not the one of this build")]
    Protocol(u32),
    /// Its agent could not do what the guest was to become.
    #[error("the guest could not be set up: {0}")]
    Setup(String),
    /// The stream to the agent broke.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// A command did not come to its own end.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("{reason}")]
    NotStarted {
        /// Why.
        reason: String,
        /// What the guest's kernel said, 0 where it said nothing.
        errno: u32,
    },
    /// The deadline passed.
    #[error("the deadline passed after {after:?}")]
    Deadline {
        /// How long it ran.
        after: Duration,
    },
    /// It wrote more than is collected.
    #[error("it wrote more than {limit_bytes} bytes")]
    OutputLimit {
        /// The limit.
        limit_bytes: usize,
    },
    /// Who wanted its output went away.
    #[error("its reader went away")]
    Cancelled,
    /// The guest ended under it.
    #[error("{0}")]
    Ended(End),
    /// The agent broke the protocol, or said that the guest is of no use.
    #[error("the agent in the guest failed: {0}")]
    Agent(String),
    /// The stream to the agent broke.
    #[error(transparent)]
    Channel(ChannelError),
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl TerminalSize {
    fn message(self) -> v1::Terminal {
        v1::Terminal { rows: self.rows.into(), columns: self.columns.into() }
    }
}

/// Who a command runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// A limit of setrlimit(2): `RLIMIT_*`, soft, hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// A command to run in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; a name without a slash is looked for in `PATH` of `env`.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// Where it begins; `/` where empty.
    pub working_directory: String,
    /// Who runs it.
    pub user: User,
    /// Its limits.
    pub limits: Vec<Limit>,
    /// A terminal instead of pipes.
    pub terminal: Option<TerminalSize>,
}

impl Command {
    fn message(&self, number: u32) -> v1::Start {
        let limit =
            |limit: &Limit| v1::Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard };
        v1::Start {
            command: number,
            args: self.args.clone(),
            env: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            working_directory: self.working_directory.clone(),
            user: Some(v1::User { uid: self.user.uid, gid: self.user.gid, groups: self.user.groups.clone() }),
            limits: self.limits.iter().map(limit).collect(),
            terminal: self.terminal.map(TerminalSize::message),
            tell_waiting: false,
        }
    }
}

/// A guest whose agent is ready. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    machine: Arc<Machine>,
    channel: Channel<Stream>,
    console: Console,
    commands: u32,
    kernel: String,
    places: Places,
    balloon: Option<Balloon>,
    /// What it writes to its root is kept in a directory of the host.
    kept: bool,
    /// The command that waited for its input when the guest was saved.
    begun: Option<run::Begun>,
    /// It was told who it is, and has not answered yet.
    adopting: Option<Adopting>,
    /// How long it stood when it was saved last.
    stood: Duration,
}

impl Guest {
    /// Boots it.
    ///
    /// # Errors
    /// Where a directory or the kernel cannot be used, KVM refuses, or the guest does not come up.
    pub async fn boot(config: GuestConfig) -> Result<Self, BootError> {
        let host = |doing| move |source| BootError::Host { doing, source };
        let vsock = Vsock::new(GUEST_CID).map_err(host("making a vsock device"))?;
        let mut listener = vsock.listen(PORT).map_err(host("listening for the agent"))?;
        let console = Console::default();
        let balloon = balloon(config.balloon)?;
        let (machine, setup) = machine(&config, vsock, balloon.as_ref(), &console)?;
        // Making a machine takes milliseconds: not on a thread that serves others.
        let machine = tokio::task::spawn_blocking(move || Machine::boot(machine)).await;
        let machine = machine.map_err(|error| BootError::Host {
            doing: "making the machine",
            source: std::io::Error::other(error),
        })??;
        let ready = async {
            tokio::select! {
                end = machine.ended() => Err(BootError::Ended { end, console: console.tail() }),
                ready = get_ready(&mut listener, setup) => ready,
            }
        };
        let after = config.patience;
        let (channel, kernel) = tokio::time::timeout(after, ready)
            .await
            .unwrap_or_else(|_| Err(BootError::TooSlow { after, console: console.tail() }))?;
        let places = Places::of(&config.root, &config.directories, config.network.is_some());
        let machine = Arc::new(machine);
        Ok(Self {
            machine,
            channel,
            console,
            commands: 0,
            kernel,
            places,
            balloon,
            kept: matches!(config.root, Root::Kept { .. }),
            begun: None,
            adopting: None,
            stood: Duration::ZERO,
        })
    }

    /// Runs a command to its end. Giving the future up, or an error, leaves the command running: end the guest then.
    ///
    /// # Errors
    /// Where it does not come to its own end.
    pub async fn run(&mut self, command: &Command, streams: Streams) -> Result<Done, CommandError> {
        self.plug_in().await?;
        self.commands += 1;
        let (number, adopting) = (self.commands, self.adopting.clone());
        let done = tokio::select! {
            biased;
            done = run::run(&mut self.channel, number, command, streams, adopting) => match done {
                // A guest that dies takes the stream with it; that it died says more.
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

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.machine.end_now().is_none()
    }

    /// The version of its kernel, as the guest says it.
    #[must_use]
    pub fn kernel_release(&self) -> &str {
        &self.kernel
    }

    /// The last lines of its console.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.tail()
    }

    /// Asks the agent to power the guest off, and waits until it has ended.
    pub async fn power_off(mut self) -> End {
        self.channel.push(to_guest::Message::PowerOff(v1::PowerOff {}));
        loop {
            tokio::select! {
                end = self.machine.ended() => return end,
                // Output of commands that it ends; the stream's own end comes first.
                message = self.channel.next() => if message.is_err() { return self.machine.ended().await },
            }
        }
    }

    /// Pages of its memory that the host has filled.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.machine.resident_bytes()
    }

    /// For whoever counts the memory while the guest lives.
    pub(crate) fn memory(&self) -> std::sync::Weak<super::memory::Memory> {
        self.machine.memory()
    }
}

/// A balloon where one is asked for.
fn balloon(wanted: bool) -> Result<Option<Balloon>, BootError> {
    let balloon = wanted.then(Balloon::new).transpose();
    balloon.map_err(|source| BootError::Host { doing: "making a balloon", source })
}

/// The devices in their order, and by which tags the agent finds the directories.
fn devices(
    root: &Root,
    directories: &[Directory],
    network: Option<&Network>,
    vsock: Vsock,
) -> Result<(Vec<Device>, v1::Root, Vec<v1::Mount>), BootError> {
    let mut devices = vec![Device::Vsock(vsock), Device::Rng];
    let mut share = |path: &PathBuf, access, tag: String| {
        let share = Share::open_dir(path, access);
        let share = share.map_err(|source| BootError::Share { path: path.clone(), source })?;
        devices.push(Device::P9 { tag: tag.clone(), share: Arc::new(share) });
        Ok::<_, BootError>(tag)
    };
    let mut told = v1::Root::default();
    match root {
        Root::Writable(path) => told.writable = share(path, Access::ReadWrite, format!("{LAYER}0"))?,
        Root::Layers(paths) | Root::Kept { layers: paths, .. } => {
            for (index, path) in paths.iter().enumerate() {
                told.layers.push(share(path, Access::ReadOnly, format!("{LAYER}{index}"))?);
            }
        }
    }
    let mut mounts = Vec::new();
    for (index, Directory { source, target, read_only }) in directories.iter().enumerate() {
        let access = if *read_only { Access::ReadOnly } else { Access::ReadWrite };
        let tag = share(source, access, format!("{SHARE}{index}"))?;
        mounts.push(v1::Mount { tag, target: target.clone(), read_only: *read_only });
    }
    if let Root::Kept { layers, upper } = root {
        told.upper = UPPER.into();
        devices.push(Device::Fs { tag: UPPER.into(), share: Arc::new(open_upper(upper, layers)?) });
    }
    devices.extend(network.map(|network| Device::Net(network.card.clone())));
    Ok((devices, told, mounts))
}

/// The directory that keeps what the guest writes; neither it nor a layer may lie in the other.
fn open_upper(upper: &Path, layers: &[PathBuf]) -> Result<Share, BootError> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let place = real(upper);
    let inside = |layer: &&PathBuf| {
        let layer = real(layer);
        place.starts_with(&layer) || layer.starts_with(&place)
    };
    if let Some(layer) = layers.iter().find(inside) {
        return Err(BootError::UpperInLayer { path: upper.to_owned(), layer: layer.clone() });
    }
    Share::open_upper(upper).map_err(|source| BootError::Upper { path: upper.to_owned(), source })
}

/// What the machine and the agent are told.
fn machine(
    config: &GuestConfig,
    vsock: Vsock,
    balloon: Option<&Balloon>,
    console: &Console,
) -> Result<(MachineConfig, Setup), BootError> {
    let (mut devices, root, mounts) =
        devices(&config.root, &config.directories, config.network.as_ref(), vsock)?;
    devices.extend(balloon.cloned().map(Device::Balloon));
    let setup = Setup {
        root: Some(root),
        mounts,
        hostname: config.hostname.clone(),
        clock: Some(clock()),
        entropy: Some(entropy()?),
        network: config.network.as_ref().map(Network::message),
        machine_id: config.machine_id.map(|id| snapshot::hex(&id)).unwrap_or_default(),
    };
    let mut initramfs = vec![Initramfs::Program(novum_agent_image::initramfs())];
    initramfs.extend(config.kernel.modules.clone().map(Initramfs::File));
    let boot = BootSource {
        kernel: config.kernel.image.clone(),
        initramfs,
        command_line: COMMAND_LINE.into(),
        entry: EntryKind::Linux64,
    };
    let console = Box::new(console.clone());
    let (memory_bytes, vcpus) = (config.memory_bytes, config.vcpus);
    Ok((MachineConfig { boot, memory_bytes, vcpus, pit: false, console, devices }, setup))
}

/// What every guest's kernel is told:
/// - little to say on the console (every byte is an exit), a panic that resets at once;
/// - nothing to look for that is not there;
/// - memory that stays untouched, because each page that is touched first costs an exit, and a page of the kernel's file that
///   is written a copy: no patching of lock prefixes for one processor (`noreplace-smp`), no 2 MiB for the variables of a
///   processor, which are 160 KiB (`percpu_alloc`), no clearing of the initramfs.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k tsc=reliable no_timer_check i8042.nokbd pci=off \
                            random.trust_cpu=on noreplace-smp percpu_alloc=page retain_initrd";

fn clock() -> v1::Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    v1::Clock { nanoseconds: now.as_nanos() as u64 }
}

fn entropy() -> Result<v1::Entropy, BootError> {
    let mut bytes = vec![0; ENTROPY_BYTES];
    // So few bytes are never cut short.
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| BootError::Host { doing: "drawing random bytes", source: errno.into() })?;
    Ok(v1::Entropy { bytes })
}

/// The agent's part of the boot, from its Hello to its Ready.
async fn get_ready(
    listener: &mut super::vsock::Listener,
    mut setup: Setup,
) -> Result<(Channel<Stream>, String), BootError> {
    let mut channel = Channel::new(listener.accept().await);
    let unexpected = || BootError::Setup("the agent sent a message out of turn".into());
    let to_host::Message::Hello(hello) = channel.next().await? else { return Err(unexpected()) };
    if hello.protocol != PROTOCOL {
        return Err(BootError::Protocol(hello.protocol));
    }
    setup.clock = Some(clock());
    channel.push(to_guest::Message::Setup(setup));
    match channel.next().await? {
        to_host::Message::Ready(_) => Ok((channel, hello.kernel)),
        to_host::Message::Failed(failed) => Err(BootError::Setup(failed.reason)),
        _ => Err(unexpected()),
    }
}

/// The end of what the kernel wrote to its console.
#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn tail(&self) -> String {
        let bytes = self.0.lock();
        let start = bytes.len().saturating_sub(CONSOLE_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[start..]).trim().replace('\r', "")
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self.0.lock();
        kept.extend_from_slice(bytes);
        if kept.len() > 2 * CONSOLE_TAIL_BYTES {
            let old = kept.len() - CONSOLE_TAIL_BYTES;
            kept.drain(..old);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
