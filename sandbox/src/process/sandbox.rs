//! One sandbox: a named thread that owns the VM, and the handle through which the gateway uses it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::control::Control;
use super::run::{Ended, Machine};
use super::setup::{Program, Setup};
use super::stdio::{Collected, Stdio};
use crate::engine::{ExitStatus, Fault, Invocation, LogSink, Reply, Sandbox, Timings};
use crate::error::Error;

/// Work for the thread.
struct Job {
    call: Invocation,
    reply: oneshot::Sender<Result<Reply, Error>>,
}

/// The handle. Dropping it ends the thread; the VM is taken down there, off the caller's path.
pub(super) struct ProcessSandbox {
    setup: Arc<Setup>,
    jobs: Sender<Job>,
    control: Arc<Control>,
}

impl ProcessSandbox {
    /// Loads the program on a thread of its own.
    pub(super) async fn start(setup: Arc<Setup>) -> Result<Self, Error> {
        let (jobs, receiver) = channel();
        let (ready, is_ready) = oneshot::channel();
        let control = Control::new().map_err(|error| Error::host("create an event descriptor", error))?;
        let (own_setup, own_control) = (setup.clone(), control.clone());
        std::thread::Builder::new()
            .name(format!("vcpu-{}", setup.name))
            .spawn(move || serve(&own_setup, own_control, ready, &receiver))
            .map_err(|error| Error::host("start a vCPU thread", error))?;
        is_ready.await.map_err(|error| Error::host("start a sandbox", error))??;
        Ok(Self { setup, jobs, control })
    }
}

impl Drop for ProcessSandbox {
    fn drop(&mut self) {
        self.control.cancel();
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    async fn invoke(&mut self, call: Invocation) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| Error::host("run the program", "the sandbox's thread has ended");
        self.jobs.send(Job { call, reply }).map_err(|_| gone(()))?;
        let guard = CancelOnDrop(Some(&self.control));
        let answer = answer.await.map_err(|_| gone(()))?;
        guard.disarm();
        answer
    }

    async fn reset(&mut self) -> Result<(), Error> {
        *self = Self::start(self.setup.clone()).await?;
        Ok(())
    }
}

/// Cancels the run when the future that waits for it is dropped.
struct CancelOnDrop<'a>(Option<&'a Control>);

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(control) = self.0 {
            control.cancel();
        }
    }
}

/// The thread: one program, for one invocation.
fn serve(
    setup: &Setup,
    control: Arc<Control>,
    ready: oneshot::Sender<Result<(), Error>>,
    jobs: &Receiver<Job>,
) {
    let program = match setup.load() {
        Ok(program) => program,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    if let Ok(Job { call, reply }) = jobs.recv() {
        // The receiver may have gone away; then nobody wants the reply.
        let _ = reply.send(invoke(setup, program, control, call));
    }
}

fn invoke(setup: &Setup, program: Program, control: Arc<Control>, call: Invocation) -> Result<Reply, Error> {
    let started = Instant::now();
    let stdio = Stdio::new(call.input, call.output, call.log.clone(), control.clone());
    let collected = stdio.collected();
    let mut process = setup.begin(program, &call.env)?;
    process.files.set_console(Box::new(stdio));
    let mut machine =
        Machine::new(process, control).map_err(|error| Error::host("create a microVM", error))?;
    let resumed = started.elapsed();
    let ended = machine.run(call.deadline).map_err(|error| Error::host("run the program", error))?;
    let run = started.elapsed();
    note_unserved(&machine, &*call.log);
    let collected = std::mem::take(&mut *collected.lock());
    conclude(ended, collected, (resumed, run), machine.process.memory.limit_bytes())
}

/// Tells the user what his program asked for in vain.
fn note_unserved(machine: &Machine, log: &dyn LogSink) {
    for (number, times) in &machine.process.unserved {
        let name = super::calls::name(*number);
        log.write(format!("novum: system call {name} is not served ({times} times)\n").as_bytes());
    }
}

fn conclude(
    ended: Ended,
    collected: Collected,
    (resumed, run): (Duration, Duration),
    limit_bytes: u64,
) -> Result<Reply, Error> {
    // What the output came to explains an end that followed from it (a cancelled run, SIGPIPE).
    if let Some(limit_bytes) = collected.over_limit {
        return Err(Error::OutputLimit { limit_bytes });
    }
    if collected.closed {
        return Err(Error::Cancelled);
    }
    let exit = match ended {
        Ended::Code(code) => ExitStatus::Code(code & 0xff),
        Ended::Fault(report) => {
            ExitStatus::Fault(Fault { kind: report.kind.to_owned(), message: report.message })
        }
        Ended::Deadline => return Err(Error::Deadline { after: run }),
        Ended::Cancelled => return Err(Error::Cancelled),
        Ended::MemoryLimit => return Err(Error::MemoryLimit { limit_bytes }),
    };
    let timings = Timings { resumed, run, first_byte: collected.first_byte };
    Ok(Reply { exit, output: Bytes::from(collected.bytes), timings })
}
