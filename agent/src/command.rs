//! One command: its process, its streams with their credit, how it ended.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use novum_proto::guest::v1::{
    Credit, Exited, Input, Output, Start, Started, Stream, Waiting, exited, to_host,
};
use novum_proto::guest::{FIRST_CREDIT_BYTES, GRANT_AFTER_BYTES, MOST_PIECE_BYTES};

use crate::link::Link;
use crate::{sys, waiting};

/// Where a command begins that names no directory.
const WORKING_DIRECTORY: &str = "/";

/// Standard input: what has come and is not taken yet.
#[derive(Default)]
struct In {
    pipe: Option<File>,
    pending: Vec<u8>,
    /// Taken or thrown away since the last Credit.
    freed: u32,
    /// Nothing follows `pending`.
    ended: bool,
    /// A terminal's input is the terminal, which stays open.
    terminal: bool,
}

/// An output stream; `pipe` is `None` when it has ended.
struct Out {
    stream: Stream,
    pipe: Option<File>,
    credit: u32,
}

/// A running command.
pub(crate) struct Command {
    number: u32,
    pid: i32,
    input: In,
    outputs: Vec<Out>,
    ended: Option<sys::Ended>,
    /// The host is to be told when it waits for input.
    watched: bool,
}

impl Command {
    /// Starts it.
    pub(crate) fn start(start: &Start) -> io::Result<Self> {
        Ok(Self { watched: start.tell_waiting, ..Self::spawn(start)? })
    }

    fn spawn(start: &Start) -> io::Result<Self> {
        let Some((program, args)) = start.args.split_first() else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a command without a program"));
        };
        let mut command = std::process::Command::new(program);
        let env = start.env.iter().map(|line| line.split_once('=').unwrap_or((line, "")));
        command.args(args).env_clear().envs(env);
        command.current_dir(match start.working_directory.as_str() {
            "" => WORKING_DIRECTORY,
            named => named,
        });
        sys::prepare_child(&mut command, start);
        match &start.terminal {
            Some(terminal) => {
                let (own, childs) = sys::open_terminal(terminal)?;
                let end = || childs.try_clone().map(Stdio::from);
                command.stdin(end()?).stdout(end()?).stderr(end()?);
                let pid = command.spawn()?.id() as i32;
                let own = File::from(own);
                let input = In { pipe: Some(own.try_clone()?), terminal: true, ..In::default() };
                Ok(Self::new(start.command, pid, input, vec![(Stream::Output, own)]))
            }
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn()?;
                let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
                let input = child.stdin.take().map(OwnedFd::from).map(non_blocking).transpose()?;
                let input = In { pipe: input, ..In::default() };
                let mut outputs = Vec::new();
                for (stream, pipe) in
                    [Stream::Output, Stream::Error].into_iter().zip(pipes.into_iter().flatten())
                {
                    outputs.push((stream, non_blocking(pipe)?));
                }
                Ok(Self::new(start.command, child.id() as i32, input, outputs))
            }
        }
    }

    fn new(number: u32, pid: i32, input: In, outputs: Vec<(Stream, File)>) -> Self {
        let out = |(stream, pipe)| Out { stream, pipe: Some(pipe), credit: FIRST_CREDIT_BYTES };
        let outputs = outputs.into_iter().map(out).collect();
        Self { number, pid, input, outputs, ended: None, watched: false }
    }

    /// Whether it is to be looked at while nothing happens.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Tells the host if it waits for its input, once.
    pub(crate) fn watch(&mut self, link: &mut Link) {
        let pipe = self.input.pipe.as_ref().filter(|_| self.watched && self.input.pending.is_empty());
        if pipe.is_some_and(|pipe| waiting::waits(self.pid, pipe.as_fd())) {
            self.watched = false;
            // What it wrote since it was last looked at comes before.
            for out in &mut self.outputs {
                out.pump(self.number, false, link);
            }
            link.push(to_host::Message::Waiting(Waiting { command: self.number }));
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn started(&self) -> to_host::Message {
        to_host::Message::Started(Started { command: self.number, pid: self.pid as u32 })
    }

    /// Its process is over.
    pub(crate) fn note_end(&mut self, ended: sys::Ended) {
        self.ended = Some(ended);
    }

    /// Input from the host. An error where it sent more than it was granted.
    pub(crate) fn take_input(&mut self, input: Input) -> io::Result<()> {
        if self.input.pending.len() + input.data.len() + self.input.freed as usize
            > FIRST_CREDIT_BYTES as usize
        {
            return Err(io::Error::new(ErrorKind::InvalidData, "the host sent more input than was granted"));
        }
        self.input.pending.extend(input.data);
        self.input.ended |= input.end;
        Ok(())
    }

    /// The host takes more of an output stream.
    pub(crate) fn grant(&mut self, credit: &Credit) {
        for out in self.outputs.iter_mut().filter(|out| out.stream == credit.stream()) {
            out.credit = out.credit.saturating_add(credit.bytes);
        }
    }

    /// kill(2) for it and what it started.
    pub(crate) fn signal(&self, number: u32) {
        if self.ended.is_none() {
            sys::kill_group(self.pid, number as i32);
        }
    }

    /// Its terminal's descriptor.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.input.pipe.as_ref().filter(|_| self.input.terminal).map(AsFd::as_fd)
    }

    /// What to wait for: readable, or writable where the flag is set.
    pub(crate) fn waits(&self, has_room: bool) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let reads = self.outputs.iter().filter(move |out| has_room && out.credit > 0);
        let reads = reads.filter_map(|out| out.pipe.as_ref()).map(|pipe| (pipe.as_fd(), false));
        let writes = self.input.pipe.iter().filter(|_| !self.input.pending.is_empty());
        reads.chain(writes.map(|pipe| (pipe.as_fd(), true)))
    }

    /// Moves what can be moved; true when the command is over and all that it wrote is on its way.
    pub(crate) fn pump(&mut self, link: &mut Link) -> bool {
        self.pump_input(link);
        let ended = self.ended.is_some();
        for out in &mut self.outputs {
            out.pump(self.number, ended, link);
        }
        let Some(ended) = self.ended.filter(|_| self.outputs.iter().all(|out| out.pipe.is_none())) else {
            return false;
        };
        let how = match ended {
            sys::Ended::Code(code) => exited::How::Code(code),
            sys::Ended::Signal(number) => exited::How::Signal(number),
        };
        link.push(to_host::Message::Exited(Exited { command: self.number, how: Some(how) }));
        true
    }

    fn pump_input(&mut self, link: &mut Link) {
        let input = &mut self.input;
        while !input.pending.is_empty() {
            let count = match input.pipe.as_mut().map(|pipe| pipe.write(&input.pending)) {
                Some(Ok(count)) => count,
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => continue,
                // Nobody reads it any more: it is thrown away, so that the host does not wait for ever.
                Some(Err(_)) | None => input.pending.len(),
            };
            input.pending.drain(..count);
            input.freed += count as u32;
        }
        if input.pending.is_empty() && input.ended && !input.terminal {
            input.pipe = None;
        }
        if input.freed >= GRANT_AFTER_BYTES {
            let bytes = std::mem::take(&mut input.freed);
            let credit = Credit { command: self.number, stream: Stream::Input.into(), bytes };
            link.push(to_host::Message::Credit(credit));
        }
    }
}

impl Out {
    /// Reads what there is; a process that has ended writes no more, so an empty pipe is then an ended one, whoever else
    /// holds it.
    fn pump(&mut self, command: u32, ended: bool, link: &mut Link) {
        while let (Some(pipe), true, true) = (&mut self.pipe, self.credit > 0, link.has_room()) {
            match link.read(pipe, MOST_PIECE_BYTES.min(self.credit as usize)) {
                Ok(data) if !data.is_empty() => {
                    self.credit -= data.len() as u32;
                    let output = Output { command, stream: self.stream.into(), data };
                    link.push(to_host::Message::Output(output));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !ended => break,
                // The end of a pipe; a terminal whose other side is closed (EIO).
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
    }
}

fn non_blocking(pipe: OwnedFd) -> io::Result<File> {
    sys::set_non_blocking(pipe.as_fd())?;
    Ok(File::from(pipe))
}
