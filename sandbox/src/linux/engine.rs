//! The engine contract on top of [`Guest`]: a function is a root directory and a command in it; each sandbox is a guest
//! of its own, restored from the function's image (`image.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novum_snapshot::Store;

use super::End;
use super::guest::{
    BootError, Command, CommandEnd, CommandError, Directory, Done, Guest, GuestConfig, Kernel, Root, Streams,
};
use super::image::{self, Kept, LinuxImage, Template};
use super::layout::PAGE;
use crate::engine::{Engine, ExitStatus, Fault, Image, LogSink, Reply, Timings};
use crate::engines::EngineConfig;
use crate::error::Error;
use crate::function::{ArtifactFormat, EngineKind, Function};
use crate::kept::Origin;
use crate::process::signal::Signal;
use crate::session::DEFAULT_PATH;
use crate::session::Sessions;

/// Least memory of a guest in which a kernel, the agent and a small program have room.
pub(super) const LEAST_MEMORY: u64 = 64 << 20;
/// How long a guest may take to boot; a real one takes well under a second.
pub(super) const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// Where a program that was deployed alone is put.
pub(super) const LONE_PROGRAM_DIR: &str = "app";

/// The linux engine.
#[derive(Debug)]
pub struct LinuxEngine {
    pub(super) kernels: PathBuf,
    /// Where snapshots of sandboxes go.
    pub(super) store: Option<Store>,
    /// Where programs that were deployed alone become directories.
    programs: PathBuf,
    /// Where images are while they are made.
    images: PathBuf,
    max_memory_bytes: u64,
}

impl LinuxEngine {
    /// Makes the engine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where this machine cannot run Linux guests.
    pub fn new(config: &EngineConfig) -> Result<Self, Error> {
        super::probe().map_err(|reason| Error::Unavailable { engine: EngineKind::Linux, reason })?;
        Ok(Self {
            kernels: config.kernels.clone(),
            store: config.snapshots.clone(),
            programs: config.cache.join("linux"),
            images: config.cache.join("linux-images"),
            max_memory_bytes: config.max_memory_bytes,
        })
    }

    fn template(&self, function: &Function) -> Result<Template, Error> {
        let manifest = &function.manifest;
        let refuse = |field: &str, reason: String| Err(Error::Manifest { field: field.into(), reason });
        let memory = manifest.memory_bytes;
        if memory < LEAST_MEMORY {
            return refuse("memory", format!("a Linux guest needs at least 64MiB, not {memory} bytes"));
        }
        if memory > self.max_memory_bytes {
            let limit = self.max_memory_bytes;
            return refuse("memory", format!("{memory} bytes are more than this gateway's limit of {limit}"));
        }
        let unavailable = |reason| Error::Unavailable { engine: EngineKind::Linux, reason };
        let kernel = Kernel::find(&self.kernels).map_err(|error| unavailable(error.to_string()))?;
        let (root, program) = self.root(function)?;
        let directories = manifest.shares.iter().filter(|share| share.target != "/");
        let directory = |share: &crate::function::Share| Directory {
            source: share.source.clone(),
            target: share.target.clone(),
            read_only: share.read_only,
        };
        let mut env: Vec<(String, String)> = manifest.env.clone().into_iter().collect();
        if !manifest.env.contains_key("PATH") {
            env.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        let args = std::iter::once(program).chain(manifest.args.iter().cloned()).collect();
        Ok(Template {
            guest: GuestConfig {
                kernel,
                memory_bytes: memory.next_multiple_of(PAGE),
                vcpus: 1,
                root: Root::Layers(root),
                directories: directories.map(directory).collect(),
                hostname: manifest.name.to_string(),
                machine_id: None,
                network: None,
                balloon: false,
                patience: BOOT_PATIENCE,
            },
            command: Command { args, env, ..Command::default() },
            patience: manifest.timeout,
        })
    }

    /// Where the function's image is kept over restarts.
    async fn kept(&self, template: &Template, function: &Function) -> Result<Option<Arc<Kept>>, Error> {
        let Some(store) = self.store.clone() else { return Ok(None) };
        let (template, artifact) = (template.clone(), function.artifact.digest);
        // It reads the kernel: not on a thread that serves others.
        let key = tokio::task::spawn_blocking(move || image::key(&template, &artifact)).await;
        let key = key.map_err(std::io::Error::other).flatten();
        let key = key.map_err(|error| Error::host("look at what the function is made of", error))?;
        let origin = Origin::new(EngineKind::Linux, function, key);
        Ok(Some(Arc::new(Kept { store, origin })))
    }

    /// The layers of the root, topmost first, and the program's path in it.
    fn root(&self, function: &Function) -> Result<(Vec<PathBuf>, String), Error> {
        let manifest = &function.manifest;
        let refuse =
            |field: &str, reason: &str| Err(Error::Manifest { field: field.into(), reason: reason.into() });
        let mut layers = Vec::new();
        let entry = manifest.entry.trim_start_matches('/');
        let program = match function.artifact.format {
            ArtifactFormat::Tar if entry.is_empty() => {
                return refuse("entry", "must name the program inside of the root directory");
            }
            ArtifactFormat::Tar => {
                layers.push(function.artifact.path.clone());
                format!("/{entry}")
            }
            ArtifactFormat::File => {
                let name = entry.rsplit('/').next().filter(|name| !name.is_empty());
                let name = name.unwrap_or(manifest.name.as_str());
                layers.push(self.lone_program(function, name)?);
                format!("/{LONE_PROGRAM_DIR}/{name}")
            }
        };
        for share in manifest.shares.iter().filter(|share| share.target == "/") {
            if !share.read_only {
                return refuse(
                    "share",
                    "a function's root is read-only (what it writes goes to the guest's memory, for each of its \
                     guests anew); a sandbox can keep it in a directory",
                );
            }
            layers.push(share.source.clone());
        }
        if function.artifact.format == ArtifactFormat::File && layers.len() == 1 {
            return refuse(
                "share",
                "a program alone has no root directory: deploy a directory, or share one at `/`",
            );
        }
        Ok((layers, program))
    }

    /// A directory with nothing but the program in it, named by its digest.
    fn lone_program(&self, function: &Function, name: &str) -> Result<PathBuf, Error> {
        self.lone_layer(&function.artifact.digest.to_string(), name, &function.artifact.path)
    }

    /// A directory with nothing but `file` in it, called `name`; `key` tells files apart.
    pub(super) fn lone_layer(&self, key: &str, name: &str, file: &Path) -> Result<PathBuf, Error> {
        let layer = self.programs.join(key).join(name);
        let program = layer.join(LONE_PROGRAM_DIR).join(name);
        let make = || -> std::io::Result<()> {
            let folder = layer.join(LONE_PROGRAM_DIR);
            std::fs::create_dir_all(&folder)?;
            let unfinished = tempfile_in(&folder);
            std::fs::copy(file, &unfinished)?;
            make_executable(&unfinished)?;
            std::fs::rename(&unfinished, &program)
        };
        if !program.exists() {
            make().map_err(|error| Error::host("put the program into a directory", error))?;
        }
        Ok(layer)
    }
}

/// A name that no other preparation uses.
fn tempfile_in(folder: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

fn make_executable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[async_trait]
impl Engine for LinuxEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Linux
    }

    async fn prepare(&self, function: Arc<Function>) -> Result<Arc<dyn Image>, Error> {
        let template = self.template(&function)?;
        let kept = self.kept(&template, &function).await?;
        Ok(Arc::new(LinuxImage::make(template, &self.images, kept).await?))
    }

    fn sessions(&self) -> Option<&dyn Sessions> {
        Some(self)
    }
}

impl Guest {
    /// Runs a command by the contract of all engines: an end of the guest that is its own doing is a fault of the command,
    /// told apart by its kind (`panic`, `reset`, `power-off`, `triple-fault`, `exit`).
    ///
    /// # Errors
    /// As [`Sandbox::invoke`].
    pub async fn reply(&mut self, command: &Command, streams: Streams) -> Result<Reply, Error> {
        let log = streams.log.clone();
        let done = self.run(command, streams).await;
        self.reply_of(done, &*log, command)
    }

    /// The reply of a run of `command`.
    pub(super) fn reply_of(
        &self,
        done: Result<Done, CommandError>,
        log: &dyn LogSink,
        command: &Command,
    ) -> Result<Reply, Error> {
        match done {
            Ok(done) => {
                let timings = Timings { resumed: done.started, run: done.run, first_byte: done.first_byte };
                Ok(Reply { exit: exit_status(done.end), output: Bytes::from(done.output), timings })
            }
            Err(CommandError::Ended(end)) if !matches!(end, End::Host(_)) => {
                let tail = self.console();
                if !tail.is_empty() {
                    log.write(format!("novum: the guest's console ended with:\n{tail}\n").as_bytes());
                }
                let fault = Fault { kind: end.kind().into(), message: end.to_string() };
                Ok(Reply {
                    exit: ExitStatus::Fault(fault),
                    output: Bytes::new(),
                    timings: Timings::default(),
                })
            }
            Err(error) => Err(command_error(error, command)),
        }
    }
}

pub(super) fn exit_status(end: CommandEnd) -> ExitStatus {
    match end {
        CommandEnd::Code(code) => ExitStatus::Code(code as i32),
        CommandEnd::Signal(number) => {
            let kind = Signal::new(number.into()).map_or_else(|| format!("signal {number}"), Signal::name);
            let message = format!("the command was ended by {kind}");
            ExitStatus::Fault(Fault { kind, message })
        }
    }
}

impl From<BootError> for Error {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Share { .. } | BootError::Upper { .. } | BootError::UpperInLayer { .. } => {
                Self::Manifest { field: "share".into(), reason: super::with_cause(&error) }
            }
            error => Self::host("boot the guest", error),
        }
    }
}

pub(super) fn command_error(error: CommandError, command: &Command) -> Error {
    let program = command.args.first().map_or("", String::as_str);
    match error {
        CommandError::NotStarted { reason, .. } => Error::Artifact {
            engine: EngineKind::Linux,
            reason: format!("{program} does not start: {reason}"),
        },
        CommandError::Deadline { after } => Error::Deadline { after },
        CommandError::OutputLimit { limit_bytes } => Error::OutputLimit { limit_bytes },
        CommandError::Cancelled => Error::Cancelled,
        error => Error::host("run the command", error),
    }
}

#[cfg(test)]
mod tests {
    use novum_snapshot::Digest;

    use super::*;
    use crate::function::{Artifact, Manifest, Share};

    fn engine(cache: &Path) -> LinuxEngine {
        LinuxEngine {
            kernels: cache.join("none"),
            store: None,
            programs: cache.join("linux"),
            images: cache.join("images"),
            max_memory_bytes: 1 << 30,
        }
    }

    fn function(format: ArtifactFormat, path: &Path, entry: &str) -> Function {
        let mut manifest = Manifest::new("f".parse().unwrap());
        manifest.entry = entry.into();
        let artifact = Artifact { format, digest: Digest::of(b"x"), path: path.to_owned() };
        Function { version: 1, manifest, artifact }
    }

    #[test]
    fn a_directory_is_the_root_and_shares_at_its_root_lie_below() {
        let cache = tempfile::tempdir().unwrap();
        let mut function = function(ArtifactFormat::Tar, Path::new("/deployed"), "bin/run");
        function.manifest.shares.push(Share {
            source: "/debian".into(),
            target: "/".into(),
            read_only: true,
        });
        let (layers, program) = engine(cache.path()).root(&function).unwrap();
        assert_eq!((layers, program.as_str()), (vec!["/deployed".into(), "/debian".into()], "/bin/run"));
        function.manifest.shares[0].read_only = false;
        assert!(
            matches!(engine(cache.path()).root(&function), Err(Error::Manifest { field, .. }) if field == "share")
        );
    }

    #[test]
    fn a_program_alone_needs_a_root_and_becomes_a_layer() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("artifact");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let mut function = function(ArtifactFormat::File, &file, "dir/tool");
        assert!(matches!(engine(cache.path()).root(&function), Err(Error::Manifest { .. })));
        function.manifest.shares.push(Share {
            source: "/debian".into(),
            target: "/".into(),
            read_only: true,
        });
        let (layers, program) = engine(cache.path()).root(&function).unwrap();
        assert_eq!(program, "/app/tool");
        assert_eq!(std::fs::read(layers[0].join("app/tool")).unwrap(), b"#!/bin/sh\n");
    }

    #[test]
    fn without_a_kernel_the_user_is_told_how_to_get_one() {
        let cache = tempfile::tempdir().unwrap();
        let function = function(ArtifactFormat::Tar, Path::new("/deployed"), "bin/run");
        let error = engine(cache.path()).template(&function).err().unwrap();
        assert!(error.to_string().contains("novum kernel build"), "{error}");
    }

    #[test]
    fn ends_are_told_by_their_names() {
        assert_eq!(exit_status(CommandEnd::Code(3)), ExitStatus::Code(3));
        let ExitStatus::Fault(fault) = exit_status(CommandEnd::Signal(11)) else {
            panic!("a signal is a fault")
        };
        assert_eq!(fault.kind, "SIGSEGV");
    }
}
