//! One worker: a thread with a current-thread runtime that accepts its own connections and serves them to the end.
//! Nothing is handed between threads on a request's way (measured: twice the throughput of one runtime over all cores).

use std::io;
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::front::Front;
use crate::listen::Listeners;

/// How long connections may take to flush their last replies once everything else is over.
const FLUSH: Duration = Duration::from_secs(2);
/// A client must send an HTTP/1 request's head within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 peers that vanished without a word are found by pings.
const PING_EVERY: Duration = Duration::from_secs(30);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// Starts worker number `index`. It ends when `stop` is cancelled and its connections are closed.
///
/// # Errors
/// Those of starting a thread.
pub fn spawn(
    index: usize,
    listeners: Listeners,
    front: Front,
    stop: CancellationToken,
) -> io::Result<JoinHandle<io::Result<()>>> {
    std::thread::Builder::new().name(format!("novum-worker{index}")).spawn(move || {
        crate::metrics::set_shard(index);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(run(listeners, front, stop));
        // Blocking tasks (an artifact's write, say) must not hold the end up.
        runtime.shutdown_background();
        result
    })
}

async fn run(listeners: Listeners, front: Front, stop: CancellationToken) -> io::Result<()> {
    let connections = TaskTracker::new();
    let builder = http_builder();
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners.tcp {
        let listener = TcpListener::from_std(listener)?;
        let (connections, builder) = (connections.clone(), builder.clone());
        let (front, stop) = (front.clone(), stop.clone());
        accepting.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        // A reply is one small write: waiting for more would only delay it.
                        let _ = stream.set_nodelay(true);
                        connections.spawn(serve(stream, builder.clone(), front.clone(), stop.clone()));
                    }
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
    }
    for listener in listeners.unix {
        let listener = UnixListener::from_std(listener)?;
        let (connections, builder) = (connections.clone(), builder.clone());
        let (front, stop) = (front.clone(), stop.clone());
        accepting.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, builder.clone(), front.clone(), stop.clone()));
                    }
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
    }
    stop.cancelled().await;
    accepting.shutdown().await;
    connections.close();
    let _ = tokio::time::timeout(FLUSH, connections.wait()).await;
    Ok(())
}

/// Out of descriptors, most likely: there is no event to wait for, so try again a little later (accept(2)).
async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

async fn serve<S>(stream: S, builder: auto::Builder<TokioExecutor>, front: Front, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), front));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}
