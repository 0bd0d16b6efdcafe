//! A client of a gateway: what the command line and the dev server say to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use novum_proto::gateway::v1;
use novum_proto::gateway::v1::admin_client::AdminClient;
use novum_proto::gateway::v1::functions_client::FunctionsClient;
use novum_proto::gateway::v1::sandboxes_client::SandboxesClient;
use novum_sandbox::ArtifactFormat;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::cli::error::Error;
use crate::convert;
use crate::manifest::FunctionFile;
use crate::pack;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a gateway.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to `http://HOST:PORT`, `HOST:PORT` or `unix:/absolute/path`.
    ///
    /// # Errors
    /// [`Error::Address`] for anything else, [`Error::Connect`] where nothing answers.
    pub async fn connect(server: &str) -> Result<Self, Error> {
        let endpoint = endpoint(server)?.connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint
            .connect()
            .await
            .map_err(|e| Error::Connect { server: server.to_owned(), reason: innermost(&e) })?;
        Ok(Self { channel })
    }

    /// The functions service.
    #[must_use]
    pub fn functions(&self) -> FunctionsClient<Channel> {
        // The gateway bounds what it sends by the manifest's `output`.
        FunctionsClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// The sandboxes service.
    #[must_use]
    pub fn sandboxes(&self) -> SandboxesClient<Channel> {
        SandboxesClient::new(self.channel.clone())
    }

    /// The admin service.
    #[must_use]
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Deploys a function. `sent` counts the artifact's bytes that have left.
    ///
    /// # Errors
    /// The gateway's refusal, or an artifact that cannot be read; then nothing is deployed.
    pub async fn deploy(
        &self,
        file: &FunctionFile,
        sent: Arc<AtomicU64>,
    ) -> Result<v1::DeployResponse, Error> {
        let start = v1::deploy_request::Start {
            manifest: Some(convert::manifest(&file.manifest)),
            format: format_message(file.artifact.format()).into(),
            size_bytes: file.artifact.size_bytes(),
            sha256: String::new(),
        };
        let (to, chunks) = mpsc::channel::<Bytes>(4);
        // Held open until the packing has succeeded: a stream that ended early would look like a whole artifact.
        let open = to.clone();
        let artifact = file.artifact.clone();
        let mut packing = tokio::task::spawn_blocking(move || pack::send(&artifact, to));
        let parts = ReceiverStream::new(chunks).map(move |chunk| {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            request(v1::deploy_request::Part::Chunk(chunk))
        });
        let first = tokio_stream::once(request(v1::deploy_request::Part::Start(start)));
        let mut functions = self.functions();
        let mut call = std::pin::pin!(functions.deploy(first.chain(parts)));
        let packed = tokio::select! {
            packed = &mut packing => packed,
            answer = &mut call => return finish(file, answer),
        };
        // Returning here drops the call, which cancels it: the gateway throws the half artifact away.
        packed.map_err(|e| pack::PackError::Write(e.into()))??;
        drop(open);
        finish(file, call.await)
    }
}

fn finish(
    file: &FunctionFile,
    answer: Result<tonic::Response<v1::DeployResponse>, tonic::Status>,
) -> Result<v1::DeployResponse, Error> {
    let doing = format!("deploy {}", file.manifest.name);
    answer.map(tonic::Response::into_inner).map_err(Error::status(doing))
}

fn request(part: v1::deploy_request::Part) -> v1::DeployRequest {
    v1::DeployRequest { part: Some(part) }
}

fn endpoint(server: &str) -> Result<Endpoint, Error> {
    let refuse = |reason: String| Error::Address { server: server.to_owned(), reason };
    if server.starts_with("https:") {
        return Err(refuse(
            "this build speaks plain HTTP/2; put a TLS proxy on this machine before it".into(),
        ));
    }
    let url = match server.starts_with("unix:") || server.contains("://") {
        true => server.to_owned(),
        false => format!("http://{server}"),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|e| refuse(innermost(&e)))?;
    let plain =
        server.starts_with("unix:") || endpoint.uri().authority().is_some_and(|a| !a.host().is_empty());
    if plain { Ok(endpoint) } else { Err(refuse("it names no host".into())) }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn format_message(format: ArtifactFormat) -> v1::ArtifactFormat {
    match format {
        ArtifactFormat::File => v1::ArtifactFormat::File,
        ArtifactFormat::Tar => v1::ArtifactFormat::Tar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_a_scheme() {
        for good in ["http://127.0.0.1:7070", "localhost:7070", "[::1]:7070", "unix:/run/novum.sock"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "http://", "https://example.org", "a b"] {
            assert!(matches!(endpoint(bad), Err(Error::Address { .. })), "{bad}");
        }
    }
}
