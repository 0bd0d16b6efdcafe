//! One program on a session's files: its thread, from loading to its end.

use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::Common;
use super::desk::Desk;
use crate::engine::{ExitStatus, Fault};
use crate::error::Error;
use crate::process::Process;
use crate::process::calls::credentials::{Credentials, Ids};
use crate::process::control::Control;
use crate::process::files::{Files, FilesConfig};
use crate::process::memory::{AddressSpace, Placement};
use crate::process::run::{Ended, Machine};
use crate::process::setup::{InMemory, load_from, random, refuse_load};
use crate::process::stdio::{Collected, Stdio};
use crate::session::{DEFAULT_PATH, Exec, ExecStreams, FOREVER, SessionError, merged};

/// What the thread needs.
pub(super) struct Program {
    pub(super) common: Arc<Common>,
    pub(super) desk: Arc<Desk>,
    pub(super) control: Arc<Control>,
    pub(super) command: Exec,
    pub(super) streams: ExecStreams,
    pub(super) started: oneshot::Sender<()>,
}

/// Brings the files back however the thread ends.
struct Loan {
    desk: Arc<Desk>,
    control: Arc<Control>,
    files: Option<Box<Files>>,
    open_files: u32,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.control.close();
        let files = self.files.take().map(|mut files| {
            files.renew(self.open_files);
            files
        });
        self.desk.put_back(files);
    }
}

impl Program {
    /// Runs it on `files` on a thread of its own; the answer comes when the files are back.
    pub(super) fn spawn(
        self,
        files: Box<Files>,
        reply: oneshot::Sender<Result<ExitStatus, SessionError>>,
    ) -> Result<(), SessionError> {
        let (desk, control) = (self.desk.clone(), self.control.clone());
        let mut loan = Loan { desk, control, files: Some(files), open_files: self.common.open_files };
        let name = format!("vcpu-{}", self.common.spec.name);
        let run = move || {
            let ended = self.run(&mut loan.files);
            drop(loan);
            // Who asked may have left.
            let _ = reply.send(ended);
        };
        let thread = std::thread::Builder::new().name(name).spawn(run);
        thread.map(drop).map_err(|error| Error::host("start a vCPU thread", error).into())
    }

    /// On the calling thread. The process has the files while it runs.
    fn run(self, lent: &mut Option<Box<Files>>) -> Result<ExitStatus, SessionError> {
        let Self { common, control, command, streams, started, .. } = self;
        let gone = || Error::host("run the program", "its files are elsewhere");
        let process = load(&common, lent.as_mut().ok_or_else(gone)?, &command)?;
        // Not with the files: what fails here must not take them along.
        let machine = Machine::new(process, control.clone());
        let mut machine = machine.map_err(|error| Error::host("create a microVM", error))?;
        machine.process.files = *lent.take().ok_or_else(gone)?;
        let stdio = Stdio::of_channels(streams.input, streams.output, streams.error, control);
        let collected = stdio.collected();
        machine.process.files.set_console(Box::new(stdio));
        // Who asked may have left; the run finds out by itself.
        let _ = started.send(());
        let ended = machine.run(Instant::now() + FOREVER);
        let limit_bytes = machine.process.memory.limit_bytes();
        *lent = Some(Box::new(machine.process.files));
        let ended = ended.map_err(|error| Error::host("run the program", error))?;
        let collected = std::mem::take(&mut *collected.lock());
        conclude(ended, &collected, limit_bytes)
    }
}

/// The program in memory with its stack, on files of its own for as long as it has not begun.
fn load(common: &Common, files: &mut Files, command: &Exec) -> Result<Process, SessionError> {
    let env = merged(common.spec.env.clone(), &command.env);
    let program = command.args.first().map_or("", String::as_str);
    let refuse = |reason: String| SessionError::Command { program: program.to_owned(), reason };
    let directory = match command.working_directory.as_str() {
        "" => "/",
        named => named,
    };
    files
        .change_dir(directory.as_bytes())
        .map_err(|errno| refuse(format!("the working directory {directory}: {errno}")))?;
    let path = find(files, program, &env).map_err(|errno| refuse(not_found(program, errno)))?;
    let placement = random().map_err(|error| Error::host("draw random numbers", error))?;
    let memory = AddressSpace::new(common.spec.memory_bytes, Placement::random(placement))
        .map_err(|error| Error::host("reserve addresses for a sandbox", error))?;
    common.live.add(memory.region()).set();
    let told = |error| match error {
        Error::Artifact { reason, .. } => refuse(reason),
        other => SessionError::Engine(other),
    };
    let InMemory { mut memory, time, loaded } = load_from(files, memory, path.as_bytes()).map_err(told)?;
    let lines: Vec<Vec<u8>> =
        env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
    let args: Vec<Vec<u8>> = command.args.iter().map(|arg| arg.clone().into_bytes()).collect();
    let seed = random().map_err(|error| Error::host("draw random numbers", error))?;
    let start = loaded.begin(&mut memory, &args, &lines, seed).map_err(|error| told(refuse_load(error)))?;
    let none =
        Files::new(&FilesConfig::new()).map_err(|error| Error::host("make a program's files", error))?;
    let mut process = Process::new(memory, none, time, start);
    if let Some((uid, gid, groups)) = command.user.clone() {
        let all = |id| Ids { real: id, effective: id, saved: id };
        process.credentials = Credentials { user: all(uid), group: all(gid), groups };
    }
    Ok(process)
}

/// The program's path, as execvp(3) finds it.
fn find(files: &mut Files, program: &str, env: &[(String, String)]) -> Result<String, Errno> {
    if program.contains('/') {
        return Ok(program.to_owned());
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let mut refused = Errno::NOENT;
    for directory in path.split(':') {
        let candidate = format!("{}/{program}", if directory.is_empty() { "." } else { directory });
        match files.open_program(candidate.as_bytes()) {
            Ok(_) => return Ok(candidate),
            Err(Errno::ACCESS) => refused = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(refused)
}

fn not_found(program: &str, errno: Errno) -> String {
    match errno {
        Errno::NOENT if !program.contains('/') => "no directory of PATH has it".into(),
        errno => errno.to_string(),
    }
}

fn conclude(ended: Ended, collected: &Collected, limit_bytes: u64) -> Result<ExitStatus, SessionError> {
    if collected.closed {
        return Err(Error::Cancelled.into());
    }
    match ended {
        Ended::Code(code) => Ok(ExitStatus::Code(code & 0xff)),
        Ended::Fault(report) => {
            Ok(ExitStatus::Fault(Fault { kind: report.kind.to_owned(), message: report.message }))
        }
        Ended::MemoryLimit => Err(Error::MemoryLimit { limit_bytes }.into()),
        Ended::Cancelled | Ended::Deadline | Ended::WantsInput | Ended::Marked => {
            Err(Error::Cancelled.into())
        }
    }
}
