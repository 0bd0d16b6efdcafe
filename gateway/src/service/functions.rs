//! `novum.gateway.v1.Functions`.

use std::sync::Arc;
use std::time::Instant;

use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::functions_server::Functions;
use novum_sandbox::Input;
use tonic::{Code, Request, Response, Status, Streaming};

use super::deadline::{grpc_timeout, smaller};
use super::stream::{InvokeReplies, LogReplies};
use crate::convert;
use crate::core::Core;
use crate::dispatch::Call;
use crate::error::Error;
use crate::status;

/// Most bytes of one chunk of an artifact.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// The service.
pub struct FunctionsService {
    core: Arc<Core>,
}

impl FunctionsService {
    /// Of this gateway.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn deploy_stream(
        &self,
        mut parts: Streaming<proto::DeployRequest>,
    ) -> Result<proto::DeployResponse, Status> {
        use proto::deploy_request::Part;
        let first = parts.message().await?.and_then(|request| request.part);
        let Some(Part::Start(start)) = first else {
            return Err(status::grpc(&Error::field("start", "the first message must be `start`")));
        };
        let (manifest, format, declared) = convert::deploy_start(start).map_err(|e| status::grpc(&e))?;
        let manifest = self.core.accept_manifest(manifest).map_err(|e| status::grpc(&e))?;
        let limit_bytes = self.core.config().max_artifact_bytes;
        if declared.size_bytes.is_some_and(|size| size > limit_bytes) {
            return Err(status::grpc(&Error::ArtifactTooLarge {
                limit: format!("{limit_bytes} bytes"),
                flag: "--max-artifact",
            }));
        }
        let mut upload = self.core.upload().map_err(|e| status::grpc(&e))?;
        while let Some(request) = parts.message().await? {
            let Some(Part::Chunk(chunk)) = request.part else {
                return Err(status::grpc(&Error::field(
                    "chunk",
                    "every message after the first is a `chunk`",
                )));
            };
            if chunk.len() > MAX_CHUNK_BYTES {
                return Err(status::grpc(&Error::field("chunk", "holds more than 1 MiB")));
            }
            upload = upload.write(chunk).await.map_err(|e| status::grpc(&e.into()))?;
        }
        let uploaded = upload.finish().await.map_err(|e| status::grpc(&e.into()))?;
        // On the control runtime: compiling and booting are no worker's business.
        let core = Arc::clone(&self.core);
        let task = async move { core.deploy(manifest, format, declared, uploaded).await };
        let deployed = self.core.on_control(task).await.map_err(|e| status::grpc(&e))?;
        Ok(proto::DeployResponse {
            function: Some(convert::function(&deployed.deployment)),
            changed: deployed.changed,
            prepare_time: Some(convert::duration(deployed.prepare_time)),
        })
    }
}

#[tonic::async_trait]
impl Functions for FunctionsService {
    type InvokeStreamStream = InvokeReplies;
    type LogsStream = LogReplies;

    async fn deploy(
        &self,
        request: Request<Streaming<proto::DeployRequest>>,
    ) -> Result<Response<proto::DeployResponse>, Status> {
        self.deploy_stream(request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let proto::GetRequest { name, version } = request.into_inner();
        let deployment = self.core.functions().find(&name, version).map_err(|e| status::grpc(&e))?;
        Ok(Response::new(proto::GetResponse { function: Some(convert::function(&deployment)) }))
    }

    async fn list(
        &self,
        request: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListResponse>, Status> {
        let proto::ListRequest { page_size, page_token } = request.get_ref();
        let page = self.core.functions().page(*page_size, page_token).map_err(|e| status::grpc(&e))?;
        Ok(Response::new(proto::ListResponse {
            functions: page.items.iter().map(|deployment| convert::function(deployment)).collect(),
            next_page_token: page.next,
        }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let core = Arc::clone(&self.core);
        let task = async move { core.delete(&request.get_ref().name).await };
        self.core.on_control(task).await.map_err(|e| status::grpc(&e))?;
        Ok(Response::new(proto::DeleteResponse {}))
    }

    async fn invoke(
        &self,
        request: Request<proto::InvokeRequest>,
    ) -> Result<Response<proto::InvokeResponse>, Status> {
        let arrived = Instant::now();
        let deadline = grpc_timeout(request.metadata());
        let request = request.into_inner();
        let limit_bytes = self.core.config().max_payload_bytes;
        if request.payload.len() > limit_bytes {
            return Err(status::grpc(&Error::PayloadTooLarge { limit_bytes }));
        }
        let timeout = request.timeout.map(|timeout| convert::duration_from(timeout, "timeout"));
        let timeout = timeout.transpose().map_err(|e| status::grpc(&e))?;
        let call = Call {
            function: &request.function,
            version: request.version,
            env: request.env.into_iter().collect(),
            env_without_case: false,
            timeout: smaller(timeout, deadline),
            arrived,
            input: Input::Bytes(request.payload),
            output: None,
            log: None,
        };
        let done = self.core.invoke(call).await.map_err(|e| status::grpc(&e))?;
        Ok(Response::new(convert::invoke_response(done)))
    }

    async fn invoke_stream(
        &self,
        request: Request<Streaming<proto::InvokeStreamRequest>>,
    ) -> Result<Response<InvokeReplies>, Status> {
        let arrived = Instant::now();
        let deadline = grpc_timeout(request.metadata());
        let replies = InvokeReplies::open(&self.core, request.into_inner(), arrived, deadline).await;
        replies.map(Response::new).map_err(|e| status::grpc(&e))
    }

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<LogReplies>, Status> {
        let replies = LogReplies::open(&self.core, request.get_ref());
        replies.map(Response::new).map_err(|e| status::grpc(&e))
    }
}

/// tonic says OUT_OF_RANGE where a message is over its limit; the API says RESOURCE_EXHAUSTED, with the limit's name.
#[must_use]
pub fn mend_stream_error(error: Status, limit_bytes: usize) -> Error {
    if error.code() == Code::OutOfRange {
        Error::PayloadTooLarge { limit_bytes }
    } else {
        Error::field("input", error.message())
    }
}
