//! Starts the real `novum serve` and talks to it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_proto::gateway::v1::admin_client::AdminClient;
use novum_proto::gateway::v1::functions_client::FunctionsClient;
use novum_proto::gateway::v1::{self as proto, deploy_request, invoke_stream_request};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Copies standard input to standard output.
pub(crate) const ECHO: &str = include_str!("../../../examples/echo/echo.wat");

/// Runs until it is stopped.
pub(crate) const LOOP: &str =
    "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop $l (br $l))))";

/// Crashes.
pub(crate) const TRAP: &str =
    "(module (memory (export \"memory\") 1) (func (export \"_start\") unreachable))";

/// A module that writes `err` to standard error and `out` to standard output, and exits with `code`. Of escapes the
/// texts may hold `\\n`.
pub(crate) fn says(out: &str, err: &str, code: i32) -> String {
    let length = |text: &str| text.len() - text.matches("\\n").count();
    let (out_at, err_at) = (64, 64 + length(out));
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $x (param i32)))
  (memory (export "memory") 2)
  (data (i32.const {out_at}) "{out}")
  (data (i32.const {err_at}) "{err}")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const {err_at}))
    (i32.store (i32.const 4) (i32.const {}))
    (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 32)))
    (i32.store (i32.const 0) (i32.const {out_at}))
    (i32.store (i32.const 4) (i32.const {}))
    (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
    (call $x (i32.const {code}))))"#,
        length(err),
        length(out),
    )
}

/// Writes its whole environment, `NAME=VALUE` with a NUL after each.
pub(crate) const ENVIRONMENT: &str = r#"(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (drop (call $sizes (i32.const 16) (i32.const 4)))
    (drop (call $get (i32.const 1024) (i32.const 8192)))
    (i32.store (i32.const 0) (i32.const 8192))
    (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))"#;

/// A running gateway. Killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) dir: Arc<TempDir>,
}

impl Gateway {
    /// With a data directory of its own.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(&Arc::new(tempfile::tempdir().unwrap()), args)
    }

    /// With this data directory, which a former gateway may have left.
    pub(crate) fn start_in(dir: &Arc<TempDir>, args: &[&str]) -> Self {
        Self::start_with(dir, args, Stdio::inherit())
    }

    /// The same; what it logs goes to `log`.
    pub(crate) fn start_with(dir: &Arc<TempDir>, args: &[&str], log: impl Into<Stdio>) -> Self {
        let port_file = dir.path().join("port");
        let _ = std::fs::remove_file(&port_file);
        let mut child = command(dir.path(), args)
            .arg("--port-file")
            .arg(&port_file)
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let address = loop {
            if let Ok(text) = std::fs::read_to_string(&port_file) {
                break text.lines().find_map(|line| line.parse().ok()).unwrap();
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the gateway ended at its start: {status}");
            }
            assert!(began.elapsed() < PATIENCE, "the gateway does not start");
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { child, address, dir: Arc::clone(dir) }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn functions(&self) -> FunctionsClient<Channel> {
        FunctionsClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    pub(crate) async fn stats(&self) -> proto::StatsResponse {
        AdminClient::new(self.channel().await).stats(proto::StatsRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn function_stats(&self, name: &str) -> proto::FunctionStats {
        self.stats().await.functions.into_iter().find(|f| f.function == name).unwrap()
    }

    /// Waits until the numbers of a function are as wanted.
    pub(crate) async fn settle(&self, name: &str, wanted: impl Fn(&proto::FunctionStats) -> bool) {
        let began = Instant::now();
        loop {
            let now = self.function_stats(name).await;
            if wanted(&now) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{now:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) -> Arc<TempDir> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Arc::clone(&self.dir)
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the gateway does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One HTTP/1.1 request on a connection of its own: status, head, body.
    pub(crate) fn http(&self, request: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head =
            format!("{request}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A gateway that refuses early may close before it has read everything.
        let _ = stream.write_all(body);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let end = reply.windows(4).position(|w| w == b"\r\n\r\n").expect("a reply's head");
        let head = String::from_utf8(reply[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), reply[end + 4..].to_vec())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `novum serve` with a data directory, not yet started.
pub(crate) fn command(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novum"));
    command.arg("serve").arg("--data-dir").arg(data_dir.join("data")).args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NOVUM_")) {
        command.env_remove(name);
    }
    command
}

pub(crate) fn manifest(name: &str) -> proto::Manifest {
    proto::Manifest { name: name.into(), ..Default::default() }
}

pub(crate) fn pool(max: u32, queue: u32) -> Option<proto::Pool> {
    Some(proto::Pool { max: Some(max), queue: Some(queue), ..Default::default() })
}

pub(crate) fn millis(ms: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: i64::from(ms / 1000), nanos: ms % 1000 * 1_000_000 })
}

/// A deploy stream of this manifest and artifact.
pub(crate) fn parts(start: deploy_request::Start, artifact: &[u8]) -> Vec<proto::DeployRequest> {
    let request = |part| proto::DeployRequest { part: Some(part) };
    let chunks =
        artifact.chunks(100_000).map(|c| request(deploy_request::Part::Chunk(Bytes::copy_from_slice(c))));
    [request(deploy_request::Part::Start(start))].into_iter().chain(chunks).collect()
}

pub(crate) async fn deploy_start(
    client: &mut FunctionsClient<Channel>,
    start: deploy_request::Start,
    artifact: &[u8],
) -> Result<proto::DeployResponse, Status> {
    client.deploy(tokio_stream::iter(parts(start, artifact))).await.map(tonic::Response::into_inner)
}

pub(crate) async fn deploy(
    client: &mut FunctionsClient<Channel>,
    manifest: proto::Manifest,
    artifact: impl AsRef<[u8]>,
) -> Result<proto::DeployResponse, Status> {
    let start = deploy_request::Start { manifest: Some(manifest), ..Default::default() };
    deploy_start(client, start, artifact.as_ref()).await
}

pub(crate) fn call(function: &str, payload: impl Into<Bytes>) -> proto::InvokeRequest {
    proto::InvokeRequest { function: function.into(), payload: payload.into(), ..Default::default() }
}

pub(crate) async fn invoke(
    client: &mut FunctionsClient<Channel>,
    request: proto::InvokeRequest,
) -> Result<proto::InvokeResponse, Status> {
    client.invoke(request).await.map(tonic::Response::into_inner)
}

pub(crate) fn stream_start(function: &str) -> proto::InvokeStreamRequest {
    let start = invoke_stream_request::Start { function: function.into(), ..Default::default() };
    proto::InvokeStreamRequest { part: Some(invoke_stream_request::Part::Start(start)) }
}

pub(crate) fn stream_input(bytes: impl Into<Bytes>) -> proto::InvokeStreamRequest {
    proto::InvokeStreamRequest { part: Some(invoke_stream_request::Part::Input(bytes.into())) }
}

/// An InvokeStream call whose input stays open until the sender is dropped.
pub(crate) struct Held {
    pub(crate) input: tokio::sync::mpsc::Sender<proto::InvokeStreamRequest>,
    pub(crate) replies: tonic::Streaming<proto::InvokeStreamResponse>,
}

/// Starts one and waits until the function has answered a first byte, so that it certainly runs.
pub(crate) async fn hold(client: &mut FunctionsClient<Channel>, function: &str) -> Held {
    use proto::invoke_stream_response::Part;
    let (input, requests) = tokio::sync::mpsc::channel(4);
    input.send(stream_start(function)).await.unwrap();
    input.send(stream_input("x")).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut replies = client.invoke_stream(requests).await.unwrap().into_inner();
    let first = replies.message().await.unwrap().unwrap().part;
    assert_eq!(first, Some(Part::Output(Bytes::from_static(b"x"))));
    Held { input, replies }
}

pub(crate) fn exit_code(reply: &proto::InvokeResponse) -> Option<i32> {
    match reply.exit.as_ref()?.status.as_ref()? {
        proto::exit_status::Status::Code(code) => Some(*code),
        proto::exit_status::Status::Fault(_) => None,
    }
}

/// The field named first in a refusal.
pub(crate) fn field(status: &Status) -> String {
    use tonic_types::StatusExt;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().expect("a BadRequest detail").field_violations[0].field.clone()
}
