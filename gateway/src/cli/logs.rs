//! `novum logs`.

use novum_proto::gateway::v1;
use serde_json::json;
use tokio_stream::StreamExt;

use super::Global;
use super::error::Error;
use super::output::{self, CYAN, DIM, YELLOW, styled};

/// Show what functions wrote to standard error, and the gateway's notes on invocations
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  novum logs hello
  novum logs hello -n 1000 | grep -i error
  novum logs -f                    all functions, as it happens

The gateway notes how each invocation ended and where its time went. Successes are noted only while
somebody follows, so that they do not push a function's own lines out of the gateway's memory.")]
pub(super) struct Args {
    /// The function; all of them when absent
    name: Option<String>,
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// Lines of the past to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: u32,
}

pub(super) async fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let mut functions = global.connect().await?.functions();
    let request = v1::LogsRequest {
        function: args.name.clone().unwrap_or_default(),
        follow: args.follow,
        // The protocol's 0 means its default.
        tail: i32::try_from(args.lines).ok().map_or(i32::MAX, |n| if n == 0 { -1 } else { n }),
    };
    let doing = || "read the logs".to_owned();
    let mut lines = functions.logs(request).await.map_err(Error::status(doing()))?.into_inner();
    while let Some(line) = lines.next().await {
        let line = line.map_err(Error::status(doing()))?;
        match global.json {
            true => output::json_line(&line_json(&line))?,
            false => output::line(line_text(&line))?,
        }
    }
    Ok(0)
}

fn line_json(line: &v1::LogsResponse) -> serde_json::Value {
    json!({
        "function": line.function,
        "version": line.version,
        "invocation_id": line.invocation_id,
        "time": line.time.as_ref().map(ToString::to_string),
        "line": line.line,
        "note": line.note,
        "missed": line.missed,
    })
}

/// `12:04:49.123 hello | text`; the gateway's own notes are dimmed.
pub(crate) fn line_text(line: &v1::LogsResponse) -> String {
    let name = styled(CYAN, &line.function);
    let missed = match line.missed {
        0 => String::new(),
        n => format!("{}\n", styled(YELLOW, format_args!("... {n} lines were not kept for this reader"))),
    };
    let time = styled(DIM, clock(line.time.as_ref()));
    let text = printable(&line.line);
    match line.note {
        true if text.starts_with("ok ") => format!("{missed}{time} {name} {}", styled(DIM, text)),
        true => format!("{missed}{time} {name} {}", styled(YELLOW, text)),
        false => format!("{missed}{time} {name} | {text}"),
    }
}

/// The time of day to the millisecond, UTC.
fn clock(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time else { return String::new() };
    let of_day = time.seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}.{:03}", of_day / 3600, of_day / 60 % 60, of_day % 60, time.nanos / 1_000_000)
}

/// A tenant must not be able to steer the terminal of who reads its log.
fn printable(line: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    line.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_a_tenant_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }

    #[test]
    fn the_clock_is_utc() {
        let time = prost_types::Timestamp { seconds: 86_400 + 3_661, nanos: 5_000_000 };
        assert_eq!(clock(Some(&time)), "01:01:01.005");
    }
}
