//! From an artifact to compiled code.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use novum_snapshot::Digest;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::cache::Cache;
use super::outcome::artifact;
use super::settings::host;
use super::sys;
use crate::error::Error;
use crate::function::{ArtifactFormat, Function};

/// Whether an artifact is a Wasm binary (`\0asm`, core spec §5.5.16) or a text module (`(module`, `(component`).
#[must_use]
pub fn recognises(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    head.starts_with(b"\0asm")
        || text.starts_with(b"(module")
        || text.starts_with(b"(component")
        || text.starts_with(b";;")
}

/// Compiled code.
pub(super) enum Code {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// The function's code: kept from an earlier time, or compiled now. Blocks for as long as the compiler takes.
pub(super) fn load(engine: &Engine, cache: Option<&Cache>, function: &Function) -> Result<Code, Error> {
    let entry = match function.artifact.format {
        ArtifactFormat::File => "",
        ArtifactFormat::Tar => &function.manifest.entry,
    };
    let kept = cache.map(|cache| (cache, cache.name(function.artifact.digest, entry)));
    if let Some((cache, name)) = &kept {
        match cache.load(engine, name) {
            Ok(Some(code)) => return Ok(code),
            Ok(None) => {}
            Err(doubt) => tracing::warn!(%doubt, "compiling again"),
        }
    }
    let code = compile(engine, function)?;
    if let Some((cache, name)) = &kept {
        let again = cache.keep(name, &code).and_then(|()| cache.load(engine, name));
        match again {
            Ok(Some(code)) => return Ok(code),
            Ok(None) => {}
            Err(doubt) => tracing::warn!(%doubt, "compiled code is not kept"),
        }
    }
    sys::take(engine, &code).map_err(|error| host("loading compiled code", error))
}

/// The function's machine code, as wasmtime serialises it.
fn compile(engine: &Engine, function: &Function) -> Result<Vec<u8>, Error> {
    let bytes = read(function)?;
    if function.artifact.format == ArtifactFormat::File && Digest::of(&bytes) != function.artifact.digest {
        let path = function.artifact.path.display().to_string();
        return Err(Error::host(format!("reading the artifact {path}"), "it is not what was deployed"));
    }
    let binary = binary(&bytes)?;
    // The preamble: magic, a version, and the layer: 0 for a core module, 1 for a component
    // (component model, Binary.md, "Component Definitions").
    let compiled = match binary.get(6..8) {
        Some([0, 0]) => engine.precompile_module(&binary),
        Some([1, 0]) => engine.precompile_component(&binary),
        _ => return Err(artifact("its header says neither core module nor component")),
    };
    compiled.map_err(|error| artifact(format!("{error:#}")))
}

/// The artifact's program: the file itself, or the manifest's entry beneath an unpacked directory.
fn read(function: &Function) -> Result<Vec<u8>, Error> {
    let path = &function.artifact.path;
    let failed =
        |error: std::io::Error| Error::host(format!("reading the artifact {}", path.display()), error);
    let mut bytes = Vec::new();
    let mut file = match function.artifact.format {
        ArtifactFormat::File => File::open(path).map_err(failed)?,
        ArtifactFormat::Tar => entry(path, &function.manifest.entry)?,
    };
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Opens a file of the archive, whose symbolic links may lead anywhere within it.
fn entry(root: &Path, entry: &str) -> Result<File, Error> {
    let refuse = |reason: String| Error::Manifest { field: "entry".into(), reason };
    let inside = entry.trim_start_matches('/');
    if inside.is_empty() {
        return Err(refuse("must name the Wasm file in the archive".into()));
    }
    let failed = |error| Error::host(format!("opening the artifact {}", root.display()), error);
    let root = File::open(root).map_err(failed)?;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(&root, inside, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), beneath);
    let file = opened.map(File::from).map_err(|error| refuse(format!("{entry:?} does not open: {error}")))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        _ => Err(refuse(format!("{entry:?} is not a file"))),
    }
}

/// The binary form of a binary or text artifact.
fn binary(bytes: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, Error> {
    if !bytes.starts_with(b"\0asm") && !recognises(bytes) {
        let head = bytes[..bytes.len().min(16)].escape_ascii();
        return Err(artifact(format!("it is neither a Wasm binary nor text: it begins with \"{head}\"")));
    }
    wat::parse_bytes(bytes).map_err(|error| artifact(format!("its text does not parse: {error}")))
}
