//! What the gateway does, on domain types.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ServeConfig;

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or listed.
    #[error("cannot use the data directory {path}: {source}", path = path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A gateway without its listeners.
#[derive(Debug)]
pub struct Core {
    config: ServeConfig,
}

impl Core {
    /// Opens the data directory.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: ServeConfig) -> Result<Arc<Self>, OpenError> {
        let path = config.data_dir.clone();
        std::fs::create_dir_all(&path).map_err(|source| OpenError::Directory { path, source })?;
        Ok(Arc::new(Self { config }))
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &ServeConfig {
        &self.config
    }

    /// Refuses new invocations and waits for those that run.
    pub async fn drain(&self) {}
}
