//! A gateway with a root directory to make sandboxes from, and the calls that tests make.

use std::sync::Arc;

use bytes::Bytes;
use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::create_sandbox_request::Source;
use novum_proto::gateway::v1::exec_request::{Part, Start};
use novum_proto::gateway::v1::exec_response::Part as Reply;
use novum_proto::gateway::v1::sandboxes_client::SandboxesClient;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{Gateway, PATIENCE};
use crate::skip::skipped;

pub(crate) type Client = SandboxesClient<Channel>;

/// A gateway, its client, and the root directory that its sandboxes may have.
pub(crate) struct Place {
    pub(crate) gateway: Gateway,
    pub(crate) client: Client,
    pub(crate) dir: Arc<TempDir>,
}

impl Place {
    /// `None`, said, where this machine has no KVM or no static busybox.
    pub(crate) async fn new(test: &str, args: &[&str]) -> Option<Self> {
        if !missing(test) {
            return None;
        }
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let bin = dir.path().join("root/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for folder in ["tmp", "etc", "../shared"] {
            std::fs::create_dir(dir.path().join("root").join(folder)).unwrap();
        }
        std::fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
        for name in ["cat", "sleep", "true", "false", "echo", "env", "pwd", "sh", "head", "yes", "wc", "dd"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        std::fs::write(dir.path().join("root/etc/motd"), "welcome\n").unwrap();
        let allow = dir.path().to_str().unwrap();
        let gateway = Gateway::start_in(&dir, &[&["--allow-share", allow], args].concat());
        let client = SandboxesClient::new(gateway.channel().await);
        Some(Self { gateway, client, dir })
    }

    /// Threads of the gateway that run programs, once those that end have ended.
    pub(crate) fn vcpu_threads(&self) -> usize {
        let began = std::time::Instant::now();
        loop {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.gateway.pid())).unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            let count = names.filter(|name| name.starts_with("vcpu-")).count();
            if count == 0 || began.elapsed() > PATIENCE {
                return count;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    pub(crate) fn root(&self) -> String {
        self.dir.path().join("root").to_str().unwrap().to_owned()
    }

    /// What a sandbox with that root is asked for with.
    pub(crate) fn request(&self, name: &str) -> proto::CreateSandboxRequest {
        proto::CreateSandboxRequest {
            name: name.into(),
            engine: proto::Engine::Process.into(),
            source: Some(Source::Root(proto::RootSource { layers: vec![self.root()] })),
            memory_bytes: Some(64 << 20),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&mut self, name: &str) -> proto::Sandbox {
        let request = self.request(name);
        self.client.create(request).await.unwrap().into_inner().sandbox.unwrap()
    }

    pub(crate) async fn get(&mut self, name: &str) -> Result<proto::Sandbox, Status> {
        let request = proto::GetSandboxRequest { name: name.into() };
        self.client.get(request).await.map(|reply| reply.into_inner().sandbox.unwrap())
    }

    /// Waits until a sandbox is as wanted; `None` once it is gone.
    pub(crate) async fn settle(&mut self, name: &str, wanted: impl Fn(Option<&proto::Sandbox>) -> bool) {
        let began = std::time::Instant::now();
        loop {
            let now = self.get(name).await;
            if wanted(now.as_ref().ok()) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{now:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&mut self, start: Start, input: &[u8]) -> Result<Ended, Status> {
        let running = self.start(start).await?;
        for piece in input.chunks(100_000) {
            running.input.send(part(Part::Input(Bytes::copy_from_slice(piece)))).await.unwrap();
        }
        running.finish().await
    }

    /// Starts a command whose input stays open.
    pub(crate) async fn start(&mut self, start: Start) -> Result<Running, Status> {
        let (input, requests) = mpsc::channel(64);
        input.send(part(Part::Start(start))).await.unwrap();
        let replies = self.client.exec(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Running { input, replies })
    }

    pub(crate) async fn write(
        &mut self,
        start: proto::write_file_request::Start,
        data: &[u8],
    ) -> Result<u64, Status> {
        use proto::write_file_request::Part;
        let request = |part| proto::WriteFileRequest { part: Some(part) };
        let pieces: Vec<_> =
            data.chunks(1 << 20).map(|piece| request(Part::Data(Bytes::copy_from_slice(piece)))).collect();
        let requests = [request(Part::Start(start))].into_iter().chain(pieces);
        let written = self.client.write_file(tokio_stream::iter(requests)).await?;
        Ok(written.into_inner().written_bytes)
    }

    pub(crate) async fn read(&mut self, sandbox: &str, path: &str) -> Result<Vec<u8>, Status> {
        let request =
            proto::ReadFileRequest { sandbox: sandbox.into(), path: path.into(), ..Default::default() };
        let mut pieces = self.client.read_file(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }
}

const BUSYBOX: &str = "/bin/busybox";

fn missing(test: &str) -> bool {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "no usable /dev/kvm");
        skipped(test, "no usable /dev/kvm");
        return false;
    }
    let head = std::fs::read(BUSYBOX).unwrap_or_default();
    if head.is_empty() || head.windows(5).take(4096).any(|bytes| bytes == b"/lib6") {
        skipped(test, "no static /bin/busybox");
        return false;
    }
    true
}

/// How a command ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) output: Vec<u8>,
    pub(crate) error: Vec<u8>,
    pub(crate) exit: Option<proto::ExitStatus>,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        match self.exit.as_ref()?.status.as_ref()? {
            proto::exit_status::Status::Code(code) => Some(*code),
            proto::exit_status::Status::Fault(_) => None,
        }
    }

    pub(crate) fn fault(&self) -> Option<&str> {
        match self.exit.as_ref()?.status.as_ref()? {
            proto::exit_status::Status::Fault(fault) => Some(&fault.kind),
            proto::exit_status::Status::Code(_) => None,
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// A command under way.
pub(crate) struct Running {
    pub(crate) input: mpsc::Sender<proto::ExecRequest>,
    pub(crate) replies: tonic::Streaming<proto::ExecResponse>,
}

impl Running {
    /// The next reply.
    pub(crate) async fn next(&mut self) -> Result<Reply, Status> {
        self.replies.message().await.map(|reply| reply.expect("a reply").part.expect("a part"))
    }

    /// Ends its input and collects what it says.
    pub(crate) async fn finish(self) -> Result<Ended, Status> {
        let Self { input, replies } = self;
        drop(input);
        Self::collect(replies).await
    }

    /// Collects what it says, its input staying open.
    pub(crate) async fn end(self) -> Result<Ended, Status> {
        let Self { input: _input, replies } = self;
        Self::collect(replies).await
    }

    async fn collect(mut replies: tonic::Streaming<proto::ExecResponse>) -> Result<Ended, Status> {
        let mut ended = Ended::default();
        while let Some(reply) = replies.message().await? {
            match reply.part.expect("a part") {
                Reply::Started(_) => {}
                Reply::Output(bytes) => ended.output.extend_from_slice(&bytes),
                Reply::Error(bytes) => ended.error.extend_from_slice(&bytes),
                Reply::End(end) => ended.exit = end.exit,
            }
        }
        Ok(ended)
    }
}

pub(crate) fn part(part: Part) -> proto::ExecRequest {
    proto::ExecRequest { part: Some(part) }
}

/// A command with these words.
pub(crate) fn words(sandbox: &str, args: &[&str]) -> Start {
    Start {
        sandbox: sandbox.into(),
        args: args.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

pub(crate) fn file(sandbox: &str, path: &str) -> proto::write_file_request::Start {
    proto::write_file_request::Start { sandbox: sandbox.into(), path: path.into(), ..Default::default() }
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, said: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(said), "{said:?} is missing in {status:?}");
}
