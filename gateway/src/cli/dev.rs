//! `novum dev`.

use std::path::{Path, PathBuf};

use novum_snapshot::Digest;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::error::Error;
use super::serve::{Settings, stop_on_signals};
use crate::config::ServeConfig;
use crate::dev::{self, DevConfig};

/// Serve every function below a directory and redeploy it when its files change
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum dev                            the functions below this directory
  novum dev functions/ --listen 127.0.0.1:8080
  novum dev --demo                     the examples inside this program; calls one
  novum dev --demo --exit              the same, without going on serving

A function is a directory with a novum.toml, or elsewhere a .wasm or .wat file. Directories below
DIR may be shared with functions; others need --allow-share. Each invocation is printed on one line
with its timings.")]
pub(super) struct Args {
    /// Where the functions are [default: .]
    #[arg(value_name = "DIR", conflicts_with = "demo")]
    dir: Option<PathBuf>,
    /// Serve the examples that are inside this program, and call one
    #[arg(long)]
    demo: bool,
    /// End when everything is deployed, with code 0
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(_global: &Global, args: &Args) -> Result<u8, Error> {
    let temporary = args.demo.then(tempfile::tempdir).transpose();
    let temporary = temporary.map_err(|source| Error::Io { doing: "make a temporary directory", source })?;
    let root = match &temporary {
        Some(demo) => demo.path().join("examples"),
        None => args.dir.clone().unwrap_or_else(|| ".".into()),
    };
    if args.demo {
        dev::demo::write(&root).map_err(|source| Error::File {
            doing: "write",
            path: root.clone(),
            source,
        })?;
    }
    let refuse = |source| Error::File { doing: "open", path: root.clone(), source };
    let absolute = root.canonicalize().map_err(refuse)?;
    if !absolute.is_dir() {
        return Err(refuse(std::io::ErrorKind::NotADirectory.into()));
    }
    let data_dir = match (args.settings.data_dir(), &temporary) {
        (Some(given), _) => given,
        (None, Some(demo)) => demo.path().join("data"),
        (None, None) => data_dir(&absolute)?,
    };
    let mut serve = ServeConfig::new(data_dir);
    args.settings.apply(&mut serve)?;
    serve.allow_shares.push(absolute);
    let config = DevConfig { root, serve, demonstrate: args.demo, exit: args.exit };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| Error::Io { doing: "start the runtime", source })?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signals(shutdown.clone())?;
        dev::serve(config, shutdown).await
    })?;
    Ok(0)
}

/// Compiled code is kept from session to session, outside the directory that is watched.
fn data_dir(root: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::ffi::OsStrExt;
    let key = Digest::of(root.as_os_str().as_bytes()).to_string();
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    Ok(super::run::default_cache_dir()?.join("dev").join(format!("{name}-{}", &key[..12])))
}
