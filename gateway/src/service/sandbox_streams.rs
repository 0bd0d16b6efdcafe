//! The replies of Sandboxes that are streams: a command's, a file's, a watcher's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use novum_proto::gateway::v1 as proto;
use novum_sandbox::ExitStatus;
use novum_sandbox::session::{ExecControl, ExecStreams};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Status, Streaming};

use super::deadline::smaller;
use super::sandbox_messages::{command, end, event, terminal};
use super::sandboxes::MAX_PIECE_BYTES;
use crate::core::Core;
use crate::error::Error;
use crate::sessions::{Entry, Used, Watch};
use crate::status;

/// Messages that may wait for the command's reads; more makes the client wait.
const INPUT_PIECES: usize = 4;
/// Pieces of an output that may wait for the client; more makes the command wait.
const OUTPUT_PIECES: usize = 4;
/// Signals and sizes that may wait.
const ORDERS: usize = 16;

type Ended = Result<(ExitStatus, Duration), Error>;

/// The replies of one Exec call. The command runs in a task of its own; dropping this ends it.
pub struct ExecReplies {
    started: Option<oneshot::Receiver<()>>,
    output: mpsc::Receiver<Bytes>,
    error: mpsc::Receiver<Bytes>,
    done: Option<oneshot::Receiver<Ended>>,
    result: Option<Ended>,
    /// Bytes that the command may still write.
    left: Option<(u64, u64)>,
    task: AbortHandle,
}

impl Drop for ExecReplies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ExecReplies {
    /// Takes the first message and starts the command.
    ///
    /// # Errors
    /// Where the first message is not a `start` that can be.
    pub async fn open(
        core: &Arc<Core>,
        mut requests: Streaming<proto::ExecRequest>,
        deadline: Option<Duration>,
    ) -> Result<Self, Error> {
        use proto::exec_request::Part;
        let first = requests.message().await.map_err(|e| broken(&e))?;
        let Some(Part::Start(start)) = first.and_then(|request| request.part) else {
            return Err(Error::field("start", "the first message must be `start`"));
        };
        let (mut command, limit) = command(start)?;
        command.timeout = smaller(command.timeout, deadline);
        let (to_input, input) = mpsc::channel(INPUT_PIECES);
        let (to_output, output) = mpsc::channel(OUTPUT_PIECES);
        let (to_error, error) = mpsc::channel(OUTPUT_PIECES);
        let (orders, control) = mpsc::channel(ORDERS);
        let (to_started, started) = oneshot::channel();
        let (to_done, done) = oneshot::channel();
        let core = Arc::clone(core);
        let task = tokio::spawn(async move {
            let streams = ExecStreams { input, output: to_output, error: to_error, control };
            let ended = tokio::select! {
                ended = core.exec_in_sandbox(command, streams, to_started) => ended,
                broken = forward(requests, to_input, orders) => Err(broken),
            };
            // The client may have left meanwhile.
            let _ = to_done.send(ended);
        });
        Ok(Self {
            started: Some(started),
            output,
            error,
            done: Some(done),
            result: None,
            left: limit.map(|limit| (limit, limit)),
            task: task.abort_handle(),
        })
    }

    /// Counts what the command wrote; `None` where that is more than wanted.
    fn count(&mut self, bytes: &Bytes) -> Option<()> {
        if let Some((left, _)) = &mut self.left {
            *left = left.checked_sub(bytes.len() as u64)?;
        }
        Some(())
    }

    /// Kills the command, which wrote too much.
    fn stop(&mut self) -> Poll<Option<Result<proto::ExecResponse, Status>>> {
        self.task.abort();
        let limit_bytes = self.left.map_or(0, |(_, limit)| limit);
        (self.done, self.started, self.result) = (None, None, None);
        self.output.close();
        self.error.close();
        while self.output.try_recv().is_ok() || self.error.try_recv().is_ok() {}
        Poll::Ready(Some(Err(status::grpc(&Error::CommandOutput { limit_bytes }))))
    }
}

fn broken(status: &Status) -> Error {
    Error::field("input", status.message())
}

/// Hands the client's messages to the command. Returns only when the request stream breaks; at its end it waits for the
/// command's end.
async fn forward(
    mut requests: Streaming<proto::ExecRequest>,
    input: mpsc::Sender<Bytes>,
    orders: mpsc::Sender<ExecControl>,
) -> Error {
    use proto::exec_request::Part;
    let mut input = Some(input);
    loop {
        let part = match requests.message().await {
            Ok(Some(request)) => request.part,
            Ok(None) => break,
            Err(error) => return broken(&error),
        };
        // A command that has closed its input, or ended, does not want the rest: what is sent to it is dropped.
        match part {
            Some(Part::Input(bytes)) if bytes.len() > MAX_PIECE_BYTES => {
                return Error::field("input", "holds more than 1 MiB");
            }
            Some(Part::Input(bytes)) => match &input {
                Some(input) if !bytes.is_empty() => drop(input.send(bytes).await),
                Some(_) => {}
                None => return Error::field("input", "nothing may follow `end_of_input`"),
            },
            Some(Part::EndOfInput(_)) => input = None,
            Some(Part::Resize(size)) => match terminal(size, "resize") {
                Ok((rows, columns)) => drop(orders.send(ExecControl::Resize(rows, columns)).await),
                Err(error) => return error,
            },
            Some(Part::Signal(number @ 1..=64)) => drop(orders.send(ExecControl::Signal(number)).await),
            Some(Part::Signal(_)) => return Error::field("signal", "must be from 1 to 64"),
            Some(Part::Start(_)) => return Error::field("start", "only the first message is `start`"),
            // A part that a newer client knows.
            None => {}
        }
    }
    drop(input);
    std::future::pending().await
}

impl Stream for ExecReplies {
    type Item = Result<proto::ExecResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use proto::exec_response::{Part, Started};
        let message = |part| Poll::Ready(Some(Ok(proto::ExecResponse { part: Some(part) })));
        if let Some(started) = &mut self.started
            && let Poll::Ready(begun) = Pin::new(started).poll(cx)
        {
            self.started = None;
            if begun.is_ok() {
                return message(Part::Started(Started {}));
            }
        }
        if let Poll::Ready(Some(bytes)) = self.output.poll_recv(cx) {
            return if self.count(&bytes).is_some() { message(Part::Output(bytes)) } else { self.stop() };
        }
        if let Poll::Ready(Some(bytes)) = self.error.poll_recv(cx) {
            return if self.count(&bytes).is_some() { message(Part::Error(bytes)) } else { self.stop() };
        }
        if let Some(done) = &mut self.done {
            let ended = ready!(Pin::new(done).poll(cx));
            self.done = None;
            self.result =
                Some(ended.unwrap_or_else(|_| Err(Error::Internal("a command's task died".into()))));
            // What was written just before the end comes first.
            return self.poll_next(cx);
        }
        match self.result.take() {
            Some(Ok((exit, run))) => message(Part::End(end(exit, run))),
            Some(Err(error)) => Poll::Ready(Some(Err(status::grpc(&error)))),
            None => Poll::Ready(None),
        }
    }
}

/// The replies of one ReadFile call.
pub struct FileReplies(BoxStream<'static, Result<proto::ReadFileResponse, Status>>);

/// Where a read stands.
struct Reading {
    core: Arc<Core>,
    entry: Arc<Entry>,
    _used: Used,
    _admitted: TaskTrackerToken,
    path: String,
    offset: u64,
    left: u64,
}

impl Reading {
    /// The next piece; empty at the end.
    async fn next(&mut self) -> Result<Bytes, Error> {
        if self.left == 0 {
            return Ok(Bytes::new());
        }
        let data = self.core.read_in_sandbox(&self.entry, &self.path, self.offset, self.left).await?;
        self.offset = self.offset.saturating_add(data.len() as u64);
        self.left -= data.len() as u64;
        Ok(data)
    }
}

impl FileReplies {
    /// Reads the first piece, so that a file that cannot be read is refused at once.
    ///
    /// # Errors
    /// The path's, and what the sandbox says.
    pub async fn open(core: &Arc<Core>, request: proto::ReadFileRequest) -> Result<Self, Error> {
        let admitted = core.admit()?;
        let entry = core.sandboxes().find(&request.sandbox)?;
        let mut reading = Reading {
            core: Arc::clone(core),
            _used: entry.used(),
            _admitted: admitted,
            entry,
            path: request.path,
            offset: request.offset,
            left: request.length.unwrap_or(u64::MAX),
        };
        // Also where no byte is wanted: the file must be there.
        let wanted = reading.left.max(1);
        let mut first = core.read_in_sandbox(&reading.entry, &reading.path, reading.offset, wanted).await?;
        first.truncate(usize::try_from(reading.left).unwrap_or(usize::MAX));
        reading.offset = reading.offset.saturating_add(first.len() as u64);
        reading.left -= first.len() as u64;
        let pieces = futures::stream::try_unfold((reading, Some(first)), |(mut reading, first)| async {
            let data = match first {
                Some(first) => first,
                None => reading.next().await.map_err(|e| status::grpc(&e))?,
            };
            let more = (!data.is_empty()).then_some((proto::ReadFileResponse { data }, (reading, None)));
            Ok(more)
        });
        Ok(Self(Box::pin(pieces)))
    }
}

impl Stream for FileReplies {
    type Item = Result<proto::ReadFileResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// The replies of one Watch call.
pub struct WatchReplies {
    watch: Watch,
    ended: Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
    over: bool,
}

impl WatchReplies {
    /// Of all sandboxes, or of the one with this name.
    ///
    /// # Errors
    /// Where the name cannot be one.
    pub fn open(core: &Arc<Core>, name: &str) -> Result<Self, Error> {
        let ended = Box::pin(core.draining_token().cancelled_owned());
        Ok(Self { watch: core.sandboxes().watch(name)?, ended, over: false })
    }
}

impl Stream for WatchReplies {
    type Item = Result<proto::SandboxEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        match self.watch.events.poll_recv(cx) {
            Poll::Ready(Some(next)) => Poll::Ready(Some(Ok(event(next)))),
            Poll::Ready(None) => {
                self.over = true;
                let late = self.watch.is_late();
                Poll::Ready(late.then(|| Err(status::grpc(&Error::WatchTooSlow))))
            }
            // A gateway that drains does not wait for its watchers.
            Poll::Pending => self.ended.as_mut().poll(cx).map(|()| None),
        }
    }
}
