//! `novum.toml`: what a function is, as its author writes it. docs/manifest.md describes every key.
//!
//! The syntax and types are checked here, possible values by [`Manifest::check`]; both kinds of error name the line.

mod diagnostic;
mod reader;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use novum_sandbox::{EngineChoice, Manifest, Pool, Share};
use toml::de::DeTable;

pub use diagnostic::Diagnostic;
use reader::{Field, Key, Source, fill, locate};

/// The name of a manifest file.
pub const FILE_NAME: &str = "novum.toml";

/// A manifest file and what it deploys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionFile {
    /// Checked.
    pub manifest: Manifest,
    /// Where the artifact's bytes are.
    pub artifact: ArtifactSource,
}

/// Where an artifact's bytes come from on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactSource {
    /// One file.
    File(PathBuf),
    /// A directory that is packed as tar.
    Root(PathBuf),
}

impl ArtifactSource {
    /// The file or directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Root(path) => path,
        }
    }
}

/// A manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    Invalid(Box<Diagnostic>),
}

impl From<Diagnostic> for ManifestError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Invalid(Box::new(diagnostic))
    }
}

/// Reads a manifest file and checks that the artifact it names is there.
///
/// # Errors
/// [`ManifestError`]; every error in the text names its line.
pub fn load(path: &Path) -> Result<FunctionFile, ManifestError> {
    let read = |source| ManifestError::Read { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(read)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let good = e.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
            return Err(Diagnostic::at(path, &text, good..good, "this byte is not UTF-8 text").into());
        }
    };
    let file = parse(&text, path)?;
    check_artifact(&file.artifact, &text, path)?;
    Ok(file)
}

/// Reads a manifest's text. Relative paths in it are taken from the directory of `path`; nothing is opened.
///
/// # Errors
/// The first error in the order of the file.
pub fn parse(text: &str, path: &Path) -> Result<FunctionFile, Diagnostic> {
    let source = Source { path, text };
    let document = DeTable::parse(text).map_err(|e| syntax_error(source, &e))?;
    let table = document.get_ref();
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut draft = Draft { manifest: Manifest::new(placeholder()), root: None, base };
    fill(source, "", table, ROOT_KEYS, &mut draft)?;
    for (key, example) in [("name", "name = \"hello\""), ("entry", "entry = \"hello.wasm\"")] {
        if !table.contains_key(key) {
            let missing = Diagnostic::whole(path, format!("the key `{key}` is missing"));
            return Err(missing.help(format!("add a line such as: {example}")));
        }
    }
    let Draft { manifest, root, base } = draft;
    manifest.check().map_err(|e| match locate(table, &e.field) {
        Some(span) => source.error(span, e.to_string()),
        None => Diagnostic::whole(path, e.to_string()),
    })?;
    let artifact = match root {
        Some(root) => ArtifactSource::Root(base.join(root)),
        None => ArtifactSource::File(base.join(&manifest.entry)),
    };
    Ok(FunctionFile { manifest, artifact })
}

/// What the keys fill.
struct Draft {
    manifest: Manifest,
    root: Option<PathBuf>,
    /// The manifest's directory.
    base: PathBuf,
}

/// Stands until the key `name` is read; a manifest without that key is refused.
fn placeholder() -> novum_sandbox::FunctionName {
    "unnamed".parse().unwrap_or_else(|_| unreachable!("a valid name"))
}

fn put<T>(to: &mut T, value: Result<T, Diagnostic>) -> Result<(), Diagnostic> {
    value.map(|value| *to = value)
}

const ROOT_KEYS: &[Key<Draft>] = &[
    Key { name: "name", set: |d, f| put(&mut d.manifest.name, f.parsed()) },
    Key { name: "engine", set: |d, f| put(&mut d.manifest.engine, engine(f)) },
    Key { name: "entry", set: |d, f| put(&mut d.manifest.entry, path(f)) },
    Key { name: "root", set: |d, f| put(&mut d.root, path(f).map(|path| Some(path.into()))) },
    Key { name: "args", set: |d, f| put(&mut d.manifest.args, f.strings()) },
    Key { name: "env", set: |d, f| put(&mut d.manifest.env, f.string_table()) },
    Key {
        name: "allow_env",
        set: |d, f| put(&mut d.manifest.allow_env, f.strings().map(BTreeSet::from_iter)),
    },
    Key { name: "memory", set: |d, f| put(&mut d.manifest.memory_bytes, f.size()) },
    Key { name: "timeout", set: |d, f| put(&mut d.manifest.timeout, f.duration()) },
    Key { name: "output", set: |d, f| put(&mut d.manifest.output_bytes, f.size()) },
    Key { name: "share", set: shares },
    Key {
        name: "ready",
        set: |d, f| put(&mut d.manifest.ready, f.string().map(|line| Some(line.to_owned()))),
    },
    Key { name: "pool", set: |d, f| fill(f.source, "pool.", f.table()?, POOL_KEYS, &mut d.manifest.pool) },
];

const POOL_KEYS: &[Key<Pool>] = &[
    Key { name: "min", set: |p, f| put(&mut p.min, f.count()) },
    Key { name: "max", set: |p, f| put(&mut p.max, f.count()) },
    Key { name: "queue", set: |p, f| put(&mut p.queue, f.count()) },
    Key { name: "idle", set: |p, f| put(&mut p.idle, f.duration()) },
];

/// A `[[share]]` while it is read.
#[derive(Default)]
struct ShareDraft {
    source: Option<PathBuf>,
    target: Option<String>,
    read_only: Option<bool>,
}

const SHARE_KEYS: &[Key<ShareDraft>] = &[
    Key { name: "source", set: |s, f| put(&mut s.source, path(f).map(|path| Some(path.into()))) },
    Key { name: "target", set: |s, f| put(&mut s.target, path(f).map(Some)) },
    Key { name: "read_only", set: |s, f| put(&mut s.read_only, f.boolean().map(Some)) },
];

fn shares(draft: &mut Draft, field: &Field<'_>) -> Result<(), Diagnostic> {
    for (element, table) in field.tables()? {
        let mut share = ShareDraft::default();
        fill(field.source, "share.", table, SHARE_KEYS, &mut share)?;
        let missing = |key: &str| element.error(format!("this share has no `{key}`"));
        let source = share.source.ok_or_else(|| missing("source"))?;
        draft.manifest.shares.push(Share {
            source: absolute(&draft.base.join(source)),
            target: share.target.ok_or_else(|| missing("target"))?,
            read_only: share.read_only.unwrap_or(true),
        });
    }
    Ok(())
}

/// The gateway wants absolute paths without `..`; it, not this program, decides whether the directory is there.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn engine(field: &Field<'_>) -> Result<EngineChoice, Diagnostic> {
    let text = field.string()?;
    EngineChoice::ALL.into_iter().find(|choice| choice.as_str() == text).ok_or_else(|| {
        let names = EngineChoice::ALL.map(EngineChoice::as_str).join(", ");
        field.error(format!("there is no engine {text:?}")).help(format!("possible engines: {names}"))
    })
}

fn path(field: &Field<'_>) -> Result<String, Diagnostic> {
    match field.string()? {
        "" => Err(field.error(format!("`{}` is empty", field.name))),
        text if text.contains('\0') => Err(field.error(format!("`{}` holds a NUL byte", field.name))),
        text => Ok(text.to_owned()),
    }
}

fn syntax_error(source: Source<'_>, error: &toml::de::Error) -> Diagnostic {
    let message = format!("not TOML: {}", error.message().replace('\n', ", "));
    match error.span() {
        Some(span) => source.error(span, message),
        None => Diagnostic::whole(source.path, message),
    }
}

fn check_artifact(artifact: &ArtifactSource, text: &str, path: &Path) -> Result<(), Diagnostic> {
    let (key, wanted) = match artifact {
        ArtifactSource::File(_) => ("entry", "file"),
        ArtifactSource::Root(_) => ("root", "directory"),
    };
    let shown = artifact.path().display();
    let problem = match std::fs::metadata(artifact.path()) {
        Ok(found) if found.is_dir() == (wanted == "directory") => return Ok(()),
        Ok(_) => format!("{shown} is not a {wanted}"),
        Err(e) => format!("cannot open {shown}: {e}"),
    };
    let span = DeTable::parse(text).ok().and_then(|document| locate(document.get_ref(), key));
    let diagnostic = Diagnostic::at(path, text, span.unwrap_or(0..0), problem);
    Err(diagnostic.help(format!("`{key}` is taken from the manifest's directory; is the {wanted} built?")))
}

/// Every key that a manifest may hold, as spelled from the document's root.
pub fn keys() -> impl Iterator<Item = String> {
    let root = ROOT_KEYS.iter().map(|key| key.name.to_owned());
    let pool = POOL_KEYS.iter().map(|key| format!("pool.{}", key.name));
    let share = SHARE_KEYS.iter().map(|key| format!("share.{}", key.name));
    root.chain(pool).chain(share)
}
