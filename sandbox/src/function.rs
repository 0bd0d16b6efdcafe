//! What is deployed: a [`Manifest`] and an [`Artifact`].
//!
//! [`Manifest::check`] is the one place that knows which values are possible; `novum.toml`, the Deploy message and
//! the command line all go through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use novum_snapshot::Digest;
use serde::{Deserialize, Serialize};

/// A function's name: 1 to 63 characters, a lower-case letter first, then lower-case letters, digits or hyphens,
/// not ending in a hyphen (RFC 1035 §2.3.1 labels, lower case).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(String);

impl FunctionName {
    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for FunctionName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The text is not a function's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a function's name is 1 to 63 characters: a lower-case letter, then lower-case letters, digits or hyphens, \
     not ending in a hyphen; got {0:?}"
)]
pub struct FunctionNameError(String);

impl FromStr for FunctionName {
    type Err = FunctionNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for FunctionName {
    type Error = FunctionNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = text.as_bytes();
        let good = matches!(bytes, [b'a'..=b'z', ..])
            && bytes.len() <= 63
            && !bytes.ends_with(b"-")
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if good { Ok(Self(text)) } else { Err(FunctionNameError(text.chars().take(80).collect())) }
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.0
    }
}

/// What isolates a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A Wasm module or component in this process.
    Wasm,
    /// One Linux program in a KVM microVM without a guest kernel.
    Process,
    /// A Linux guest in a KVM microVM.
    Linux,
}

impl EngineKind {
    /// As spelled in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Process => "process",
            Self::Linux => "linux",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The manifest's `engine` key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// By the artifact.
    #[default]
    Auto,
    /// A Wasm module or component in this process.
    Wasm,
    /// One Linux program in a KVM microVM without a guest kernel.
    Process,
    /// A Linux guest in a KVM microVM.
    Linux,
}

impl EngineChoice {
    /// Every choice, in the order in which they are explained.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Wasm, Self::Process, Self::Linux];

    /// As spelled in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Wasm => "wasm",
            Self::Process => "process",
            Self::Linux => "linux",
        }
    }

    /// The engine that was named; `None` for `auto`.
    #[must_use]
    pub const fn kind(self) -> Option<EngineKind> {
        match self {
            Self::Auto => None,
            Self::Wasm => Some(EngineKind::Wasm),
            Self::Process => Some(EngineKind::Process),
            Self::Linux => Some(EngineKind::Linux),
        }
    }
}

impl From<EngineKind> for EngineChoice {
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Wasm => Self::Wasm,
            EngineKind::Process => Self::Process,
            EngineKind::Linux => Self::Linux,
        }
    }
}

/// A host directory that a function may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox.
    pub target: String,
    /// The function can only read.
    pub read_only: bool,
}

/// How many sandboxes a function keeps and how many callers may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Sandboxes kept started without a caller.
    pub min: u32,
    /// Invocations that run at once.
    pub max: u32,
    /// Invocations that may wait; one more is refused.
    pub queue: u32,
    /// An idle sandbox above `min` is removed after this time.
    pub idle: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self { min: 0, max: 64, queue: 256, idle: Duration::from_secs(60) }
    }
}

/// What `novum.toml` and the Deploy message say about a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The function's name.
    pub name: FunctionName,
    /// What isolates it.
    pub engine: EngineChoice,
    /// The program's path in a tar artifact; for a file artifact its name, informative.
    pub entry: String,
    /// Arguments after `argv[0]`.
    pub args: Vec<String>,
    /// The environment. Nothing is inherited from the host.
    pub env: BTreeMap<String, String>,
    /// Environment variables that an invocation may add or replace.
    pub allow_env: BTreeSet<String>,
    /// Memory limit of one sandbox.
    pub memory_bytes: u64,
    /// Longest run of one invocation, waiting included.
    pub timeout: Duration,
    /// Most bytes of standard output of one unary invocation.
    pub output_bytes: u64,
    /// Host directories.
    pub shares: Vec<Share>,
    /// Pool sizes.
    pub pool: Pool,
    /// The line on standard error at which the image of a program is taken; `None`: at its first wait for input. Only the
    /// process engine.
    pub ready: Option<String>,
}

/// A manifest's field has an impossible value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {reason}")]
pub struct FieldError {
    /// The field as spelled in `novum.toml`: `pool.max`, `share[0].target`, `env.PATH`.
    pub field: String,
    /// What is wrong and what is possible.
    pub reason: String,
}

/// Least memory limit of one sandbox.
pub const MIN_MEMORY_BYTES: u64 = 64 << 10;
/// Largest memory limit of one sandbox.
pub const MAX_MEMORY_BYTES: u64 = 64 << 30;
/// Longest timeout of one invocation.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_ARGUMENT_BYTES: usize = 128 << 10;

impl Manifest {
    /// A manifest with every default.
    #[must_use]
    pub fn new(name: FunctionName) -> Self {
        Self {
            name,
            engine: EngineChoice::Auto,
            entry: String::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            allow_env: BTreeSet::new(),
            memory_bytes: 128 << 20,
            timeout: Duration::from_secs(30),
            output_bytes: 4 << 20,
            shares: Vec::new(),
            pool: Pool::default(),
            ready: None,
        }
    }

    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first field that has one.
    pub fn check(&self) -> Result<(), FieldError> {
        let refuse = |field: &str, reason: String| Err(FieldError { field: field.to_owned(), reason });
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes) {
            return refuse("memory", format!("must be from 64KiB to 64GiB, not {} bytes", self.memory_bytes));
        }
        if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            return refuse("timeout", format!("must be more than 0 and at most 1h, not {:?}", self.timeout));
        }
        if self.output_bytes == 0 || self.output_bytes > MAX_MEMORY_BYTES {
            return refuse(
                "output",
                format!("must be from 1 byte to 64GiB, not {} bytes", self.output_bytes),
            );
        }
        self.check_pool()?;
        self.check_strings()?;
        if let Some(ready) = &self.ready {
            check_ready(ready).map_err(|reason| FieldError { field: "ready".into(), reason })?;
            let other = self.engine.kind().filter(|kind| *kind != EngineKind::Process);
            if let Some(engine) = other {
                return refuse(
                    "ready",
                    format!("is for the process engine; the {engine} engine has no use for it"),
                );
            }
        }
        for (i, share) in self.shares.iter().enumerate() {
            check_share(i, share)?;
            if self.shares[..i].iter().any(|other| other.target == share.target) {
                return refuse(
                    &format!("share[{i}].target"),
                    format!("{:?} is already another share's target", share.target),
                );
            }
        }
        Ok(())
    }

    fn check_pool(&self) -> Result<(), FieldError> {
        let Pool { min, max, .. } = self.pool;
        if max == 0 || max > 100_000 {
            return Err(FieldError {
                field: "pool.max".into(),
                reason: format!("must be from 1 to 100000, not {max}"),
            });
        }
        if min > max {
            return Err(FieldError {
                field: "pool.min".into(),
                reason: format!("must be at most `pool.max` ({max}), not {min}"),
            });
        }
        Ok(())
    }

    fn check_strings(&self) -> Result<(), FieldError> {
        let mut total = 0;
        for (i, arg) in self.args.iter().enumerate() {
            total += arg.len() + 1;
            if arg.contains('\0') {
                return Err(FieldError { field: format!("args[{i}]"), reason: "holds a NUL byte".into() });
            }
        }
        for (name, value) in &self.env {
            total += name.len() + value.len() + 2;
            check_env(name, value).map_err(|reason| FieldError { field: format!("env.{name}"), reason })?;
        }
        for name in &self.allow_env {
            check_env(name, "").map_err(|reason| FieldError { field: "allow_env".into(), reason })?;
        }
        if total > MAX_ARGUMENT_BYTES {
            let reason =
                format!("`args` and `env` together are {total} bytes; at most {MAX_ARGUMENT_BYTES} fit");
            return Err(FieldError { field: "args".into(), reason });
        }
        Ok(())
    }
}

/// Refuses what cannot be a line.
fn check_ready(line: &str) -> Result<(), String> {
    const LONGEST: usize = 200;
    if line.is_empty() || line.len() > LONGEST || line.contains(['\n', '\r', '\0']) {
        return Err(format!(
            "must be one line of 1 to {LONGEST} bytes without its end, which the program writes to standard error"
        ));
    }
    Ok(())
}

/// Refuses what cannot stand in an environment.
///
/// # Errors
/// A sentence that says why.
pub fn check_env(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!(
            "an environment variable's name is not empty and holds no `=` or NUL byte; got {name:?}"
        ));
    }
    if value.contains('\0') {
        return Err(format!("the value of {name} holds a NUL byte"));
    }
    Ok(())
}

fn check_share(i: usize, share: &Share) -> Result<(), FieldError> {
    let refuse = |key: &str, reason: String| Err(FieldError { field: format!("share[{i}].{key}"), reason });
    if !share.source.is_absolute() {
        return refuse(
            "source",
            format!("must be an absolute path on the gateway's machine, not {:?}", share.source),
        );
    }
    let target = Path::new(&share.target);
    let plain = target.is_absolute()
        && target.components().skip(1).all(|c| matches!(c, std::path::Component::Normal(_)))
        && !share.target.contains('\0');
    if !plain {
        return refuse("target", format!("must be an absolute path without `..`, not {:?}", share.target));
    }
    Ok(())
}

/// The form of an artifact's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactFormat {
    /// One file: the module or program itself.
    File,
    /// A root directory, unpacked.
    Tar,
}

/// A deployed artifact on this machine, immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The form in which it was deployed.
    pub format: ArtifactFormat,
    /// SHA-256 of the bytes that were deployed.
    pub digest: Digest,
    /// A file, or for [`ArtifactFormat::Tar`] the directory into which it was unpacked.
    pub path: PathBuf,
}

/// One deployed version of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Counts up from 1 for each name.
    pub version: u64,
    /// Checked by [`Manifest::check`].
    pub manifest: Manifest,
    /// What it runs.
    pub artifact: Artifact,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::new("echo".parse().unwrap())
    }

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "a-b", "f9", &"x".repeat(63)] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "9a", "A", "a_b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_manifest_is_possible() {
        assert_eq!(manifest().check(), Ok(()));
    }

    #[test]
    fn impossible_values_name_their_field() {
        type Spoil = fn(&mut Manifest);
        let cases: [(&str, Spoil); 12] = [
            ("memory", |m| m.memory_bytes = 1),
            ("timeout", |m| m.timeout = Duration::ZERO),
            ("output", |m| m.output_bytes = 0),
            ("pool.max", |m| m.pool.max = 0),
            ("ready", |m| m.ready = Some(String::new())),
            ("ready", |m| m.ready = Some("two\nlines".into())),
            ("ready", |m| (m.ready, m.engine) = (Some("up".into()), EngineChoice::Wasm)),
            ("pool.min", |m| m.pool.min = 65),
            ("args[0]", |m| m.args.push("a\0b".into())),
            ("env.A=B", |m| drop(m.env.insert("A=B".into(), String::new()))),
            ("share[0].source", |m| {
                m.shares.push(Share { source: "x".into(), target: "/x".into(), read_only: true })
            }),
            ("share[0].target", |m| {
                m.shares.push(Share { source: "/x".into(), target: "/a/../b".into(), read_only: true })
            }),
        ];
        for (field, spoil) in cases {
            let mut manifest = manifest();
            spoil(&mut manifest);
            assert_eq!(manifest.check().unwrap_err().field, field);
        }
    }
}
