//! The local dev server: a gateway in this process whose functions follow the files below a directory.
//!
//! ```text
//! files ──watch──> session ──Deploy, Delete──> gateway ──Logs──> one line for each invocation
//! ```
//!
//! It uses the gateway through its public API only, over the address that it prints.

pub mod demo;
pub mod discover;
pub mod print;
pub mod session;
pub mod watch;

use std::path::PathBuf;

use novum_proto::gateway::v1;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::cli::error::Error;
use crate::cli::{line_text, output, server_url};
use crate::client::Client;
use crate::config::ServeConfig;
use crate::server::Server;
use session::Session;
use watch::Watch;

/// Why the dev server did not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The directory cannot be watched.
    #[error("cannot watch {}: {source}", path.display())]
    Watch {
        /// Which.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

/// What a dev server is started with.
#[derive(Debug)]
pub struct DevConfig {
    /// Functions are looked for below this directory.
    pub root: PathBuf,
    /// The gateway.
    pub serve: ServeConfig,
    /// Call an example when everything is deployed.
    pub demonstrate: bool,
    /// End when everything is deployed (and shown).
    pub exit: bool,
}

/// Serves until `shutdown` is cancelled.
///
/// # Errors
/// A gateway or a watcher that does not start.
pub async fn serve(config: DevConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let mut watch =
        Watch::new(&config.root).map_err(|source| DevError::Watch { path: config.root.clone(), source })?;
    let server = Server::start(config.serve.clone()).await?;
    let addresses: Vec<_> = server.addresses().iter().map(server_url).collect();
    print::greeting(&config.root, &addresses);
    let url = addresses.into_iter().next().unwrap_or_default();
    let gateway = tokio::spawn(server.run(shutdown.clone()));
    let ended = tokio::select! {
        ended = follow_files(&config, &url, &mut watch) => ended,
        () = shutdown.cancelled() => Ok(()),
    };
    // A gateway that is shut down ends its streams; that is no failure.
    let ended = if shutdown.is_cancelled() { Ok(()) } else { ended };
    shutdown.cancel();
    gateway.await.map_err(|e| Error::Io { doing: "stop the gateway", source: e.into() })??;
    ended
}

async fn follow_files(config: &DevConfig, url: &str, watch: &mut Watch) -> Result<(), Error> {
    let client = Client::connect(url).await?;
    let calls = print::Calls { url: url.to_owned() };
    let mut session = Session::new(config.root.clone(), client.clone(), calls);
    session.forget_others().await?;
    // Followed from here on, so that the first invocation is seen.
    let logs = follow_logs(&client).await?;
    watch.also(session.sync().await?);
    print::ready(session.serving());
    if config.demonstrate {
        demo::show(&client).await?;
    }
    if config.exit {
        return Ok(());
    }
    let follow = async {
        loop {
            watch.changed().await;
            watch.also(session.sync().await?);
        }
    };
    tokio::select! {
        failed = follow => failed,
        failed = print_logs(logs) => Err(failed),
    }
}

const FOLLOW: &str = "follow the logs";

/// What functions write and the gateway's note on each invocation, from now on.
async fn follow_logs(client: &Client) -> Result<tonic::Streaming<v1::LogsResponse>, Error> {
    let request = v1::LogsRequest { function: String::new(), follow: true, tail: -1 };
    let lines = client.functions().logs(request).await.map_err(Error::status(FOLLOW))?;
    Ok(lines.into_inner())
}

/// Prints until nobody reads it.
async fn print_logs(mut lines: tonic::Streaming<v1::LogsResponse>) -> Error {
    while let Some(line) = lines.next().await {
        let printed = line.map_err(Error::status(FOLLOW)).and_then(|l| output::line(line_text(&l)));
        if let Err(e) = printed {
            return e;
        }
    }
    Error::Protocol("log stream")
}
