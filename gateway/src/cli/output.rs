//! What a command prints: data to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use novum_proto::gateway::v1;
use serde_json::{Value, json};

use super::error::Error;
use crate::units::format_duration;

/// Names, headings.
pub const BOLD: Style = Style::new().bold();
/// Less important.
pub const DIM: Style = Style::new().dimmed();
/// Good.
pub const GREEN: Style = AnsiColor::Green.on_default();
/// Bad.
pub const RED: Style = AnsiColor::Red.on_default().bold();
/// Worth a look.
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
/// To be typed.
pub const CYAN: Style = AnsiColor::Cyan.on_default();

/// `text` in `style`; anstream takes the style away where it does not belong.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints one line to standard output, with colours only where they belong.
///
/// # Errors
/// [`Error::ClosedPipe`] where nobody reads any more.
pub fn line(text: impl Display) -> Result<(), Error> {
    writeln!(anstream::stdout(), "{text}").map_err(Error::output)
}

/// Prints one JSON value on one line.
///
/// # Errors
/// As [`line`].
pub fn json_line(value: &Value) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(Error::output)
}

/// Writes a payload as it is.
///
/// # Errors
/// As [`line`].
pub fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Error::output)
}

/// A note for a person, on standard error; failing to write it is no failure.
pub fn note(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A function's log bytes, on standard error as they are.
pub fn log_bytes(bytes: &[u8]) {
    let _ = io::stderr().write_all(bytes);
}

/// The error for a person on standard error and, where the user wants JSON, for a program on standard output.
pub fn failure(error: &Error, json: bool) {
    if matches!(error, Error::ClosedPipe) {
        return;
    }
    note(format_args!("{} {error}", styled(RED, "novum:")));
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !error.to_string().contains(&text) {
            note(format_args!("  because: {text}"));
        }
        cause = inner.source();
    }
    if let Some(advice) = error.advice() {
        note(format_args!("  {} {advice}", styled(CYAN, "try:")));
    }
    if json {
        let _ = json_line(&json!({ "outcome": "error", "error": error_json(error) }));
    }
}

/// The stable form of an error.
#[must_use]
pub fn error_json(error: &Error) -> Value {
    json!({
        "kind": error.kind(),
        "message": error.to_string(),
        "advice": error.advice(),
        "exit_code": error.exit_code(),
    })
}

/// Prints rows under a heading, columns aligned. Cells hold no styles.
///
/// # Errors
/// As [`line`].
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), Error> {
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([heading[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heading.len()).map(width).collect();
    let join = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    line(styled(BOLD, join(heading.to_vec())))?;
    rows.iter().try_for_each(|row| line(join(row.iter().map(String::as_str).collect())))
}

/// Bytes as text where they are UTF-8, else as base64 under another key.
#[must_use]
pub fn bytes_json(key: &str, bytes: &[u8]) -> (String, Value) {
    use base64::Engine as _;
    match std::str::from_utf8(bytes) {
        Ok(text) => (key.to_owned(), text.into()),
        Err(_) => (format!("{key}_base64"), base64::engine::general_purpose::STANDARD.encode(bytes).into()),
    }
}

/// A duration of a message; absent or negative is zero.
#[must_use]
pub fn duration(value: Option<&prost_types::Duration>) -> Duration {
    value.and_then(|d| Duration::try_from(*d).ok()).unwrap_or_default()
}

/// The engine's name as in a manifest.
#[must_use]
pub fn engine_name(engine: i32) -> &'static str {
    match v1::Engine::try_from(engine) {
        Ok(v1::Engine::Wasm) => "wasm",
        Ok(v1::Engine::Process) => "process",
        Ok(v1::Engine::Linux) => "linux",
        Ok(v1::Engine::Auto | v1::Engine::Unspecified) => "auto",
        Err(_) => "unknown",
    }
}

/// Timings for a program, in microseconds.
#[must_use]
pub fn timings_json(timings: &v1::Timings, client: Option<Duration>) -> Value {
    let us = |d: Duration| d.as_nanos() as f64 / 1e3;
    json!({
        "queued_us": us(duration(timings.queued.as_ref())),
        "start_us": us(duration(timings.start.as_ref())),
        "run_us": us(duration(timings.run.as_ref())),
        "first_byte_us": timings.first_byte.as_ref().map(|d| us(duration(Some(d)))),
        "client_us": client.map(us),
        "clocks": clocks_json(timings, client),
        "cold": timings.cold,
        "engine": engine_name(timings.engine),
    })
}

/// The four clocks, each counted from the request's arrival; the last is this client's, from sending the request.
fn clocks_json(timings: &v1::Timings, client: Option<Duration>) -> Value {
    let us = |d: Duration| d.as_nanos() as f64 / 1e3;
    let moment = |d: &Option<prost_types::Duration>| d.as_ref().map(|d| us(duration(Some(d))));
    let clocks = timings.clocks.unwrap_or_default();
    json!({
        "sandbox_ready_us": moment(&clocks.sandbox_ready),
        "guest_resumed_us": moment(&clocks.guest_resumed),
        "first_byte_us": moment(&clocks.first_byte),
        "answered_us": moment(&clocks.answered),
        "client_sees_us": client.map(us),
    })
}

/// The four clocks for a person: `sandbox ready 24.3 us, guest resumed 25.0 us, first byte 1.20 ms, seen here 1.41 ms`.
#[must_use]
pub fn clocks_text(timings: &v1::Timings, client: Option<Duration>) -> String {
    let clocks = timings.clocks.unwrap_or_default();
    let moments = [
        ("sandbox ready", clocks.sandbox_ready),
        ("guest resumed", clocks.guest_resumed),
        ("first byte", clocks.first_byte),
    ];
    let given = moments.into_iter().filter_map(|(name, at)| Some((name, duration(Some(&at?)))));
    let all = given.chain(client.map(|client| ("seen here", client)));
    all.map(|(name, at)| format!("{name} {}", format_duration(at))).collect::<Vec<_>>().join(", ")
}

/// Timings for a person: `1.24 ms = queued 3.1 us + start 24.0 us (cold) + run 1.21 ms, wasm`.
#[must_use]
pub fn timings_text(timings: &v1::Timings) -> String {
    let [queued, start, run] = [&timings.queued, &timings.start, &timings.run].map(|d| duration(d.as_ref()));
    format!(
        "{} = queued {} + start {} ({}) + run {}, {}",
        format_duration(queued + start + run),
        format_duration(queued),
        format_duration(start),
        if timings.cold { "cold" } else { "warm" },
        format_duration(run),
        engine_name(timings.engine),
    )
}

/// Whether progress can be shown.
#[must_use]
pub fn interactive() -> bool {
    io::stderr().is_terminal()
}
