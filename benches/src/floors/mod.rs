//! What a gateway could be at best on this machine: servers that do less, laid out in the best way we know.
//!
//! A floor speaks the same API with the same messages, so the same load fits: `Invoke` echoes the payload. One
//! current-thread runtime per core, each with a listening socket of its own (`SO_REUSEPORT`): no connection is ever
//! handed from thread to thread, which costs more than anything else here.

pub mod tonic_echo;
pub mod wasmtime_call;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use bytes::Bytes;
use novum_proto::gateway::v1::functions_server::{Functions, FunctionsServer};
use novum_proto::gateway::v1::{
    DeleteRequest, DeleteResponse, DeployRequest, DeployResponse, GetRequest, GetResponse, InvokeRequest,
    InvokeResponse, InvokeStreamRequest, InvokeStreamResponse, ListRequest, ListResponse, LogsRequest,
    LogsResponse,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_stream::Empty;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// What a floor does with one request.
pub trait Work: Send + Sync + 'static {
    /// From payload to payload.
    ///
    /// # Errors
    /// Ends the request with INTERNAL.
    fn call(&self, payload: Bytes) -> Result<Bytes>;
}

/// Serves until the process is killed. The address is printed as the first line of standard output.
///
/// # Errors
/// Where a socket or runtime cannot be made.
pub fn serve(work: Arc<dyn Work>, workers: usize) -> Result<()> {
    let (address, listeners) = bind(workers)?;
    println!("{address}");
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let work = Arc::clone(&work);
            thread::spawn(move || serve_one(listener, work))
        })
        .collect();
    for thread in threads {
        thread.join().expect("a worker does not panic")?;
    }
    Ok(())
}

fn bind(workers: usize) -> Result<(SocketAddr, Vec<TcpListener>)> {
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut listeners = Vec::new();
    for _ in 0..workers {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into()).context("binding a port for the floor")?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

fn serve_one(listener: TcpListener, work: Arc<dyn Work>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let incoming =
            TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
        Server::builder()
            .add_service(FunctionsServer::new(Floor(work)))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

struct Floor(Arc<dyn Work>);

fn only_invoke<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a floor answers Invoke only"))
}

#[tonic::async_trait]
impl Functions for Floor {
    type InvokeStreamStream = Empty<Result<InvokeStreamResponse, Status>>;
    type LogsStream = Empty<Result<LogsResponse, Status>>;

    async fn invoke(&self, request: Request<InvokeRequest>) -> Result<Response<InvokeResponse>, Status> {
        let payload = self.0.call(request.into_inner().payload);
        let payload = payload.map_err(|error| Status::internal(format!("{error:#}")))?;
        Ok(Response::new(InvokeResponse { payload, ..Default::default() }))
    }

    async fn deploy(&self, _: Request<Streaming<DeployRequest>>) -> Result<Response<DeployResponse>, Status> {
        only_invoke()
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        only_invoke()
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        only_invoke()
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        only_invoke()
    }

    async fn invoke_stream(
        &self,
        _: Request<Streaming<InvokeStreamRequest>>,
    ) -> Result<Response<Self::InvokeStreamStream>, Status> {
        only_invoke()
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        only_invoke()
    }
}
