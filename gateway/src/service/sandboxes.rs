//! `novum.gateway.v1.Sandboxes`.

use std::sync::Arc;

use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::sandboxes_server::Sandboxes;
use tonic::{Request, Response, Status, Streaming};

use super::deadline::grpc_timeout;
use super::sandbox_messages::{create_request, sandbox, snapshot, target};
use super::sandbox_streams::{ExecReplies, FileReplies, WatchReplies};
use crate::core::Core;
use crate::error::Error;
use crate::status;

/// Most bytes of one piece of input or of a file.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// The service.
pub struct SandboxesService {
    core: Arc<Core>,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(|e| status::grpc(&e))
}

impl SandboxesService {
    /// Of this gateway.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn write(&self, mut parts: Streaming<proto::WriteFileRequest>) -> Result<u64, Error> {
        use proto::write_file_request::Part;
        let broken = |status: Status| Error::field("data", status.message());
        let first = parts.message().await.map_err(broken)?.and_then(|request| request.part);
        let Some(Part::Start(start)) = first else {
            return Err(Error::field("start", "the first message must be `start`"));
        };
        let target = target(start);
        target.check()?;
        let _admitted = self.core.admit()?;
        let entry = self.core.sandboxes().find(&target.sandbox)?;
        let _used = entry.used();
        // The file is made at once, so that one without bytes exists too.
        let mut position =
            self.core.write_in_sandbox(&entry, &target, (false, 0), bytes::Bytes::new()).await?;
        loop {
            let request = tokio::select! {
                biased;
                gone = entry.gone() => return Err(gone),
                () = self.core.stop.cancelled() => return Err(Error::Draining),
                request = parts.message() => request.map_err(broken)?,
            };
            let Some(request) = request else { return Ok(position) };
            let Some(Part::Data(data)) = request.part else {
                return Err(Error::field("data", "every message after the first is `data`"));
            };
            if data.len() > MAX_PIECE_BYTES {
                return Err(Error::field("data", "holds more than 1 MiB"));
            }
            position = self.core.write_in_sandbox(&entry, &target, (true, position), data).await?;
        }
    }
}

#[tonic::async_trait]
impl Sandboxes for SandboxesService {
    type ExecStream = ExecReplies;
    type ReadFileStream = FileReplies;
    type WatchStream = WatchReplies;

    async fn create(
        &self,
        request: Request<proto::CreateSandboxRequest>,
    ) -> Answer<proto::CreateSandboxResponse> {
        let request = create_request(request.into_inner()).map_err(|e| status::grpc(&e))?;
        let made = self.core.create_sandbox(request).await;
        answer(made.map(|entry| proto::CreateSandboxResponse { sandbox: Some(sandbox(&entry)) }))
    }

    async fn get(&self, request: Request<proto::GetSandboxRequest>) -> Answer<proto::GetSandboxResponse> {
        let found = self.core.sandboxes().find(&request.get_ref().name);
        answer(found.map(|entry| proto::GetSandboxResponse { sandbox: Some(sandbox(&entry)) }))
    }

    async fn list(
        &self,
        request: Request<proto::ListSandboxesRequest>,
    ) -> Answer<proto::ListSandboxesResponse> {
        let proto::ListSandboxesRequest { page_size, page_token } = request.get_ref();
        let page = self.core.sandboxes().page(*page_size, page_token);
        answer(page.map(|page| proto::ListSandboxesResponse {
            sandboxes: page.items.iter().map(sandbox).collect(),
            next_page_token: page.next,
        }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteSandboxRequest>,
    ) -> Answer<proto::DeleteSandboxResponse> {
        let deleted = self.core.sandboxes().delete(&request.get_ref().name);
        answer(deleted.map(|()| proto::DeleteSandboxResponse {}))
    }

    async fn exec(&self, request: Request<Streaming<proto::ExecRequest>>) -> Answer<ExecReplies> {
        let deadline = grpc_timeout(request.metadata());
        answer(ExecReplies::open(&self.core, request.into_inner(), deadline).await)
    }

    async fn read_file(&self, request: Request<proto::ReadFileRequest>) -> Answer<FileReplies> {
        answer(FileReplies::open(&self.core, request.into_inner()).await)
    }

    async fn write_file(
        &self,
        request: Request<Streaming<proto::WriteFileRequest>>,
    ) -> Answer<proto::WriteFileResponse> {
        let written = self.write(request.into_inner()).await;
        answer(written.map(|written_bytes| proto::WriteFileResponse { written_bytes }))
    }

    async fn pause(
        &self,
        request: Request<proto::PauseSandboxRequest>,
    ) -> Answer<proto::PauseSandboxResponse> {
        let paused = self.core.set_sandbox_paused(&request.get_ref().name, true).await;
        answer(paused.map(|entry| proto::PauseSandboxResponse { sandbox: Some(sandbox(&entry)) }))
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeSandboxRequest>,
    ) -> Answer<proto::ResumeSandboxResponse> {
        let resumed = self.core.set_sandbox_paused(&request.get_ref().name, false).await;
        answer(resumed.map(|entry| proto::ResumeSandboxResponse { sandbox: Some(sandbox(&entry)) }))
    }

    async fn resize(
        &self,
        request: Request<proto::ResizeSandboxRequest>,
    ) -> Answer<proto::ResizeSandboxResponse> {
        let proto::ResizeSandboxRequest { name, memory_bytes } = request.get_ref();
        let resized = self.core.resize_sandbox(name, *memory_bytes).await;
        answer(resized.map(|(entry, memory_bytes)| proto::ResizeSandboxResponse {
            sandbox: Some(sandbox(&entry)),
            memory_bytes,
        }))
    }

    async fn snapshot(
        &self,
        request: Request<proto::SnapshotSandboxRequest>,
    ) -> Answer<proto::SnapshotSandboxResponse> {
        let proto::SnapshotSandboxRequest { name, snapshot: wanted } = request.get_ref();
        let kept = self.core.snapshot_sandbox(name, wanted).await;
        answer(kept.map(|kept| proto::SnapshotSandboxResponse { snapshot: Some(snapshot(&kept)) }))
    }

    async fn fork(&self, request: Request<proto::ForkSandboxRequest>) -> Answer<proto::ForkSandboxResponse> {
        let proto::ForkSandboxRequest { name, forks } = request.into_inner();
        let forked = self.core.fork_sandbox(&name, forks).await;
        answer(
            forked.map(|entries| proto::ForkSandboxResponse {
                sandboxes: entries.iter().map(sandbox).collect(),
            }),
        )
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSandboxSnapshotsRequest>,
    ) -> Answer<proto::ListSandboxSnapshotsResponse> {
        let proto::ListSandboxSnapshotsRequest { page_size, page_token } = request.get_ref();
        let page = self.core.sandboxes().snapshots_page(*page_size, page_token);
        answer(page.map(|page| proto::ListSandboxSnapshotsResponse {
            snapshots: page.items.iter().map(|kept| snapshot(kept)).collect(),
            next_page_token: page.next,
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<proto::DeleteSandboxSnapshotRequest>,
    ) -> Answer<proto::DeleteSandboxSnapshotResponse> {
        let deleted = self.core.sandboxes().delete_snapshot(&request.get_ref().name);
        answer(deleted.map(|()| proto::DeleteSandboxSnapshotResponse {}))
    }

    async fn watch(&self, request: Request<proto::WatchSandboxesRequest>) -> Answer<WatchReplies> {
        answer(WatchReplies::open(&self.core, &request.get_ref().name))
    }
}
