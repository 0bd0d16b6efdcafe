//! One command in a guest, from start to end: its streams, with credit in both directions, and what can cut it short.
//!
//! ```text
//! Input ── credit of the guest ──> Input messages ──> agent ──> standard input
//! Output <── room in the channel ── Output messages <── agent <── standard output    (then a Credit goes back)
//! ```
//! Of what the guest sends, at most the credit that it was given is kept; more than that breaks the run off.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_proto::guest::v1::{self, Credit, Exited, Stream, exited, to_guest, to_host};
use novum_proto::guest::{FIRST_CREDIT_BYTES, GRANT_AFTER_BYTES, MOST_PIECE_BYTES};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Receiver, Sender};

use super::channel::{ChannelError, Wire};
use super::snapshot::Adopting;
use super::{Command, CommandError};
use crate::engine::{Input, LogSink, Output};

/// What a command reads and writes, and what may end it early.
pub struct Streams {
    /// Standard input.
    pub input: Input,
    /// Standard output; a terminal's too.
    pub output: Output,
    /// Standard error.
    pub log: Arc<dyn LogSink>,
    /// What is done to the command meanwhile.
    pub control: Option<Receiver<Control>>,
    /// When it is given up.
    pub deadline: Instant,
}

/// What can be done to a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Send this signal to its process group.
    Signal(u32),
    /// Its terminal has this size now.
    Resize(super::TerminalSize),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// With this exit code.
    Code(u32),
    /// By this signal.
    Signal(u32),
}

/// What a command came to.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub end: CommandEnd,
    /// Its output, where it was collected.
    pub output: Vec<u8>,
    /// From the start to the end.
    pub run: Duration,
    /// From asking for the start to hearing that the command runs.
    pub started: Duration,
    /// From the start to the first byte of output.
    pub first_byte: Option<Duration>,
}

/// Runs `command`, which the guest knows as `number`. Giving the future up leaves the command running in the guest. A guest
/// that is `adopting` its identity has it behind that, and nothing of it counts before the guest has become itself.
pub(super) async fn run<W: Wire>(
    channel: &mut W,
    number: u32,
    command: &Command,
    streams: Streams,
    adopting: Option<Adopting>,
) -> Result<Done, CommandError> {
    let mut run = Run::new(channel, number, streams);
    run.channel.push(to_guest::Message::Start(command.message(number)));
    run.send_input();
    run.become_itself(adopting, &mut None).await?;
    run.finish().await
}

/// As [`run`], with standard error as a stream of its own; `begun` is told when the command runs.
pub(super) async fn run_piped<W: Wire>(
    channel: &mut W,
    number: u32,
    command: &Command,
    streams: Streams,
    error: Sender<Bytes>,
    begun: tokio::sync::oneshot::Sender<()>,
) -> Result<Done, CommandError> {
    let mut run = Run::new(channel, number, streams);
    run.sinks[1] = Sink::stream(error);
    run.tell_begun = Some(begun);
    run.channel.push(to_guest::Message::Start(command.message(number)));
    run.finish().await
}

/// A command that waits for its input: how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) number: u32,
    /// Credit of standard output and standard error that the guest has left.
    left: [usize; 2],
    output: Vec<u8>,
    log: Vec<u8>,
}

impl Begun {
    /// Keeps output that came after the command was said to wait; false where it was more than was granted.
    pub(super) fn keep(&mut self, output: v1::Output) -> bool {
        let error = output.stream() == Stream::Error;
        let left = &mut self.left[usize::from(error)];
        let Some(rest) = left.checked_sub(output.data.len()) else { return false };
        *left = rest;
        let to = if error { &mut self.log } else { &mut self.output };
        to.extend(output.data);
        true
    }
}

/// Most bytes that a command may write before it waits for its input.
const MOST_BEGUN_BYTES: usize = 1 << 20;

/// Starts `command` and waits until it waits for its input; `None` where it ends without.
pub(super) async fn begin<W: Wire>(
    channel: &mut W,
    number: u32,
    command: &Command,
    deadline: Instant,
) -> Result<Option<Begun>, CommandError> {
    let log = Arc::new(Kept::default());
    let (_open, input) = tokio::sync::mpsc::channel(1);
    let streams = Streams {
        input: Input::Stream(input),
        output: Output::Collect { limit_bytes: MOST_BEGUN_BYTES },
        log: log.clone(),
        control: None,
        deadline,
    };
    let mut run = Run::new(channel, number, streams);
    let start = v1::Start { tell_waiting: true, ..command.message(number) };
    run.channel.push(to_guest::Message::Start(start));
    while !run.waiting {
        if run.step().await?.is_some() {
            return Ok(None);
        }
    }
    let (left, output) = (run.left, std::mem::take(&mut run.collected));
    let log = std::mem::take(&mut *log.0.lock());
    Ok(Some(Begun { number, left, output, log }))
}

/// Goes on with the command that waits for its input, as [`run`] does with a new one.
pub(super) async fn go_on<W: Wire>(
    channel: &mut W,
    waiting: &mut Option<Begun>,
    streams: Streams,
    adopting: Option<Adopting>,
) -> Result<Done, CommandError> {
    let none = || CommandError::Agent("no command waits for its input".into());
    let number = waiting.as_ref().map(|begun| begun.number).ok_or_else(none)?;
    let mut run = Run::new(channel, number, streams);
    run.send_input();
    run.become_itself(adopting, waiting).await?;
    let begun = waiting.take().ok_or_else(none)?;
    if let (Sink::Log(log), false) = (&run.sinks[1], begun.log.is_empty()) {
        log.write(&begun.log);
    }
    // What it wrote before it waited is the first of this run's output; its credit is accounted for.
    run.left[0] = begun.left[0] + begun.output.len();
    run.left[1] = begun.left[1];
    run.take(Stream::Output, begun.output)?;
    run.finish().await
}

/// A log that is kept.
#[derive(Default)]
struct Kept(Mutex<Vec<u8>>);

impl LogSink for Kept {
    fn write(&self, bytes: &[u8]) {
        let mut kept = self.0.lock();
        let room = MOST_BEGUN_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

struct Run<'a, W> {
    channel: &'a mut W,
    number: u32,
    input: Option<Receiver<Bytes>>,
    /// Input that is not sent yet.
    pending: Bytes,
    /// Whether the end of the input is still to be told.
    end_due: bool,
    input_credit: usize,
    /// Of standard output and standard error.
    sinks: [Sink; 2],
    /// Credit of the two that the guest has left.
    left: [usize; 2],
    control: Option<Receiver<Control>>,
    deadline: Instant,
    begun: Instant,
    started: Duration,
    collected: Vec<u8>,
    first_byte: Option<Duration>,
    /// It has said that it waits for its input.
    waiting: bool,
    /// Wants to know when the command runs.
    tell_begun: Option<tokio::sync::oneshot::Sender<()>>,
}

enum Sink {
    Collect { limit_bytes: usize },
    Stream { to: Sender<Bytes>, waiting: VecDeque<Bytes> },
    Log(Arc<dyn LogSink>),
}

impl Sink {
    fn stream(to: Sender<Bytes>) -> Self {
        Self::Stream { to, waiting: VecDeque::new() }
    }

    /// Room for a piece that waits; false where the reader is gone.
    async fn room(&self) -> bool {
        match self {
            Self::Stream { to, waiting } if !waiting.is_empty() => to.reserve().await.is_ok(),
            // The reader went away while there was nothing for it.
            Self::Stream { to, .. } => {
                to.closed().await;
                false
            }
            Self::Collect { .. } | Self::Log(_) => std::future::pending().await,
        }
    }

    /// Bytes that wait for their reader.
    fn kept(&self) -> usize {
        match self {
            Self::Stream { waiting, .. } => waiting.iter().map(Bytes::len).sum(),
            Self::Collect { .. } | Self::Log(_) => 0,
        }
    }
}

/// What a step woke up for.
enum Event {
    Message(Box<to_host::Message>),
    Input(Option<Bytes>),
    /// In the sink of this number.
    Room(usize),
    Control(Option<Control>),
}

impl<'a, W: Wire> Run<'a, W> {
    fn new(channel: &'a mut W, number: u32, streams: Streams) -> Self {
        let (pending, input) = match streams.input {
            Input::Bytes(bytes) => (bytes, None),
            Input::Stream(receiver) => (Bytes::new(), Some(receiver)),
        };
        let sink = match streams.output {
            Output::Collect { limit_bytes } => Sink::Collect { limit_bytes },
            Output::Stream(to) => Sink::stream(to),
        };
        Self {
            channel,
            number,
            input,
            pending,
            end_due: true,
            input_credit: FIRST_CREDIT_BYTES as usize,
            sinks: [sink, Sink::Log(streams.log)],
            left: [FIRST_CREDIT_BYTES as usize; 2],
            control: streams.control,
            deadline: streams.deadline,
            begun: Instant::now(),
            started: Duration::ZERO,
            collected: Vec::new(),
            first_byte: None,
            waiting: false,
            tell_begun: None,
        }
    }

    async fn become_itself(
        &mut self,
        adopting: Option<Adopting>,
        waiting: &mut Option<Begun>,
    ) -> Result<(), CommandError> {
        let Some(adopting) = adopting else { return Ok(()) };
        let (deadline, begun) = (self.deadline, self.begun);
        let adopted = adopting.wait(self.channel, waiting);
        let late = |_| CommandError::Deadline { after: begun.elapsed() };
        tokio::time::timeout_at(deadline.into(), adopted).await.map_err(late)?
    }

    async fn finish(mut self) -> Result<Done, CommandError> {
        let end = loop {
            if let Some(end) = self.step().await? {
                break end;
            }
        };
        self.flush().await?;
        let Run { collected, begun, started, first_byte, .. } = self;
        Ok(Done { end, output: collected, run: begun.elapsed(), started, first_byte })
    }

    /// Does the next thing that can be done; `Some` at the command's end.
    async fn step(&mut self) -> Result<Option<CommandEnd>, CommandError> {
        self.send_input();
        let event = self.event().await?;
        match event {
            Event::Message(message) => return self.receive(*message),
            Event::Input(Some(bytes)) => self.pending = bytes,
            Event::Input(None) => self.input = None,
            Event::Room(index) => self.pass_one(index)?,
            Event::Control(Some(control)) => self.control(control),
            Event::Control(None) => self.control = None,
        }
        Ok(None)
    }

    async fn event(&mut self) -> Result<Event, CommandError> {
        let wants_input = self.pending.is_empty();
        let after = self.begun;
        let [output, error] = &self.sinks;
        let room = async {
            let (index, room) = tokio::select! {
                room = output.room() => (0, room),
                room = error.room() => (1, room),
            };
            room.then_some(index)
        };
        tokio::select! {
            message = self.channel.next() => Ok(Event::Message(Box::new(message?))),
            piece = receive(&mut self.input), if wants_input => Ok(Event::Input(piece)),
            control = receive(&mut self.control) => Ok(Event::Control(control)),
            room = room => room.map(Event::Room).ok_or(CommandError::Cancelled),
            () = tokio::time::sleep_until(self.deadline.into()) => Err(CommandError::Deadline { after: after.elapsed() }),
        }
    }

    fn send_input(&mut self) {
        let command = self.number;
        while !self.pending.is_empty() && self.input_credit > 0 {
            let count = self.pending.len().min(self.input_credit).min(MOST_PIECE_BYTES);
            let data = self.pending.split_to(count).to_vec();
            self.input_credit -= count;
            self.channel.push(to_guest::Message::Input(v1::Input { command, data, end: false }));
        }
        if self.pending.is_empty() && self.input.is_none() && std::mem::take(&mut self.end_due) {
            self.channel.push(to_guest::Message::Input(v1::Input { command, data: Vec::new(), end: true }));
        }
    }

    fn receive(&mut self, message: to_host::Message) -> Result<Option<CommandEnd>, CommandError> {
        use to_host::Message;
        match message {
            Message::Output(output) if output.command == self.number => {
                self.take(output.stream(), output.data)?
            }
            Message::Credit(Credit { command, bytes, .. }) if command == self.number => {
                let most = FIRST_CREDIT_BYTES as usize;
                self.input_credit = most.min(self.input_credit.saturating_add(bytes as usize));
            }
            Message::Started(started) if started.command == self.number => {
                self.started = self.begun.elapsed();
                if let Some(tell) = self.tell_begun.take() {
                    // Whoever wanted to know may have left.
                    let _ = tell.send(());
                }
            }
            Message::Waiting(waiting) if waiting.command == self.number => self.waiting = true,
            Message::Exited(Exited { command, how: Some(how) }) if command == self.number => {
                return Ok(Some(match how {
                    exited::How::Code(code) => CommandEnd::Code(code),
                    exited::How::Signal(number) => CommandEnd::Signal(number),
                }));
            }
            Message::Failed(failed) if failed.command == self.number => {
                return Err(CommandError::NotStarted { reason: failed.reason, errno: failed.errno });
            }
            Message::Failed(failed) if failed.command == 0 => return Err(CommandError::Agent(failed.reason)),
            Message::Hello(_) | Message::Ready(_) => {
                return Err(CommandError::Agent("it began anew".into()));
            }
            // About a command that was given up earlier.
            _ => {}
        }
        Ok(None)
    }

    /// Output of the guest, which must keep to its credit.
    fn take(&mut self, stream: Stream, data: Vec<u8>) -> Result<(), CommandError> {
        let index = usize::from(stream == Stream::Error);
        let Some(left) = self.left[index].checked_sub(data.len()) else {
            return Err(CommandError::Agent("it sent more than it was granted".into()));
        };
        self.left[index] = left;
        if data.is_empty() {
            return Ok(());
        }
        if index == 0 {
            self.first_byte.get_or_insert_with(|| self.begun.elapsed());
        }
        match &mut self.sinks[index] {
            Sink::Collect { limit_bytes } => {
                if self.collected.len() + data.len() > *limit_bytes {
                    return Err(CommandError::OutputLimit { limit_bytes: *limit_bytes });
                }
                self.collected.extend(data);
            }
            Sink::Stream { waiting, .. } => waiting.push_back(data.into()),
            Sink::Log(log) => log.write(&data),
        }
        self.grant(index);
        Ok(())
    }

    /// Hands one piece on, for which there is room.
    fn pass_one(&mut self, index: usize) -> Result<(), CommandError> {
        let Sink::Stream { to, waiting } = &mut self.sinks[index] else { return Ok(()) };
        if let Some(piece) = waiting.pop_front() {
            to.try_send(piece).map_err(|_| CommandError::Cancelled)?;
        }
        self.grant(index);
        Ok(())
    }

    /// Gives back the credit of what is not kept here any more, in large pieces.
    fn grant(&mut self, index: usize) {
        let stream = [Stream::Output, Stream::Error][index];
        let left = &mut self.left[index];
        let due = (FIRST_CREDIT_BYTES as usize).saturating_sub(*left + self.sinks[index].kept());
        if due >= GRANT_AFTER_BYTES as usize {
            *left += due;
            let credit = Credit { command: self.number, stream: stream.into(), bytes: due as u32 };
            self.channel.push(to_guest::Message::Credit(credit));
        }
    }

    fn control(&mut self, control: Control) {
        let command = self.number;
        self.channel.push(match control {
            Control::Signal(number) => to_guest::Message::Signal(v1::Signal { command, number }),
            Control::Resize(size) => {
                to_guest::Message::Resize(v1::Resize { command, terminal: Some(size.message()) })
            }
        });
    }

    /// The command is over; what its readers have not taken yet still goes there.
    async fn flush(&mut self) -> Result<(), CommandError> {
        let sinks = &mut self.sinks;
        let all = async {
            for sink in sinks {
                let Sink::Stream { to, waiting } = sink else { continue };
                for piece in waiting.drain(..) {
                    to.send(piece).await.map_err(|_| CommandError::Cancelled)?;
                }
            }
            Ok(())
        };
        let after = self.begun;
        tokio::time::timeout_at(self.deadline.into(), all)
            .await
            .unwrap_or_else(|_| Err(CommandError::Deadline { after: after.elapsed() }))
    }
}

/// The next of an optional channel; never where there is none.
async fn receive<T>(from: &mut Option<Receiver<T>>) -> Option<T> {
    match from {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

impl From<ChannelError> for CommandError {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}
