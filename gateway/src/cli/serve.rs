//! `novum serve`: flags, environment and file become one checked [`ServeConfig`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::error::Error;
use super::output;
use crate::config::{Listen, ServeConfig};
use crate::manifest::{Diagnostic, ManifestError};
use crate::server::Server;
use crate::units::{UnitError, parse_duration, parse_size};

/// Start a gateway
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum serve
  novum serve --listen 0.0.0.0:7070 --data-dir /var/lib/novum
  novum serve --listen unix:/run/novum.sock --allow-share /srv/fonts
  novum serve --listen 127.0.0.1:0 --port-file /tmp/novum.port     for scripts: any free port
  novum serve --config /etc/novum.toml

A flag wins over its environment variable, that over the file. Keys of the file are the flags' names with _ for -:
  listen = [\"127.0.0.1:7070\"]
  max_payload = \"16MiB\"")]
pub(super) struct Args {
    /// A TOML file with these settings; unknown keys are refused
    #[arg(long, value_name = "FILE", env = "NOVUM_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", env = "NOVUM_LOG_FORMAT", hide_env_values = true, default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    #[command(flatten)]
    settings: Settings,
}

/// What flags, environment and file can all say.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    /// Address to listen on: IP:PORT or unix:/path; may be repeated [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS", env = "NOVUM_LISTEN", hide_env_values = true, value_delimiter = ',')]
    listen: Vec<Address>,
    /// Write the bound addresses into this file when the gateway answers
    #[arg(long, value_name = "PATH", env = "NOVUM_PORT_FILE", hide_env_values = true)]
    port_file: Option<PathBuf>,
    /// Where functions and caches are kept [default: $XDG_DATA_HOME/novum or ~/.local/share/novum]
    #[arg(long, value_name = "DIR", env = "NOVUM_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// Where kernels of Linux guests are kept [default: $XDG_CACHE_HOME/novum/kernels or ~/.cache/novum/kernels]
    #[arg(long, value_name = "DIR", env = "NOVUM_KERNEL_DIR", hide_env_values = true)]
    kernel_dir: Option<PathBuf>,
    /// Functions may share directories below this one; may be repeated [default: none]
    #[arg(
        long = "allow-share",
        value_name = "DIR",
        env = "NOVUM_ALLOW_SHARE",
        hide_env_values = true,
        value_delimiter = ':'
    )]
    #[serde(rename = "allow_share")]
    allow_share: Vec<PathBuf>,
    /// Largest request of one invocation [default: 4MiB]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "SIZE",
        env = "NOVUM_MAX_PAYLOAD",
        hide_env_values = true
    )]
    max_payload: Option<Size>,
    /// Largest artifact of one deploy [default: 256MiB]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "SIZE",
        env = "NOVUM_MAX_ARTIFACT",
        hide_env_values = true
    )]
    max_artifact: Option<Size>,
    /// Most files in one artifact [default: 100000]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_MAX_ARTIFACT_ENTRIES",
        hide_env_values = true
    )]
    max_artifact_entries: Option<u64>,
    /// Most functions [default: 10000]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_MAX_FUNCTIONS",
        hide_env_values = true
    )]
    max_functions: Option<usize>,
    /// Versions of one function that can be invoked, the current one included [default: 3]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_KEEP_VERSIONS",
        hide_env_values = true
    )]
    keep_versions: Option<usize>,
    /// Threads that serve connections [default: one for each CPU]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_WORKERS",
        hide_env_values = true
    )]
    workers: Option<usize>,
    /// How long running invocations may go on after SIGTERM [default: 30s]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "DURATION",
        env = "NOVUM_DRAIN_TIMEOUT",
        hide_env_values = true
    )]
    drain_timeout: Option<Time>,
    /// Log lines kept in memory for each function, in bytes [default: 256KiB]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "SIZE",
        env = "NOVUM_LOG_BYTES",
        hide_env_values = true
    )]
    log_bytes: Option<Size>,
    /// Most sandboxes of one engine at once [default: 1000]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_MAX_SANDBOXES",
        hide_env_values = true
    )]
    max_sandboxes: Option<u32>,
    /// Most sandboxes of `novum sandbox`, and most snapshots of them [default: 100]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "N",
        env = "NOVUM_MAX_SESSIONS",
        hide_env_values = true
    )]
    max_sessions: Option<usize>,
    /// Largest memory that a manifest may ask for [default: 4GiB]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "SIZE",
        env = "NOVUM_MAX_MEMORY",
        hide_env_values = true
    )]
    max_memory: Option<Size>,
    /// What all sandboxes together may hold [default: three quarters of the machine's memory]
    #[arg(
        long,
        help_heading = "Limits",
        value_name = "SIZE",
        env = "NOVUM_MEMORY_BUDGET",
        hide_env_values = true
    )]
    memory_budget: Option<Size>,
    /// What snapshots may take on the disk; those of deployed functions stay in any case [default: 16GiB]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "SIZE",
        env = "NOVUM_MAX_SNAPSHOTS",
        hide_env_values = true
    )]
    max_snapshots: Option<Size>,
    /// How long a snapshot stays that no function needs and nobody uses [default: 24h]
    #[arg(
        long,
        help_heading = "Limits",
        hide_short_help = true,
        value_name = "DURATION",
        env = "NOVUM_KEEP_SNAPSHOTS",
        hide_env_values = true
    )]
    keep_snapshots: Option<Time>,
}

/// A value that is text on the command line, and text (or for sizes a number) in a file.
macro_rules! setting {
    ($name:ident, $value:ty, $parse:expr, $error:ty) => {
        #[derive(Clone, Debug)]
        pub(super) struct $name($value);

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged, expecting = "a string, or a whole number of bytes")]
                enum Either {
                    Text(String),
                    Number(u64),
                }
                let text = match Either::deserialize(from)? {
                    Either::Text(text) => text,
                    Either::Number(number) => number.to_string(),
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

setting!(Address, Listen, Listen::from_str, crate::config::ParseListenError);
setting!(Size, u64, parse_size, UnitError);
setting!(Time, Duration, parse_duration, UnitError);

impl Args {
    /// Whether log lines are JSON.
    pub(super) fn log_json(&self) -> bool {
        self.log_format == "json"
    }

    fn config(&self) -> Result<ServeConfig, Error> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let data_dir = self.settings.data_dir.clone().or(file.data_dir.clone());
        let data_dir = data_dir.map_or_else(default_data_dir, Ok)?;
        let mut config = ServeConfig::new(data_dir);
        if let Ok(folder) = super::kernel::default_dir() {
            config.kernel_dir = folder;
        }
        file.apply(&mut config)?;
        self.settings.apply(&mut config)?;
        config.check().map_err(crate::server::ServeError::from)?;
        Ok(config)
    }
}

impl Settings {
    /// Where the user wants the data.
    pub(super) fn data_dir(&self) -> Option<PathBuf> {
        self.data_dir.clone()
    }

    /// Lays what was given over `config`.
    pub(super) fn apply(&self, config: &mut ServeConfig) -> Result<(), Error> {
        fn set<T: Clone>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        if !self.listen.is_empty() {
            config.listen = self.listen.iter().map(|address| address.0.clone()).collect();
        }
        if !self.allow_share.is_empty() {
            let absolute = |dir: &PathBuf| {
                dir.canonicalize().map_err(|source| Error::File { doing: "share", path: dir.clone(), source })
            };
            config.allow_shares = self.allow_share.iter().map(absolute).collect::<Result<_, _>>()?;
        }
        if self.port_file.is_some() {
            config.port_file.clone_from(&self.port_file);
        }
        set(&mut config.kernel_dir, self.kernel_dir.clone());
        let bytes = |size: &Option<Size>| size.as_ref().map(|size| size.0);
        let index = |size: &Option<Size>| bytes(size).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        set(&mut config.max_payload_bytes, index(&self.max_payload));
        set(&mut config.max_artifact_bytes, bytes(&self.max_artifact));
        set(&mut config.max_artifact_entries, self.max_artifact_entries);
        set(&mut config.max_functions, self.max_functions);
        set(&mut config.keep_versions, self.keep_versions);
        set(&mut config.workers, self.workers);
        set(&mut config.drain_timeout, self.drain_timeout.as_ref().map(|time| time.0));
        set(&mut config.log_bytes, index(&self.log_bytes));
        set(&mut config.max_sandboxes, self.max_sandboxes);
        set(&mut config.max_sessions, self.max_sessions);
        set(&mut config.max_memory_bytes, bytes(&self.max_memory));
        set(&mut config.memory_budget_bytes, bytes(&self.memory_budget));
        set(&mut config.max_snapshot_bytes, bytes(&self.max_snapshots));
        set(&mut config.keep_snapshots, self.keep_snapshots.as_ref().map(|time| time.0));
        Ok(())
    }
}

fn read_file(path: &Path) -> Result<Settings, Error> {
    let refuse = |source| Error::File { doing: "read", path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(refuse)?;
    toml::from_str(&text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        ManifestError::from(Diagnostic::at(path, &text, span, e.message().replace('\n', ", "))).into()
    })
}

/// Where this user's programs keep their data (XDG base directory specification).
pub(super) fn default_data_dir() -> Result<PathBuf, Error> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_DATA_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("novum"))
        .ok_or_else(|| Error::Usage {
            what: "neither XDG_DATA_HOME nor HOME says where data may be kept".into(),
            advice: "name a directory with --data-dir DIR".into(),
        })
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let config = args.config()?;
    super::block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signals(shutdown.clone())?;
        let server = Server::start(config).await?;
        announce(global, &server)?;
        server.run(shutdown).await?;
        Ok(0)
    })
}

fn announce(global: &Global, server: &Server) -> Result<(), Error> {
    let addresses: Vec<_> = server.addresses().iter().map(url).collect();
    if global.json {
        return output::json_line(&json!({ "listening": addresses }));
    }
    addresses.iter().try_for_each(|address| output::line(format_args!("listening on {address}")))
}

/// A bound address as `--server` takes it. An unspecified address is reached over loopback.
pub(crate) fn url(address: &Listen) -> String {
    match address {
        Listen::Tcp(SocketAddr::V4(v4)) if v4.ip().is_unspecified() => {
            format!("http://127.0.0.1:{}", v4.port())
        }
        Listen::Tcp(SocketAddr::V6(v6)) if v6.ip().is_unspecified() => format!("http://[::1]:{}", v6.port()),
        Listen::Tcp(address) => format!("http://{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// The first SIGINT or SIGTERM drains, the second ends at once.
pub(crate) fn stop_on_signals(shutdown: CancellationToken) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|source| Error::Io { doing: "listen for signals", source });
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        for first in [true, false] {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            if !first {
                std::process::exit(code);
            }
            shutdown.cancel();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn config(line: &[&str]) -> Result<ServeConfig, Error> {
        Line::parse_from([&["serve"], line].concat()).args.config()
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text =
            "listen = [\"127.0.0.1:1\"]\nmax_payload = \"1MiB\"\nlog_bytes = 4096\ndrain_timeout = \"2s\"\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let c = config(&["--config", path, "--data-dir", "/tmp/d", "--listen", "unix:/tmp/s"]).unwrap();
        assert_eq!(c.listen, [Listen::Unix("/tmp/s".into())]);
        assert_eq!((c.max_payload_bytes, c.log_bytes), (1 << 20, 4096));
        assert_eq!(c.drain_timeout, Duration::from_secs(2));
        assert_eq!(c.data_dir, PathBuf::from("/tmp/d"));
    }

    #[test]
    fn errors_of_the_file_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        for (text, place) in [
            ("workers = 1\nworker = 2\n", ":2:1: unknown field `worker`"),
            ("\nmax_payload = \"4MB\"\n", ":2:15: write"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = config(&["--data-dir", "/tmp/d", "--config", path.to_str().unwrap()]).unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
        }
    }

    #[test]
    fn impossible_values_name_the_flag() {
        let error = config(&["--data-dir", "/tmp/d", "--workers", "0"]).unwrap_err();
        assert!(error.to_string().contains("--workers"), "{error}");
    }
}
