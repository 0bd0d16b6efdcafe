//! One case, twice: natively and in the process engine, in the same folder, with the same arguments, environment and input.
//! Used by the `programs` example and by the tests.

mod case;
mod inside;
mod native;
mod tree;
mod work;

use std::time::Duration;

pub(crate) use case::{Case, Cases};
pub(crate) use work::Work;

use tree::Tree;

/// What one run of a program left.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its exit code, the signal that ended it, or why it was stopped.
    pub(crate) exit: String,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error, without the engine's own remarks.
    pub(crate) stderr: Vec<u8>,
    /// What is in the work folder.
    pub(crate) tree: Tree,
    /// From its start to its end.
    pub(crate) time: Duration,
    /// The engine's remarks: calls that were not served.
    pub(crate) remarks: Vec<String>,
}

/// What became of a case.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// A program, package or folder is not on this machine.
    Missing(String),
    /// It ran twice.
    Ran(Box<Both>),
}

impl Verdict {
    /// In a word: `same`, `differs`, `stated` (it differs as the table says) or `missing`.
    pub(crate) fn word(&self, case: &Case) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Ran(both) => match (both.differences.is_empty(), &case.known) {
                (true, None) => "same",
                (false, Some(_)) => "stated",
                (true, Some(_)) | (false, None) => "differs",
            },
        }
    }

    /// What differs or is missing.
    pub(crate) fn differences(&self) -> Vec<String> {
        match self {
            Self::Missing(what) => vec![format!("{what} is not there")],
            Self::Ran(both) => both.differences.clone(),
        }
    }
}

/// Both runs of a case.
#[derive(Debug)]
pub(crate) struct Both {
    /// Natively.
    pub(crate) native: Run,
    /// In the process engine.
    pub(crate) inside: Run,
    /// What differs: nothing, if all is well.
    pub(crate) differences: Vec<String>,
}

impl Both {
    fn new(case: &Case, native: Run, inside: Run) -> Self {
        let mut differences = Vec::new();
        if native.exit != inside.exit {
            differences.push(format!("exit: natively {}, inside {}", native.exit, inside.exit));
        }
        differences.extend(difference("stdout", &native.stdout, &inside.stdout));
        if case.stderr {
            differences.extend(difference("stderr", &native.stderr, &inside.stderr));
        }
        differences.extend(tree::differences(&native.tree, &inside.tree, &case.ignore));
        Self { native, inside, differences }
    }
}

/// Where two byte strings part.
fn difference(what: &str, native: &[u8], inside: &[u8]) -> Option<String> {
    if native == inside {
        return None;
    }
    let same = native.iter().zip(inside).take_while(|(a, b)| a == b).count();
    let from = native[..same].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let excerpt = |bytes: &[u8]| {
        let rest = &bytes[from.min(bytes.len())..];
        String::from_utf8_lossy(&rest[..rest.len().min(300)]).into_owned()
    };
    let (native_len, inside_len) = (native.len(), inside.len());
    Some(format!(
        "{what}: byte {same} of {native_len} natively, {inside_len} inside: {:?} natively, {:?} inside",
        excerpt(native),
        excerpt(inside)
    ))
}
