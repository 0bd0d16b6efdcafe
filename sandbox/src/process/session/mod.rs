//! Sessions of the process engine: files that stay, and programs that run on them one after the other.
//!
//! ```text
//! between programs   Desk: Here(files)       read, write, snapshot: on the files as they lie there
//! while one runs     Desk: Program(control)  read, write, signal: visits on its thread, which has the files
//! ```
//! A snapshot is a copy of the files alone, which costs what differs from the root. A program's memory belongs to the
//! program: it is not kept.

mod desk;
#[cfg(test)]
mod desk_tests;
mod program;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::calls::identity::PID;
use super::control::Control;
use super::files::{Files, FilesConfig, Write};
use super::live::Live;
use super::signal::{Detail, Info, SI_USER, Signal};
use super::{Process, ProcessEngine};
use crate::engine::ExitStatus;
use crate::error::Error;
use crate::function::EngineKind;
use crate::session::{
    Exec, ExecControl, ExecStreams, FilePiece, FileWrite, MOST_FILE_PIECE_BYTES, Session, SessionError,
    SessionSnapshot, SessionSpec, Sessions, WritePlace,
};
use desk::Desk;
use program::Program;

/// What no sandbox of this engine can do.
fn unsupported(operation: &'static str, reason: &str) -> SessionError {
    SessionError::Unsupported { engine: EngineKind::Process, operation, reason: reason.into() }
}

/// Off the threads that serve others: a share's file system may be slow.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SessionError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::host("work on a sandbox's files", error).into())
}

#[async_trait]
impl Sessions for ProcessEngine {
    async fn create(&self, spec: SessionSpec) -> Result<Arc<dyn Session>, SessionError> {
        if spec.layers.len() > 1 {
            return Err(unsupported("have a root of several layers", "merge them into one directory"));
        }
        if spec.cpus > 1 {
            return Err(unsupported("have more than one processor", "leave `cpus` at 1"));
        }
        if !spec.layers.is_empty() && spec.shares.iter().any(|share| share.target == "/" && !share.read_only)
        {
            let reason = "that takes the linux engine; share a directory at another path";
            return Err(unsupported("keep what it writes to its root", reason));
        }
        let config = FilesConfig {
            root: spec.layers.first().cloned(),
            program: spec.program.clone().map(|(target, file)| (target.into_bytes(), file)),
            shares: spec.shares.clone(),
            private_bytes: spec.memory_bytes,
            ..FilesConfig::new()
        };
        let common = Common { spec, open_files: config.open_files, live: Live::default() };
        let files = blocking(move || Files::new(&config)).await?;
        let files =
            files.map_err(|error| Error::Manifest { field: "share".into(), reason: error.to_string() })?;
        Ok(Arc::new(ProcessSession::new(common, files)))
    }
}

/// What a session's programs have in common.
struct Common {
    spec: SessionSpec,
    open_files: u32,
    /// The memory of the program that runs.
    live: Live,
}

/// One session.
struct ProcessSession {
    common: Arc<Common>,
    desk: Arc<Desk>,
}

impl ProcessSession {
    fn new(common: Common, files: Files) -> Self {
        Self { common: Arc::new(common), desk: Desk::new(files) }
    }
}

impl Drop for ProcessSession {
    fn drop(&mut self) {
        if let Some(control) = self.desk.running() {
            control.cancel();
        }
    }
}

/// Ends the program when nobody waits for it any more.
struct CancelOnDrop(Arc<Control>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[async_trait]
impl Session for ProcessSession {
    async fn exec(
        &self,
        command: Exec,
        streams: ExecStreams,
        started: oneshot::Sender<()>,
    ) -> Result<ExitStatus, SessionError> {
        if command.terminal.is_some() {
            let reason =
                "it has no kernel with terminals; run the command without one, or use the linux engine";
            return Err(unsupported("run a command in a terminal", reason));
        }
        let control = Control::new().map_err(|error| Error::host("create an event descriptor", error))?;
        let files = self.desk.take(&control).await?;
        let _cancel = CancelOnDrop(control.clone());
        let (unused_sender, unused) = mpsc::channel(1);
        drop(unused_sender);
        let ExecStreams { input, output, error, control: orders } = streams;
        let streams = ExecStreams { input, output, error, control: unused };
        let program = Program {
            common: self.common.clone(),
            desk: self.desk.clone(),
            control: control.clone(),
            command,
            streams,
            started,
        };
        let (reply, mut answer) = oneshot::channel();
        program.spawn(files, reply)?;
        let relay = relay(orders, control);
        tokio::pin!(relay);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = &mut relay => answer.await,
        };
        answer.map_err(|_| SessionError::from(Error::host("run the program", "its thread has ended")))?
    }

    async fn read_file(&self, path: &str, offset: u64, length: usize) -> Result<FilePiece, SessionError> {
        let (name, length) = (path.to_owned(), length.min(MOST_FILE_PIECE_BYTES));
        let read = self.desk.with(move |files| files.read_piece(name.as_bytes(), offset, length)).await?;
        read.map(|data| FilePiece { data: Bytes::from(data) }).map_err(|errno| refused(path, errno))
    }

    async fn write_file(&self, write: FileWrite) -> Result<u64, SessionError> {
        let path = write.path.clone();
        let written = self.desk.with(move |files| write_piece(files, &write));
        written.await?.map_err(|errno| refused(&path, errno))
    }

    async fn pause(&self) -> Result<(), SessionError> {
        self.desk.set_paused(true).await;
        Ok(())
    }

    async fn resume(&self) -> Result<(), SessionError> {
        self.desk.set_paused(false).await;
        Ok(())
    }

    async fn resize(&self, _: u64) -> Result<u64, SessionError> {
        let reason = "its memory is a limit and takes up nothing that is not used; make another with the limit it needs";
        Err(unsupported("be resized", reason))
    }

    async fn snapshot(&self) -> Result<Arc<dyn SessionSnapshot>, SessionError> {
        let files = self.desk.with_idle(Files::copy_layer).await?;
        let files = files.map_err(|errno| Error::host("copy the files", std::io::Error::from(errno)))?;
        let bytes = files.private_bytes().0;
        let Common { spec, open_files, .. } = &*self.common;
        let (spec, open_files) = (spec.clone(), *open_files);
        Ok(Arc::new(FilesSnapshot { spec, open_files, bytes, files: Arc::new(Mutex::new(files)) }))
    }

    fn private_bytes(&self) -> u64 {
        self.common.live.private_bytes(self.common.spec.memory_bytes) + self.desk.held_bytes()
    }

    async fn ended(&self) -> String {
        // Programs end; the session stays until it is deleted.
        std::future::pending().await
    }
}

/// Hands orders on to the program. Ends with the last one.
async fn relay(mut orders: mpsc::Receiver<ExecControl>, control: Arc<Control>) {
    while let Some(order) = orders.recv().await {
        let ExecControl::Signal(number) = order else { continue };
        if let Some(signal) = Signal::new(number.into()) {
            control.visit(Box::new(move |process: &mut Process| {
                let detail = Detail::Sent { pid: PID as u32 };
                process.post(Info { signal, code: SI_USER, detail }, None);
            }));
        }
    }
}

fn write_piece(files: &mut Files, write: &FileWrite) -> Result<u64, Errno> {
    let path = write.path.as_bytes();
    let (flags, mode, position, make) = match write.place {
        WritePlace::Anew { mode, make_directories } => {
            (libc::O_CREAT | libc::O_TRUNC, mode, Some(0), make_directories)
        }
        WritePlace::Append { mode, make_directories } => {
            (libc::O_CREAT | libc::O_APPEND, mode, None, make_directories)
        }
        WritePlace::At(position) => (0, 0, Some(position), false),
    };
    if make {
        files.make_parents(path)?;
    }
    files.write_piece(Write { path, flags, mode, position }, &write.data)
}

fn refused(path: &str, errno: Errno) -> SessionError {
    SessionError::file(path, errno.raw_os_error())
}

/// Files at one moment.
struct FilesSnapshot {
    spec: SessionSpec,
    open_files: u32,
    bytes: u64,
    files: Arc<Mutex<Files>>,
}

#[async_trait]
impl SessionSnapshot for FilesSnapshot {
    async fn create(&self, name: &str) -> Result<Arc<dyn Session>, SessionError> {
        let files = self.files.clone();
        let files = blocking(move || files.lock().copy_layer()).await?;
        let files = files.map_err(|errno| Error::host("copy the files", std::io::Error::from(errno)))?;
        let spec = SessionSpec { name: name.into(), ..self.spec.clone() };
        let common = Common { spec, open_files: self.open_files, live: Live::default() };
        Ok(Arc::new(ProcessSession::new(common, files)))
    }

    fn holds(&self) -> &'static str {
        "files"
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn memory_bytes(&self) -> u64 {
        // While they are being copied nothing changes but how many share them.
        self.files.try_lock().map_or(self.bytes, |files| files.held_bytes())
    }
}
