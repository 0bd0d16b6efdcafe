//! `novum sandbox cp`: one file into a sandbox or out of it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use novum_proto::gateway::v1;
use novum_proto::gateway::v1::write_file_request::{Part, Start};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::output;

/// Bytes of a file in one message.
const PIECE_BYTES: usize = 256 << 10;

/// Copy a file into a sandbox or out of it; NAME:/PATH is one there, - is standard input or output
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum sandbox cp report.csv work:/data/report.csv
  novum sandbox cp -p tool work:/opt/tools/bin/tool
  novum sandbox cp work:/data/result.json .
  novum sandbox cp work:/var/log/app.log -")]
pub(super) struct Args {
    /// What to copy
    from: String,
    /// Where to; a local directory takes the file's name
    to: String,
    /// Make the directories in the sandbox that lead to it
    #[arg(long, short = 'p')]
    parents: bool,
    /// Add to the sandbox's file instead of replacing it
    #[arg(long)]
    append: bool,
}

/// One end of a copy.
enum End<'a> {
    Standard,
    Local(&'a Path),
    Sandbox { name: &'a str, path: &'a str },
}

impl<'a> End<'a> {
    fn new(text: &'a str) -> Self {
        match text.split_once(":/") {
            _ if text == "-" => Self::Standard,
            // A local path that begins with a slash or a dot never names a sandbox.
            Some((name, _)) if !name.is_empty() && !name.contains(['/', '.']) => {
                Self::Sandbox { name, path: &text[name.len() + 1..] }
            }
            _ => Self::Local(Path::new(text)),
        }
    }
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    match (End::new(&args.from), End::new(&args.to)) {
        (End::Sandbox { name, path }, to) if !matches!(to, End::Sandbox { .. }) => {
            fetch(global, name, path, to).await
        }
        (from, End::Sandbox { name, path }) if !matches!(from, End::Sandbox { .. }) => {
            send(global, args, from, name, path).await
        }
        _ => Err(Error::Usage {
            what: "one of the two must be in a sandbox".into(),
            advice: "write it as NAME:/PATH".into(),
        }),
    }
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { doing, path, source }
}

async fn fetch(global: &Global, name: &str, path: &str, to: End<'_>) -> Result<u8, Error> {
    let request =
        v1::ReadFileRequest { sandbox: name.to_owned(), path: path.to_owned(), offset: 0, length: None };
    let doing = || format!("read {path} in {name}");
    let mut client = global.connect().await?.sandboxes();
    let mut pieces = client.read_file(request).await.map_err(Error::status(doing()))?.into_inner();
    // Only now: a file that is not there must not empty one that is here.
    let local = match to {
        End::Local(to) if to.is_dir() => Some(to.join(Path::new(path).file_name().unwrap_or_default())),
        End::Local(to) => Some(to.to_owned()),
        _ => None,
    };
    let mut file = match &local {
        Some(to) => Some(std::fs::File::create(to).map_err(file_error("write", to))?),
        None => None,
    };
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let data = piece.map_err(Error::status(doing()))?.data;
        bytes += data.len() as u64;
        match (&mut file, &local) {
            (Some(file), Some(to)) => file.write_all(&data).map_err(file_error("write", to))?,
            _ => output::raw(&data)?,
        }
    }
    if global.json && local.is_some() {
        output::json_line(&json!({ "outcome": "copied", "bytes": bytes }))?;
    }
    Ok(0)
}

async fn send(global: &Global, args: &Args, from: End<'_>, name: &str, path: &str) -> Result<u8, Error> {
    let (source, mode): (Box<dyn Read + Send>, Option<u32>) = match &from {
        End::Local(from) => {
            let file = std::fs::File::open(from).map_err(file_error("read", from))?;
            let found = file.metadata().map_err(file_error("read", from))?;
            if found.is_dir() {
                return Err(Error::Usage {
                    what: format!("{} is a directory", from.display()),
                    advice: "copy files, or pipe a tar: tar c DIR | novum sandbox exec NAME -- tar x".into(),
                });
            }
            let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777;
            (Box::new(file), Some(mode))
        }
        _ => (Box::new(std::io::stdin()), None),
    };
    let shown = if let End::Local(from) = from { from.to_owned() } else { PathBuf::from("standard input") };
    let start = Start {
        sandbox: name.to_owned(),
        path: path.to_owned(),
        mode,
        make_directories: args.parents,
        append: args.append,
    };
    let (to, requests) = mpsc::channel(4);
    let first = tokio_stream::once(v1::WriteFileRequest { part: Some(Part::Start(start)) });
    let reading = tokio::task::spawn_blocking(move || pieces(source, &to));
    let mut client = global.connect().await?.sandboxes();
    let written = client.write_file(first.chain(ReceiverStream::new(requests))).await;
    let written = written.map_err(Error::status(format!("write {path} in {name}")))?.into_inner();
    let read = reading.await.map_err(|e| Error::Io { doing: "read", source: e.into() })?;
    read.map_err(file_error("read", &shown))?;
    if global.json {
        output::json_line(&json!({ "outcome": "copied", "bytes": written.written_bytes }))?;
    }
    Ok(0)
}

/// Sends what `source` holds. Where reading fails, the file in the sandbox is left as far as it came.
fn pieces(mut source: Box<dyn Read + Send>, to: &mpsc::Sender<v1::WriteFileRequest>) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let data = Part::Data(Bytes::copy_from_slice(&piece[..count]));
        if to.blocking_send(v1::WriteFileRequest { part: Some(data) }).is_err() {
            // The gateway has refused; its answer says why.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_sandbox_is_told_from_a_local_path() {
        for (text, expected) in [
            ("-", "standard"),
            ("work:/tmp/x", "work /tmp/x"),
            ("./work:/tmp/x", "local"),
            ("/a:/b", "local"),
            ("x", "local"),
            ("work:x", "local"),
            (":/x", "local"),
        ] {
            let got = match End::new(text) {
                End::Standard => "standard".to_owned(),
                End::Local(_) => "local".to_owned(),
                End::Sandbox { name, path } => format!("{name} {path}"),
            };
            assert_eq!(got, expected, "{text}");
        }
    }
}
