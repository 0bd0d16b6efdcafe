//! Deployed functions as the HTTP replies show them.

use novum_sandbox::{ArtifactFormat, Manifest};
use serde_json::{Value, json};

use crate::functions::Deployment;

/// One deployed version.
#[must_use]
pub fn function(deployment: &Deployment) -> Value {
    let record = &deployment.record;
    let format = match record.format {
        ArtifactFormat::File => "file",
        ArtifactFormat::Tar => "tar",
    };
    json!({
        "name": record.manifest.name.as_str(),
        "version": record.version,
        "engine": record.engine.as_str(),
        "artifact": {
            "sha256": record.digest.to_string(),
            "bytes": record.size_bytes,
            "format": format,
        },
        "deployed_at_ms": record.deployed_at_ms,
        "manifest": manifest(&record.manifest),
    })
}

fn manifest(manifest: &Manifest) -> Value {
    let share = |share: &novum_sandbox::Share| json!({ "source": share.source.to_string_lossy(), "target": share.target, "read_only": share.read_only });
    let shares: Vec<_> = manifest.shares.iter().map(share).collect();
    json!({
        "entry": manifest.entry,
        "args": manifest.args,
        "env": manifest.env,
        "allow_env": manifest.allow_env,
        "memory_bytes": manifest.memory_bytes,
        "timeout_ms": millis(manifest.timeout),
        "output_bytes": manifest.output_bytes,
        "shares": shares,
        "ready": manifest.ready,
        "pool": {
            "min": manifest.pool.min,
            "max": manifest.pool.max,
            "queue": manifest.pool.queue,
            "idle_ms": millis(manifest.pool.idle),
        },
    })
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
