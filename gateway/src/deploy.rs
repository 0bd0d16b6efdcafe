//! A deploy's way: manifest checked ── artifact stored ── engine chosen ── image made ── one registry transaction makes
//! the version current ── table swapped. A failure or a crash anywhere before the transaction leaves the former version.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use novum_sandbox::{ArtifactFormat, FunctionName, Manifest};
use novum_snapshot::Digest;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::artifacts::Uploaded;
use crate::core::Core;
use crate::error::Error;
use crate::functions::{Deployment, Entry, no_function};
use crate::registry::Record;

/// As many bytes as any engine wants to see.
const HEAD_BYTES: u64 = 4096;

/// What was announced of an artifact.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declared {
    /// Its size.
    pub size_bytes: Option<u64>,
    /// Its SHA-256.
    pub digest: Option<Digest>,
}

/// A deploy that succeeded.
pub struct Deployed {
    /// The current version now.
    pub deployment: Arc<Deployment>,
    /// It was not current before.
    pub changed: bool,
    /// Checking, compiling or booting, and publishing.
    pub prepare_time: Duration,
}

impl Core {
    /// Refuses what can be refused before the artifact comes. Returns the manifest with canonical share sources.
    ///
    /// # Errors
    /// Draining, the function limit, the memory limit, shares.
    pub fn accept_manifest(&self, mut manifest: Manifest) -> Result<Manifest, Error> {
        if self.draining() {
            return Err(Error::Draining);
        }
        if manifest.memory_bytes > self.config.max_memory_bytes {
            let limit = self.config.max_memory_bytes;
            let reason =
                format!("this gateway gives at most {limit} bytes; start it with a larger --max-memory");
            return Err(Error::field("manifest.memory_bytes", reason));
        }
        for (i, share) in manifest.shares.iter_mut().enumerate() {
            share.source = self.shares.check(&share.source).map_err(|reason| Error::Share {
                field: format!("manifest.shares[{i}].source"),
                source_path: share.source.clone(),
                reason,
            })?;
        }
        self.check_room(&manifest.name)?;
        Ok(manifest)
    }

    fn check_room(&self, name: &FunctionName) -> Result<(), Error> {
        let table = self.functions.all();
        let limit = self.config.max_functions;
        let room = table.contains_key(name) || table.len() < limit;
        if room { Ok(()) } else { Err(Error::TooManyFunctions { limit }) }
    }

    fn lock_of(&self, name: &FunctionName) -> &tokio::sync::Mutex<()> {
        let sum =
            name.as_str().bytes().fold(0_usize, |sum, b| sum.wrapping_mul(31).wrapping_add(usize::from(b)));
        &self.deploying[sum % self.deploying.len()]
    }

    /// Makes an accepted manifest with its artifact the current version.
    ///
    /// # Errors
    /// The former version is then still current.
    pub async fn deploy(
        self: &Arc<Self>,
        manifest: Manifest,
        format: ArtifactFormat,
        declared: Declared,
        uploaded: Uploaded,
    ) -> Result<Deployed, Error> {
        let began = Instant::now();
        check_declared(declared, &uploaded)?;
        let _turn = self.lock_of(&manifest.name).lock().await;
        self.check_room(&manifest.name)?;
        let old = self.functions.all().get(&manifest.name).cloned();
        if let Some(entry) = &old
            && same(&entry.current().record, &manifest, format, uploaded.digest)
        {
            let deployment = Arc::clone(entry.current());
            // It may be one that could not be prepared when the gateway started.
            deployment.pool.image().prepare_for_deploy().await.map_err(Error::Engine)?;
            return Ok(Deployed { deployment, changed: false, prepare_time: began.elapsed() });
        }
        let deployment = self.make(manifest, format, uploaded, old.as_ref()).await?;
        let prepared = deployment.pool.image().prepare_for_deploy().await;
        let published = match prepared {
            Ok(()) => self.publish(&deployment, old.as_ref()).await,
            Err(error) => Err(Error::Engine(error)),
        };
        if let Err(error) = published {
            self.retire(vec![deployment]).await;
            return Err(error);
        }
        deployment.pool.fill_later();
        Ok(Deployed { deployment, changed: true, prepare_time: began.elapsed() })
    }

    /// Stores the artifact and chooses its engine.
    async fn make(
        self: &Arc<Self>,
        manifest: Manifest,
        format: ArtifactFormat,
        uploaded: Uploaded,
        old: Option<&Entry>,
    ) -> Result<Arc<Deployment>, Error> {
        let (digest, size_bytes) = (uploaded.digest, uploaded.size_bytes);
        let core = Arc::clone(self);
        let entry = manifest.entry.clone();
        let stored = blocking(move || {
            let path = core.artifacts.publish(format, uploaded)?;
            let head = read_head(format, &path, &entry);
            if head.is_err() {
                core.artifacts.release((format, digest));
            }
            head
        });
        let head = stored.await?;
        let chosen = self.engines.choose(manifest.engine, &head).and_then(|(engine, made)| {
            // With `auto` the manifest alone could not tell.
            let chosen = Manifest { engine: engine.into(), ..manifest.clone() };
            chosen.check().map_err(|e| Error::field(crate::convert::proto_field(&e.field), e.reason))?;
            Ok((engine, made))
        });
        let (engine, _) = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                let core = Arc::clone(self);
                let release = move || {
                    core.artifacts.release((format, digest));
                    Ok(())
                };
                blocking(release).await?;
                return Err(error);
            }
        };
        let version = old.map_or(1, |entry| entry.current().record.version + 1);
        let deployed_at_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
        let shared = old.map(|entry| Arc::clone(&entry.current().shared));
        let shared = shared.unwrap_or_else(|| self.shared(&manifest.name));
        let record = Record { version, manifest, engine, format, digest, size_bytes, deployed_at_ms };
        Ok(self.deployment(record, shared))
    }

    /// The registry first, then the table.
    async fn publish(&self, deployment: &Arc<Deployment>, old: Option<&Entry>) -> Result<(), Error> {
        let mut versions = old.map_or_else(Vec::new, |entry| entry.versions().to_vec());
        versions.push(Arc::clone(deployment));
        let surplus = versions.len().saturating_sub(self.config.keep_versions);
        let gone: Vec<_> = versions.drain(..surplus).collect();
        let registry = Arc::clone(&self.registry);
        let record = deployment.record.clone();
        let remove: Vec<u64> = gone.iter().map(|d| d.record.version).collect();
        blocking(move || Ok(registry.publish(&record, &remove)?)).await?;
        self.functions.replace(&deployment.record.manifest.name, Entry::new(versions));
        // Only the current version keeps sandboxes ready.
        if let Some(entry) = old {
            entry.current().pool.cool();
        }
        self.retire(gone).await;
        Ok(())
    }

    /// These versions left the registry, or never came into it. Their names are still locked: a version that is
    /// deployed next under the same number keeps its own image.
    async fn retire(&self, gone: Vec<Arc<Deployment>>) {
        gone.iter().for_each(|deployment| deployment.retire());
        let snapshots = self.snapshots.clone();
        let release = move || {
            gone.iter().for_each(|deployment| snapshots.release(&deployment.record));
            Ok(())
        };
        // What stays behind is found at the next start.
        let _ = blocking(release).await;
    }

    /// Removes a function and all its versions. Invocations under way finish.
    ///
    /// # Errors
    /// [`Error::NoFunction`], or the registry's.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let table = self.functions.all();
        let key = match table.get_key_value(name) {
            Some((key, _)) => key.clone(),
            None => return Err(no_function(&table, name)),
        };
        let _turn = self.lock_of(&key).lock().await;
        let table = self.functions.all();
        let entry = table.get(name).ok_or_else(|| no_function(&table, name))?;
        let versions: Vec<u64> = entry.versions().iter().map(|d| d.record.version).collect();
        let (registry, removed) = (Arc::clone(&self.registry), key.clone());
        blocking(move || Ok(registry.remove(removed.as_str(), &versions)?)).await?;
        self.functions.replace(&key, None);
        self.retire(entry.versions().to_vec()).await;
        Ok(())
    }
}

/// Runs what waits for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.to_string()))?
}

fn check_declared(declared: Declared, uploaded: &Uploaded) -> Result<(), Error> {
    if let Some(size) = declared.size_bytes.filter(|size| *size != uploaded.size_bytes) {
        let got = uploaded.size_bytes;
        return Err(Error::field("start.size_bytes", format!("is {size}, but {got} bytes came")));
    }
    if let Some(digest) = declared.digest.filter(|digest| *digest != uploaded.digest) {
        let got = uploaded.digest;
        return Err(Error::field("start.sha256", format!("is {digest}, but the bytes that came have {got}")));
    }
    if uploaded.size_bytes == 0 {
        return Err(Error::field("chunk", "the artifact is empty; send its bytes after the manifest"));
    }
    Ok(())
}

fn same(record: &Record, manifest: &Manifest, format: ArtifactFormat, digest: Digest) -> bool {
    record.manifest == *manifest && record.format == format && record.digest == digest
}

/// The first bytes of the program.
fn read_head(format: ArtifactFormat, path: &Path, entry: &str) -> Result<Vec<u8>, Error> {
    let io = |error: std::io::Error| Error::Artifact(error.into());
    let file = match format {
        ArtifactFormat::File => std::fs::File::open(path).map_err(io)?,
        ArtifactFormat::Tar => open_entry(path, entry)?,
    };
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(io)?;
    Ok(head)
}

/// The entry as a tenant in this root would find it: links are followed inside of the root.
fn open_entry(root: &Path, entry: &str) -> Result<std::fs::File, Error> {
    let refuse = |reason: String| Error::field("manifest.entry", reason);
    if entry.is_empty() {
        return Err(refuse("must name the program's path in the tar artifact".to_owned()));
    }
    let root = std::fs::File::open(root).map_err(|e| Error::Artifact(e.into()))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&root, entry, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve);
    let file = std::fs::File::from(
        opened.map_err(|errno| refuse(format!("{entry:?} cannot be opened in the tar artifact: {errno}")))?,
    );
    let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
    if is_file { Ok(file) } else { Err(refuse(format!("{entry:?} is not a file in the tar artifact"))) }
}
