//! Images that engines keep in the gateway's store of snapshots: what they are called, and what each says about itself.
//!
//! A deployed version's image is named by the reference `ENGINE.FUNCTION.vVERSION`. The reference keeps it; who
//! removes the version removes the reference ([`release`]).

use std::time::SystemTime;

use novum_snapshot::{Digest, RefName, State, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::function::{EngineKind, Function, FunctionName};

/// Where an image comes from, as a section of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Which engine made it.
    pub engine: EngineKind,
    /// Of which function.
    pub function: FunctionName,
    /// Of which version of that.
    pub version: u64,
    /// The artifact that was deployed.
    pub artifact: Digest,
    /// The version of the novum that made it.
    pub novum: String,
    /// When, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// Everything that the image depends on, in one number: another key means another image.
    pub key: Digest,
}

impl State for Origin {
    const KIND: &'static str = "origin";
    const VERSION: u32 = 1;
}

impl Origin {
    /// Of `function`, made now.
    #[must_use]
    pub fn new(engine: EngineKind, function: &Function, key: Digest) -> Self {
        Self {
            engine,
            function: function.manifest.name.clone(),
            version: function.version,
            artifact: function.artifact.digest,
            novum: env!("CARGO_PKG_VERSION").to_owned(),
            made_at_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |passed| passed.as_millis() as u64),
            key,
        }
    }

    /// What refers to it.
    #[must_use]
    pub fn reference(&self) -> RefName {
        reference(self.engine, &self.function, self.version)
    }
}

/// What refers to the image of a function's version.
///
/// # Panics
/// Never: a function's name consists of characters of a reference, and is short enough.
#[must_use]
pub fn reference(engine: EngineKind, function: &FunctionName, version: u64) -> RefName {
    format!("{engine}.{function}.v{version}").parse().expect("a function's name fits")
}

/// The counterpart of [`reference`]; `None` for references of another kind.
#[must_use]
pub fn parse(reference: &RefName) -> Option<(EngineKind, FunctionName, u64)> {
    let mut parts = reference.as_str().split('.');
    let (engine, function, version) = (parts.next()?, parts.next()?, parts.next()?);
    let kinds = [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux];
    let engine = kinds.into_iter().find(|kind| kind.as_str() == engine)?;
    let version = version.strip_prefix('v')?.parse().ok()?;
    parts.next().is_none().then_some((engine, function.parse().ok()?, version))
}

/// Nothing is to be kept for the version any more: its reference goes, and the image too unless somebody has it open.
///
/// # Errors
/// Those of changing the store; that there is no image is none.
pub fn release(
    store: &Store,
    engine: EngineKind,
    function: &FunctionName,
    version: u64,
) -> Result<(), StoreError> {
    match store.remove_called(reference(engine, function, version).as_str()) {
        Ok(_) | Err(StoreError::MissingRef(_) | StoreError::Unknown(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_back_as_they_print() {
        let longest = "x".repeat(63);
        for name in ["a", "a-b9", longest.as_str()] {
            let name: FunctionName = name.parse().unwrap();
            for engine in [EngineKind::Process, EngineKind::Linux] {
                let made = reference(engine, &name, u64::MAX);
                assert_eq!(parse(&made), Some((engine, name.clone(), u64::MAX)));
            }
        }
        for other in ["process", "process.a", "process.a.1", "process.a.v1.x", "sandbox.a.v1", "process.A.v1"]
        {
            assert_eq!(parse(&other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn what_was_never_kept_is_released_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        release(&store, EngineKind::Process, &"a".parse().unwrap(), 1).unwrap();
    }
}
