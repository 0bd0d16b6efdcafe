//! Compiled code on disk, so that a function is compiled once per deployed version.
//!
//! ```text
//! <cache>/wasm/          0700, ours
//!   key                  0600: 32 random bytes, made once per installation
//!   <name>.cwasm         0600: machine code as wasmtime serialises it (ELF) | HMAC-SHA256(key, name | code), 32 bytes
//! ```
//!
//! The name is the SHA-256 of what the code depends on: artifact, entry, wasmtime's version and configuration.
//!
//! Loading foreign code is running it, so a file is loaded only if it is a regular file of this user that nobody
//! else may touch and its code was sealed with this installation's key for this very name. In every doubtful case
//! the artifact is compiled again. Checking and mapping go through one open file, so another file cannot be put in
//! its place in between; the file's own bytes could be changed only by this user, who may just as well attach a
//! debugger. Mapping instead of copying keeps start quick and lets the kernel drop code that is not used.
//! Published files are never written again, so a mapping stays what it was.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use novum_snapshot::Digest;
use novum_snapshot::publish::Draft;
use wasmtime::Engine;

use super::load::Code;
use super::sys;

const KEY_BYTES: usize = 32;
const SEAL_BYTES: usize = 32;
/// Least recently used code is removed beyond this size.
const MAX_BYTES: u64 = 4 << 30;
/// A draft of this age belongs to nobody.
const STALE: Duration = Duration::from_secs(3600);

/// Why code on disk is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Doubt {
    /// Reading or writing failed.
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It could have been changed by others.
    #[error("{path} is not a file of this user alone (owner {uid}, mode {mode:o})")]
    Exposed { path: PathBuf, uid: u32, mode: u32 },
    /// It was not written by this installation for this artifact, or it is damaged.
    #[error("{path} does not carry this installation's seal")]
    Seal { path: PathBuf },
    /// wasmtime refuses it.
    #[error("{path} does not load: {reason}")]
    Load { path: PathBuf, reason: String },
}

/// The directory of compiled code.
pub(super) struct Cache {
    directory: PathBuf,
    key: [u8; KEY_BYTES],
    /// What all code of this engine depends on.
    engine: u64,
}

impl Cache {
    /// Opens the directory, which is made where it is missing.
    pub(super) fn open(cache: &Path, engine: &Engine) -> Result<Self, Doubt> {
        let directory = cache.join("wasm");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(io_doubt("making", &directory))?;
        let meta = fs::symlink_metadata(&directory).map_err(io_doubt("looking at", &directory))?;
        if !meta.is_dir() || meta.uid() != own_uid() {
            return Err(Doubt::Exposed { path: directory, uid: meta.uid(), mode: meta.mode() });
        }
        if meta.mode() & 0o077 != 0 {
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(&directory, private).map_err(io_doubt("closing", &directory))?;
        }
        let key = key(&directory.join("key"))?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { directory, key, engine: hasher.finish() })
    }

    /// The name under which an artifact's code is kept.
    pub(super) fn name(&self, artifact: Digest, entry: &str) -> Name {
        let mut hasher = novum_snapshot::digest::Hasher::default();
        hasher.update(b"novum cwasm 1\0");
        hasher.update(artifact.as_bytes());
        hasher.update(&self.engine.to_le_bytes());
        hasher.update(entry.as_bytes());
        Name(hasher.finish())
    }

    /// Code that was kept; `None` where there is none.
    pub(super) fn load(&self, engine: &Engine, name: &Name) -> Result<Option<Code>, Doubt> {
        let path = self.path(name);
        let mut file = match open_private(&path) {
            Err(Doubt::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_doubt("reading", &path))?;
        let (code, seal) =
            bytes.split_last_chunk::<SEAL_BYTES>().ok_or(Doubt::Seal { path: path.clone() })?;
        if !same(self.seal(name, code).as_bytes(), seal) {
            return Err(Doubt::Seal { path });
        }
        // Only its age for `prune` depends on this.
        let _ = file.set_modified(SystemTime::now());
        sys::load(engine, &file, code)
            .map(Some)
            .map_err(|error| Doubt::Load { path, reason: format!("{error:#}") })
    }

    /// Keeps code.
    pub(super) fn keep(&self, name: &Name, code: &[u8]) -> Result<(), Doubt> {
        let path = self.path(name);
        let seal = self.seal(name, code);
        let write = || {
            let mut draft = Draft::create(&self.directory)?;
            draft.file().set_permissions(fs::Permissions::from_mode(0o600))?;
            draft.write_all(code)?;
            draft.write_all(seal.as_bytes())?;
            draft.publish(&path)
        };
        write().map_err(io_doubt("writing", &path))?;
        self.prune(MAX_BYTES).map_err(io_doubt("tidying", &self.directory))
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{}.cwasm", name.0))
    }

    fn seal(&self, name: &Name, code: &[u8]) -> Digest {
        hmac(&self.key, &[name.0.as_bytes(), code])
    }

    /// Removes the code that was not used for longest until `max_bytes` are left, and abandoned drafts.
    fn prune(&self, max_bytes: u64) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let (name, age) = (entry.file_name(), meta.modified()?.elapsed().unwrap_or_default());
            let name = name.to_string_lossy();
            if name.ends_with(".cwasm") {
                kept.push((age, meta.len(), entry.path()));
            } else if name.starts_with(".draft-") && age > STALE {
                fs::remove_file(entry.path())?;
            }
        }
        kept.sort_by_key(|(age, ..)| *age);
        let mut total = 0;
        for (_, bytes, path) in kept {
            total += bytes;
            if total > max_bytes {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// HMAC-SHA256 (RFC 2104) of the parts one after the other, for keys of at most one block. Written here because the
/// `hmac` crate would change the features of crates below wasmtime.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Digest {
    const BLOCK: usize = 64;
    let hash = |pad: u8, parts: &[&[u8]]| {
        let mut block = [pad; BLOCK];
        block.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        let mut hasher = novum_snapshot::digest::Hasher::default();
        hasher.update(&block);
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finish()
    };
    debug_assert!(key.len() <= BLOCK);
    hash(0x5c, &[hash(0x36, parts).as_bytes()])
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8; SEAL_BYTES], b: &[u8; SEAL_BYTES]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// What an artifact's code is kept under.
pub(super) struct Name(Digest);

fn io_doubt(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Doubt {
    let path = path.to_owned();
    move |source| Doubt::Io { doing, path, source }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Opens a regular file that only this user can have written.
fn open_private(path: &Path) -> Result<File, Doubt> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(io_doubt("opening", path))?;
    let meta = file.metadata().map_err(io_doubt("looking at", path))?;
    if !meta.is_file() || meta.uid() != own_uid() || meta.mode() & 0o077 != 0 {
        return Err(Doubt::Exposed { path: path.to_owned(), uid: meta.uid(), mode: meta.mode() });
    }
    Ok(file)
}

/// The installation's key, made where it is missing or not to be trusted.
fn key(path: &Path) -> Result<[u8; KEY_BYTES], Doubt> {
    let read = |path: &Path| {
        let mut key = [0; KEY_BYTES];
        open_private(path)?.read_exact(&mut key).map_err(io_doubt("reading", path))?;
        Ok(key)
    };
    if let Ok(key) = read(path) {
        return Ok(key);
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(io_doubt("removing", path)(error));
    }
    let mut key = [0; KEY_BYTES];
    // At most 256 bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_doubt("making", path)(error.into()))?;
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made.and_then(|mut file| file.write_all(&key)) {
        Ok(()) => Ok(key),
        // Another process was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(error) => Err(io_doubt("making", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_is_hmac_sha256() {
        // RFC 4231, test cases 1 and 2.
        let first = hmac(&[0x0b; 20], &[b"Hi ", b"There"]).to_string();
        assert_eq!(first, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let second = hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]).to_string();
        assert_eq!(second, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn the_code_used_last_is_kept_longest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), &Engine::default()).unwrap();
        let names: Vec<_> = (0..4).map(|i| cache.name(Digest::of(&[i]), "")).collect();
        for (i, name) in names.iter().enumerate() {
            cache.keep(name, &[0; 1000]).unwrap();
            let file = File::open(cache.path(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(100 * (i as u64 + 1))).unwrap();
        }
        let draft = cache.directory.join(".draft-1-1");
        File::create(&draft).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();
        cache.prune(2500).unwrap();
        let left: Vec<_> = names.iter().map(|name| cache.path(name).exists()).collect();
        assert_eq!(left, [true, true, false, false]);
        assert!(!draft.exists());
    }
}
