//! Log lines: what programs write to standard error, and the gateway's notes on invocations.
//!
//! ```text
//! Sandbox ── LogSink::write ──> InvocationLog ── lines ──> FunctionLog: ring of the last N bytes
//!                                    │                        └─ broadcast to followers
//!                                    └─ tail: the last 16 KiB, for the reply
//! ```
//!
//! A function that writes nothing and that nobody follows costs one small allocation for each invocation.
//! Lock order: an `InvocationLog`'s state, then a `FunctionLog`'s ring. Neither is held across an await.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use novum_sandbox::{FunctionName, LogSink};
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc};

use crate::id::InvocationId;
use crate::note::Note;

/// Most bytes of an invocation's standard error that its reply carries.
pub const TAIL_BYTES: usize = 16 << 10;
/// A longer line is cut into lines of this length.
pub const MAX_LINE_BYTES: usize = 8 << 10;
/// What a line costs in a ring besides its text.
const LINE_OVERHEAD_BYTES: usize = 128;
/// Lines that a follower may be behind before it misses some.
const FOLLOW_LINES: usize = 1024;

/// One line of a function's log.
#[derive(Clone, Debug)]
pub struct Line {
    /// Orders lines across functions.
    pub sequence: u64,
    /// Whose.
    pub function: FunctionName,
    /// Which version wrote it.
    pub version: u64,
    /// During which invocation.
    pub invocation: InvocationId,
    /// When.
    pub time: SystemTime,
    /// Its text, without the line feed.
    pub text: String,
    /// The gateway's own note.
    pub note: bool,
}

/// Followers of one function or of all.
type Feed = broadcast::Sender<Arc<Line>>;

/// What all functions' logs share.
#[derive(Debug)]
pub struct Logs {
    all: Feed,
    sequence: AtomicU64,
    ring_bytes: usize,
}

impl Logs {
    /// With rings of `ring_bytes` for each function.
    #[must_use]
    pub fn new(ring_bytes: usize) -> Arc<Self> {
        Arc::new(Self { all: broadcast::Sender::new(FOLLOW_LINES), sequence: AtomicU64::new(0), ring_bytes })
    }

    /// New lines of every function, from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<Line>> {
        self.all.subscribe()
    }
}

/// One function's log, across its versions.
#[derive(Debug)]
pub struct FunctionLog {
    function: FunctionName,
    logs: Arc<Logs>,
    feed: Feed,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
}

impl FunctionLog {
    /// An empty log.
    #[must_use]
    pub fn new(function: FunctionName, logs: &Arc<Logs>) -> Arc<Self> {
        let feed = broadcast::Sender::new(FOLLOW_LINES);
        Arc::new(Self { function, logs: Arc::clone(logs), feed, ring: Mutex::default() })
    }

    /// The last `tail` lines, oldest first, and every line that comes after them.
    #[must_use]
    pub fn tail_and_follow(&self, tail: usize) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let ring = self.ring.lock();
        let skip = ring.lines.len().saturating_sub(tail);
        (ring.lines.iter().skip(skip).cloned().collect(), self.feed.subscribe())
    }

    /// Somebody reads along.
    #[must_use]
    pub fn followed(&self) -> bool {
        self.feed.receiver_count() > 0 || self.logs.all.receiver_count() > 0
    }

    /// Writes the gateway's note. One on a success goes to followers only: a busy function would else push its
    /// own lines out of the ring.
    pub fn note(&self, version: u64, invocation: InvocationId, note: &Note) {
        let keep = note.outcome != crate::note::Outcome::Ok;
        if keep || self.followed() {
            self.push(version, invocation, note.to_string(), true, keep);
        }
    }

    fn push(&self, version: u64, invocation: InvocationId, text: String, note: bool, keep: bool) {
        let mut ring = self.ring.lock();
        let sequence = self.logs.sequence.fetch_add(1, Ordering::Relaxed);
        let function = self.function.clone();
        let time = SystemTime::now();
        let line = Arc::new(Line { sequence, function, version, invocation, time, text, note });
        // Sent under the lock, so that nobody who subscribes under it sees a line twice or never.
        // No receiver is not an error here.
        let _ = self.feed.send(Arc::clone(&line));
        let _ = self.logs.all.send(Arc::clone(&line));
        if keep {
            ring.keep(line, self.logs.ring_bytes);
        }
    }
}

impl Ring {
    fn keep(&mut self, line: Arc<Line>, limit_bytes: usize) {
        self.bytes += line.text.len() + LINE_OVERHEAD_BYTES;
        self.lines.push_back(line);
        while self.bytes > limit_bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len() + LINE_OVERHEAD_BYTES;
        }
    }
}

/// One invocation's standard error.
#[derive(Debug)]
pub struct InvocationLog {
    log: Arc<FunctionLog>,
    version: u64,
    invocation: InvocationId,
    /// Where the bytes go as they come, for InvokeStream.
    stream: Option<mpsc::Sender<Bytes>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last [`TAIL_BYTES`], or a little more until it is cut.
    tail: Vec<u8>,
    /// A line without its end yet.
    partial: Vec<u8>,
    /// Bytes that the stream's reader was too slow for.
    dropped: u64,
}

impl InvocationLog {
    /// An empty one.
    #[must_use]
    pub fn new(
        log: Arc<FunctionLog>,
        version: u64,
        invocation: InvocationId,
        stream: Option<mpsc::Sender<Bytes>>,
    ) -> Arc<Self> {
        Arc::new(Self { log, version, invocation, stream, state: Mutex::default() })
    }

    /// Ends the last line, if it lacks its line feed, and returns the tail.
    #[must_use]
    pub fn finish(&self) -> Bytes {
        let mut state = self.state.lock();
        if !state.partial.is_empty() {
            let line = std::mem::take(&mut state.partial);
            self.push_line(&line);
        }
        let tail = std::mem::take(&mut state.tail);
        let skip = tail.len().saturating_sub(TAIL_BYTES);
        Bytes::from(tail).slice(skip..)
    }

    fn push_line(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = String::from_utf8_lossy(line).into_owned();
        self.log.push(self.version, self.invocation, text, false, true);
    }

    fn send(&self, state: &mut State, bytes: &[u8]) {
        let Some(stream) = &self.stream else { return };
        if state.dropped > 0 {
            let text = format!("[novum: {} bytes of log dropped, the reader is too slow]\n", state.dropped);
            if stream.try_send(text.into()).is_ok() {
                state.dropped = 0;
            }
        }
        if stream.try_send(Bytes::copy_from_slice(bytes)).is_err() {
            state.dropped += bytes.len() as u64;
        }
    }
}

impl LogSink for InvocationLog {
    fn write(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        self.send(&mut state, bytes);
        state.keep_tail(bytes);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            state.extend(&rest[..end], |line| self.push_line(line));
            let line = std::mem::take(&mut state.partial);
            self.push_line(&line);
            rest = &rest[end + 1..];
        }
        state.extend(rest, |line| self.push_line(line));
    }
}

impl State {
    fn keep_tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        if self.tail.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
    }

    /// Adds to the line under construction; `push` takes each full length of it.
    fn extend(&mut self, mut bytes: &[u8], push: impl Fn(&[u8])) {
        while self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            let (now, later) = bytes.split_at(MAX_LINE_BYTES - self.partial.len());
            self.partial.extend_from_slice(now);
            push(&self.partial);
            self.partial.clear();
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::note::{Outcome, Stop};

    fn function_log(ring_bytes: usize) -> Arc<FunctionLog> {
        FunctionLog::new("f".parse().unwrap(), &Logs::new(ring_bytes))
    }

    fn invocation_log(log: &Arc<FunctionLog>) -> Arc<InvocationLog> {
        InvocationLog::new(Arc::clone(log), 1, InvocationId::next(), None)
    }

    fn texts(log: &FunctionLog) -> Vec<String> {
        log.tail_and_follow(usize::MAX).0.iter().map(|line| line.text.clone()).collect()
    }

    #[test]
    fn pieces_become_lines() {
        let log = function_log(1 << 20);
        let sink = invocation_log(&log);
        for piece in ["one", " line\ntwo\r\n", "\nlast"] {
            sink.write(piece.as_bytes());
        }
        assert_eq!(texts(&log), ["one line", "two", ""]);
        assert_eq!(sink.finish(), "one line\ntwo\r\n\nlast");
        assert_eq!(texts(&log), ["one line", "two", "", "last"]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_tail_is_the_last_bytes() {
        let log = function_log(1 << 20);
        let sink = invocation_log(&log);
        for i in 0..100_u8 {
            sink.write(&[b'0' + i % 10; 1000]);
        }
        let tail = sink.finish();
        assert_eq!(tail.len(), TAIL_BYTES);
        assert!(tail.ends_with(&[b'9'; 1000]));
        let lines = texts(&log);
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), 100_000);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE_BYTES));
    }

    #[test]
    fn the_ring_forgets_the_oldest_lines() {
        let log = function_log(10 * (LINE_OVERHEAD_BYTES + 4));
        let sink = invocation_log(&log);
        for i in 0..100 {
            sink.write(format!("{i:04}\n").as_bytes());
        }
        assert_eq!(texts(&log), (90..100).map(|i| format!("{i:04}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_follower_sees_each_line_once_and_learns_what_it_missed() {
        let log = function_log(1 << 20);
        let sink = invocation_log(&log);
        sink.write(b"before\n");
        let (tail, mut follow) = log.tail_and_follow(10);
        assert_eq!(tail.len(), 1);
        sink.write(b"after\n");
        assert_eq!(follow.try_recv().unwrap().text, "after");
        for _ in 0..FOLLOW_LINES + 5 {
            sink.write(b"x\n");
        }
        assert!(matches!(follow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(5))));
    }

    #[test]
    fn notes_on_successes_reach_followers_only() {
        let log = function_log(1 << 20);
        let mut note = Note {
            outcome: Outcome::Ok,
            engine: "wasm".into(),
            cold: true,
            queued: Duration::ZERO,
            start: Duration::ZERO,
            run: Duration::ZERO,
            out_bytes: 0,
            message: String::new(),
        };
        let mut follow = log.logs.follow();
        log.note(1, InvocationId::next(), &note);
        assert!(follow.try_recv().unwrap().note);
        assert!(texts(&log).is_empty());
        note.outcome = Outcome::Stopped(Stop::Deadline);
        log.note(1, InvocationId::next(), &note);
        assert_eq!(texts(&log).len(), 1);
    }

    #[test]
    fn a_slow_stream_reader_loses_bytes_and_is_told() {
        let (sender, mut receiver) = mpsc::channel(1);
        let log = function_log(1 << 20);
        let sink = InvocationLog::new(log, 1, InvocationId::next(), Some(sender));
        sink.write(b"kept");
        sink.write(b"lost");
        assert_eq!(receiver.try_recv().unwrap(), "kept");
        sink.write(b"also lost");
        let told = receiver.try_recv().unwrap();
        assert!(told.starts_with(b"[novum: 4 bytes of log dropped"), "{told:?}");
    }
}
