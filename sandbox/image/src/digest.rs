//! Digests as images write them, `sha256:<hex>` or `sha512:<hex>`, and readers that compute them.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::Error;

/// A digest whose form was checked: it can be part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a digest: sha256 and sha512 in lower-case hexadecimal are taken");
        let (algorithm, hex) = text.split_once(':').ok_or_else(wrong)?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(wrong()),
        };
        let plain = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() == length && plain { Ok(Self { algorithm, hex: hex.to_owned() }) } else { Err(wrong()) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: hex::encode(Sha256::digest(bytes)) }
    }

    /// Where an OCI layout keeps the blob.
    pub(crate) fn blob_path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }

    /// The hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }

    /// Fails unless `bytes` have this digest.
    pub(crate) fn check(&self, what: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut reader = Hashing::new(bytes, self);
        // Reading from a slice does not fail.
        let _ = io::copy(&mut reader, &mut io::sink());
        reader.finish(what, self)
    }
}

/// Computes a digest of what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl<R: Read> Hashing<R> {
    /// Computes a digest of the kind of `expected`.
    pub(crate) fn new(inner: R, expected: &Digest) -> Self {
        let hasher = match expected.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        };
        Self { inner, hasher }
    }

    /// Fails unless everything that was read has the digest `expected`.
    pub(crate) fn finish(self, what: &str, expected: &Digest) -> Result<(), Error> {
        let found = match self.hasher {
            Hasher::Sha256(hasher) => hex::encode(hasher.finalize()),
            Hasher::Sha512(hasher) => hex::encode(hasher.finalize()),
        };
        if found == expected.hex {
            return Ok(());
        }
        let found = format!("{}:{found}", expected.algorithm.name());
        Err(Error::Digest { what: what.to_owned(), expected: expected.to_string(), found })
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(&buffer[..got]),
            Hasher::Sha512(hasher) => hasher.update(&buffer[..got]),
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_digests_become_paths() {
        let good = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(Digest::try_from(good.clone()).unwrap().to_string(), good);
        for bad in ["", "sha256:", "md5:00", "sha256:../../../etc/passwd", &good.to_uppercase(), &good[..70]]
        {
            assert!(Digest::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn content_is_checked_with_the_digests_own_algorithm() {
        let sha512 = format!("sha512:{}", hex::encode(Sha512::digest(b"x")));
        let sha512 = Digest::try_from(sha512).unwrap();
        sha512.check("x", b"x").unwrap();
        assert!(matches!(sha512.check("x", b"y"), Err(Error::Digest { .. })));
        Digest::of(b"x").check("x", b"x").unwrap();
    }
}
