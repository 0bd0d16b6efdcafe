//! Compiled code on disk: used again, and never believed without its seal.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use novum_sandbox::engines::EngineConfig;
use novum_sandbox::wasm::WasmEngine;
use novum_sandbox::{Engine, Function};
use tempfile::TempDir;

use super::programs::{ECHO, spin};
use super::{Bed, run};

fn engine(cache: &Path) -> WasmEngine {
    let config = EngineConfig {
        cache: cache.to_owned(),
        kernels: cache.to_owned(),
        max_sandboxes: 2,
        max_memory_bytes: 1 << 20,
        snapshots: None,
    };
    WasmEngine::new(&config).unwrap()
}

/// The one file of compiled code.
fn code(cache: &Path) -> PathBuf {
    let files = fs::read_dir(cache.join("wasm")).unwrap().map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|ext| ext == "cwasm"));
    let file = files.next().expect("compiled code is kept");
    assert_eq!(files.next(), None);
    file
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Echo was deployed here, its code is kept, and its artifact is gone: what now runs came from the cache.
struct Deployed {
    bed: Bed,
    function: Arc<Function>,
    cache: TempDir,
}

impl Deployed {
    async fn new() -> Self {
        let (bed, cache) = (Bed::new(), tempfile::tempdir().unwrap());
        let function = bed.function(ECHO, |_| {});
        engine(cache.path()).prepare(Arc::clone(&function)).await.unwrap();
        fs::write(&function.artifact.path, "gone").unwrap();
        Self { bed, function, cache }
    }

    fn code(&self) -> PathBuf {
        code(self.cache.path())
    }

    /// Whether a new engine takes the kept code.
    async fn is_used(&self) -> bool {
        match engine(self.cache.path()).prepare(Arc::clone(&self.function)).await {
            Ok(image) => {
                assert_eq!(run(&image, b"x").await.unwrap().output, "x");
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("reading the artifact"), "{error}");
                false
            }
        }
    }

    /// With the artifact back, the function is compiled again and the cache is whole again.
    async fn assert_recovers(&self) {
        fs::write(&self.function.artifact.path, ECHO).unwrap();
        assert!(self.is_used().await);
        fs::write(&self.function.artifact.path, "gone").unwrap();
        assert!(self.is_used().await, "the new code was not kept");
    }
}

#[tokio::test]
async fn code_is_compiled_once_and_private() {
    let deployed = Deployed::new().await;
    assert!(deployed.is_used().await);
    let directory = deployed.cache.path().join("wasm");
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("key")), 0o600);
    assert_eq!(mode(&deployed.code()), 0o600);
}

#[tokio::test]
async fn a_component_is_kept_too() {
    let (bed, cache) = (Bed::new(), tempfile::tempdir().unwrap());
    let function = bed.function(include_str!("fixtures/echo-command.wat"), |_| {});
    engine(cache.path()).prepare(Arc::clone(&function)).await.unwrap();
    fs::write(&function.artifact.path, "gone").unwrap();
    let image = engine(cache.path()).prepare(function).await.unwrap();
    assert_eq!(run(&image, b"x").await.unwrap().output, "x");
}

#[tokio::test]
async fn changed_code_is_not_loaded() {
    let deployed = Deployed::new().await;
    let whole = fs::read(deployed.code()).unwrap();
    let len = whole.len();
    for at in [0, 20, len / 2, len - 33, len - 32, len - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(deployed.code(), bytes).unwrap();
        assert!(!deployed.is_used().await, "byte {at} of {len}");
    }
    for keep in [0, 10, 31, 32, 33, len - 1] {
        fs::write(deployed.code(), &whole[..keep]).unwrap();
        assert!(!deployed.is_used().await, "{keep} bytes");
    }
    deployed.assert_recovers().await;
}

#[tokio::test]
async fn code_of_another_installation_is_not_loaded() {
    let (deployed, other) = (Deployed::new().await, Deployed::new().await);
    assert_eq!(deployed.code().file_name(), other.code().file_name());
    fs::write(deployed.code(), fs::read(other.code()).unwrap()).unwrap();
    assert!(!deployed.is_used().await);
    deployed.assert_recovers().await;
}

#[tokio::test]
async fn code_of_another_artifact_is_not_loaded() {
    let deployed = Deployed::new().await;
    let echo = deployed.code();
    let name = echo.with_extension("other");
    fs::rename(&echo, &name).unwrap();
    engine(deployed.cache.path()).prepare(deployed.bed.function(spin(), |_| {})).await.unwrap();
    fs::rename(deployed.code(), &echo).unwrap();
    assert!(!deployed.is_used().await);
}

#[tokio::test]
async fn code_that_others_may_touch_is_not_loaded() {
    let deployed = Deployed::new().await;
    for mode in [0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(deployed.code(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(!deployed.is_used().await, "mode {mode:o}");
    }
    deployed.assert_recovers().await;
    assert_eq!(mode(&deployed.code()), 0o600);
}

#[tokio::test]
async fn code_of_another_user_is_not_loaded() {
    let deployed = Deployed::new().await;
    if let Err(error) = chown(deployed.code(), Some(12345), None) {
        println!("SKIPPED: code_of_another_user_is_not_loaded: chown: {error}");
        return;
    }
    assert!(!deployed.is_used().await);
}

#[tokio::test]
async fn a_symbolic_link_is_not_followed() {
    let deployed = Deployed::new().await;
    let elsewhere = deployed.cache.path().join("elsewhere");
    fs::rename(deployed.code(), &elsewhere).unwrap();
    let name = elsewhere.with_file_name("wasm").join(engine_name(&deployed).await.file_name().unwrap());
    symlink(&elsewhere, &name).unwrap();
    assert!(!deployed.is_used().await);
}

/// Where the deployed function's code belongs.
async fn engine_name(deployed: &Deployed) -> PathBuf {
    let other = Deployed::new().await;
    assert_eq!(other.function.artifact.digest, deployed.function.artifact.digest);
    other.code()
}

#[tokio::test]
async fn a_key_that_others_may_read_is_replaced() {
    let deployed = Deployed::new().await;
    let key = deployed.cache.path().join("wasm/key");
    let old = fs::read(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(!deployed.is_used().await);
    assert_ne!(fs::read(&key).unwrap(), old);
    assert_eq!(mode(&key), 0o600);
    deployed.assert_recovers().await;
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_done_without() {
    let (bed, dir) = (Bed::new(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("wasm"), "a file").unwrap();
    let image = engine(dir.path()).prepare(bed.function(ECHO, |_| {})).await.unwrap();
    assert_eq!(run(&image, b"x").await.unwrap().output, "x");
}
