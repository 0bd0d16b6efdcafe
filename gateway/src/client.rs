//! A client of a gateway: what the command line and the dev server say to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use novum_proto::gateway::v1;
use novum_proto::gateway::v1::admin_client::AdminClient;
use novum_proto::gateway::v1::functions_client::FunctionsClient;
use novum_sandbox::{ArtifactFormat, EngineChoice, Manifest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::cli::error::Error;
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
            manifest: Some(manifest_message(&file.manifest)),
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

/// The manifest as a message.
#[must_use]
pub fn manifest_message(manifest: &Manifest) -> v1::Manifest {
    let share = |share: &novum_sandbox::Share| v1::SharedDirectory {
        source: share.source.display().to_string(),
        target: share.target.clone(),
        read_only: Some(share.read_only),
    };
    let pool = &manifest.pool;
    v1::Manifest {
        name: manifest.name.to_string(),
        engine: engine_message(manifest.engine).into(),
        entry: manifest.entry.clone(),
        args: manifest.args.clone(),
        env: manifest.env.clone().into_iter().collect(),
        allow_env: manifest.allow_env.iter().cloned().collect(),
        memory_bytes: Some(manifest.memory_bytes),
        timeout: duration_message(manifest.timeout),
        output_bytes: Some(manifest.output_bytes),
        shares: manifest.shares.iter().map(share).collect(),
        pool: Some(v1::Pool {
            min: Some(pool.min),
            max: Some(pool.max),
            queue: Some(pool.queue),
            idle: duration_message(pool.idle),
        }),
    }
}

/// A duration as a message.
#[must_use]
pub fn duration_message(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn engine_message(engine: EngineChoice) -> v1::Engine {
    match engine {
        EngineChoice::Auto => v1::Engine::Auto,
        EngineChoice::Wasm => v1::Engine::Wasm,
        EngineChoice::Process => v1::Engine::Process,
        EngineChoice::Linux => v1::Engine::Linux,
    }
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
