//! What is deployed, on disk: a redb database with one record for each kept version.
//!
//! ```text
//! registry.redb
//!   table "meta"      "schema"         -> u32 (little endian): layout of the tables
//!   table "versions"  (name, version)  -> one byte SCHEMA, then postcard(Record)
//! ```
//!
//! The largest version of a name is its current one. Every change is one transaction, durable when it returns, so a
//! crash leaves the state before or after it. redb locks the file: one gateway for each data directory.

use std::path::{Path, PathBuf};

use novum_sandbox::{ArtifactFormat, EngineKind, Manifest};
use novum_snapshot::Digest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

/// The layout this program reads and writes.
pub const SCHEMA: u8 = 2;

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("versions");

/// One deployed version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts up from 1 for each name.
    pub version: u64,
    /// As deployed, with canonical share sources; `engine` may be `auto`.
    pub manifest: Manifest,
    /// The engine that was chosen.
    pub engine: EngineKind,
    /// The artifact's form.
    pub format: ArtifactFormat,
    /// The artifact's SHA-256.
    pub digest: Digest,
    /// The artifact's size as it was sent.
    pub size_bytes: u64,
    /// Milliseconds since 1970.
    pub deployed_at_ms: u64,
}

/// The registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Another gateway has it.
    #[error(
        "another gateway uses the data directory {}; stop it, or give this one its own --data-dir",
        .directory.display()
    )]
    InUse {
        /// The data directory.
        directory: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "the registry {} has layout {found}, this program knows {SCHEMA}: it was written by a newer novum; use that \
         one, or start with an empty --data-dir",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// A record cannot be read.
    #[error("the record of {name} version {version} in the registry is damaged: {reason}")]
    Record {
        /// The function.
        name: String,
        /// Its version.
        version: u64,
        /// What is wrong.
        reason: String,
    },
    /// The database failed.
    #[error("the registry failed while {doing}")]
    Database {
        /// What was done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> RegistryError {
    move |error| RegistryError::Database { doing, source: Box::new(error.into()) }
}

/// The open registry. Calls block on the disk.
#[derive(Debug)]
pub struct Registry {
    database: Database,
}

impl Registry {
    /// Opens or makes `directory/registry.redb`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn open(directory: &Path) -> Result<Self, RegistryError> {
        let path = directory.join("registry.redb");
        let database = Database::create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                RegistryError::InUse { directory: directory.to_owned() }
            }
            other => failed("opening it")(other),
        })?;
        let registry = Self { database };
        registry.check_schema(&path)?;
        Ok(registry)
    }

    fn check_schema(&self, path: &Path) -> Result<(), RegistryError> {
        let write = self.database.begin_write().map_err(failed("opening it"))?;
        {
            let mut meta = write.open_table(META).map_err(failed("opening it"))?;
            let found = meta.get("schema").map_err(failed("opening it"))?.map(|value| value.value());
            match found {
                Some(found) if found > u32::from(SCHEMA) => {
                    return Err(RegistryError::Newer { path: path.to_owned(), found });
                }
                Some(found) if found == u32::from(SCHEMA) => {}
                _ => drop(meta.insert("schema", u32::from(SCHEMA)).map_err(failed("opening it"))?),
            }
            write.open_table(VERSIONS).map_err(failed("opening it"))?;
        }
        write.commit().map_err(failed("opening it"))
    }

    /// Every record, by name and version.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn load(&self) -> Result<Vec<Record>, RegistryError> {
        let read = self.database.begin_read().map_err(failed("reading it"))?;
        let versions = read.open_table(VERSIONS).map_err(failed("reading it"))?;
        let mut records = Vec::new();
        for entry in versions.iter().map_err(failed("reading it"))? {
            let (key, value) = entry.map_err(failed("reading it"))?;
            let (name, version) = key.value();
            let record = decode(value.value()).map_err(|reason| RegistryError::Record {
                name: name.to_owned(),
                version,
                reason,
            })?;
            records.push(record);
        }
        Ok(records)
    }

    /// Adds `record` and removes the versions of its name in `remove`, at once.
    ///
    /// # Errors
    /// The registry is then as it was.
    pub fn publish(&self, record: &Record, remove: &[u64]) -> Result<(), RegistryError> {
        let name = record.manifest.name.as_str();
        let write = self.database.begin_write().map_err(failed("publishing a version"))?;
        {
            let mut versions = write.open_table(VERSIONS).map_err(failed("publishing a version"))?;
            versions
                .insert((name, record.version), encode(record).as_slice())
                .map_err(failed("publishing a version"))?;
            for version in remove {
                versions.remove((name, *version)).map_err(failed("publishing a version"))?;
            }
        }
        write.commit().map_err(failed("publishing a version"))
    }

    /// Removes these versions of `name`, at once.
    ///
    /// # Errors
    /// The registry is then as it was.
    pub fn remove(&self, name: &str, remove: &[u64]) -> Result<(), RegistryError> {
        let write = self.database.begin_write().map_err(failed("removing a function"))?;
        {
            let mut versions = write.open_table(VERSIONS).map_err(failed("removing a function"))?;
            for version in remove {
                versions.remove((name, *version)).map_err(failed("removing a function"))?;
            }
        }
        write.commit().map_err(failed("removing a function"))
    }
}

fn encode(record: &Record) -> Vec<u8> {
    // Into memory, of a type that only holds what postcard knows: cannot fail.
    postcard::to_extend(record, vec![SCHEMA]).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    match bytes.split_first() {
        Some((&SCHEMA, rest)) => postcard::from_bytes(rest).map_err(|e| e.to_string()),
        Some((&1, rest)) => {
            postcard::from_bytes::<v1::Record>(rest).map(Into::into).map_err(|e| e.to_string())
        }
        Some((schema, _)) => Err(format!("it has layout {schema}, this program knows {SCHEMA}")),
        None => Err("it is empty".to_owned()),
    }
}

/// Records as novum 0.1 first wrote them: manifests without `ready`.
mod v1 {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use novum_sandbox::{ArtifactFormat, EngineChoice, EngineKind, FunctionName, Pool, Share};
    use novum_snapshot::Digest;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Manifest {
        name: FunctionName,
        engine: EngineChoice,
        entry: String,
        args: Vec<String>,
        env: BTreeMap<String, String>,
        allow_env: BTreeSet<String>,
        memory_bytes: u64,
        timeout: Duration,
        output_bytes: u64,
        shares: Vec<Share>,
        pool: Pool,
    }

    #[derive(Deserialize)]
    pub(super) struct Record {
        version: u64,
        manifest: Manifest,
        engine: EngineKind,
        format: ArtifactFormat,
        digest: Digest,
        size_bytes: u64,
        deployed_at_ms: u64,
    }

    impl From<Record> for super::Record {
        fn from(old: Record) -> Self {
            let Record { version, manifest, engine, format, digest, size_bytes, deployed_at_ms } = old;
            let manifest = super::Manifest {
                engine: manifest.engine,
                entry: manifest.entry,
                args: manifest.args,
                env: manifest.env,
                allow_env: manifest.allow_env,
                memory_bytes: manifest.memory_bytes,
                timeout: manifest.timeout,
                output_bytes: manifest.output_bytes,
                shares: manifest.shares,
                pool: manifest.pool,
                ..super::Manifest::new(manifest.name)
            };
            Self { version, manifest, engine, format, digest, size_bytes, deployed_at_ms }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use novum_sandbox::{EngineChoice, Pool, Share};

    use super::*;

    fn record(name: &str, version: u64) -> Record {
        Record {
            version,
            manifest: Manifest {
                engine: EngineChoice::Auto,
                entry: "bin/echo".into(),
                args: vec!["-n".into()],
                env: [("A".into(), "1".into())].into(),
                allow_env: ["B".into()].into(),
                memory_bytes: 64 << 20,
                timeout: Duration::from_millis(2500),
                output_bytes: 1000,
                shares: vec![Share { source: "/srv".into(), target: "/data".into(), read_only: true }],
                pool: Pool { min: 1, max: 2, queue: 3, idle: Duration::from_secs(4) },
                ready: Some("Up".into()),
                ..Manifest::new(name.parse().unwrap())
            },
            engine: EngineKind::Wasm,
            format: ArtifactFormat::File,
            digest: Digest::of(b"artifact"),
            size_bytes: 8,
            deployed_at_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn the_encoding_is_the_golden_one() {
        // When this changes, raise SCHEMA and keep reading the old layout.
        let golden = concat!(
            "02",
            "01",
            "046563686f",
            "00",
            "0862696e2f6563686f",
            "01022d6e",
            "0101410131",
            "010142",
            "80808020",
            "0280cab5ee01",
            "e807",
            "01042f737276052f6461746101",
            "010203",
            "0400",
            "01025570",
            "00",
            "00",
        );
        let digest = Digest::of(b"artifact").to_string();
        assert_eq!(hex(&encode(&record("echo", 1))), format!("{golden}{digest}0880d095ffbc31"));
        assert_eq!(decode(&encode(&record("echo", 1))), Ok(record("echo", 1)));
    }

    #[test]
    fn records_of_the_first_layout_are_read() {
        let digest = Digest::of(b"artifact").to_string();
        let old = format!(
            "0101046563686f000862696e2f6563686f01022d6e010141013101014280808020\
             0280cab5ee01e80701042f737276052f646174610101020304000000{digest}0880d095ffbc31"
        );
        let old: Vec<u8> = old
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let mut record = record("echo", 1);
        record.manifest.ready = None;
        assert_eq!(decode(&old), Ok(record));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn records_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        registry.publish(&record("a", 1), &[]).unwrap();
        registry.publish(&record("a", 2), &[1]).unwrap();
        registry.publish(&record("b", 1), &[]).unwrap();
        registry.remove("b", &[1]).unwrap();
        drop(registry);
        assert_eq!(Registry::open(dir.path()).unwrap().load().unwrap(), [record("a", 2)]);
    }

    #[test]
    fn a_second_gateway_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Registry::open(dir.path()).unwrap();
        let error = Registry::open(dir.path()).unwrap_err();
        assert!(matches!(error, RegistryError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("--data-dir"));
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let write = registry.database.begin_write().unwrap();
        write.open_table(META).unwrap().insert("schema", 99).unwrap();
        write.commit().unwrap();
        drop(registry);
        assert!(matches!(Registry::open(dir.path()), Err(RegistryError::Newer { found: 99, .. })));
    }

    #[test]
    fn damaged_records_are_refused() {
        assert!(decode(&[]).is_err());
        assert!(decode(&[2]).is_err() && decode(&[3]).is_err());
        let whole = encode(&record("echo", 1));
        for cut in 1..whole.len() {
            assert!(decode(&whole[..cut]).is_err(), "{cut}");
        }
    }
}
