//! A command in a sandbox: checked, counted, told to watchers, and over when its caller leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use novum_sandbox::function::check_env;
use novum_sandbox::session::{Exec, ExecStreams, SessionError};
use novum_sandbox::{Error as SandboxError, ExitStatus};
use tokio::sync::oneshot;

use super::{Entry, Happening, Sandboxes};
use crate::core::Core;
use crate::error::Error;

/// Most bytes of a command's arguments and its environment together (Linux allows more, nobody needs it).
const MAX_WORDS_BYTES: usize = 128 << 10;
/// Most arguments and variables together: each of them costs its owner's memory too.
const MAX_WORDS: usize = 4096;
/// Longest path.
pub(super) const MAX_PATH_BYTES: usize = 4095;
/// Most groups of a user.
const MAX_GROUPS: usize = 64;

/// What somebody wants to run.
#[derive(Debug)]
pub struct Command {
    /// In which sandbox.
    pub sandbox: String,
    /// The command.
    pub exec: Exec,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// How commands end, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecCount {
    /// Exit code 0.
    Ok,
    /// Another exit code.
    Exit,
    /// A crash or a signal.
    Fault,
    /// It did not start.
    Refused,
    /// Killed: its caller left, its time was over, the sandbox went.
    Stopped,
}

impl ExecCount {
    /// Every kind with its label.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Ok, "ok"),
        (Self::Exit, "exit"),
        (Self::Fault, "fault"),
        (Self::Refused, "refused"),
        (Self::Stopped, "stopped"),
    ];
}

/// A command under way: counted, and told when it is over, however it ends.
struct Under<'a> {
    sandboxes: &'a Sandboxes,
    entry: Arc<Entry>,
    program: String,
    exit: Option<ExitStatus>,
    count: ExecCount,
}

impl<'a> Under<'a> {
    fn begin(sandboxes: &'a Sandboxes, entry: &Arc<Entry>, program: &str) -> Self {
        entry.inner.lock().commands += 1;
        let program = program.to_owned();
        sandboxes.tell(entry, Happening::CommandStarted { program: program.clone() });
        Self { sandboxes, entry: Arc::clone(entry), program, exit: None, count: ExecCount::Stopped }
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.entry.inner.lock().commands -= 1;
        let (program, exit) = (std::mem::take(&mut self.program), self.exit.take());
        self.sandboxes.tell(&self.entry, Happening::CommandEnded { program, exit });
        self.sandboxes.counts.commands[self.count as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Core {
    /// Runs a command to its end and says how long it ran. Dropping the future kills it.
    ///
    /// # Errors
    /// Everything that is not the command's own end.
    pub async fn exec_in_sandbox(
        &self,
        command: Command,
        streams: ExecStreams,
        started: oneshot::Sender<()>,
    ) -> Result<(ExitStatus, Duration), Error> {
        let _admitted = self.admit()?;
        check(&command.exec)?;
        let entry = self.sandboxes.find(&command.sandbox)?;
        if entry.paused() {
            return Err(Error::Session(SessionError::Busy("the sandbox is paused; resume it first".into())));
        }
        let session = entry.session()?;
        let began = Instant::now();
        let mut under = Under::begin(&self.sandboxes, &entry, &command.exec.args[0]);
        let run = entry.with(async move { session.exec(command.exec, streams, started).await });
        let time = async {
            match command.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = run => ended,
            () = time => Err(Error::Session(SandboxError::Deadline { after: began.elapsed() }.into())),
            () = self.stop.cancelled() => Err(Error::Draining),
        };
        under.count = count(&ended);
        under.exit = ended.as_ref().ok().cloned();
        Ok((ended?, began.elapsed()))
    }
}

fn count(ended: &Result<ExitStatus, Error>) -> ExecCount {
    match ended {
        Ok(ExitStatus::Code(0)) => ExecCount::Ok,
        Ok(ExitStatus::Code(_)) => ExecCount::Exit,
        Ok(ExitStatus::Fault(_)) => ExecCount::Fault,
        Err(Error::Session(
            SessionError::Unsupported { .. } | SessionError::Command { .. } | SessionError::Busy(_),
        )) => ExecCount::Refused,
        Err(_) => ExecCount::Stopped,
    }
}

/// What a client may write into a command.
fn check(exec: &Exec) -> Result<(), Error> {
    let refuse = |field: &str, reason: &str| Err(Error::field(format!("start.{field}"), reason));
    if exec.args.first().is_none_or(String::is_empty) {
        return refuse("args", "must begin with the program to run");
    }
    let words = exec.args.iter().chain(exec.env.iter().flat_map(|(name, value)| [name, value]));
    if words.clone().any(|word| word.contains('\0')) {
        return refuse("args", "no argument or variable may hold a NUL character");
    }
    if words.clone().count() > MAX_WORDS || words.map(String::len).sum::<usize>() > MAX_WORDS_BYTES {
        return refuse("args", "arguments and environment are more than 128 KiB or 4096 words");
    }
    for (name, value) in &exec.env {
        check_env(name, value).map_err(|reason| Error::field("start.env", reason))?;
    }
    if !exec.working_directory.is_empty() {
        super::files::check_path("start.working_directory", &exec.working_directory)?;
    }
    if exec.user.as_ref().is_some_and(|(_, _, groups)| groups.len() > MAX_GROUPS) {
        return refuse("user.groups", "are more than 64");
    }
    Ok(())
}
