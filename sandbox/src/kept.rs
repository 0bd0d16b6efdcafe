//! Images that engines keep in the gateway's store of snapshots: what they are called, and what each says about itself.
//!
//! A deployed version's image is named by the reference `ENGINE.FUNCTION.vVERSION`. The reference keeps it; who
//! removes the version removes the reference ([`release`]).
//!
//! A snapshot of a sandbox session is named by `sandbox:PROCESS-TIME-NUMBER`. It goes with the process that took it; what a
//! killed one left, the next one removes ([`is_sandbox`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use novum_snapshot::{Digest, RefName, Snapshot, State, Store, StoreError};
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

/// What every reference of [`sandbox_reference`] begins with.
const SANDBOX: &str = "sandbox:";

/// A name for the snapshot of a sandbox that nobody else uses.
///
/// # Panics
/// Never: it consists of characters of a reference, and is short enough.
#[must_use]
pub fn sandbox_reference() -> RefName {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("{SANDBOX}{process}-{now}-{count}").parse().expect("numbers and dashes fit")
}

/// Whether `reference` is one of [`sandbox_reference`], of whatever process.
#[must_use]
pub fn is_sandbox(reference: &RefName) -> bool {
    let Some(numbers) = reference.as_str().strip_prefix(SANDBOX) else { return false };
    let mut numbers = numbers.split('-').map(str::parse::<u128>);
    numbers.clone().count() == 3 && numbers.all(|number| number.is_ok())
}

/// A name in the store for a sandbox's snapshot, for as long as somebody has this. Without it the store may remove the
/// snapshot; what still uses it keeps it.
#[cfg(feature = "vm")]
#[derive(Debug)]
pub(crate) struct Held {
    store: Store,
    name: RefName,
}

#[cfg(feature = "vm")]
impl Held {
    /// In `store`. It refers to nothing yet.
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), name: sandbox_reference() }
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The name.
    pub(crate) fn name(&self) -> &RefName {
        &self.name
    }
}

#[cfg(feature = "vm")]
impl Drop for Held {
    fn drop(&mut self) {
        let (store, name) = (self.store.clone(), self.name.clone());
        let remove = move || {
            if let Err(error) = release_called(&store, &name) {
                tracing::warn!(%name, %error, "a sandbox's snapshot stays in the store");
            }
        };
        // It waits for the store's lock and the disk: not on a thread that serves others.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
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
    let name = reference(engine, function, version);
    // What the process engine learns of an image is a layer over it, and goes with it.
    let layer = if engine == EngineKind::Process { store.get_ref(&name)? } else { None };
    let image = layer.and_then(|layer| Snapshot::open(store, &layer).ok()?.parent());
    release_called(store, &name)?;
    if let Some(image) = image {
        // Where somebody has it open it is a cache's entry from now on.
        let _ = store.remove(&image);
    }
    Ok(())
}

/// As [`release`], of any reference and what it alone refers to.
///
/// # Errors
/// As [`release`].
pub fn release_called(store: &Store, reference: &RefName) -> Result<(), StoreError> {
    match store.remove_called(reference.as_str()) {
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
    fn references_of_sandboxes_are_told_apart() {
        let (one, other) = (sandbox_reference(), sandbox_reference());
        assert!(one != other && is_sandbox(&one) && is_sandbox(&other));
        assert_eq!(parse(&one), None);
        for other in
            ["sandbox:", "sandbox:1-2", "sandbox:1-2-x", "sandbox:1-2-3-4", "sandbox.a.v1", "process.a.v1"]
        {
            assert!(!is_sandbox(&other.parse().unwrap()), "{other}");
        }
    }

    #[cfg(feature = "vm")]
    #[tokio::test]
    async fn a_held_name_goes_with_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let held = Held::new(&store);
        let name = held.name().clone();
        let mut writer =
            novum_snapshot::Writer::base(held.store(), novum_snapshot::Host::new(["cpu.x"])).unwrap();
        writer.refer(held.name());
        let digest = writer.publish().unwrap();
        assert_eq!(store.get_ref(&name).unwrap(), Some(digest));
        // The thread that serves others only says that it is to be done: the lock is held by somebody here.
        drop(held);
        for _ in 0..1000 {
            if store.get_ref(&name).unwrap().is_none() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the name stays");
    }

    #[test]
    fn what_was_never_kept_is_released_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        release(&store, EngineKind::Process, &"a".parse().unwrap(), 1).unwrap();
    }
}
