//! How sandboxes come to be: from a function, from directories of this machine, or from a snapshot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::session::{Session, SessionError, SessionSpec};
use novum_sandbox::{ArtifactFormat, EngineKind, FunctionName, Manifest, Share};

use super::entry::Parts;
use super::room::Takes;
use super::{DEFAULT_IDLE, DEFAULT_LIFETIME, Entry, Kept, MAX_IDLE, MAX_LIFETIME, Reason, name_or_new};
use crate::convert::proto_field;
use crate::core::Core;
use crate::error::Error;
use crate::functions::Deployment;

/// Memory of a sandbox that is made from directories, where nobody says it.
const ROOT_MEMORY_BYTES: u64 = 512 << 20;
/// Most processors.
const MAX_CPUS: u32 = 32;
/// Most directories of a root: each is a device of a guest, or one that every lookup may go through.
const MAX_LAYERS: usize = 64;
/// Where a program that was deployed alone lies.
const LONE_PROGRAM_DIR: &str = "/app";

/// What somebody wants.
#[derive(Debug)]
pub struct Request {
    /// Empty: made up.
    pub name: String,
    /// `None`: as the source says.
    pub engine: Option<EngineKind>,
    /// Made from this.
    pub source: Source,
    /// Memory limit.
    pub memory_bytes: Option<u64>,
    /// Processors.
    pub cpus: Option<u32>,
    /// Of every command.
    pub env: Vec<(String, String)>,
    /// Host directories.
    pub shares: Vec<Share>,
    /// See [`Entry::idle`].
    pub idle: Option<Duration>,
    /// See [`Entry::lifetime`].
    pub lifetime: Option<Duration>,
}

/// What a sandbox is made from.
#[derive(Debug)]
pub enum Source {
    /// A deployed function, version 0 being the current one.
    Function(String, u64),
    /// A kept state.
    Snapshot(String),
    /// Directories, the topmost first.
    Root(Vec<PathBuf>),
}

/// A request whose values are possible.
struct Plan {
    parts: Parts,
    made_from: MadeFrom,
}

enum MadeFrom {
    Spec(SessionSpec),
    Kept(Arc<Kept>),
}

impl Plan {
    fn takes(&self) -> Takes {
        let limit = self.parts.memory_bytes;
        match &self.made_from {
            MadeFrom::Kept(kept) => Takes::restored(kept.engine, limit, 1),
            MadeFrom::Spec(spec) => {
                Takes::made(self.parts.engine, limit, (spec.layers.len() + spec.shares.len()) as u64)
            }
        }
    }
}

impl Core {
    /// Makes a sandbox.
    ///
    /// # Errors
    /// Fields with impossible values, what is not there or not allowed, limits, and the engine's own.
    pub async fn create_sandbox(self: &Arc<Self>, request: Request) -> Result<Arc<Entry>, Error> {
        let _admitted = self.admit()?;
        let began = Instant::now();
        let name = name_or_new("name", &request.name)?;
        let (core, named) = (Arc::clone(self), name.clone());
        // It looks at directories, which may lie on a slow file system: not on a thread that serves others.
        let plan = self.control.spawn_blocking(move || core.plan(named, request)).await;
        let plan = plan.map_err(|error| Error::Internal(error.to_string()))??;
        let reserved = self.sandboxes.reserve(vec![name.clone()])?;
        let _room = self.take_room(&name, plan.takes()).await?;
        let Plan { parts, made_from } = plan;
        let kind = parts.engine;
        let engine =
            self.engines.get(kind).map_err(|reason| Error::EngineUnavailable { engine: kind, reason })?;
        let make = async move {
            let made = match made_from {
                MadeFrom::Kept(kept) => kept.snapshot.create(name.as_str()).await,
                MadeFrom::Spec(spec) => match engine.sessions() {
                    Some(sessions) => sessions.create(spec).await,
                    None => Err(no_sessions(kind)),
                },
            };
            made.map_err(Error::Session)
        };
        let session = self.on_control(make).await?;
        let entry = Entry::new(parts, session, began.elapsed());
        reserved.fill(&[Arc::clone(&entry)]);
        self.attend_end(&entry);
        Ok(entry)
    }

    /// Makes sandboxes in the state of `name`: all of them or none.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`] and [`Self::snapshot_sandbox`].
    pub async fn fork_sandbox(
        self: &Arc<Self>,
        name: &str,
        forks: Vec<String>,
    ) -> Result<Vec<Arc<Entry>>, Error> {
        const MAX_FORKS: usize = 64;
        let _admitted = self.admit()?;
        if forks.is_empty() || forks.len() > MAX_FORKS {
            return Err(Error::field("forks", format!("must be from 1 to {MAX_FORKS} names")));
        }
        let parent = self.sandboxes.find(name)?;
        let _used = parent.used();
        let names = forks.iter().enumerate().map(|(i, fork)| name_or_new(&format!("forks[{i}]"), fork));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let reserved = self.sandboxes.reserve(names.clone())?;
        let parts = |name: &FunctionName| Parts {
            name: name.clone(),
            engine: parent.engine,
            source: format!("sandbox {}", parent.name),
            memory_bytes: parent.memory_bytes,
            cpus: parent.cpus,
            idle: parent.idle,
            lifetime: parent.lifetime,
            keeps: parent.keeps.clone(),
        };
        let takes = Takes::restored(parent.engine, parent.memory_bytes, names.len() as u64);
        let _room = self.take_room(&parent.name, takes.and(Takes::snapshot(&parent))).await?;
        let snapshot = self.take_snapshot(&parent).await?;
        let mut entries = Vec::new();
        for name in &names {
            let began = Instant::now();
            let (snapshot, fork) = (Arc::clone(&snapshot), name.clone());
            let make = async move { snapshot.create(fork.as_str()).await.map_err(Error::Session) };
            let session: Arc<dyn Session> = self.on_control(make).await?;
            entries.push(Entry::new(parts(name), session, began.elapsed()));
        }
        reserved.fill(&entries);
        entries.iter().for_each(|entry| self.attend_end(entry));
        Ok(entries)
    }

    /// Takes the sandbox out of the table when it ends by itself.
    fn attend_end(self: &Arc<Self>, entry: &Arc<Entry>) {
        let (core, entry) = (Arc::downgrade(self), Arc::clone(entry));
        // It may be gone already.
        let Ok(session) = entry.session() else { return };
        self.control.spawn(async move {
            let how = tokio::select! {
                how = session.ended() => how,
                _ = entry.gone() => return,
            };
            if let Some(core) = core.upgrade() {
                core.sandboxes.remove(&entry, &Reason::Ended(how));
            }
        });
    }

    fn plan(&self, name: FunctionName, request: Request) -> Result<Plan, Error> {
        let idle = bounded("idle_timeout", request.idle, DEFAULT_IDLE, MAX_IDLE)?;
        let lifetime = bounded("lifetime", request.lifetime, DEFAULT_LIFETIME, MAX_LIFETIME)?;
        let parts = |engine, source, memory_bytes, cpus, keeps| Parts {
            name: name.clone(),
            engine,
            source,
            memory_bytes,
            cpus,
            idle,
            lifetime,
            keeps,
        };
        match &request.source {
            Source::Snapshot(snapshot) => {
                let kept = self.sandboxes.find_snapshot(snapshot)?;
                refuse_with_snapshot(&request, &kept)?;
                let source = format!("snapshot {snapshot}");
                let parts = parts(kept.engine, source, kept.memory_bytes, kept.cpus, kept.keeps.clone());
                Ok(Plan { parts, made_from: MadeFrom::Kept(kept) })
            }
            Source::Function(function, version) => {
                let deployment = self.functions.find(function, *version)?;
                let engine = request.engine.unwrap_or(deployment.record.engine);
                let mut spec = self.function_spec(&name, &deployment, &request)?;
                if engine == EngineKind::Linux {
                    take_root_shares(&mut spec);
                }
                let source = format!("function {function} version {}", deployment.record.version);
                let parts = parts(engine, source, spec.memory_bytes, spec.cpus, Some(deployment));
                Ok(Plan { parts, made_from: MadeFrom::Spec(spec) })
            }
            Source::Root(layers) => {
                let engine = request.engine.unwrap_or(EngineKind::Linux);
                let mut spec = self.root_spec(&name, layers, &request)?;
                if engine == EngineKind::Linux {
                    take_root_shares(&mut spec);
                }
                let shown: Vec<_> = layers.iter().map(|path| path.display().to_string()).collect();
                let source = format!("root {}", shown.join(":"));
                let parts = parts(engine, source, spec.memory_bytes, spec.cpus, None);
                Ok(Plan { parts, made_from: MadeFrom::Spec(spec) })
            }
        }
    }

    fn function_spec(
        &self,
        name: &FunctionName,
        deployment: &Deployment,
        request: &Request,
    ) -> Result<SessionSpec, Error> {
        let manifest = &deployment.record.manifest;
        let artifact = &deployment.function.artifact;
        let mut merged = manifest.clone();
        merged.memory_bytes = request.memory_bytes.unwrap_or(manifest.memory_bytes);
        merged.env.extend(request.env.iter().cloned());
        merged.shares.extend(request.shares.iter().cloned());
        let mut spec = self.spec(name, merged, request.cpus)?;
        match artifact.format {
            ArtifactFormat::Tar => spec.layers.push(artifact.path.clone()),
            ArtifactFormat::File => {
                let entry = manifest.entry.rsplit('/').next().filter(|entry| !entry.is_empty());
                let target = format!("{LONE_PROGRAM_DIR}/{}", entry.unwrap_or(manifest.name.as_str()));
                spec.program = Some((target, artifact.path.clone()));
            }
        }
        Ok(spec)
    }

    fn root_spec(
        &self,
        name: &FunctionName,
        layers: &[PathBuf],
        request: &Request,
    ) -> Result<SessionSpec, Error> {
        if layers.is_empty() {
            return Err(Error::field("root.layers", "must name at least one directory"));
        }
        if layers.len() > MAX_LAYERS {
            let reason = format!("must be at most {MAX_LAYERS} directories, not {}", layers.len());
            return Err(Error::field("root.layers", reason));
        }
        let mut manifest = Manifest::new(name.clone());
        manifest.memory_bytes = request.memory_bytes.unwrap_or(ROOT_MEMORY_BYTES);
        manifest.env = request.env.iter().cloned().collect();
        manifest.shares.clone_from(&request.shares);
        let mut spec = self.spec(name, manifest, request.cpus)?;
        for (index, layer) in layers.iter().enumerate() {
            let field = format!("root.layers[{index}]");
            if !layer.is_absolute() {
                return Err(Error::field(field, "must be an absolute path on the gateway's machine"));
            }
            spec.layers.push(self.allowed(field, layer)?);
        }
        Ok(spec)
    }

    /// Everything but the root, checked as a manifest is.
    fn spec(
        &self,
        name: &FunctionName,
        mut manifest: Manifest,
        cpus: Option<u32>,
    ) -> Result<SessionSpec, Error> {
        manifest.check().map_err(|e| {
            let field = proto_field(&e.field);
            Error::field(field.strip_prefix("manifest.").unwrap_or(&field).to_owned(), e.reason)
        })?;
        let limit = self.config.max_memory_bytes;
        if manifest.memory_bytes > limit {
            return Err(Error::field(
                "memory_bytes",
                format!("is more than this gateway's limit of {limit}"),
            ));
        }
        let cpus = cpus.unwrap_or(1);
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(Error::field("cpus", format!("must be from 1 to {MAX_CPUS}")));
        }
        for (index, share) in manifest.shares.iter_mut().enumerate() {
            share.source = self.allowed(format!("shares[{index}].source"), &share.source)?;
        }
        Ok(SessionSpec {
            name: name.to_string(),
            layers: Vec::new(),
            upper: None,
            program: None,
            shares: manifest.shares,
            env: manifest.env.into_iter().collect(),
            memory_bytes: manifest.memory_bytes,
            cpus,
        })
    }

    fn allowed(&self, field: String, source: &std::path::Path) -> Result<PathBuf, Error> {
        let checked = self.shares.check(source);
        checked.map_err(|reason| Error::Share { field, source_path: source.to_owned(), reason })
    }
}

/// Directories at `/` belong to a Linux guest's root: one that is only read is its lowest layer, one that is written keeps
/// what the guest writes to its root.
fn take_root_shares(spec: &mut SessionSpec) {
    let (roots, shares): (Vec<Share>, _) = spec.shares.drain(..).partition(|share| share.target == "/");
    spec.shares = shares;
    for root in roots {
        match root.read_only {
            true => spec.layers.push(root.source),
            false => spec.upper = Some(root.source),
        }
    }
}

fn no_sessions(engine: EngineKind) -> SessionError {
    let reason = "it runs functions; make the sandbox with the process or the linux engine".into();
    SessionError::Unsupported { engine, operation: "live between calls", reason }
}

fn bounded(
    field: &str,
    value: Option<Duration>,
    default: Duration,
    most: Duration,
) -> Result<Duration, Error> {
    match value {
        None => Ok(default),
        Some(value) if value.is_zero() || value > most => {
            Err(Error::field(field, format!("must be more than 0 and at most {most:?}")))
        }
        Some(value) => Ok(value),
    }
}

/// What a snapshot decides cannot be asked for.
fn refuse_with_snapshot(request: &Request, kept: &Kept) -> Result<(), Error> {
    let fixed = "is the snapshot's and cannot be chosen";
    if request.engine.is_some_and(|engine| engine != kept.engine) {
        return Err(Error::field("engine", fixed));
    }
    let given = [
        ("memory_bytes", request.memory_bytes.is_some()),
        ("cpus", request.cpus.is_some()),
        ("env", !request.env.is_empty()),
        ("shares", !request.shares.is_empty()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Error::field(field, fixed)),
        None => Ok(()),
    }
}
