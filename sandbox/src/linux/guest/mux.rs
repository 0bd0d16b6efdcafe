//! One guest for many callers: commands side by side, files, pauses and snapshots, all over the one stream to its agent.
//!
//! ```text
//! exec ─ Lane ─┐ (messages of one command)          ┌─ lanes[command]
//! exec ─ Lane ─┼── orders ──> task with the Guest ──┼─ files[request]
//! read, write ─┘                 │                  └─ orphans: nobody's commands, after a restore
//!                                └── stream to the agent
//! ```
//! The task owns the guest; when the last [`Mux`] is gone it ends, and the guest with it. A caller that leaves kills its
//! command. No caller can hold up another for long: what the guest may send of a command is bounded by its credit, and a
//! lane takes messages whenever there are some.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use bytes::Bytes;
use novum_proto::guest::FIRST_CREDIT_BYTES;
use novum_proto::guest::v1::{self, FileReply, FileRequest, file_request, to_guest, to_host};
use novum_snapshot::Digest;
use tokio::sync::{mpsc, oneshot, watch};

use super::channel::{ChannelError, Wire};
use super::run::{self, Control, Done, Streams};
use super::{Command, CommandError, Guest};
use crate::engine::{Input, LogSink, Output};
use crate::kept::Held;
use crate::linux::balloon::Balloon;
use crate::linux::memory::Memory;
use crate::linux::snapshot::private_bytes;
use crate::linux::{End, SnapshotError};

/// Orders that may wait for the task.
const ORDERS: usize = 64;
/// Bytes on their way to a guest above which no more orders are taken.
const MOST_BACKLOG: usize = 1 << 20;
/// Messages that may wait for a command's lane.
const LANE: usize = 64;
/// `SIGKILL`.
const KILL: u32 = 9;

/// Something was asked of a guest that has ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MuxError(pub(crate) String);

/// A file operation failed with this error number of the guest's kernel.
#[derive(Debug)]
pub(crate) enum FileFailed {
    Errno(i32),
    Gone(MuxError),
}

/// A guest in a store, with the commands that ran in it.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) digest: Digest,
    pub(crate) commands: Vec<u32>,
}

/// What is to go into the stream: taken only while the guest reads it.
enum Order {
    /// A command's lane begins.
    Open {
        number: u32,
        to: mpsc::Sender<to_host::Message>,
    },
    Send(to_guest::Message),
    File(FileRequest, oneshot::Sender<FileReply>),
}

/// What is done to the guest, whether it reads or not.
enum Act {
    /// A command's caller is gone.
    Close(u32),
    Pause(bool, oneshot::Sender<Result<(), SnapshotError>>),
    Save(Arc<Held>, oneshot::Sender<Result<Saved, SnapshotError>>),
}

/// See the module.
pub(crate) struct Mux {
    orders: mpsc::Sender<Order>,
    acts: mpsc::Sender<Act>,
    commands: AtomicU32,
    requests: AtomicU32,
    memory: std::sync::Weak<Memory>,
    balloon: Option<Balloon>,
    end: watch::Receiver<Option<String>>,
}

impl Mux {
    /// Takes a guest over. `orphans` are commands that run in it and belong to nobody: their input ends, their output is
    /// thrown away.
    pub(crate) fn new(guest: Guest, orphans: &[u32]) -> Self {
        let (orders, received) = mpsc::channel(ORDERS);
        let (acts, acted) = mpsc::channel(ORDERS);
        let (ended, end) = watch::channel(None);
        let balloon = guest.balloon.clone();
        let (memory, commands) = (guest.memory(), AtomicU32::new(guest.commands));
        let mut task = Task {
            guest,
            lanes: BTreeMap::new(),
            orphans: orphans.iter().copied().collect(),
            files: BTreeMap::new(),
            paused: false,
        };
        tokio::spawn(async move {
            task.adopt();
            if let Some(how) = task.serve(received, acted).await {
                // Nobody may be left to hear it.
                let _ = ended.send(Some(how));
            }
        });
        Self { orders, acts, commands, requests: AtomicU32::new(0), memory, balloon, end }
    }

    /// Runs a command to its end. Giving the future up kills it.
    pub(crate) async fn run(
        &self,
        command: &Command,
        (input, output, error): (mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>, mpsc::Sender<Bytes>),
        control: mpsc::Receiver<Control>,
        begun: oneshot::Sender<()>,
        deadline: Instant,
    ) -> Result<Done, CommandError> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let lane = Lane::open(number, self.orders.clone(), self.acts.clone()).await;
        let mut lane = lane.map_err(|error| self.gone(error))?;
        let streams = Streams {
            input: Input::Stream(input),
            output: Output::Stream(output),
            log: Arc::new(Nowhere),
            control: Some(control),
            deadline,
        };
        let done = run::run_piped(&mut lane, number, command, streams, error, begun).await;
        if matches!(done, Ok(_) | Err(CommandError::NotStarted { .. })) {
            lane.over = true;
        }
        done.map_err(|error| self.gone(error))
    }

    /// Where the stream broke because the guest ended, that says more.
    fn gone(&self, error: CommandError) -> CommandError {
        match (&error, &*self.end.borrow()) {
            (CommandError::Channel(_), Some(how)) => CommandError::Agent(how.clone()),
            _ => error,
        }
    }

    /// Reads or writes a piece of a file.
    pub(crate) async fn file(&self, path: &str, what: file_request::What) -> Result<FileReply, FileFailed> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let request = FileRequest { request, path: path.to_owned(), what: Some(what) };
        let (to, reply) = oneshot::channel();
        let gone = || FileFailed::Gone(self.why());
        self.orders.send(Order::File(request, to)).await.map_err(|_| gone())?;
        let reply = reply.await.map_err(|_| gone())?;
        match reply.errno {
            0 => Ok(reply),
            errno => Err(FileFailed::Errno(errno as i32)),
        }
    }

    /// Stops the guest, or lets it go on.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<Result<(), SnapshotError>, MuxError> {
        let (to, done) = oneshot::channel();
        self.acts.send(Act::Pause(paused, to)).await.map_err(|_| self.why())?;
        done.await.map_err(|_| self.why())
    }

    /// Saves the guest under the held name, which refers to the snapshot from its first moment on.
    pub(crate) async fn save(&self, held: &Arc<Held>) -> Result<Result<Saved, SnapshotError>, MuxError> {
        let (to, saved) = oneshot::channel();
        self.acts.send(Act::Save(held.clone(), to)).await.map_err(|_| self.why())?;
        saved.await.map_err(|_| self.why())
    }

    /// The host's side of its balloon.
    pub(crate) fn balloon(&self) -> Option<&Balloon> {
        self.balloon.as_ref()
    }

    fn why(&self) -> MuxError {
        MuxError(self.end.borrow().clone().unwrap_or_else(|| "the guest has ended".into()))
    }

    /// Returns how the guest ended, when it does.
    pub(crate) async fn ended(&self) -> String {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "its task has died".into(),
        }
    }

    /// Bytes of its memory that are its own, not shared with a snapshot or the kernel's file.
    pub(crate) fn private_bytes(&self) -> u64 {
        self.memory.upgrade().map_or(0, |memory| private_bytes(&memory))
    }
}

/// Standard error goes into a stream.
struct Nowhere;

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

/// One command's part of the stream.
struct Lane {
    number: u32,
    orders: mpsc::Sender<Order>,
    acts: mpsc::Sender<Act>,
    /// Messages that the task had no room for yet.
    waiting: std::collections::VecDeque<to_guest::Message>,
    messages: mpsc::Receiver<to_host::Message>,
    /// The command has ended.
    over: bool,
}

impl Lane {
    async fn open(
        number: u32,
        orders: mpsc::Sender<Order>,
        acts: mpsc::Sender<Act>,
    ) -> Result<Self, CommandError> {
        let (to, messages) = mpsc::channel(LANE);
        let opened = orders.send(Order::Open { number, to }).await;
        opened.map_err(|_| CommandError::Channel(ChannelError::Closed))?;
        Ok(Self { number, orders, acts, waiting: Default::default(), messages, over: false })
    }
}

impl Wire for Lane {
    fn push(&mut self, message: to_guest::Message) {
        self.waiting.push_back(message);
    }

    async fn next(&mut self) -> Result<to_host::Message, ChannelError> {
        loop {
            let room = async {
                if self.waiting.is_empty() {
                    std::future::pending().await
                } else {
                    self.orders.reserve().await
                }
            };
            tokio::select! {
                biased;
                message = self.messages.recv() => return message.ok_or(ChannelError::Closed),
                room = room => match (room, self.waiting.pop_front()) {
                    (Ok(room), Some(message)) => room.send(Order::Send(message)),
                    _ => return Err(ChannelError::Closed),
                },
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(act)) = self.acts.try_send(Act::Close(self.number))
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let acts = self.acts.clone();
            runtime.spawn(async move { acts.send(act).await.is_ok() });
        }
    }
}

/// The guest and who waits for what of it.
struct Task {
    guest: Guest,
    lanes: BTreeMap<u32, mpsc::Sender<to_host::Message>>,
    orphans: BTreeSet<u32>,
    files: BTreeMap<u32, oneshot::Sender<FileReply>>,
    paused: bool,
}

impl Task {
    /// Orphans get no more input, and may write without end.
    fn adopt(&mut self) {
        for &command in &self.orphans {
            let end = v1::Input { command, data: Vec::new(), end: true };
            self.guest.channel.push(to_guest::Message::Input(end));
            for stream in [v1::Stream::Output, v1::Stream::Error] {
                let credit = v1::Credit { command, stream: stream.into(), bytes: FIRST_CREDIT_BYTES };
                self.guest.channel.push(to_guest::Message::Credit(credit));
            }
        }
    }

    /// Until the guest ends, which is told, or nobody wants anything of it any more.
    async fn serve(
        &mut self,
        mut orders: mpsc::Receiver<Order>,
        mut acts: mpsc::Receiver<Act>,
    ) -> Option<String> {
        let machine = self.guest.machine.clone();
        loop {
            // A guest that grants credit and does not read must not fill the host's memory.
            let takes = self.guest.channel.backlog() < MOST_BACKLOG;
            tokio::select! {
                biased;
                end = machine.ended() => return Some(self.told(&end)),
                message = self.guest.channel.next() => match message {
                    Ok(message) => {
                        if let Some(how) = self.receive(message).await {
                            return Some(how);
                        }
                    }
                    Err(error) => {
                        let end = machine.end_now();
                        return Some(end.map_or_else(|| error.to_string(), |end| self.told(&end)));
                    }
                },
                act = acts.recv() => self.act(act?).await,
                order = orders.recv(), if takes => self.obey(order?),
            }
        }
    }

    fn told(&self, end: &End) -> String {
        let console = self.guest.console();
        if console.is_empty() {
            end.to_string()
        } else {
            format!("{end}; its console ended with:\n{console}")
        }
    }

    async fn receive(&mut self, message: to_host::Message) -> Option<String> {
        use to_host::Message;
        let command = match &message {
            Message::File(reply) => {
                if let Some(to) = self.files.remove(&reply.request)
                    && let Message::File(reply) = message
                {
                    // Who asked may have left.
                    let _ = to.send(reply);
                }
                return None;
            }
            Message::Started(started) => started.command,
            Message::Output(output) => output.command,
            Message::Credit(credit) => credit.command,
            Message::Exited(exited) => exited.command,
            Message::Waiting(waiting) => waiting.command,
            Message::Failed(failed) if failed.command == 0 => return Some(failed.reason.clone()),
            Message::Failed(failed) => failed.command,
            Message::Hello(_) | Message::Ready(_) => return Some("its agent began anew".into()),
            Message::Adopted(_) => return None,
        };
        let over = matches!(message, Message::Exited(_) | Message::Failed(_));
        if self.orphans.contains(&command) {
            self.discard(command, &message);
        } else if let Some(lane) = self.lanes.get(&command) {
            // A lane that is gone wants nothing.
            let _ = lane.send(message).await;
        }
        if over {
            self.lanes.remove(&command);
            self.orphans.remove(&command);
        }
        None
    }

    /// What nobody reads: it may go on.
    fn discard(&mut self, command: u32, message: &to_host::Message) {
        if let to_host::Message::Output(output) = message {
            let credit = v1::Credit { command, stream: output.stream, bytes: output.data.len() as u32 };
            self.guest.channel.push(to_guest::Message::Credit(credit));
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            // Its caller may have left meanwhile, which was told before this.
            Order::Open { to, .. } if to.is_closed() => {}
            Order::Open { number, to } => {
                self.lanes.insert(number, to);
                self.guest.commands = self.guest.commands.max(number);
            }
            Order::Send(to_guest::Message::Start(start)) if !self.lanes.contains_key(&start.command) => {}
            Order::Send(message) => self.guest.channel.push(message),
            Order::File(request, to) => {
                self.files.insert(request.request, to);
                self.guest.channel.push(to_guest::Message::File(request));
            }
        }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Close(number) => {
                if self.lanes.remove(&number).is_some() {
                    let kill = v1::Signal { command: number, number: KILL };
                    self.guest.channel.push(to_guest::Message::Signal(kill));
                    // Its last words are in the way of nobody.
                    self.orphans.insert(number);
                }
            }
            Act::Pause(paused, to) => {
                let done = self.set_paused(paused).await;
                let _ = to.send(done);
            }
            Act::Save(held, to) => {
                let store = held.store().clone();
                let digest = self.guest.save(&store, Some(held), self.paused).await;
                let commands = self.lanes.keys().chain(&self.orphans).copied().collect();
                let _ = to.send(digest.map(|digest| Saved { digest, commands }));
            }
        }
    }

    async fn set_paused(&mut self, paused: bool) -> Result<(), SnapshotError> {
        if self.paused == paused {
            return Ok(());
        }
        let machine = self.guest.machine.clone();
        let change = move || if paused { machine.pause() } else { machine.resume() };
        // It takes milliseconds: not on a thread that serves others.
        let changed = tokio::task::spawn_blocking(change).await;
        changed.unwrap_or_else(|error| {
            Err(SnapshotError::Host { doing: "pausing the guest", source: std::io::Error::other(error) })
        })?;
        self.paused = paused;
        Ok(())
    }
}
