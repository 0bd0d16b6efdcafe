//! Sessions of the linux engine: a guest that stays, with commands side by side over [`Mux`].
//!
//! A snapshot is the whole guest, its running commands included: in what is made from it they run on without a caller. It
//! lies in the engine's store of snapshots under a reference of its own, which goes with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use novum_proto::guest::v1::file_request::{How, Read, What, Write};
use novum_snapshot::{Snapshot, Store};
use tokio::sync::{mpsc, oneshot};

use super::engine::{BOOT_PATIENCE, LEAST_MEMORY, LONE_PROGRAM_DIR, exit_status};
use super::guest::{
    Command, CommandError, Control, Directory, FileFailed, Guest, GuestConfig, Identity, Kernel, Mux,
    MuxError, NOT_SAVED, Root, Saved, TerminalSize, User,
};
use super::image::HOST_BYTES;
use super::layout::PAGE;
use super::{LinuxEngine, SnapshotError};
use crate::engine::ExitStatus;
use crate::error::Error;
use crate::function::EngineKind;
use crate::kept::Held;
use crate::session::{
    DEFAULT_PATH, Exec, ExecControl, ExecStreams, FOREVER, FilePiece, FileWrite, Session, SessionError,
    SessionSnapshot, SessionSpec, Sessions, WritePlace, merged,
};

/// How long a restored guest may take to become itself.
const ADOPT_PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest may take to give memory up or take it back.
const RESIZE_PATIENCE: Duration = Duration::from_secs(10);

fn unsupported(operation: &'static str, reason: impl Into<String>) -> SessionError {
    SessionError::Unsupported { engine: EngineKind::Linux, operation, reason: reason.into() }
}

#[async_trait]
impl Sessions for LinuxEngine {
    async fn create(&self, spec: SessionSpec) -> Result<Arc<dyn Session>, SessionError> {
        if spec.memory_bytes < LEAST_MEMORY {
            let reason = format!("a Linux guest needs at least 64MiB, not {} bytes", spec.memory_bytes);
            return Err(Error::Manifest { field: "memory".into(), reason }.into());
        }
        let unavailable = |reason| Error::Unavailable { engine: EngineKind::Linux, reason };
        let kernel = Kernel::find(&self.kernels).map_err(|error| unavailable(error.to_string()))?;
        let mut layers = spec.layers.clone();
        if let Some((target, file)) = &spec.program {
            layers.insert(0, self.program_layer(target, file)?);
        }
        if layers.is_empty() || (layers.len() == 1 && spec.program.is_some()) {
            let reason = "a program alone has no root directory: deploy a directory, or share one at `/`";
            return Err(Error::Manifest { field: "share".into(), reason: reason.into() }.into());
        }
        let directory = |share: &crate::function::Share| Directory {
            source: share.source.clone(),
            target: share.target.clone(),
            read_only: share.read_only,
        };
        let config = GuestConfig {
            kernel,
            memory_bytes: spec.memory_bytes.next_multiple_of(PAGE),
            vcpus: u8::try_from(spec.cpus).unwrap_or(u8::MAX),
            root: match spec.upper.clone() {
                Some(upper) => Root::Kept { layers, upper },
                None => Root::Layers(layers),
            },
            directories: spec.shares.iter().map(directory).collect(),
            hostname: spec.name.clone(),
            machine_id: None,
            network: None,
            balloon: true,
            patience: BOOT_PATIENCE,
        };
        let common = Common {
            root: config.root.clone(),
            directories: config.directories.clone(),
            memory_bytes: config.memory_bytes,
            env: spec.env,
            store: self.store.clone(),
        };
        let guest = Guest::boot(config).await.map_err(Error::from)?;
        Ok(Arc::new(LinuxSession::new(guest, &[], Arc::new(common))))
    }
}

impl LinuxEngine {
    /// A directory with nothing but `file` in it, at `target`.
    fn program_layer(
        &self,
        target: &str,
        file: &std::path::Path,
    ) -> Result<std::path::PathBuf, SessionError> {
        let name = target.rsplit('/').next().filter(|name| !name.is_empty());
        let name = name.unwrap_or(LONE_PROGRAM_DIR);
        // Artifacts lie in files that are named by their digests.
        let key = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.lone_layer(&key, name, file).map_err(SessionError::Engine)
    }
}

/// What a session shares with what is made from it.
#[derive(Debug)]
struct Common {
    root: Root,
    directories: Vec<Directory>,
    /// With which it was made.
    memory_bytes: u64,
    env: Vec<(String, String)>,
    /// Where snapshots go.
    store: Option<Store>,
}

impl Common {
    fn command(&self, exec: Exec) -> Command {
        let usual = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())];
        let env = merged(merged(usual, &self.env), &exec.env);
        let user = exec.user.map_or_else(User::default, |(uid, gid, groups)| User { uid, gid, groups });
        Command {
            args: exec.args,
            env,
            working_directory: exec.working_directory,
            user,
            limits: Vec::new(),
            terminal: exec.terminal.map(|(rows, columns)| TerminalSize { rows, columns }),
        }
    }
}

/// One guest.
struct LinuxSession {
    mux: Mux,
    common: Arc<Common>,
    paused: AtomicBool,
}

impl LinuxSession {
    fn new(guest: Guest, orphans: &[u32], common: Arc<Common>) -> Self {
        Self { mux: Mux::new(guest, orphans), common, paused: AtomicBool::new(false) }
    }

    /// The agent answers only while the guest runs.
    fn must_run(&self) -> Result<(), SessionError> {
        let busy = || SessionError::Busy("the sandbox is paused; resume it first".into());
        if self.paused.load(Ordering::SeqCst) { Err(busy()) } else { Ok(()) }
    }

    async fn set_paused(&self, paused: bool) -> Result<(), SessionError> {
        self.mux.set_paused(paused).await.map_err(ended)?.map_err(snapshot_error)?;
        self.paused.store(paused, Ordering::SeqCst);
        Ok(())
    }
}

fn ended(error: MuxError) -> SessionError {
    SessionError::Ended(error.0)
}

fn snapshot_error(error: SnapshotError) -> SessionError {
    match error {
        SnapshotError::Ended(end) => SessionError::Ended(end.to_string()),
        error => Error::host("save the guest", error).into(),
    }
}

fn command_error(error: CommandError, program: String) -> SessionError {
    match error {
        CommandError::NotStarted { reason, .. } => SessionError::Command { program, reason },
        CommandError::Deadline { after } => Error::Deadline { after }.into(),
        CommandError::OutputLimit { limit_bytes } => Error::OutputLimit { limit_bytes }.into(),
        CommandError::Cancelled => Error::Cancelled.into(),
        CommandError::Ended(end) => SessionError::Ended(end.to_string()),
        CommandError::Agent(how) => SessionError::Ended(how),
        CommandError::Channel(error) => SessionError::Ended(error.to_string()),
    }
}

#[async_trait]
impl Session for LinuxSession {
    async fn exec(
        &self,
        command: Exec,
        streams: ExecStreams,
        started: oneshot::Sender<()>,
    ) -> Result<ExitStatus, SessionError> {
        self.must_run()?;
        let program = command.args.first().cloned().unwrap_or_default();
        let command = self.common.command(command);
        let ExecStreams { input, output, error, control: mut orders } = streams;
        let (to_guest, control) = mpsc::channel(1);
        let relay = async move {
            while let Some(order) = orders.recv().await {
                let order = match order {
                    ExecControl::Signal(number) => Control::Signal(number),
                    ExecControl::Resize(rows, columns) => Control::Resize(TerminalSize { rows, columns }),
                };
                if to_guest.send(order).await.is_err() {
                    break;
                }
            }
            drop(to_guest);
            std::future::pending().await
        };
        let deadline = Instant::now() + FOREVER;
        let run = self.mux.run(&command, (input, output, error), control, started, deadline);
        let done = tokio::select! {
            done = run => done,
            never = relay => never,
        };
        done.map(|done| exit_status(done.end)).map_err(|error| command_error(error, program))
    }

    async fn read_file(&self, path: &str, offset: u64, length: usize) -> Result<FilePiece, SessionError> {
        self.must_run()?;
        let what = What::Read(Read { offset, bytes: u32::try_from(length).unwrap_or(u32::MAX) });
        let mut reply = self.mux.file(path, what).await.map_err(|error| refused(path, error))?;
        // What a guest says is not believed.
        reply.data.truncate(length);
        Ok(FilePiece { data: Bytes::from(reply.data) })
    }

    async fn write_file(&self, write: FileWrite) -> Result<u64, SessionError> {
        self.must_run()?;
        let (how, position, mode, make_directories) = match write.place {
            WritePlace::Anew { mode, make_directories } => (How::Anew, 0, mode, make_directories),
            WritePlace::Append { mode, make_directories } => (How::Append, 0, mode, make_directories),
            WritePlace::At(position) => (How::At, position, 0, false),
        };
        let data = write.data.to_vec();
        let what = What::Write(Write { how: how.into(), position, mode, make_directories, data });
        let reply = self.mux.file(&write.path, what).await;
        reply.map(|reply| reply.end).map_err(|error| refused(&write.path, error))
    }

    async fn pause(&self) -> Result<(), SessionError> {
        self.set_paused(true).await
    }

    async fn resume(&self) -> Result<(), SessionError> {
        self.set_paused(false).await
    }

    async fn resize(&self, memory_bytes: u64) -> Result<u64, SessionError> {
        self.must_run()?;
        let most = self.common.memory_bytes;
        if !(LEAST_MEMORY..=most).contains(&memory_bytes) {
            let reason = format!(
                "must be from 64MiB to the {most} bytes that the sandbox was made with, not {memory_bytes} bytes"
            );
            return Err(Error::Manifest { field: "memory".into(), reason }.into());
        }
        let Some(balloon) = self.mux.balloon() else {
            return Err(unsupported("be resized", "its guest has no balloon"));
        };
        balloon.set_target_bytes(most - memory_bytes);
        tokio::select! {
            // A guest that needs its memory keeps it: what it gave until then counts.
            _ = tokio::time::timeout(RESIZE_PATIENCE, balloon.settled()) => Ok(most - balloon.actual_bytes().min(most)),
            how = self.mux.ended() => Err(SessionError::Ended(how)),
        }
    }

    async fn snapshot(&self) -> Result<Arc<dyn SessionSnapshot>, SessionError> {
        if let Root::Kept { .. } = self.common.root {
            return Err(unsupported("be snapshotted or forked", NOT_SAVED));
        }
        let Some(store) = &self.common.store else {
            return Err(unsupported("be snapshotted or forked", "this gateway has no store of snapshots"));
        };
        let held = Arc::new(Held::new(store));
        let saved = self.mux.save(&held).await.map_err(ended)?;
        let Saved { digest, commands } = saved.map_err(snapshot_error)?;
        let common = self.common.clone();
        let keep = move || {
            let snapshot = Snapshot::open(held.store(), &digest);
            let snapshot = snapshot.map_err(|error| Error::host("open the snapshot", error))?;
            let bytes = std::fs::metadata(held.store().path(&digest)).map_or(0, |found| found.len());
            Ok(Arc::new(LinuxSnapshot { snapshot, commands, common, bytes, _held: held }))
        };
        let kept: Result<_, Error> = tokio::task::spawn_blocking(keep)
            .await
            .map_err(|error| Error::host("keep the snapshot", error))?;
        Ok(kept?)
    }

    fn private_bytes(&self) -> u64 {
        self.mux.private_bytes() + HOST_BYTES
    }

    async fn ended(&self) -> String {
        self.mux.ended().await
    }
}

fn refused(path: &str, error: FileFailed) -> SessionError {
    match error {
        FileFailed::Gone(error) => ended(error),
        FileFailed::Errno(errno) => SessionError::file(path, errno),
    }
}

/// A guest at one moment.
struct LinuxSnapshot {
    snapshot: Snapshot,
    /// Commands that ran in it.
    commands: Vec<u32>,
    common: Arc<Common>,
    bytes: u64,
    // Dropped last: the snapshot is open until then.
    _held: Arc<Held>,
}

#[async_trait]
impl SessionSnapshot for LinuxSnapshot {
    async fn create(&self, name: &str) -> Result<Arc<dyn Session>, SessionError> {
        let identity = Identity {
            hostname: name.into(),
            machine_id: None,
            root: self.common.root.clone(),
            directories: self.common.directories.clone(),
            network: None,
            balloon: true,
            patience: ADOPT_PATIENCE,
        };
        let guest = Guest::restore(&self.snapshot, &identity).await.map_err(Error::from)?;
        Ok(Arc::new(LinuxSession::new(guest, &self.commands, self.common.clone())))
    }

    fn holds(&self) -> &'static str {
        "files, memory and running commands"
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}
