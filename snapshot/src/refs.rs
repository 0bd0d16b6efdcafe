//! Names that keep snapshots alive.

use std::fmt;
use std::str::FromStr;

/// A reference's name: 1 to 100 of `a-z A-Z 0-9 . _ - @ :`, the first a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RefName(String);

impl RefName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text cannot be a reference's name.
#[derive(Debug, thiserror::Error)]
#[error("a reference is 1 to 100 of a-z A-Z 0-9 . _ - @ : and starts with a letter or digit, not {0:?}")]
pub struct ParseRefError(String);

impl FromStr for RefName {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-@:".contains(&b);
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if starts && text.len() <= 100 && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseRefError(text.chars().take(120).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in ["", ".", "..", "a/b", ".draft-1", "-x", "a b", "a\0", &"x".repeat(101)] {
            assert!(bad.parse::<RefName>().is_err(), "{bad:?}");
        }
        for good in ["hello", "process:hello@1.2", "9", &"x".repeat(100)] {
            assert_eq!(good.parse::<RefName>().unwrap().as_str(), good);
        }
    }
}
