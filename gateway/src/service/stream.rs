//! The two replies that are streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use novum_proto::gateway::v1 as proto;
use novum_sandbox::Input;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tonic::{Status, Streaming};

use super::deadline::smaller;
use super::functions::mend_stream_error;
use crate::convert;
use crate::core::Core;
use crate::dispatch::{Call, Done};
use crate::error::Error;
use crate::logs::Line;
use crate::status;

/// Messages that may wait for the program's reads; more makes the client wait.
const INPUT_PIECES: usize = 4;
/// Pieces of output that may wait for the client; more makes the program wait.
const OUTPUT_PIECES: usize = 4;
/// Pieces of log that may wait for the client; more are dropped.
const LOG_PIECES: usize = 64;

/// The replies of one InvokeStream call. The invocation runs in a task of its own, so that its deadline holds also
/// when the client does not read; dropping this ends it.
pub struct InvokeReplies {
    output: mpsc::Receiver<Bytes>,
    log: mpsc::Receiver<Bytes>,
    done: Option<oneshot::Receiver<Result<Done, Error>>>,
    result: Option<Result<Done, Error>>,
    task: AbortHandle,
}

impl Drop for InvokeReplies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl InvokeReplies {
    /// Takes the first message and starts the invocation.
    ///
    /// # Errors
    /// Where the first message is not a `start` that can be.
    pub async fn open(
        core: &Arc<Core>,
        mut requests: Streaming<proto::InvokeStreamRequest>,
        arrived: Instant,
        deadline: Option<Duration>,
    ) -> Result<Self, Error> {
        use proto::invoke_stream_request::Part;
        let limit_bytes = core.config().max_payload_bytes;
        let first = requests.message().await.map_err(|e| mend_stream_error(e, limit_bytes))?;
        let Some(Part::Start(start)) = first.and_then(|request| request.part) else {
            return Err(Error::field("start", "the first message must be `start`"));
        };
        let timeout = start.timeout.map(|t| convert::duration_from(t, "start.timeout")).transpose()?;
        let (input_sender, input) = mpsc::channel(INPUT_PIECES);
        let (output_sender, output) = mpsc::channel(OUTPUT_PIECES);
        let (log_sender, log) = mpsc::channel(LOG_PIECES);
        let (done_sender, done) = oneshot::channel();
        let core = Arc::clone(core);
        let task = tokio::spawn(async move {
            let call = Call {
                function: &start.function,
                version: start.version,
                env: start.env.into_iter().collect(),
                env_without_case: false,
                timeout: smaller(timeout, deadline),
                arrived,
                input: Input::Stream(input),
                output: Some(output_sender),
                log: Some(log_sender),
            };
            let result = tokio::select! {
                result = core.invoke(call) => result,
                broken = forward(requests, input_sender, limit_bytes) => Err(broken),
            };
            // The client may have left meanwhile.
            let _ = done_sender.send(result);
        });
        Ok(Self { output, log, done: Some(done), result: None, task: task.abort_handle() })
    }
}

/// Hands the client's messages to the program. Returns only when the request stream breaks; at its end it waits for
/// the invocation's end.
async fn forward(
    mut requests: Streaming<proto::InvokeStreamRequest>,
    input: mpsc::Sender<Bytes>,
    limit_bytes: usize,
) -> Error {
    use proto::invoke_stream_request::Part;
    loop {
        match requests.message().await {
            Ok(Some(proto::InvokeStreamRequest { part: Some(Part::Input(bytes)) })) => {
                // A program that has closed its input, or ended, does not want the rest.
                let _ = input.send(bytes).await;
            }
            Ok(Some(_)) => return Error::field("input", "every message after the first is an `input`"),
            Ok(None) => break,
            Err(error) => return mend_stream_error(error, limit_bytes),
        }
    }
    drop(input);
    std::future::pending().await
}

impl Stream for InvokeReplies {
    type Item = Result<proto::InvokeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use proto::invoke_stream_response::Part;
        let message = |part| Poll::Ready(Some(Ok(proto::InvokeStreamResponse { part: Some(part) })));
        if let Poll::Ready(Some(bytes)) = self.output.poll_recv(cx) {
            return message(Part::Output(bytes));
        }
        if let Poll::Ready(Some(bytes)) = self.log.poll_recv(cx) {
            return message(Part::Log(bytes));
        }
        if let Some(done) = &mut self.done {
            let ended = ready!(Pin::new(done).poll(cx));
            self.done = None;
            self.result =
                Some(ended.unwrap_or_else(|_| Err(Error::Internal("an invocation's task died".into()))));
            // What was written just before the end comes first.
            return self.poll_next(cx);
        }
        match self.result.take() {
            Some(Ok(done)) => message(Part::End(convert::stream_end(done))),
            Some(Err(error)) => Poll::Ready(Some(Err(status::grpc(&error)))),
            None => Poll::Ready(None),
        }
    }
}

/// The replies of one Logs call: the past, then, for a follower, what comes.
pub struct LogReplies {
    past: std::vec::IntoIter<Arc<Line>>,
    /// Lines that are in `past` and may come once more from the feed of all functions.
    seen: std::collections::HashSet<u64>,
    follow: Option<BroadcastStream<Arc<Line>>>,
    missed: u64,
    ended: Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
}

impl LogReplies {
    /// Of the functions that are deployed now.
    ///
    /// # Errors
    /// [`Error::NoFunction`].
    pub fn open(core: &Arc<Core>, request: &proto::LogsRequest) -> Result<Self, Error> {
        let tail = match request.tail {
            0 => 100,
            n => usize::try_from(n).unwrap_or(0),
        };
        let (past, receiver) = if request.function.is_empty() {
            all_lines(core, tail)
        } else {
            let deployment = core.functions().find(&request.function, 0)?;
            deployment.shared.log.tail_and_follow(tail)
        };
        let seen = past.iter().map(|line| line.sequence).collect();
        let follow = request.follow.then(|| BroadcastStream::new(receiver));
        let ended = Box::pin(core.draining_token().cancelled_owned());
        Ok(Self { past: past.into_iter(), seen, follow, missed: 0, ended })
    }
}

/// The last lines of all functions, in their order, and every line from now on.
fn all_lines(core: &Core, tail: usize) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
    // Subscribed first: a line may come twice, which `seen` finds, but none is lost.
    let receiver = core.logs().follow();
    let table = core.functions().all();
    let mut lines: Vec<_> =
        table.values().flat_map(|e| e.current().shared.log.tail_and_follow(tail).0).collect();
    lines.sort_unstable_by_key(|line| line.sequence);
    let skip = lines.len().saturating_sub(tail);
    lines.drain(..skip);
    (lines, receiver)
}

impl Stream for LogReplies {
    type Item = Result<proto::LogsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(line) = self.past.next() {
            return Poll::Ready(Some(Ok(convert::log_line(&line, 0))));
        }
        let this = &mut *self;
        let Some(follow) = &mut this.follow else { return Poll::Ready(None) };
        loop {
            match Pin::new(&mut *follow).poll_next(cx) {
                Poll::Ready(Some(Ok(line))) => {
                    if this.seen.remove(&line.sequence) {
                        continue;
                    }
                    let missed = std::mem::take(&mut this.missed);
                    return Poll::Ready(Some(Ok(convert::log_line(&line, missed))));
                }
                Poll::Ready(Some(Err(BroadcastStreamRecvError::Lagged(missed)))) => this.missed += missed,
                Poll::Ready(None) => return Poll::Ready(None),
                // A gateway that drains does not wait for its followers.
                Poll::Pending => return this.ended.as_mut().poll(cx).map(|()| None),
            }
        }
    }
}
