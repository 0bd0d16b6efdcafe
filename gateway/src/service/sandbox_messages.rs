//! Between the messages of sandboxes.proto and the domain.

use std::time::Duration;

use novum_proto::gateway::v1 as proto;
use novum_sandbox::session::Exec;
use novum_sandbox::{EngineKind, Share};

use crate::convert::{self, duration_from};
use crate::error::Error;
use crate::sessions::{Command, Entry, Event, Happening, Kept, Request, Source, Target, View};

/// Permissions of a new file.
const DEFAULT_MODE: u32 = 0o644;

/// What is to be made.
///
/// # Errors
/// The first field with an impossible value.
pub fn create_request(message: proto::CreateSandboxRequest) -> Result<Request, Error> {
    use proto::create_sandbox_request::Source as From;
    let engine = match proto::Engine::try_from(message.engine) {
        Ok(proto::Engine::Unspecified | proto::Engine::Auto) => None,
        Ok(proto::Engine::Wasm) => Some(EngineKind::Wasm),
        Ok(proto::Engine::Process) => Some(EngineKind::Process),
        Ok(proto::Engine::Linux) => Some(EngineKind::Linux),
        Err(_) => return Err(Error::field("engine", format!("{} is no known engine", message.engine))),
    };
    let source = match message.source {
        Some(From::Function(function)) => Source::Function(function.name, function.version),
        Some(From::Snapshot(name)) => Source::Snapshot(name),
        Some(From::Root(root)) => Source::Root(root.layers.into_iter().map(Into::into).collect()),
        None => return Err(Error::field("source", "one of `function`, `snapshot` and `root` must be given")),
    };
    let share = |share: proto::SharedDirectory| Share {
        source: share.source.into(),
        target: share.target,
        read_only: share.read_only.unwrap_or(true),
    };
    Ok(Request {
        name: message.name,
        engine,
        source,
        memory_bytes: message.memory_bytes,
        cpus: message.cpus,
        env: message.env.into_iter().collect(),
        shares: message.shares.into_iter().map(share).collect(),
        idle: message.idle_timeout.map(|idle| duration_from(idle, "idle_timeout")).transpose()?,
        lifetime: message.lifetime.map(|lifetime| duration_from(lifetime, "lifetime")).transpose()?,
    })
}

/// A command, with most bytes of its output.
///
/// # Errors
/// The first field with an impossible value.
pub fn command(start: proto::exec_request::Start) -> Result<(Command, Option<u64>), Error> {
    let terminal = start.terminal.map(|size| terminal(size, "start.terminal")).transpose()?;
    let timeout = start.timeout.map(|timeout| duration_from(timeout, "start.timeout")).transpose()?;
    let exec = Exec {
        args: start.args,
        env: start.env.into_iter().collect(),
        working_directory: start.working_directory,
        user: start.user.map(|user| (user.uid, user.gid, user.groups)),
        terminal,
    };
    Ok((Command { sandbox: start.sandbox, exec, timeout }, start.output_bytes))
}

/// Rows and columns.
///
/// # Errors
/// Names `field`.
pub fn terminal(size: proto::TerminalSize, field: &str) -> Result<(u16, u16), Error> {
    let side = |n: u32| u16::try_from(n).ok().filter(|n| *n > 0);
    let sides = side(size.rows).zip(side(size.columns));
    sides.ok_or_else(|| Error::field(field, "rows and columns must be from 1 to 65535"))
}

/// A file to write.
#[must_use]
pub fn target(start: proto::write_file_request::Start) -> Target {
    Target {
        sandbox: start.sandbox,
        path: start.path,
        mode: start.mode.unwrap_or(DEFAULT_MODE),
        make_directories: start.make_directories,
        append: start.append,
    }
}

/// A sandbox as it is now.
#[must_use]
pub fn sandbox(entry: &std::sync::Arc<Entry>) -> proto::Sandbox {
    view(&View::now(entry))
}

fn view(view: &View) -> proto::Sandbox {
    let entry = &view.entry;
    let state = if view.paused { proto::SandboxState::Paused } else { proto::SandboxState::Running };
    proto::Sandbox {
        name: entry.name.to_string(),
        engine: convert::engine(entry.engine).into(),
        state: state.into(),
        source: entry.source.clone(),
        memory_bytes: entry.memory_bytes,
        cpus: entry.cpus,
        created_at: Some(convert::timestamp(entry.created)),
        idle_timeout: Some(convert::duration(entry.idle)),
        expires_at: Some(convert::timestamp(entry.created + entry.lifetime)),
        commands: view.commands,
        private_bytes: entry.private_bytes(),
        start_time: Some(convert::duration(entry.start_time)),
    }
}

/// A snapshot.
#[must_use]
pub fn snapshot(kept: &Kept) -> proto::SandboxSnapshot {
    proto::SandboxSnapshot {
        name: kept.name.to_string(),
        engine: convert::engine(kept.engine).into(),
        sandbox: kept.sandbox.to_string(),
        created_at: Some(convert::timestamp(kept.created)),
        holds: kept.snapshot.holds().to_owned(),
        bytes: kept.snapshot.bytes(),
    }
}

/// How long a command ran and how it ended.
#[must_use]
pub fn end(exit: novum_sandbox::ExitStatus, run: Duration) -> proto::exec_response::End {
    proto::exec_response::End { exit: Some(convert::exit_status(exit)), run: Some(convert::duration(run)) }
}

/// An event.
#[must_use]
pub fn event(event: Event) -> proto::SandboxEvent {
    use proto::sandbox_event as of;
    use proto::sandbox_event::Event as Kind;
    let kind = match event.happening {
        Happening::Existing => Kind::Existing(of::Existing {}),
        Happening::Present => Kind::Present(of::Present {}),
        Happening::Created => Kind::Created(of::Created {}),
        Happening::Paused => Kind::Paused(of::Paused {}),
        Happening::Resumed => Kind::Resumed(of::Resumed {}),
        Happening::CommandStarted { program } => Kind::CommandStarted(of::CommandStarted { program }),
        Happening::CommandEnded { program, exit } => {
            Kind::CommandEnded(of::CommandEnded { program, exit: exit.map(convert::exit_status) })
        }
        Happening::Snapshotted { snapshot } => Kind::Snapshotted(of::Snapshotted { snapshot }),
        Happening::Deleted { reason } => Kind::Deleted(of::Deleted { reason }),
    };
    proto::SandboxEvent {
        sandbox: event.sandbox.as_ref().map(view),
        time: Some(convert::timestamp(event.time)),
        sequence: event.sequence,
        event: Some(kind),
    }
}
