//! An error in a text file, shown with its line:
//!
//! ```text
//! novum.toml:4:1: unknown key `memroy`
//!   |
//! 4 | memroy = "64MiB"
//!   | ^^^^^^
//!   = did you mean `memory`?
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is wrong, where, and what is possible instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line itself, and how many characters of it are meant; `None` where the error is something missing.
    excerpt: Option<(String, usize)>,
}

/// A longer line is cut: a manifest may hold anything.
const MAX_LINE_CHARS: usize = 160;

impl Diagnostic {
    /// An error at a byte range of `text`. A range outside the text means its end.
    #[must_use]
    pub fn at(path: &Path, text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let start = floor_char_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let end = floor_char_boundary(text, span.end).clamp(start, line_end);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let column = text[line_start..start].chars().count();
        let width = text[start..end].trim_end().chars().count().max(1);
        Self {
            path: path.to_owned(),
            line: text[..line_start].matches('\n').count() + 1,
            column: column + 1,
            message: message.into(),
            help: None,
            excerpt: (column + width <= MAX_LINE_CHARS).then(|| (clean(line), width)),
        }
    }

    /// An error about the file as a whole: something that should be there is not.
    #[must_use]
    pub fn whole(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 1, column: 1, message: message.into(), help: None, excerpt: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// A tab counts as one column and control characters must not reach a terminal.
fn clean(line: &str) -> String {
    line.chars().take(MAX_LINE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.path.display(), self.line, self.column, self.message)?;
        let gutter = " ".repeat(self.line.to_string().len());
        if let Some((line, width)) = &self.excerpt {
            let indent = " ".repeat(self.column - 1);
            write!(f, "\n{gutter} |\n{} | {line}\n{gutter} | {indent}{}", self.line, "^".repeat(*width))?;
        }
        match &self.help {
            Some(help) => write!(f, "\n{gutter} = {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_caret_stands_under_the_meant_characters() {
        let text = "a = 1\nä = \"ö\"\n";
        let start = text.find("\"ö").unwrap();
        let shown = Diagnostic::at(Path::new("f"), text, start..start + 4, "bad").help("do").to_string();
        assert_eq!(shown, "f:2:5: bad\n  |\n2 | ä = \"ö\"\n  |     ^^^\n  = do");
    }

    proptest! {
        #[test]
        fn any_text_and_span_can_be_shown(text in "(\\PC|\n|\r|\t)*", a in 0usize..200, b in 0usize..200) {
            let shown = Diagnostic::at(Path::new("f"), &text, a..b, "m").to_string();
            prop_assert!(shown.starts_with("f:"));
        }
    }
}
