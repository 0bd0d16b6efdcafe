//! `novum sandbox exec` and `novum sandbox shell`: a program in a sandbox on the caller's streams, or on his terminal.

use std::time::Duration;

use novum_proto::gateway::v1;
use novum_proto::gateway::v1::exec_request::Part as RequestPart;
use novum_proto::gateway::v1::exec_response::Part as ResponsePart;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::input::{Source, variable};
use crate::cli::invoke::Ended;
use crate::cli::output;
use crate::cli::terminal::Terminal;
use crate::convert;
use crate::units::parse_duration;

/// Run a program in a sandbox
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum sandbox exec work -- /app/tool --check
  novum sandbox exec work --cwd /data --env LANG=C -- ls -l
  sort big.txt | novum sandbox exec work -- /usr/bin/uniq -c
  novum sandbox exec deb -t -- top

Its output goes to standard output, its errors to standard error, its exit code becomes this program's. Ending this
program kills it.")]
pub(super) struct Args {
    /// The sandbox
    name: String,
    #[command(flatten)]
    options: Options,
    /// Give it this terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Give it no input
    #[arg(long, short = 'n', conflicts_with = "tty")]
    no_input: bool,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

/// Run a shell in a sandbox, with your terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum sandbox shell deb
  novum sandbox shell deb --shell /bin/bash
  echo 'ls /' | novum sandbox shell deb")]
pub(super) struct ShellArgs {
    /// The sandbox
    name: String,
    #[command(flatten)]
    options: Options,
    /// The shell
    #[arg(long, value_name = "PROGRAM", default_value = "/bin/sh")]
    shell: String,
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Add a variable to its environment; may be repeated
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Where it begins [default: /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Who runs it, as numbers [default: root]
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, u32)>,
    /// Kill it after this time, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text:?}: {e}"));
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Ok((number(uid)?, number(gid)?))
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let terminal = if args.tty {
        let terminal = Terminal::of_caller().ok_or_else(|| Error::Usage {
            what: "-t needs a terminal as standard input and output".into(),
            advice: "leave -t out".into(),
        })?;
        Some(terminal)
    } else {
        None
    };
    execute(global, &args.name, &args.options, args.command.clone(), terminal, !args.no_input).await
}

pub(super) async fn shell(global: &Global, args: &ShellArgs) -> Result<u8, Error> {
    let terminal = if global.json { None } else { Terminal::of_caller() };
    execute(global, &args.name, &args.options, vec![args.shell.clone()], terminal, true).await
}

impl Options {
    fn start(&self, name: &str, args: Vec<String>, terminal: Option<&Terminal>) -> v1::exec_request::Start {
        let mut env: std::collections::HashMap<_, _> = self.env.iter().cloned().collect();
        if let (Some(_), Ok(kind)) = (terminal, std::env::var("TERM")) {
            env.entry("TERM".into()).or_insert(kind);
        }
        let size =
            |(rows, columns): (u16, u16)| v1::TerminalSize { rows: rows.into(), columns: columns.into() };
        v1::exec_request::Start {
            sandbox: name.to_owned(),
            args,
            env,
            working_directory: self.cwd.clone().unwrap_or_default(),
            user: self.user.map(|(uid, gid)| v1::ExecUser { uid, gid, groups: Vec::new() }),
            terminal: terminal.map(|terminal| size(terminal.size)),
            timeout: self.timeout.map(convert::duration),
            output_bytes: None,
        }
    }
}

fn part(part: RequestPart) -> v1::ExecRequest {
    v1::ExecRequest { part: Some(part) }
}

async fn execute(
    global: &Global,
    name: &str,
    options: &Options,
    args: Vec<String>,
    terminal: Option<Terminal>,
    input: bool,
) -> Result<u8, Error> {
    let program = args.first().cloned().unwrap_or_default();
    let start = options.start(name, args, terminal.as_ref());
    let mut client = global.connect().await?.sandboxes();
    let (to, requests) = mpsc::channel(4);
    if let Some(terminal) = &terminal {
        follow_size(terminal, to.clone())?;
    }
    if input {
        pass_input(to);
    } else {
        drop(to);
    }
    let doing = || format!("run {program} in {name}");
    let call =
        client.exec(tokio_stream::once(part(RequestPart::Start(start))).chain(ReceiverStream::new(requests)));
    let mut replies = call.await.map_err(Error::status(doing()))?.into_inner();
    while let Some(reply) = replies.next().await {
        let reply = match reply {
            Ok(reply) => reply,
            Err(status) => {
                // What is said next is for a terminal in its usual mode.
                drop(terminal);
                return Err(Error::status(doing())(status));
            }
        };
        match reply.part {
            Some(ResponsePart::End(end)) => {
                drop(terminal);
                return finish(global, &program, &end);
            }
            Some(part) => pass_on(global, part)?,
            None => {}
        }
    }
    Err(Error::Protocol("end"))
}

/// A plain thread: it may wait for standard input for ever, and the program must be able to end meanwhile.
fn pass_input(to: mpsc::Sender<v1::ExecRequest>) {
    std::thread::spawn(move || {
        let sent = Source::Stdin.pieces(|bytes| to.blocking_send(part(RequestPart::Input(bytes))).is_ok());
        if let Err(e) = sent {
            output::failure(&e, false);
        }
        // Sizes may follow, so the end is said.
        let _ = to.blocking_send(part(RequestPart::EndOfInput(v1::exec_request::EndOfInput {})));
    });
}

fn follow_size(terminal: &Terminal, to: mpsc::Sender<v1::ExecRequest>) -> Result<(), Error> {
    let mut sizes = terminal.follow(|(rows, columns)| {
        let (rows, columns) = (rows.into(), columns.into());
        part(RequestPart::Resize(v1::TerminalSize { rows, columns }))
    })?;
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if to.send(size).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn pass_on(global: &Global, part: ResponsePart) -> Result<(), Error> {
    let object = match part {
        ResponsePart::Output(bytes) if global.json => output::bytes_json("output", &bytes),
        ResponsePart::Error(bytes) if global.json => output::bytes_json("error", &bytes),
        ResponsePart::Output(bytes) => return output::raw(&bytes),
        ResponsePart::Error(bytes) => {
            output::log_bytes(&bytes);
            return Ok(());
        }
        ResponsePart::Started(_) | ResponsePart::End(_) => return Ok(()),
    };
    output::json_line(&Value::Object(Map::from_iter([object])))
}

fn finish(global: &Global, program: &str, end: &v1::exec_response::End) -> Result<u8, Error> {
    let ended = Ended::new(end.exit.as_ref())?;
    if global.json {
        let mut object = ended.json();
        object.insert("run_us".into(), (output::duration(end.run.as_ref()).as_secs_f64() * 1e6).into());
        output::json_line(&Value::Object(object))?;
    } else {
        ended.explain(program);
    }
    Ok(ended.exit_code())
}
