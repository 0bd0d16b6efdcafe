//! `novum run`: one function from a file, without a gateway.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::engines::{self, EngineConfig, Row};
use novum_sandbox::{
    Artifact, EngineChoice, EngineKind, Function, Input, Invocation, LogSink, Output, Reply, Share,
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Global;
use super::error::Error;
use super::input::{Limits, Source, engine, name_from, named_artifact};
use super::invoke::Ended;
use super::output;
use super::progress::Progress;
use crate::manifest::{self, ArtifactSource, FunctionFile};
use crate::pack;
use crate::units::format_duration;

/// Run one function from a file, without a gateway
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum run hello.wasm < request
  novum run functions/hello --timings < request       a directory with a novum.toml
  novum run sort.wasm -- --reverse < lines
  novum run convert.wasm --read fonts:/fonts < in.svg > out.png
  novum run --memory 64MiB ./program -- --flag arg < request
  novum run --system /usr/bin/python3 --read .:/work -- /work/script.py < request
  novum run --engine linux --root debian --write .:/work -- sh    a Linux guest with its own kernel
  novum run --root debian --upper mine -- apt-get install jq      what it changes is kept in the directory mine

Input, output and exit code are passed through. Without a manifest the time limit is one hour.")]
pub(super) struct Args {
    /// A Wasm module, a program, or a directory with a novum.toml; with --root a command in the guest
    pub(super) path: PathBuf,
    /// What isolates the function [default: by its first bytes]
    #[arg(long, value_parser = engine())]
    pub(super) engine: Option<EngineChoice>,
    #[command(flatten)]
    pub(super) limits: Limits,
    /// Let the function read a directory; may be repeated
    #[arg(long, value_name = "HOST:GUEST", value_parser = share)]
    pub(super) read: Vec<(PathBuf, String)>,
    /// Let the function read and write a directory; may be repeated
    #[arg(long, value_name = "HOST:GUEST", value_parser = share)]
    pub(super) write: Vec<(PathBuf, String)>,
    #[cfg(feature = "vm")]
    #[command(flatten)]
    pub(super) guest: super::run_guest::Options,
    /// Let a dynamically linked program read this machine's /lib, /lib64 and /usr
    #[arg(long)]
    system: bool,
    /// Say on standard error where the time went
    #[arg(long)]
    pub(super) timings: bool,
    /// Where compiled code is kept [default: $XDG_CACHE_HOME/novum or ~/.cache/novum]
    #[arg(long, value_name = "DIR", env = "NOVUM_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,
    /// The function's arguments
    #[arg(trailing_var_arg = true)]
    pub(super) args: Vec<String>,
}

/// Without a manifest nobody said how long it may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(3600);

/// Parses `HOST:GUEST`.
fn share(text: &str) -> Result<(PathBuf, String), String> {
    let (host, guest) = text.rsplit_once(':').ok_or("write HOST:GUEST, such as fonts:/fonts")?;
    let host = Path::new(host).canonicalize().map_err(|e| format!("{host}: {e}"))?;
    Ok((host, guest.to_owned()))
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    #[cfg(feature = "vm")]
    if args.guest.wanted() {
        return super::run_guest::run(global, args);
    }
    let file = function_file(args)?;
    let row = choose(&file)?;
    (row.probe)().map_err(|reason| novum_sandbox::Error::Unavailable { engine: row.kind, reason })?;
    let config = EngineConfig {
        cache: args.cache_dir.clone().map_or_else(default_cache_dir, Ok)?,
        kernels: super::kernel::default_dir()?,
        max_sandboxes: 1,
        max_memory_bytes: file.manifest.memory_bytes,
        // One run: an image would not be used again.
        snapshots: None,
    };
    let function = Function {
        version: 1,
        artifact: Artifact {
            format: file.artifact.format(),
            digest: pack::digest(&file.artifact)?,
            path: std::path::absolute(file.artifact.path()).unwrap_or(file.artifact.path().to_owned()),
        },
        manifest: file.manifest,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| Error::Io { doing: "start the runtime", source })?;
    let result = runtime.block_on(execute(global, args, row, &config, function));
    // A thread may still wait for standard input: the process ends without it.
    runtime.shutdown_background();
    result
}

fn function_file(args: &Args) -> Result<FunctionFile, Error> {
    let is_manifest =
        args.path.is_dir() || args.path.extension().is_some_and(|extension| extension == "toml");
    let mut file = match is_manifest {
        true => manifest::load(&super::deploy::manifest_path(&args.path)?)?,
        false => {
            let mut file = named_artifact(name_from(&args.path), &args.path)?;
            file.manifest.timeout = PATIENCE;
            file
        }
    };
    file.manifest.engine = args.engine.unwrap_or(file.manifest.engine);
    if !args.args.is_empty() {
        file.manifest.args.clone_from(&args.args);
    }
    for (shares, read_only) in [(&args.read, true), (&args.write, false)] {
        let share = |(source, target): &(PathBuf, String)| Share {
            source: source.clone(),
            target: target.clone(),
            read_only,
        };
        file.manifest.shares.extend(shares.iter().map(share));
    }
    if args.system {
        file.manifest.shares.extend(SYSTEM.iter().filter_map(|directory| {
            let source = Path::new(directory).canonicalize().ok()?;
            Some(Share { source, target: (*directory).to_owned(), read_only: true })
        }));
    }
    args.limits.apply(&mut file.manifest)?;
    Ok(file)
}

/// Where distributions keep the dynamic loader, libraries and what programs read.
const SYSTEM: [&str; 3] = ["/lib", "/lib64", "/usr"];

/// The engine that the manifest names, or the first that knows the program's first bytes.
fn choose(file: &FunctionFile) -> Result<&'static Row, Error> {
    if let Some(kind) = file.manifest.engine.kind() {
        let absent =
            || novum_sandbox::Error::Unavailable { engine: kind, reason: engines::absence(kind).into() };
        return engines::row(kind).ok_or_else(|| absent().into());
    }
    let program = match &file.artifact {
        ArtifactSource::File(path) => path.clone(),
        ArtifactSource::Root(root) => root.join(file.manifest.entry.trim_start_matches('/')),
    };
    let head =
        head(&program).map_err(|source| Error::File { doing: "read", path: program.clone(), source })?;
    engines::TABLE.iter().find(|row| (row.recognises)(&head)).ok_or_else(|| Error::Usage {
        what: format!("no engine of this build knows what {} is", program.display()),
        advice:
            "engines take Wasm modules and components (.wasm, .wat) and Linux x86-64 programs; name one with \
                 --engine"
                .into(),
    })
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

pub(super) fn default_cache_dir() -> Result<PathBuf, Error> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .map(|base| base.join("novum"))
        .ok_or_else(|| Error::Usage {
            what: "neither XDG_CACHE_HOME nor HOME says where compiled code may be kept".into(),
            advice: "name a directory with --cache-dir DIR".into(),
        })
}

/// How long each step took.
pub(super) struct Steps {
    pub(super) engine: EngineKind,
    pub(super) prepare: Duration,
    pub(super) start: Duration,
}

async fn execute(
    global: &Global,
    args: &Args,
    row: &Row,
    config: &EngineConfig,
    function: Function,
) -> Result<u8, Error> {
    let timeout = function.manifest.timeout;
    let begun = Instant::now();
    let progress = Progress::wait(function.manifest.name.as_str());
    let image = (row.make)(config)?.prepare(Arc::new(function)).await?;
    drop(progress);
    let prepared = Instant::now();
    let mut sandbox = image.start().await?;
    let steps = Steps { engine: row.kind, prepare: prepared - begun, start: prepared.elapsed() };
    let (to, output) = mpsc::channel(4);
    let call = Invocation {
        env: Vec::new(),
        input: Input::Stream(standard_input()),
        output: Output::Stream(to),
        log: Arc::new(StandardError { json: global.json }),
        deadline: Instant::now() + timeout,
    };
    let printing = print(output, global.json);
    let reply = sandbox.invoke(call).await;
    // It may still hold the output's sender, and then the printing would never end.
    drop(sandbox);
    printing.await.map_err(|e| Error::Io { doing: "print", source: e.into() })??;
    report(global, args, &steps, reply?)
}

/// Prints what comes. Blocking writes get a thread of their own; when they fail the channel closes, which cancels the run.
pub(super) fn print(mut output: mpsc::Receiver<bytes::Bytes>, json: bool) -> JoinHandle<Result<(), Error>> {
    tokio::task::spawn_blocking(move || {
        while let Some(piece) = output.blocking_recv() {
            match json {
                true => {
                    output::json_line(&Value::Object(Map::from_iter([output::bytes_json("output", &piece)])))?
                }
                false => output::raw(&piece)?,
            }
        }
        Ok::<_, Error>(())
    })
}

pub(super) fn report(global: &Global, args: &Args, steps: &Steps, reply: Reply) -> Result<u8, Error> {
    let timings = reply.timings;
    let ended = Ended::from(reply.exit);
    let us = |d: Duration| d.as_nanos() as f64 / 1e3;
    if global.json {
        let mut object = ended.json();
        let value = json!({
            "prepare_us": us(steps.prepare), "start_us": us(steps.start), "run_us": us(timings.run),
            "first_byte_us": timings.first_byte.map(us), "engine": steps.engine.as_str(),
        });
        object.insert("timings".into(), value);
        output::json_line(&Value::Object(object))?;
        return Ok(ended.exit_code());
    }
    ended.explain(&args.path.display().to_string());
    if args.timings {
        let [prepare, start, run] = [steps.prepare, steps.start, timings.run].map(format_duration);
        let text = format!("prepare {prepare}, start {start}, run {run}, {}", steps.engine);
        output::note(output::styled(output::DIM, text));
    }
    Ok(ended.exit_code())
}

/// Reads standard input in a plain thread: it may wait for ever, and the program must be able to end meanwhile.
pub(super) fn standard_input() -> mpsc::Receiver<bytes::Bytes> {
    let (to, input) = mpsc::channel(4);
    std::thread::spawn(move || {
        if let Err(e) = Source::Stdin.pieces(|bytes| to.blocking_send(bytes).is_ok()) {
            output::failure(&e, false);
        }
    });
    input
}

pub(super) struct StandardError {
    pub(super) json: bool,
}

impl LogSink for StandardError {
    fn write(&self, bytes: &[u8]) {
        match self.json {
            true => {
                let _ = output::json_line(&Value::Object(Map::from_iter([output::bytes_json("log", bytes)])));
            }
            false => output::log_bytes(bytes),
        }
    }
}
