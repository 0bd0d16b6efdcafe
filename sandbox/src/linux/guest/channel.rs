//! The stream to the agent: messages out, messages in. What the guest sends is checked before it is kept, and no more
//! than one message of it is kept.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use novum_proto::guest::v1::{ToGuest, ToHost, to_guest, to_host};
use novum_proto::guest::{FrameError, Frames, write_frame};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// The stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The agent is gone.
    #[error("the agent in the guest closed its stream")]
    Closed,
    /// The stream failed.
    #[error("the stream to the agent in the guest broke")]
    Broken(#[source] io::Error),
    /// The guest sent something that is no message.
    #[error("the agent in the guest sent something else than messages")]
    Frame(#[from] FrameError),
}

/// Messages out and in: the stream itself, or a command's part of it.
pub(crate) trait Wire: Send {
    /// Puts a message behind the others.
    fn push(&mut self, message: to_guest::Message);

    /// The next message of the guest; can be given up and called again without losing anything.
    fn next(&mut self) -> impl Future<Output = Result<to_host::Message, ChannelError>> + Send;
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for Channel<S> {
    fn push(&mut self, message: to_guest::Message) {
        Self::push(self, message);
    }

    async fn next(&mut self) -> Result<to_host::Message, ChannelError> {
        Self::next(self).await
    }
}

/// A channel's bytes on their way, for a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// Received, not a whole message yet.
    incoming: Vec<u8>,
    /// Not in the stream yet.
    outgoing: Vec<u8>,
}

/// The stream, with what waits to be sent. Over anything that reads and writes, so that tests need no guest.
#[derive(Debug)]
pub(crate) struct Channel<S> {
    stream: S,
    frames: Frames<ToHost>,
    outgoing: Vec<u8>,
    sent: usize,
    piece: Box<[u8]>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub(crate) fn new(stream: S) -> Self {
        let piece = vec![0; PIECE].into_boxed_slice();
        Self { stream, frames: Frames::default(), outgoing: Vec::new(), sent: 0, piece }
    }

    /// Goes on with a stream from where another channel was.
    pub(crate) fn resume(stream: S, pending: Pending) -> Self {
        let mut channel = Self::new(stream);
        channel.frames.push(&pending.incoming);
        channel.outgoing = pending.outgoing;
        channel
    }

    /// What is neither in the stream nor a message.
    pub(crate) fn pending(&self) -> Pending {
        let outgoing = self.outgoing[self.sent..].to_vec();
        Pending { incoming: self.frames.rest().to_vec(), outgoing }
    }

    /// Bytes that the stream has not taken yet.
    pub(crate) fn backlog(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Sends what the stream takes at once.
    pub(crate) async fn send_now(&mut self) -> Result<(), ChannelError> {
        poll_fn(|context| match self.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(ChannelError::Broken(error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Puts a message behind the others; [`Self::next`] sends it.
    pub(crate) fn push(&mut self, message: to_guest::Message) {
        write_frame(&ToGuest { message: Some(message) }, &mut self.outgoing);
    }

    /// The next message of the guest. Sends what was pushed, for as long as it is waited for; can be given up and called
    /// again without losing anything.
    ///
    /// # Errors
    /// Where the stream ended or broke.
    pub(crate) async fn next(&mut self) -> Result<to_host::Message, ChannelError> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<to_host::Message, ChannelError>> {
        // Where sending waits, its waker is set, and receiving goes on.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(ChannelError::Broken(error)));
        }
        loop {
            // A message of a newer agent that this host does not know is skipped.
            match self.frames.pop()? {
                Some(ToHost { message: Some(message) }) => return Poll::Ready(Ok(message)),
                Some(ToHost { message: None }) => continue,
                None => {}
            }
            let mut into = ReadBuf::new(&mut self.piece);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut into)).map_err(ChannelError::Broken)?;
            if into.filled().is_empty() {
                return Poll::Ready(Err(ChannelError::Closed));
            }
            self.frames.push(into.filled());
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let rest = &self.outgoing[self.sent..];
            self.sent += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use novum_proto::guest::v1::{Hello, PowerOff, Ready};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(message: to_host::Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&ToHost { message: Some(message) }, &mut bytes);
        bytes
    }

    #[tokio::test]
    async fn messages_go_both_ways_and_the_end_is_told() {
        let (host, mut guest) = tokio::io::duplex(16);
        let mut channel = Channel::new(host);
        channel.push(to_guest::Message::PowerOff(PowerOff {}));
        let (hello, ready) = (to_host::Message::Hello(Hello::default()), to_host::Message::Ready(Ready {}));
        let work = async {
            let mut bytes = vec![0; 6];
            guest.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes, [2, 0, 0, 0, 9 << 3 | 2, 0], "length, field 9 with nothing in it");
            guest.write_all(&[frame(hello.clone()), frame(ready.clone())].concat()).await.unwrap();
            drop(guest);
        };
        let receive = async {
            assert_eq!(channel.next().await.unwrap(), hello);
            assert_eq!(channel.next().await.unwrap(), ready);
            assert!(matches!(channel.next().await, Err(ChannelError::Closed)));
        };
        tokio::join!(work, receive);
    }

    #[tokio::test]
    async fn another_channel_goes_on_in_the_middle_of_messages_both_ways() {
        let (host, mut guest) = tokio::io::duplex(8);
        let mut channel = Channel::new(host);
        let hello = to_host::Message::Hello(Hello { version: "a version".into(), ..Hello::default() });
        let sent = frame(hello.clone());
        guest.write_all(&sent[..5]).await.unwrap();
        let cut = tokio::time::timeout(std::time::Duration::from_millis(1), channel.next()).await;
        assert!(cut.is_err(), "the message is not whole yet");
        let signal = to_guest::Message::Signal(novum_proto::guest::v1::Signal { command: 7, number: 15 });
        channel.push(signal.clone());
        channel.push(signal.clone());
        channel.send_now().await.unwrap();
        let pending = channel.pending();
        assert!(!pending.outgoing.is_empty() && pending.incoming == sent[..5]);
        let Channel { stream, .. } = channel;
        let mut channel = Channel::resume(stream, pending);
        let mut expected = Vec::new();
        for _ in 0..2 {
            write_frame(&ToGuest { message: Some(signal.clone()) }, &mut expected);
        }
        let work = async {
            let mut bytes = vec![0; expected.len()];
            guest.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes, expected, "no byte is lost or doubled");
            guest.write_all(&sent[5..]).await.unwrap();
        };
        let (message, ()) = tokio::join!(channel.next(), work);
        assert_eq!(message.unwrap(), hello);
    }

    #[tokio::test]
    async fn an_oversized_message_is_refused_by_its_length() {
        let (host, mut guest) = tokio::io::duplex(1 << 20);
        let mut channel = Channel::new(host);
        guest.write_all(&[0xff; 5000]).await.unwrap();
        assert!(matches!(channel.next().await, Err(ChannelError::Frame(FrameError::TooLong(_)))));
    }
}
