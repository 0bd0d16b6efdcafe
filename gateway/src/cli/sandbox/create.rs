//! `novum sandbox create`.

use std::path::PathBuf;
use std::time::Duration;

use novum_proto::gateway::v1;
use novum_sandbox::{EngineChoice, EngineKind};

use super::show;
use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::input::{engine, variable};
use crate::convert;
use crate::units::{parse_duration, parse_size};

/// Make a sandbox and print its name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum sandbox create --function tools
  novum sandbox create --function tools --name work --memory 1GiB --idle 1h
  novum sandbox create --root /srv/app --root /srv/debian --cpus 2
  novum sandbox create --snapshot ready --name again

Directories are the gateway's; its --allow-share must allow them.")]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// The sandbox's name [default: made up]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What isolates it [default: the function's engine, linux for --root]
    #[arg(long, value_name = "ENGINE", value_parser = engine())]
    engine: Option<EngineChoice>,
    /// Its memory, such as 1GiB [default: the function's, 512MiB for --root]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Its processors [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// A variable of its commands' environment; may be repeated
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Let it read a directory of the gateway's machine; may be repeated
    #[arg(long, value_name = "HOST:SANDBOX", value_parser = shared)]
    read: Vec<(String, String)>,
    /// Let it read and write a directory of the gateway's machine; may be repeated
    #[arg(long, value_name = "HOST:SANDBOX", value_parser = shared)]
    write: Vec<(String, String)>,
    /// Keep what it writes to its root in this directory, for the next sandbox; not with --snapshot, nor saved in one
    #[arg(long, value_name = "DIR")]
    upper: Option<String>,
    /// Delete it when nobody has used it for this time [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    idle: Option<Duration>,
    /// Delete it after this time whatever it does [default: 8h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    lifetime: Option<Duration>,
}

/// What it is made from.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A deployed function, whose files are its root; NAME@VERSION for another version than the current one
    #[arg(long, value_name = "FUNCTION")]
    function: Option<String>,
    /// A directory of the gateway's machine as its root; repeat it for layers, the topmost first
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// A snapshot of a sandbox
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
}

fn shared(text: &str) -> Result<(String, String), String> {
    let (host, sandbox) = text.rsplit_once(':').ok_or("write HOST:SANDBOX, such as /srv/data:/data")?;
    Ok((host.to_owned(), sandbox.to_owned()))
}

impl Source {
    fn message(&self) -> Result<v1::create_sandbox_request::Source, Error> {
        use v1::create_sandbox_request::Source as Message;
        if let Some(function) = &self.function {
            let (name, version) = function.split_once('@').unwrap_or((function, "0"));
            let version = version.parse().map_err(|_| Error::Usage {
                what: format!("{version:?} is no version"),
                advice: "write NAME, or NAME@2".into(),
            })?;
            return Ok(Message::Function(v1::FunctionSource { name: name.to_owned(), version }));
        }
        if let Some(snapshot) = &self.snapshot {
            return Ok(Message::Snapshot(snapshot.clone()));
        }
        let layers = self.root.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        Ok(Message::Root(v1::RootSource { layers }))
    }
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let share = |(source, target): &(String, String), read_only| v1::SharedDirectory {
        source: source.clone(),
        target: target.clone(),
        read_only: Some(read_only),
    };
    let shares = args.read.iter().map(|s| share(s, true)).chain(args.write.iter().map(|s| share(s, false)));
    let upper = args.upper.iter().map(|upper| (upper.clone(), "/".to_owned()));
    let upper: Vec<_> = upper.map(|s| share(&s, false)).collect();
    let kind = args.engine.and_then(EngineChoice::kind);
    let request = v1::CreateSandboxRequest {
        name: args.name.clone().unwrap_or_default(),
        engine: kind.map_or(v1::Engine::Auto, |kind: EngineKind| convert::engine(kind)).into(),
        source: Some(args.source.message()?),
        memory_bytes: args.memory,
        cpus: args.cpus,
        env: args.env.iter().cloned().collect(),
        shares: shares.chain(upper).collect(),
        idle_timeout: args.idle.map(convert::duration),
        lifetime: args.lifetime.map(convert::duration),
    };
    let mut sandboxes = global.connect().await?.sandboxes();
    let made = sandboxes.create(request).await.map_err(Error::status("create a sandbox"))?;
    show::made(global, made.into_inner().sandbox)
}
