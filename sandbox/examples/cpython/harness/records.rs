//! What `driver.py` wrote: one line of JSON before each test and one after it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It passed, or failed as the test expects.
    Pass,
    /// The test decided that it cannot run.
    Skip,
    /// An assertion failed.
    Fail,
    /// Another exception.
    Error,
    /// The interpreter ended, crashed or was stopped in it.
    Died,
}

impl Verdict {
    /// Neither passed nor skipped.
    pub(crate) fn is_bad(self) -> bool {
        !matches!(self, Self::Pass | Self::Skip)
    }

    /// For the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Died => "died",
        }
    }
}

/// What a sandbox has not, by design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lack {
    /// `fork` and `execve`.
    Processes,
    /// Sockets other than socket pairs.
    Network,
}

/// One test.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// What it came to.
    pub(crate) verdict: Verdict,
    /// The traceback, or the reason of a skip.
    pub(crate) why: String,
    /// What it wanted in vain.
    pub(crate) needs: Option<Lack>,
}

impl Outcome {
    /// The interpreter did not survive the test.
    pub(crate) fn died(why: String, needs: Option<Lack>) -> Self {
        Self { verdict: Verdict::Died, why, needs }
    }

    /// Whether a skip's reason speaks of sockets.
    pub(crate) fn is_for_network(&self) -> bool {
        ["IPv6", "VSOCK", "dualstack", "Address family not supported", "name lookup"]
            .iter()
            .any(|word| self.why.contains(word))
    }

    /// The last line of the traceback, which names the exception.
    pub(crate) fn reason(&self) -> &str {
        let last_start =
            self.why.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with(' '));
        last_start.unwrap_or("").trim()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Start {
        start: String,
    },
    Attempt {
        attempt: Lack,
    },
    End {
        test: String,
        verdict: Verdict,
        why: String,
        needs: Option<Lack>,
    },
    Done {
        #[allow(dead_code)] // its presence says it
        done: bool,
    },
}

/// What a file of records says.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// By the test's id.
    pub(crate) tests: BTreeMap<String, Outcome>,
    /// The test that had begun and not ended.
    pub(crate) unfinished: Option<String>,
    /// What that test had tried that a sandbox has not.
    pub(crate) attempt: Option<Lack>,
    /// Whether the driver came to its end.
    pub(crate) done: bool,
}

impl Records {
    /// Reads lines; a line that was cut off counts for nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let mut records = Self::default();
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Start { start }) => records.unfinished = Some(start),
                Ok(Line::Attempt { attempt }) => records.attempt = Some(attempt),
                Ok(Line::End { test, verdict, why, needs }) => {
                    records.unfinished.take_if(|open| *open == test);
                    records.attempt = None;
                    records.add(test, Outcome { verdict, why, needs });
                }
                Ok(Line::Done { .. }) => records.done = true,
                Err(_) => {}
            }
        }
        records
    }

    /// Of two tests with the same id the worse one counts.
    fn add(&mut self, test: String, outcome: Outcome) {
        let known = self.tests.entry(test).or_insert_with(|| outcome.clone());
        if outcome.verdict.is_bad() && !known.verdict.is_bad() {
            *known = outcome;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_ended_in_a_test_says_in_which() {
        let text = concat!(
            r#"{"start": "a"}"#,
            "\n",
            r#"{"test": "a", "verdict": "pass", "why": "", "needs": null}"#,
            "\n",
            r#"{"start": "b"}"#,
            "\n",
            r#"{"attempt": "processes"}"#,
            "\n",
            r#"{"test": "b", "verd"#,
        );
        let records = Records::parse(text);
        assert_eq!(records.tests["a"].verdict, Verdict::Pass);
        assert_eq!(records.unfinished.as_deref(), Some("b"));
        assert_eq!((records.attempt, records.done), (Some(Lack::Processes), false));
    }

    #[test]
    fn of_two_verdicts_the_worse_one_counts() {
        let line = |verdict| format!(r#"{{"test": "a", "verdict": "{verdict}", "why": "", "needs": null}}"#);
        let records = Records::parse(&format!("{}\n{}\n{}\n", line("pass"), line("fail"), line("pass")));
        assert_eq!(records.tests["a"].verdict, Verdict::Fail);
    }

    #[test]
    fn a_reason_is_the_last_line_that_is_not_indented() {
        let why = "Traceback (most recent call last):\n  File \"x\"\nOSError: [Errno 38] no\n\n";
        assert_eq!(Outcome::died(why.to_owned(), None).reason(), "OSError: [Errno 38] no");
    }
}
