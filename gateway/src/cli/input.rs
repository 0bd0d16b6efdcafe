//! What several commands take: limits, environment, an artifact without a manifest, a request.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use novum_sandbox::{EngineChoice, FunctionName, Manifest};

use super::error::Error;
use crate::manifest::{ArtifactSource, FunctionFile};
use crate::units::{parse_duration, parse_size};

/// What would stand in a manifest.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Limits {
    /// Memory limit of one sandbox, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Longest run of one invocation, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// A variable of the function's environment; may be repeated
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
}

impl Limits {
    /// Puts what was given into the manifest, and checks the whole.
    pub(super) fn apply(&self, manifest: &mut Manifest) -> Result<(), Error> {
        manifest.memory_bytes = self.memory.unwrap_or(manifest.memory_bytes);
        manifest.timeout = self.timeout.unwrap_or(manifest.timeout);
        manifest.env.extend(self.env.iter().cloned());
        manifest.check().map_err(|e| Error::Usage {
            what: e.to_string(),
            advice: "change the flag, or the manifest".into(),
        })
    }

    /// With a manifest these stand in the manifest.
    pub(super) fn refuse_without_name(&self) -> Result<(), Error> {
        if self.memory.is_none() && self.timeout.is_none() && self.env.is_empty() {
            return Ok(());
        }
        Err(Error::Usage {
            what: "--memory, --timeout and --env go with --name NAME FILE".into(),
            advice: "write them into the novum.toml".into(),
        })
    }
}

/// Parses `K=V`.
pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    novum_sandbox::function::check_env(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses an engine's name; clap lists the possible ones, in help, errors and completions.
pub(super) fn engine() -> impl TypedValueParser<Value = EngineChoice> {
    let names = EngineChoice::ALL.map(EngineChoice::as_str);
    PossibleValuesParser::new(names)
        .map(|name| EngineChoice::ALL.into_iter().find(|choice| choice.as_str() == name).unwrap_or_default())
}

/// A file to be deployed or run without a manifest.
pub(super) fn named_artifact(name: FunctionName, path: &Path) -> Result<FunctionFile, Error> {
    let refuse = |source| Error::File { doing: "open", path: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(refuse)?;
    if found.is_dir() {
        return Err(Error::Usage {
            what: format!("{} is a directory", path.display()),
            advice: "write a novum.toml with `root` and `entry` (docs/manifest.md)".into(),
        });
    }
    let mut manifest = Manifest::new(name);
    manifest.entry = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(FunctionFile { manifest, artifact: ArtifactSource::File(path.to_owned()) })
}

/// A function's name made from a file's: `My_Tool.wasm` becomes `my-tool`.
pub(crate) fn name_from(path: &Path) -> FunctionName {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let trimmed = plain.trim_matches('-').trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let fallback = || "function".parse().unwrap_or_else(|_| unreachable!("a valid name"));
    trimmed.parse().unwrap_or_else(|_| fallback())
}

/// Where a request's bytes come from.
#[derive(Debug, clap::Args)]
pub(super) struct Payload {
    /// The request itself
    #[arg(long, short, value_name = "TEXT", conflicts_with = "file")]
    data: Option<String>,
    /// A file with the request; - is standard input [default: standard input, or nothing on a terminal]
    #[arg(long, short, value_name = "PATH")]
    file: Option<PathBuf>,
}

/// Where a request's bytes come from, decided.
#[derive(Debug)]
pub(super) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf, std::fs::File),
    Stdin,
}

impl Payload {
    /// Decides; opens the file.
    pub(super) fn source(&self) -> Result<Source, Error> {
        use std::io::IsTerminal;
        match (&self.data, &self.file) {
            (Some(text), _) => Ok(Source::Bytes(text.clone().into_bytes())),
            (None, Some(path)) if path.as_os_str() == "-" => Ok(Source::Stdin),
            (None, Some(path)) => {
                let refuse = |source| Error::File { doing: "open", path: path.clone(), source };
                let file = std::fs::File::open(path).map_err(refuse)?;
                Ok(Source::File(path.clone(), file))
            }
            (None, None) if std::io::stdin().is_terminal() => Ok(Source::Bytes(Vec::new())),
            (None, None) => Ok(Source::Stdin),
        }
    }
}

impl Source {
    /// Hands the bytes to `take` as they come, until it says no. Blocks.
    pub(super) fn pieces(self, mut take: impl FnMut(bytes::Bytes) -> bool) -> Result<(), Error> {
        use std::io::Read;
        let (mut reader, path): (Box<dyn Read>, _) = match self {
            Self::Bytes(bytes) => {
                if !bytes.is_empty() {
                    take(bytes.into());
                }
                return Ok(());
            }
            Self::File(path, file) => (Box::new(file), path),
            Self::Stdin => (Box::new(std::io::stdin()), "standard input".into()),
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) if take(bytes::Bytes::copy_from_slice(&buffer[..n])) => {}
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::File { doing: "read", path, source }),
            }
        }
    }

    /// All the bytes.
    pub(super) fn read(self) -> Result<Vec<u8>, Error> {
        if let Self::Bytes(bytes) = self {
            return Ok(bytes);
        }
        let mut all = Vec::new();
        self.pieces(|piece| {
            all.extend_from_slice(&piece);
            true
        })?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_file_names() {
        for (path, name) in
            [("a/My_Tool.wasm", "my-tool"), ("hello", "hello"), ("9lives.wat", "lives"), ("--", "function")]
        {
            assert_eq!(name_from(Path::new(path)).as_str(), name);
        }
    }

    #[test]
    fn variables_need_a_name_and_an_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        for bad in ["A", "=b", ""] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }
}
