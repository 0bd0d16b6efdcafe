//! `novum run --root DIR`: a command in a Linux guest whose root is a directory, with the caller's streams, or his
//! terminal where standard input is one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::linux::guest::{
    Command, Control, Directory, Guest, GuestConfig, Kernel, Root, Streams, TerminalSize,
};
use novum_sandbox::linux::{self, DEFAULT_PATH};
use novum_sandbox::{EngineChoice, EngineKind, Manifest, Output, Reply};
use tokio::sync::mpsc;

use super::Global;
use super::error::Error;
use super::input::name_from;
use super::run::{Args, PATIENCE, StandardError, Steps, print, report, standard_input};
use super::terminal::Terminal;

/// What only Linux guests have.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Linux guests")]
pub(super) struct Options {
    /// A directory that is the root of a Linux guest, read-only; repeat it for layers, the topmost first
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// Keep what the guest writes to its root in this directory, for the next run; made where it is missing
    #[arg(long, value_name = "DIR", requires = "root")]
    upper: Option<PathBuf>,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    cpus: u8,
    /// Try even where the engine says that this machine cannot run Linux guests
    #[arg(long)]
    force: bool,
}

/// A guest's memory where nobody says it: pages cost nothing until the guest touches them.
const MEMORY_BYTES: u64 = 512 << 20;
/// How long a boot may take.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest may take to write what it still holds.
const END_PATIENCE: Duration = Duration::from_secs(30);

impl Options {
    /// Whether the command line asks for a guest with a root directory.
    pub(super) fn wanted(&self) -> bool {
        !self.root.is_empty()
    }
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    if !matches!(args.engine, None | Some(EngineChoice::Auto | EngineChoice::Linux)) {
        return Err(Error::Usage {
            what: "--root is for Linux guests".into(),
            advice: "leave --engine out, or write --engine linux".into(),
        });
    }
    let unavailable = |reason| novum_sandbox::Error::Unavailable { engine: EngineKind::Linux, reason };
    if let (Err(reason), false) = (linux::probe(), args.guest.force) {
        return Err(unavailable(format!("{reason} (--force tries anyway)")).into());
    }
    let kernels = super::kernel::default_dir()?;
    let kernel = Kernel::find(&kernels).map_err(|error| unavailable(error.to_string()))?;
    let mut manifest = Manifest::new(name_from(&args.path));
    (manifest.memory_bytes, manifest.timeout) = (MEMORY_BYTES, PATIENCE);
    args.limits.apply(&mut manifest)?;
    let config = guest_config(args, &manifest, kernel)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| Error::Io { doing: "start the runtime", source })?;
    let result = runtime.block_on(execute(global, args, config, &manifest));
    // A thread may still wait for standard input: the process ends without it.
    runtime.shutdown_background();
    result
}

fn guest_config(args: &Args, manifest: &Manifest, kernel: Kernel) -> Result<GuestConfig, Error> {
    let absolute = |path: &PathBuf| {
        path.canonicalize().map_err(|source| Error::File { doing: "share", path: path.clone(), source })
    };
    let shares =
        args.read.iter().map(|share| (share, true)).chain(args.write.iter().map(|share| (share, false)));
    let directory = |((source, target), read_only): (&(PathBuf, String), bool)| Directory {
        source: source.clone(),
        target: target.clone(),
        read_only,
    };
    let layers = args.guest.root.iter().map(absolute).collect::<Result<_, _>>()?;
    let root = match &args.guest.upper {
        Some(upper) => {
            std::fs::create_dir_all(upper).map_err(|source| Error::File {
                doing: "make",
                path: upper.clone(),
                source,
            })?;
            Root::Kept { layers, upper: absolute(upper)? }
        }
        None => Root::Layers(layers),
    };
    Ok(GuestConfig {
        kernel,
        memory_bytes: manifest.memory_bytes.next_multiple_of(linux::layout::PAGE),
        vcpus: args.guest.cpus,
        root,
        directories: shares.map(directory).collect(),
        hostname: manifest.name.to_string(),
        machine_id: None,
        network: None,
        balloon: false,
        // With --force only `--timeout` ends the boot: without hardware virtualization it is some hundred times slower.
        patience: if args.guest.force { manifest.timeout } else { BOOT_PATIENCE.min(manifest.timeout) },
    })
}

fn command(args: &Args, manifest: &Manifest, terminal: Option<TerminalSize>) -> Command {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOME".to_owned(), "/root".to_owned())];
    if let (Some(_), Ok(kind)) = (terminal, std::env::var("TERM")) {
        env.push(("TERM".into(), kind));
    }
    for (name, value) in &manifest.env {
        env.retain(|(other, _)| other != name);
        env.push((name.clone(), value.clone()));
    }
    let program = args.path.to_string_lossy().into_owned();
    let args = std::iter::once(program).chain(args.args.iter().cloned()).collect();
    Command { args, env, terminal, ..Command::default() }
}

async fn execute(
    global: &Global,
    args: &Args,
    config: GuestConfig,
    manifest: &Manifest,
) -> Result<u8, Error> {
    let begun = Instant::now();
    let mut guest = Guest::boot(config).await.map_err(novum_sandbox::Error::from)?;
    let steps = Steps { engine: EngineKind::Linux, prepare: Duration::ZERO, start: begun.elapsed() };
    let reply = pass_through(global, args, &mut guest, manifest).await?;
    if args.guest.upper.is_some() && guest.is_running() {
        // It writes what it still holds. One that does not come to its end is ended.
        let _ = tokio::time::timeout(END_PATIENCE, guest.power_off()).await;
    }
    report(global, args, &steps, reply)
}

/// Runs the command on the caller's streams.
async fn pass_through(
    global: &Global,
    args: &Args,
    guest: &mut Guest,
    manifest: &Manifest,
) -> Result<Reply, Error> {
    let terminal = Terminal::of_caller().filter(|_| !global.json);
    let resize = |(rows, columns)| Control::Resize(TerminalSize { rows, columns });
    let control = terminal.as_ref().map(|terminal| terminal.follow(resize)).transpose()?;
    let (to, output) = mpsc::channel(4);
    let streams = Streams {
        input: novum_sandbox::Input::Stream(standard_input()),
        output: Output::Stream(to),
        log: Arc::new(StandardError { json: global.json }),
        control,
        deadline: Instant::now() + manifest.timeout,
    };
    let printing = print(output, global.json);
    let size = terminal.as_ref().map(|t| TerminalSize { rows: t.size.0, columns: t.size.1 });
    let reply = guest.reply(&command(args, manifest, size), streams).await;
    printing.await.map_err(|e| Error::Io { doing: "print", source: e.into() })??;
    // Only now: what is said next is for a terminal in its usual mode.
    drop(terminal);
    Ok(reply?)
}
