//! Between protobuf messages and domain types. What comes in is checked, and errors name the field in the request's own
//! spelling (`manifest.pool.max`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use novum_proto::gateway::v1 as proto;
use novum_sandbox::{ArtifactFormat, EngineChoice, EngineKind, ExitStatus, Manifest, Pool, Share};
use novum_snapshot::Digest;

use crate::deploy::Declared;
use crate::dispatch::Done;
use crate::error::Error;
use crate::functions::Deployment;
use crate::logs::Line;
use crate::timings::{Clocks, Timings};

/// A manifest's field in the Deploy message's spelling, from that in `novum.toml`.
#[must_use]
pub fn proto_field(toml: &str) -> String {
    let renamed = match toml {
        "memory" => "memory_bytes".to_owned(),
        "output" => "output_bytes".to_owned(),
        other => match other.strip_prefix("share[") {
            Some(rest) => format!("shares[{rest}"),
            None => other.to_owned(),
        },
    };
    format!("manifest.{renamed}")
}

/// Cuts `text` to at most `limit_bytes` at a character's end.
pub fn truncate(text: &mut String, limit_bytes: usize) {
    if text.len() > limit_bytes {
        let end = (0..=limit_bytes).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The start of a deploy.
///
/// # Errors
/// The first field with an impossible value.
pub fn deploy_start(
    start: proto::deploy_request::Start,
) -> Result<(Manifest, ArtifactFormat, Declared), Error> {
    let manifest = start.manifest.ok_or_else(|| Error::field("start.manifest", "is missing"))?;
    let manifest = manifest_from(manifest)?;
    let format = match proto::ArtifactFormat::try_from(start.format) {
        Ok(proto::ArtifactFormat::Unspecified | proto::ArtifactFormat::File) => ArtifactFormat::File,
        Ok(proto::ArtifactFormat::Tar) => ArtifactFormat::Tar,
        Err(_) => return Err(Error::field("start.format", format!("{} is no known format", start.format))),
    };
    let digest = match start.sha256.as_str() {
        "" => None,
        text => Some(text.parse::<Digest>().map_err(|e| Error::field("start.sha256", e.to_string()))?),
    };
    Ok((manifest, format, Declared { size_bytes: start.size_bytes, digest }))
}

/// A manifest with its defaults filled in.
///
/// # Errors
/// The first field with an impossible value.
pub fn manifest_from(message: proto::Manifest) -> Result<Manifest, Error> {
    let name = message.name.parse().map_err(|e| Error::field("manifest.name", format!("{e}")))?;
    let mut manifest = Manifest::new(name);
    manifest.engine = engine_choice(message.engine)?;
    manifest.entry = message.entry;
    manifest.args = message.args;
    manifest.env = message.env.into_iter().collect();
    manifest.allow_env = message.allow_env.into_iter().collect();
    manifest.memory_bytes = message.memory_bytes.unwrap_or(manifest.memory_bytes);
    manifest.output_bytes = message.output_bytes.unwrap_or(manifest.output_bytes);
    if let Some(timeout) = message.timeout {
        manifest.timeout = duration_from(timeout, "manifest.timeout")?;
    }
    manifest.shares = message.shares.into_iter().map(share_from).collect();
    if let Some(pool) = message.pool {
        manifest.pool = pool_from(pool)?;
    }
    manifest.ready = message.ready;
    manifest.check().map_err(|e| Error::field(proto_field(&e.field), e.reason))?;
    Ok(manifest)
}

fn engine_choice(engine: i32) -> Result<EngineChoice, Error> {
    match proto::Engine::try_from(engine) {
        Ok(proto::Engine::Unspecified | proto::Engine::Auto) => Ok(EngineChoice::Auto),
        Ok(proto::Engine::Wasm) => Ok(EngineChoice::Wasm),
        Ok(proto::Engine::Process) => Ok(EngineChoice::Process),
        Ok(proto::Engine::Linux) => Ok(EngineChoice::Linux),
        Err(_) => Err(Error::field("manifest.engine", format!("{engine} is no known engine"))),
    }
}

fn share_from(message: proto::SharedDirectory) -> Share {
    Share {
        source: message.source.into(),
        target: message.target,
        read_only: message.read_only.unwrap_or(true),
    }
}

fn pool_from(message: proto::Pool) -> Result<Pool, Error> {
    let default = Pool::default();
    Ok(Pool {
        min: message.min.unwrap_or(default.min),
        max: message.max.unwrap_or(default.max),
        queue: message.queue.unwrap_or(default.queue),
        idle: match message.idle {
            Some(idle) => duration_from(idle, "manifest.pool.idle")?,
            None => default.idle,
        },
    })
}

/// A duration that is not negative.
///
/// # Errors
/// Names `field`.
pub fn duration_from(message: prost_types::Duration, field: &str) -> Result<Duration, Error> {
    Duration::try_from(message).map_err(|_| Error::field(field, "must be a duration that is not negative"))
}

/// A duration as a message.
#[must_use]
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A moment as a message.
#[must_use]
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let prost_types::Duration { seconds, nanos } = duration(since);
    prost_types::Timestamp { seconds, nanos }
}

/// An engine as a message.
#[must_use]
pub fn engine(kind: EngineKind) -> proto::Engine {
    match kind {
        EngineKind::Wasm => proto::Engine::Wasm,
        EngineKind::Process => proto::Engine::Process,
        EngineKind::Linux => proto::Engine::Linux,
    }
}

/// A manifest as a message, every default filled in.
#[must_use]
pub fn manifest(manifest: &Manifest) -> proto::Manifest {
    let share = |share: &Share| proto::SharedDirectory {
        source: share.source.to_string_lossy().into_owned(),
        target: share.target.clone(),
        read_only: Some(share.read_only),
    };
    let Pool { min, max, queue, idle } = manifest.pool;
    proto::Manifest {
        name: manifest.name.to_string(),
        engine: manifest.engine.kind().map_or(proto::Engine::Auto, engine).into(),
        entry: manifest.entry.clone(),
        args: manifest.args.clone(),
        env: manifest.env.clone().into_iter().collect(),
        allow_env: manifest.allow_env.iter().cloned().collect(),
        memory_bytes: Some(manifest.memory_bytes),
        timeout: Some(duration(manifest.timeout)),
        output_bytes: Some(manifest.output_bytes),
        shares: manifest.shares.iter().map(share).collect(),
        pool: Some(proto::Pool {
            min: Some(min),
            max: Some(max),
            queue: Some(queue),
            idle: Some(duration(idle)),
        }),
        ready: manifest.ready.clone(),
    }
}

/// A deployed version as a message.
#[must_use]
pub fn function(deployment: &Deployment) -> proto::Function {
    let record = &deployment.record;
    proto::Function {
        manifest: Some(manifest(&deployment.function.manifest)),
        version: record.version,
        artifact_sha256: record.digest.to_string(),
        artifact_bytes: record.size_bytes,
        deployed_at: Some(timestamp(UNIX_EPOCH + Duration::from_millis(record.deployed_at_ms))),
        artifact_format: match record.format {
            ArtifactFormat::File => proto::ArtifactFormat::File,
            ArtifactFormat::Tar => proto::ArtifactFormat::Tar,
        }
        .into(),
    }
}

/// Timings as a message.
#[must_use]
pub fn timings(timings: &Timings, kind: EngineKind) -> proto::Timings {
    proto::Timings {
        queued: Some(duration(timings.queued)),
        start: Some(duration(timings.start)),
        run: Some(duration(timings.run)),
        first_byte: timings.first_byte.map(duration),
        cold: timings.cold,
        engine: engine(kind).into(),
        clocks: Some(clocks(&timings.clocks)),
    }
}

fn clocks(clocks: &Clocks) -> proto::Clocks {
    proto::Clocks {
        sandbox_ready: Some(duration(clocks.ready)),
        guest_resumed: clocks.resumed.map(duration),
        first_byte: clocks.first_byte.map(duration),
        answered: Some(duration(clocks.answered)),
    }
}

/// A program's end as a message.
#[must_use]
pub fn exit_status(exit: ExitStatus) -> proto::ExitStatus {
    use proto::exit_status::Status;
    let status = match exit {
        ExitStatus::Code(code) => Status::Code(code),
        ExitStatus::Fault(fault) => Status::Fault(proto::Fault { kind: fault.kind, message: fault.message }),
    };
    proto::ExitStatus { status: Some(status) }
}

/// The reply of a unary invocation.
#[must_use]
pub fn invoke_response(done: Done) -> proto::InvokeResponse {
    proto::InvokeResponse {
        payload: done.output,
        exit: Some(exit_status(done.exit)),
        log_tail: done.log_tail,
        timings: Some(timings(&done.timings, done.engine)),
        invocation_id: done.invocation.to_string(),
        version: done.version,
    }
}

/// The last message of a stream.
#[must_use]
pub fn stream_end(done: Done) -> proto::invoke_stream_response::End {
    proto::invoke_stream_response::End {
        exit: Some(exit_status(done.exit)),
        timings: Some(timings(&done.timings, done.engine)),
        invocation_id: done.invocation.to_string(),
        version: done.version,
    }
}

/// A log line as a message.
#[must_use]
pub fn log_line(line: &Line, missed: u64) -> proto::LogsResponse {
    proto::LogsResponse {
        function: line.function.to_string(),
        version: line.version,
        invocation_id: line.invocation.to_string(),
        time: Some(timestamp(line.time)),
        line: line.text.clone(),
        note: line.note,
        missed,
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
