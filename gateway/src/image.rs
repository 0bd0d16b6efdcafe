//! A version's image: made before the version becomes current, and again in the background after a restart of the
//! gateway. The first call that comes before it is there waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::{Engine, Function, Image, Renewal, Sandbox};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

/// A failed preparation is not tried again before this time has passed: it may cost seconds.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The function cannot be prepared.
    #[error("{0}")]
    NotPrepared(String),
    /// A shared directory is no longer what was allowed.
    #[error("{0}")]
    Share(String),
    /// The image did not start.
    #[error(transparent)]
    Start(#[from] novum_sandbox::Error),
}

/// Which host directories functions may see.
#[derive(Clone, Debug, Default)]
pub struct SharePolicy {
    allowed: Arc<[PathBuf]>,
}

impl SharePolicy {
    /// Directories below these.
    ///
    /// # Errors
    /// The first path that is no directory.
    pub fn new(allowed: &[PathBuf]) -> Result<Self, (PathBuf, std::io::Error)> {
        let canonical = allowed.iter().map(|path| path.canonicalize().map_err(|e| (path.clone(), e)));
        Ok(Self { allowed: canonical.collect::<Result<_, _>>()? })
    }

    /// The directory without symbolic links, when it may be shared.
    ///
    /// # Errors
    /// Why it may not, and what to do.
    pub fn check(&self, source: &Path) -> Result<PathBuf, String> {
        let canonical = source.canonicalize().map_err(|e| format!("cannot be shared: {e}"))?;
        if !canonical.is_dir() {
            return Err("cannot be shared: it is not a directory".to_owned());
        }
        if self.allowed.iter().any(|allowed| canonical.starts_with(allowed)) {
            return Ok(canonical);
        }
        Err(format!(
            "may not be shared: start the gateway with --allow-share {} (or a directory above it)",
            canonical.display()
        ))
    }
}

/// A version's image, there or to be made.
pub struct ImageCell {
    function: Arc<Function>,
    /// `Err`: why this gateway has no such engine.
    engine: Result<Arc<dyn Engine>, String>,
    image: OnceCell<Arc<dyn Image>>,
    failed: Mutex<Option<(Instant, String)>>,
    shares: SharePolicy,
    control: Handle,
}

impl ImageCell {
    /// Not yet made.
    #[must_use]
    pub fn new(
        function: Arc<Function>,
        engine: Result<Arc<dyn Engine>, String>,
        shares: SharePolicy,
        control: Handle,
    ) -> Self {
        Self { function, engine, image: OnceCell::new(), failed: Mutex::default(), shares, control }
    }

    /// Makes it, on the control runtime, unless it is there.
    ///
    /// # Errors
    /// [`ImageError::NotPrepared`]; the same one for a while.
    pub async fn get(&self) -> Result<&Arc<dyn Image>, ImageError> {
        self.image.get_or_try_init(|| self.prepare()).await
    }

    async fn prepare(&self) -> Result<Arc<dyn Image>, ImageError> {
        if let Some((when, reason)) = &*self.failed.lock()
            && when.elapsed() < RETRY_AFTER
        {
            return Err(ImageError::NotPrepared(reason.clone()));
        }
        self.prepare_now().await.map_err(|error| {
            let reason = error.to_string();
            *self.failed.lock() = Some((Instant::now(), reason.clone()));
            ImageError::NotPrepared(reason)
        })
    }

    /// Makes an image whatever happened before.
    ///
    /// # Errors
    /// The engine's own.
    async fn prepare_now(&self) -> Result<Arc<dyn Image>, novum_sandbox::Error> {
        let engine = self.engine.clone().map_err(|reason| novum_sandbox::Error::Unavailable {
            engine: self.function.manifest.engine.kind().unwrap_or(novum_sandbox::EngineKind::Wasm),
            reason,
        })?;
        let function = Arc::clone(&self.function);
        let task = self.control.spawn(async move { engine.prepare(function).await });
        task.await.map_err(|e| novum_sandbox::Error::host("preparing the function", e))?
    }

    /// Makes the image for a deploy, with the engine's own error.
    ///
    /// # Errors
    /// The engine's own.
    pub async fn prepare_for_deploy(&self) -> Result<(), novum_sandbox::Error> {
        self.image.get_or_try_init(|| self.prepare_now()).await.map(drop)
    }

    /// It is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.image.initialized()
    }

    /// How its sandboxes become clean; before the image is there none exists, and the answer does not matter.
    #[must_use]
    pub fn renewal(&self) -> Renewal {
        self.image.get().map_or(Renewal::Restart, |image| image.renewal())
    }

    /// What all its living sandboxes hold.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        self.image.get().map_or(0, |image| image.private_bytes())
    }

    /// A new sandbox.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn start(&self) -> Result<Box<dyn Sandbox>, ImageError> {
        Ok(self.startable().await?.start().await?)
    }

    /// A new sandbox that nobody waits for.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn start_ahead(&self) -> Result<Box<dyn Sandbox>, ImageError> {
        Ok(self.startable().await?.start_ahead().await?)
    }

    async fn startable(&self) -> Result<Arc<dyn Image>, ImageError> {
        let image = match self.image.get() {
            Some(image) => image,
            None => self.get().await?,
        };
        for share in &self.function.manifest.shares {
            // A directory may have become a symbolic link to elsewhere since the deploy.
            match self.shares.check(&share.source) {
                Ok(canonical) if canonical == share.source => {}
                Ok(_) => return Err(ImageError::Share(moved(&share.source))),
                Err(reason) => {
                    return Err(ImageError::Share(format!("{} {reason}", share.source.display())));
                }
            }
        }
        Ok(Arc::clone(image))
    }
}

fn moved(source: &Path) -> String {
    format!("{} leads somewhere else than when the function was deployed; deploy it again", source.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_below_a_prefix_may_be_shared() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for name in ["open/inner", "open-too", "closed"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        std::fs::write(base.join("open/file"), "x").unwrap();
        std::os::unix::fs::symlink(base.join("closed"), base.join("open/link")).unwrap();
        let policy = SharePolicy::new(&[base.join("open")]).unwrap();
        assert_eq!(policy.check(&base.join("open/../open/inner")), Ok(base.join("open/inner")));
        assert_eq!(policy.check(&base.join("open")), Ok(base.join("open")));
        for bad in ["open-too", "closed", "open/link", "open/file", "open/missing", "open/../closed"] {
            assert!(policy.check(&base.join(bad)).is_err(), "{bad}");
        }
        assert!(policy.check(&base.join("closed")).unwrap_err().contains("--allow-share"));
        assert!(SharePolicy::default().check(&base.join("open")).is_err());
        assert!(SharePolicy::new(&[base.join("missing")]).is_err());
    }
}
