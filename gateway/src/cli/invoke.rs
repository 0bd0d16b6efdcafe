//! `novum invoke`: the request to standard input of the function, its output to ours.

use std::time::{Duration, Instant};

use novum_proto::gateway::v1;
use novum_proto::gateway::v1::invoke_stream_request::Part as RequestPart;
use novum_proto::gateway::v1::invoke_stream_response::Part as ResponsePart;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::Global;
use super::error::{Error, exit};
use super::input::{Payload, variable};
use super::output;
use crate::convert;
use crate::units::parse_duration;

/// Call a function: the request is its standard input, the reply its standard output
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo hi | novum invoke hello
  novum invoke hello --data hi --timings
  novum invoke thumbnail --file cat.png > small.png
  tail -f access.log | novum invoke --stream parse
  novum invoke hello --data hi --json | jq .timings

The function's standard error goes to standard error, its exit code becomes this program's. Novum's
own codes are listed in docs/cli.md; with --json the `outcome` (exited, faulted, error) tells them apart.")]
pub(super) struct Args {
    /// The function's name
    name: String,
    #[command(flatten)]
    payload: Payload,
    /// Send input and print output as they come; no size limit
    #[arg(long)]
    stream: bool,
    /// Add a variable to the function's environment (the manifest's allow_env must name it); may be repeated
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Time the invocation may take, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// This version instead of the current one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    version: u64,
    /// Say on standard error where the time went
    #[arg(long)]
    timings: bool,
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    match args.stream {
        true => stream(global, args).await,
        false => unary(global, args).await,
    }
}

impl Args {
    fn doing(&self) -> String {
        format!("invoke {}", self.name)
    }
}

async fn unary(global: &Global, args: &Args) -> Result<u8, Error> {
    let source = args.payload.source()?;
    let mut functions = global.connect().await?.functions();
    let payload = source.read()?;
    let request = v1::InvokeRequest {
        function: args.name.clone(),
        version: args.version,
        payload: payload.into(),
        env: args.env.iter().cloned().collect(),
        timeout: args.timeout.map(convert::duration),
    };
    let asked = Instant::now();
    let reply = functions.invoke(request).await.map_err(|status| failed(args, status))?.into_inner();
    let client = asked.elapsed();
    if global.json {
        return json_reply(&reply, client);
    }
    output::log_bytes(&reply.log_tail);
    output::raw(&reply.payload)?;
    let ended = Ended::new(reply.exit.as_ref())?;
    ended.explain(&args.name);
    if args.timings {
        report_timings(reply.timings.as_ref(), reply.version, client);
    }
    Ok(ended.exit_code())
}

/// A status that ended a run still brings the program's last words.
fn failed(args: &Args, status: tonic::Status) -> Error {
    if let Some(failure) = invocation_failure(&status) {
        output::log_bytes(&failure.log_tail);
        if args.timings {
            report_timings(failure.timings.as_ref(), args.version, Duration::ZERO);
        }
    }
    Error::status(args.doing())(status)
}

fn invocation_failure(status: &tonic::Status) -> Option<v1::InvocationFailure> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?.details;
    let found =
        details.into_iter().find(|any| any.type_url.ends_with("/novum.gateway.v1.InvocationFailure"))?;
    v1::InvocationFailure::decode(&found.value[..]).ok()
}

fn json_reply(reply: &v1::InvokeResponse, client: Duration) -> Result<u8, Error> {
    let ended = Ended::new(reply.exit.as_ref())?;
    let mut object = ended.json();
    object.extend([
        output::bytes_json("payload", &reply.payload),
        output::bytes_json("log", &reply.log_tail),
        (
            "timings".into(),
            reply.timings.as_ref().map_or(Value::Null, |t| output::timings_json(t, Some(client))),
        ),
        ("invocation_id".into(), reply.invocation_id.clone().into()),
        ("version".into(), reply.version.into()),
    ]);
    output::json_line(&Value::Object(object))?;
    Ok(ended.exit_code())
}

async fn stream(global: &Global, args: &Args) -> Result<u8, Error> {
    let source = args.payload.source()?;
    let mut functions = global.connect().await?.functions();
    let start = v1::invoke_stream_request::Start {
        function: args.name.clone(),
        version: args.version,
        env: args.env.iter().cloned().collect(),
        timeout: args.timeout.map(convert::duration),
    };
    let (to, requests) = mpsc::channel(4);
    let part = |part| v1::InvokeStreamRequest { part: Some(part) };
    let first = tokio_stream::once(part(RequestPart::Start(start)));
    // A plain thread: it may wait for standard input for ever, and the program must be able to end meanwhile.
    std::thread::spawn(move || {
        let sent = source.pieces(|bytes| to.blocking_send(part(RequestPart::Input(bytes))).is_ok());
        if let Err(e) = sent {
            output::failure(&e, false);
        }
    });
    let asked = Instant::now();
    let call = functions.invoke_stream(first.chain(ReceiverStream::new(requests)));
    let mut replies = call.await.map_err(|status| failed(args, status))?.into_inner();
    while let Some(reply) = replies.next().await {
        match reply.map_err(|status| failed(args, status))?.part {
            Some(ResponsePart::End(end)) => return finish(global, args, &end, asked.elapsed()),
            Some(part) => pass_on(global, part)?,
            None => {}
        }
    }
    Err(Error::Protocol("end"))
}

fn pass_on(global: &Global, part: ResponsePart) -> Result<(), Error> {
    let object = match part {
        ResponsePart::Output(bytes) if global.json => output::bytes_json("output", &bytes),
        ResponsePart::Log(bytes) if global.json => output::bytes_json("log", &bytes),
        ResponsePart::Output(bytes) => return output::raw(&bytes),
        ResponsePart::Log(bytes) => {
            output::log_bytes(&bytes);
            return Ok(());
        }
        ResponsePart::End(_) => return Ok(()),
    };
    output::json_line(&Value::Object(Map::from_iter([object])))
}

fn finish(
    global: &Global,
    args: &Args,
    end: &v1::invoke_stream_response::End,
    client: Duration,
) -> Result<u8, Error> {
    let ended = Ended::new(end.exit.as_ref())?;
    if global.json {
        let mut object = ended.json();
        object.extend([
            (
                "timings".into(),
                end.timings.as_ref().map_or(Value::Null, |t| output::timings_json(t, Some(client))),
            ),
            ("invocation_id".into(), end.invocation_id.clone().into()),
            ("version".into(), end.version.into()),
        ]);
        output::json_line(&Value::Object(object))?;
        return Ok(ended.exit_code());
    }
    ended.explain(&args.name);
    if args.timings {
        report_timings(end.timings.as_ref(), end.version, client);
    }
    Ok(ended.exit_code())
}

fn report_timings(timings: Option<&v1::Timings>, version: u64, client: Duration) {
    let Some(timings) = timings else { return };
    let version = if version == 0 { String::new() } else { format!(", version {version}") };
    let client = (!client.is_zero()).then_some(client);
    output::note(output::styled(output::DIM, format!("{}{version}", output::timings_text(timings))));
    output::note(output::styled(output::DIM, output::clocks_text(timings, client)));
}

/// How a program ended by its own doing.
pub(super) enum Ended {
    Code(i32),
    Fault { kind: String, message: String },
}

impl Ended {
    pub(super) fn new(exit: Option<&v1::ExitStatus>) -> Result<Self, Error> {
        match exit.and_then(|exit| exit.status.as_ref()) {
            Some(v1::exit_status::Status::Code(code)) => Ok(Self::Code(*code)),
            Some(v1::exit_status::Status::Fault(fault)) => {
                Ok(Self::Fault { kind: fault.kind.clone(), message: fault.message.clone() })
            }
            None => Err(Error::Protocol("exit status")),
        }
    }

    /// The function's code, or 128 + the signal's number as a shell would say it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            // As wait(2): the low eight bits; a code that would look like success by that must not.
            Self::Code(code) => match u8::try_from(code & 0xff) {
                Ok(0) if *code != 0 => exit::OTHER,
                Ok(code) => code,
                Err(_) => exit::OTHER,
            },
            Self::Fault { kind, .. } => signal_number(kind).map_or(exit::TRAP, |number| 128 + number),
        }
    }

    /// Says on standard error that the program crashed.
    pub(super) fn explain(&self, name: &str) {
        if let Self::Fault { kind, message } = self {
            output::note(format_args!(
                "{} {name} crashed ({kind}): {message}",
                output::styled(output::RED, "novum:")
            ));
        }
    }

    pub(super) fn json(&self) -> Map<String, Value> {
        let value = match self {
            Self::Code(code) => json!({ "outcome": "exited", "exit_code": code }),
            Self::Fault { kind, message } => {
                json!({ "outcome": "faulted", "fault": { "kind": kind, "message": message } })
            }
        };
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

impl From<novum_sandbox::ExitStatus> for Ended {
    fn from(exit: novum_sandbox::ExitStatus) -> Self {
        match exit {
            novum_sandbox::ExitStatus::Code(code) => Self::Code(code),
            novum_sandbox::ExitStatus::Fault(fault) => {
                Self::Fault { kind: fault.kind, message: fault.message }
            }
        }
    }
}

/// signal(7), x86-64.
fn signal_number(name: &str) -> Option<u8> {
    const SIGNALS: [(&str, u8); 12] = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGQUIT", 3),
        ("SIGILL", 4),
        ("SIGTRAP", 5),
        ("SIGABRT", 6),
        ("SIGBUS", 7),
        ("SIGFPE", 8),
        ("SIGKILL", 9),
        ("SIGSEGV", 11),
        ("SIGPIPE", 13),
        ("SIGSYS", 31),
    ];
    SIGNALS.iter().find(|(signal, _)| *signal == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_what_a_shell_would_see() {
        let fault = |kind: &str| Ended::Fault { kind: kind.into(), message: String::new() };
        for (ended, code) in [
            (Ended::Code(0), 0),
            (Ended::Code(7), 7),
            (Ended::Code(256), 1),
            (Ended::Code(-1), 255),
            (fault("trap"), 134),
            (fault("SIGSEGV"), 139),
        ] {
            assert_eq!(ended.exit_code(), code);
        }
    }
}
