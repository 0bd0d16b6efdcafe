//! One sandbox: a named thread that owns the VM, and the handle through which the gateway uses it.
//!
//! ```text
//!                     image: ready shell, or a VM made now          invoke            reply
//! start ──> thread ──┤                                     ├──> [ready] ──> [running] ──────> [resetting] ──> [ready]
//!                     no image: load the program                       no image: ends after one
//! ```
//! A sandbox of an image goes back to it by itself as soon as the reply is out, off the caller's path; a call that
//! comes early waits in the channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::control::Control;
use super::files::NoConsole;
use super::image::{Image, Prologue};
use super::onset::Onset;
use super::run::{AtReply, Counts, Ended, Machine, RunError};
use super::setup::{Program, Setup};
use super::shell::Shell;
use super::shells;
use super::stdio::{Collected, Stdio};
use crate::engine::{ExitStatus, Fault, Invocation, LogSink, Reply, Sandbox, Timings};
use crate::error::Error;
use crate::kvm::sys::Region;

/// Work for the thread.
struct Job {
    call: Invocation,
    reply: oneshot::Sender<Result<Reply, Error>>,
}

/// What a function's sandboxes start from.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) setup: Setup,
    /// `None`: the program is loaded and started for every sandbox.
    pub(super) image: Option<Arc<Image>>,
    /// Where there is no image: the program at its entry point, for one invocation each.
    pub(super) onset: Option<Onset>,
}

impl Template {
    /// What a sandbox goes on from, once or again and again.
    fn any_image(&self) -> Option<&Arc<Image>> {
        self.image.as_ref().or(self.onset.as_ref().map(Onset::image))
    }
}

/// Everything that a thread needs to become a sandbox.
pub(super) struct Begin {
    template: Arc<Template>,
    control: Arc<Control>,
    ready: oneshot::Sender<Result<(), Error>>,
    jobs: Receiver<Job>,
    /// Nobody is going to call at once.
    ahead: bool,
}

/// The handle. Dropping it ends the thread; the VM is taken down there, off the caller's path.
pub(super) struct ProcessSandbox {
    template: Arc<Template>,
    jobs: Sender<Job>,
    control: Arc<Control>,
}

impl ProcessSandbox {
    /// From the image, in a shell that is ready or in a new VM; without one by loading the program.
    pub(super) async fn start(template: Arc<Template>) -> Result<Self, Error> {
        Self::start_with(template, false, |begin| {
            let fits = begin.template.any_image().is_some_and(|image| image.fits_shells());
            if fits { shells::take(begin) } else { Err(begin) }
        })
        .await
    }

    /// The same, always in a new VM, for callers that come later.
    pub(super) async fn start_alone(template: Arc<Template>) -> Result<Self, Error> {
        Self::start_with(template, true, Err).await
    }

    /// `give` hands the work to a thread that has a VM, or hands it back.
    async fn start_with(
        template: Arc<Template>,
        ahead: bool,
        give: impl FnOnce(Begin) -> Result<(), Begin> + Send,
    ) -> Result<Self, Error> {
        let (jobs, receiver) = channel();
        let (ready, is_ready) = oneshot::channel();
        let control = Control::new().map_err(|error| Error::host("create an event descriptor", error))?;
        let (template_too, control_too) = (template.clone(), control.clone());
        let begin = Begin { template: template_too, control: control_too, ready, jobs: receiver, ahead };
        if let Err(begin) = give(begin) {
            std::thread::Builder::new()
                .name(format!("vcpu-{}", template.setup.name))
                .spawn(move || begin.alone())
                .map_err(|error| Error::host("start a vCPU thread", error))?;
        }
        is_ready.await.map_err(|error| Error::host("start a sandbox", error))??;
        Ok(Self { template, jobs, control })
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
        if self.template.image.is_none() {
            *self = Self::start(self.template.clone()).await?;
        }
        // With an image the thread is at it, or done.
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

impl Begin {
    /// The thread makes its own VM.
    fn alone(self) {
        let template = self.template.clone();
        let control = self.control.clone();
        match (&template.image, &template.onset) {
            (Some(image), _) => self.with_image(image, image.start(control)),
            (None, Some(onset)) => self.with_onset(onset, onset.start(control, &template.setup.foresight)),
            (None, None) => self.without_image(),
        }
    }

    /// The thread has a VM.
    pub(super) fn in_shell(self, shell: Shell, region: Arc<Region>) {
        let template = self.template.clone();
        let control = self.control.clone();
        match (&template.image, &template.onset) {
            (Some(image), _) => self.with_image(image, image.start_in(shell, region, control)),
            (None, Some(onset)) => {
                let started = onset.start_in(shell, region, control, &template.setup.foresight);
                self.with_onset(onset, started);
            }
            (None, None) => self.without_image(),
        }
    }

    /// One program, for one invocation, from its entry point.
    fn with_onset(self, onset: &Onset, started: Result<Machine, RunError>) {
        let Self { template, control, ready, jobs, ahead } = self;
        let setup = &template.setup;
        let mut machine = match started {
            Ok(machine) => machine,
            Err(error) => {
                let _ = ready.send(Err(Error::host("start from the entry point", error)));
                return;
            }
        };
        setup.live.add(machine.process.memory.region()).set();
        if ready.send(Ok(())).is_err() {
            return;
        }
        let image = onset.image();
        // While the caller wakes up.
        let populated = !ahead && image.populate(&mut machine);
        let job = first_job(&jobs);
        if job.is_none() {
            shells::refill_later();
        }
        let Ok(Job { call, reply }) = job.map_or_else(|| jobs.recv(), Ok) else { return };
        let began = Instant::now();
        if call.env.is_empty() && onset.is_current(&mut machine.process.files) {
            let learns = !populated && !image.populate(&mut machine);
            if learns {
                machine.at_reply(AtReply::Note);
            }
            let result = run(&mut machine, call, &Prologue::default(), began);
            if learns && result.is_ok() {
                image.learn(&mut machine);
            }
            let _ = reply.send(result);
            drop(machine);
        } else {
            // Before another one is made: the thread's signal goes to the last.
            drop(machine);
            let done = setup.load().and_then(|program| invoke_in_full(setup, program, control, call));
            let (result, _machine) = done.map_or_else(|e| (Err(e), None), |(r, machine)| (r, Some(machine)));
            let _ = reply.send(result);
        }
        shells::refill_later();
    }

    /// One program, for one invocation.
    fn without_image(self) {
        let setup = &self.template.setup;
        let program = match setup.load() {
            Ok(program) => program,
            Err(error) => {
                let _ = self.ready.send(Err(error));
                return;
            }
        };
        if self.ready.send(Ok(())).is_err() {
            return;
        }
        if let Ok(Job { call, reply }) = self.jobs.recv() {
            let done = invoke_in_full(setup, program, self.control, call);
            let (result, machine) = done.map_or_else(|e| (Err(e), None), |(r, machine)| (r, Some(machine)));
            // The receiver may have gone away; then nobody wants the reply.
            let _ = reply.send(result);
            // Taking the VM down takes as long as making it, and nobody waits for it.
            drop(machine);
        }
    }

    /// A program that goes on from its image, again and again.
    fn with_image(self, image: &Arc<Image>, started: Result<Machine, RunError>) {
        let Self { template, control, ready, jobs, ahead } = self;
        let mut machine = match started {
            Ok(machine) => machine,
            Err(error) if error.is_stale() => {
                if ready.send(Ok(())).is_ok() {
                    in_full(&template.setup, &control, &jobs);
                }
                return;
            }
            Err(error) => {
                let _ = ready.send(Err(Error::host("start from the image", error)));
                return;
            }
        };
        let mut has_run = template.setup.live.add(machine.process.memory.region());
        if !ahead {
            // A shell's has, and this one is about to.
            has_run.set();
        }
        if ready.send(Ok(())).is_err() {
            return;
        }
        // While the caller wakes up. A sandbox that waits for one holds nothing of the working set.
        let mut populated = !ahead && image.populate(&mut machine);
        let mut first = first_job(&jobs);
        let mut refill = first.is_some();
        if !refill {
            shells::refill_later();
        }
        while let Ok(Job { call, reply }) = first.take().map_or_else(|| jobs.recv(), Ok) {
            let result = if call.env.is_empty() {
                let began = Instant::now();
                has_run.set();
                let learns = !std::mem::replace(&mut populated, true) && !image.populate(&mut machine);
                if learns {
                    machine.at_reply(AtReply::Note);
                }
                let result = run(&mut machine, call, &image.prologue, began);
                if learns && result.is_ok() {
                    image.learn(&mut machine);
                }
                result
            } else {
                // The image's environment is fixed.
                let setup = &template.setup;
                let done =
                    setup.load().and_then(|program| invoke_in_full(setup, program, control.clone(), call));
                let result = done.and_then(|(result, _)| result);
                machine.attach();
                result
            };
            let _ = reply.send(result);
            match renew(machine, image, &control) {
                Ok((renewed, false)) => machine = renewed,
                Ok((renewed, true)) => {
                    machine = renewed;
                    populated = false;
                    has_run = template.setup.live.add(machine.process.memory.region());
                }
                Err(error) if error.is_stale() => {
                    control.rearm();
                    return in_full(&template.setup, &control, &jobs);
                }
                Err(error) => {
                    tracing::warn!(%error, "a sandbox could not be reset");
                    // Said to the next call, which may be here already.
                    if let Ok(Job { reply, .. }) = jobs.recv() {
                        let _ = reply.send(Err(Error::host("bring the sandbox back to its image", error)));
                    }
                    return;
                }
            }
            control.rearm();
            // Making a shell changes this process's memory as well, for which a sandbox that touches its pages would wait.
            if std::mem::take(&mut refill) {
                shells::refill_later();
            }
        }
    }
}

/// A file of a share that the image has open is another one by now: the program is loaded for every call, until it is deployed
/// again or the gateway takes the image anew at its next start.
fn in_full(setup: &Setup, control: &Arc<Control>, jobs: &Receiver<Job>) {
    tracing::warn!(function = setup.name, "a file that the image has open was replaced: calls start in full");
    while let Ok(Job { call, reply }) = jobs.recv() {
        let done = setup.load().and_then(|program| invoke_in_full(setup, program, control.clone(), call));
        let (result, machine) = done.map_or_else(|e| (Err(e), None), |(r, machine)| (r, Some(machine)));
        let _ = reply.send(result);
        drop(machine);
        control.rearm();
    }
}

/// The first call comes right after a start, as a rule: sooner than a thread that sleeps is awake again.
fn first_job(jobs: &Receiver<Job>) -> Option<Job> {
    const SOON: Duration = Duration::from_micros(50);
    let began = Instant::now();
    loop {
        match jobs.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Empty) if began.elapsed() < SOON => std::hint::spin_loop(),
            Err(_) => return None,
        }
    }
}

/// The machine at its image again, or another one; whether it is another.
fn renew(
    mut machine: Machine,
    image: &Arc<Image>,
    control: &Arc<Control>,
) -> Result<(Machine, bool), RunError> {
    match image.reset(&mut machine) {
        Ok(true) => return Ok((machine, false)),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "a sandbox could not be reset and is replaced"),
    }
    drop(machine);
    Ok((image.start(control.clone())?, true))
}

/// The reply, and the machine for the caller to drop.
fn invoke_in_full(
    setup: &Setup,
    program: Program,
    control: Arc<Control>,
    call: Invocation,
) -> Result<(Result<Reply, Error>, Machine), Error> {
    let started = Instant::now();
    let process = setup.begin(program, &call.env)?;
    let mut machine =
        Machine::new(process, control).map_err(|error| Error::host("create a microVM", error))?;
    let result = run(&mut machine, call, &Prologue::default(), started);
    Ok((result, machine))
}

/// Runs the machine's program with the call's input, which was handed over at `started`, to its end.
fn run(
    machine: &mut Machine,
    call: Invocation,
    prologue: &Prologue,
    started: Instant,
) -> Result<Reply, Error> {
    let mut stdio = Stdio::new(call.input, call.output, call.log.clone(), machine.control());
    stdio.say(prologue);
    // What was said before the image is no answer of this run.
    machine.control().set_replied(false);
    let collected = stdio.collected();
    machine.process.files.set_console(Box::new(stdio));
    machine.wake_console();
    let resumed = started.elapsed();
    let ended = machine.run(call.deadline).map_err(|error| Error::host("run the program", error));
    let run = started.elapsed();
    let Counts { exits, calls } = machine.take_counts();
    EXITS.fetch_add(exits, Ordering::Relaxed);
    tracing::debug!(exits, calls, "a program ended");
    // The end of a streamed reply.
    machine.process.files.set_console(Box::new(NoConsole));
    note_unserved(machine, &*call.log);
    let collected = std::mem::take(&mut *collected.lock());
    conclude(ended?, collected, (resumed, run), machine.process.memory.limit_bytes())
}

static EXITS: AtomicU64 = AtomicU64::new(0);

/// How often programs have left their VMs in this process, up to the ends of their runs: what a benchmark divides by.
#[must_use]
pub fn exits() -> u64 {
    EXITS.load(Ordering::Relaxed)
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
        Ended::WantsInput | Ended::Marked => {
            return Err(Error::host("run the program", "it stopped at its input"));
        }
    };
    let timings = Timings { resumed, run, first_byte: collected.first_byte };
    Ok(Reply { exit, output: Bytes::from(collected.bytes), timings })
}
