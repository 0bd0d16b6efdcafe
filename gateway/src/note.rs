//! The gateway's own log line about one invocation, in a fixed form that `novum dev` and users' scripts read:
//!
//! ```text
//! OUTCOME engine=ENGINE cold=BOOL queued=Nus start=Nus run=Nus out=NB[: MESSAGE]
//!
//! OUTCOME  ok               exit code 0
//!          exit=CODE        another exit code
//!          fault=KIND       a crash: trap, SIGSEGV, ...
//!          stopped=REASON   ended by the gateway: deadline, memory, output, cancelled, draining, host
//! ```
//!
//! Times are whole microseconds, `out` counts bytes of standard output. A message holds no line feed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How an invocation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Ok,
    /// Another exit code.
    Exit(i32),
    /// A crash of this kind.
    Fault(String),
    /// The gateway ended it.
    Stopped(Stop),
}

/// Why the gateway ended an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its deadline passed while it ran.
    Deadline,
    /// Over its memory limit.
    Memory,
    /// Over its output limit.
    Output,
    /// The caller went away.
    Cancelled,
    /// The gateway was shut down.
    Draining,
    /// The host failed.
    Host,
}

impl Stop {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Deadline, "deadline"),
        (Self::Memory, "memory"),
        (Self::Output, "output"),
        (Self::Cancelled, "cancelled"),
        (Self::Draining, "draining"),
        (Self::Host, "host"),
    ];

    /// As it stands in a note.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(stop, _)| *stop == self).map_or("host", |(_, text)| text)
    }
}

/// One invocation in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How it ended.
    pub outcome: Outcome,
    /// The engine's name.
    pub engine: String,
    /// A sandbox was made for it.
    pub cold: bool,
    /// From arrival until a sandbox was there to be used or made.
    pub queued: Duration,
    /// Making a sandbox ready.
    pub start: Duration,
    /// From the input's handing over to the end.
    pub run: Duration,
    /// Bytes of standard output.
    pub out_bytes: u64,
    /// What happened; empty for `ok` and `exit`.
    pub message: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Exit(code) => write!(f, "exit={code}"),
            Self::Fault(kind) => write!(f, "fault={kind}"),
            Self::Stopped(stop) => write!(f, "stopped={}", stop.as_str()),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, engine, cold, out_bytes, message, .. } = self;
        let (queued, start, run) = (self.queued.as_micros(), self.start.as_micros(), self.run.as_micros());
        write!(
            f,
            "{outcome} engine={engine} cold={cold} queued={queued}us start={start}us run={run}us out={out_bytes}B"
        )?;
        if message.is_empty() { Ok(()) } else { write!(f, ": {}", message.replace(['\n', '\r'], " ")) }
    }
}

/// The text is not a note.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a note on an invocation: {0:?}")]
pub struct ParseNoteError(String);

impl FromStr for Outcome {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        match key {
            "ok" => Ok(Self::Ok),
            "exit" => value.parse().map(Self::Exit).map_err(drop),
            "fault" => Ok(Self::Fault(value.to_owned())),
            "stopped" => {
                let known = Stop::ALL.iter().find(|(_, name)| *name == value).ok_or(())?;
                Ok(Self::Stopped(known.0))
            }
            _ => Err(()),
        }
    }
}

impl FromStr for Note {
    type Err = ParseNoteError;

    fn from_str(text: &str) -> Result<Self, ParseNoteError> {
        parse(text).ok_or_else(|| ParseNoteError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Note> {
    let (head, message) = text.split_once(": ").unwrap_or((text, ""));
    let mut words = head.split(' ');
    let outcome = words.next()?.parse().ok()?;
    let mut field = |key: &str, unit: &str| -> Option<String> {
        let value = words.next()?.strip_prefix(key)?.strip_prefix('=')?;
        Some(value.strip_suffix(unit)?.to_owned())
    };
    let note = Note {
        outcome,
        engine: field("engine", "")?,
        cold: field("cold", "")?.parse().ok()?,
        queued: Duration::from_micros(field("queued", "us")?.parse().ok()?),
        start: Duration::from_micros(field("start", "us")?.parse().ok()?),
        run: Duration::from_micros(field("run", "us")?.parse().ok()?),
        out_bytes: field("out", "B")?.parse().ok()?,
        message: message.to_owned(),
    };
    words.next().is_none().then_some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(outcome: Outcome, message: &str) -> Note {
        Note {
            outcome,
            engine: "wasm".into(),
            cold: true,
            queued: Duration::from_micros(12),
            start: Duration::from_micros(34),
            run: Duration::from_micros(56),
            out_bytes: 7,
            message: message.into(),
        }
    }

    #[test]
    fn a_note_has_its_documented_form() {
        assert_eq!(
            note(Outcome::Stopped(Stop::Deadline), "too late").to_string(),
            "stopped=deadline engine=wasm cold=true queued=12us start=34us run=56us out=7B: too late"
        );
    }

    #[test]
    fn notes_read_back_as_they_print() {
        let fault = || Outcome::Fault("trap".into());
        let stops = Stop::ALL.iter().map(|(stop, _)| note(Outcome::Stopped(*stop), "why: because"));
        let others =
            [note(Outcome::Ok, ""), note(Outcome::Exit(-3), ""), note(fault(), "unreachable at 0x10")];
        for note in others.into_iter().chain(stops) {
            assert_eq!(note.to_string().parse::<Note>(), Ok(note));
        }
    }

    #[test]
    fn a_note_is_one_line() {
        assert!(!note(Outcome::Ok, "a\nb\r\nc").to_string().contains(['\n', '\r']));
    }

    #[test]
    fn other_lines_are_not_notes() {
        for text in ["", "ok", "hello world", "ok engine=wasm cold=maybe queued=1us start=1us run=1us out=1B"]
        {
            assert!(text.parse::<Note>().is_err(), "{text}");
        }
    }
}
