//! From an artifact to compiled code.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::outcome::artifact;
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

/// Compiles the function's artifact. Blocks for as long as the compiler takes.
pub(super) fn load(engine: &Engine, function: &Function) -> Result<Code, Error> {
    let bytes = read(function)?;
    let binary = binary(&bytes)?;
    let broken = |error: wasmtime::Error| artifact(format!("{error:#}"));
    // The preamble: magic, a version, and the layer: 0 for a core module, 1 for a component
    // (component model, Binary.md, "Component Definitions").
    match binary.get(6..8) {
        Some([0, 0]) => Module::from_binary(engine, &binary).map(Code::Module).map_err(broken),
        Some([1, 0]) => Component::from_binary(engine, &binary).map(Code::Component).map_err(broken),
        _ => Err(artifact("its header says neither core module nor component")),
    }
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
