//! From a function's manifest and artifact to a loaded program.

use std::path::PathBuf;
use std::sync::Arc;

use novum_snapshot::Digest;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use super::Process;
use super::files::{Files, FilesConfig};
use super::foresight::Foresight;
use super::live::Live;
use super::load::{self, LoadError, Loaded};
use super::memory::{AddressSpace, MappedFile, Placement};
use super::time::Time;
use crate::error::Error;
use crate::function::{ArtifactFormat, EngineKind, Function};

/// Everything that is the same for all sandboxes of a function.
#[derive(Debug)]
pub(super) struct Setup {
    /// The function's name, for the thread's.
    pub(super) name: String,
    /// The program's path in the sandbox.
    program: Vec<u8>,
    args: Vec<Vec<u8>>,
    env: Vec<(String, String)>,
    pub(super) memory_bytes: u64,
    /// The line on standard error at which the image is taken; `None`: at the first wait for input.
    pub(super) ready: Option<String>,
    files: FilesConfig,
    artifact: Digest,
    placement: Placement,
    /// Whose memory counts as this function's.
    pub(super) live: Live,
    /// What its starts look at.
    pub(super) foresight: Arc<Foresight>,
}

/// Where a program that was deployed alone is put.
const LONE_PROGRAM_DIR: &str = "/app";

impl Setup {
    /// For `function`.
    pub(super) fn new(function: &Function) -> Result<Self, Error> {
        let manifest = &function.manifest;
        let entry = manifest.entry.trim_start_matches('/');
        let mut files = FilesConfig { shares: manifest.shares.clone(), ..FilesConfig::new() };
        let program = match function.artifact.format {
            ArtifactFormat::File => {
                let name = entry.rsplit('/').next().filter(|name| !name.is_empty());
                let path = format!("{LONE_PROGRAM_DIR}/{}", name.unwrap_or(manifest.name.as_str()));
                files.program = Some((path.clone().into_bytes(), function.artifact.path.clone()));
                path
            }
            ArtifactFormat::Tar => {
                files.root = Some(PathBuf::from(&function.artifact.path));
                if entry.is_empty() {
                    let reason = "must name the program inside of the tar".to_owned();
                    return Err(Error::Manifest { field: "entry".into(), reason });
                }
                format!("/{entry}")
            }
        };
        let mut args = vec![program.clone().into_bytes()];
        args.extend(manifest.args.iter().map(|arg| arg.clone().into_bytes()));
        Ok(Self {
            name: manifest.name.to_string(),
            program: program.into_bytes(),
            args,
            env: manifest.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            memory_bytes: manifest.memory_bytes,
            ready: manifest.ready.clone(),
            files,
            artifact: function.artifact.digest,
            live: Live::default(),
            foresight: Arc::default(),
            placement: Placement::random(random().map_err(|e| Error::host("draw random numbers", e))?),
        })
    }

    /// Everything that an image of the program depends on, but for the machine.
    pub(super) fn key(&self) -> Digest {
        let shares: Vec<_> = self.files.shares.iter().map(|s| (&s.source, &s.target, s.read_only)).collect();
        let function = (&self.artifact, self.files.root.is_some(), &self.program, &self.args, &self.env);
        let system = (crate::kvm::entry::system_pages(), super::memory::SYSTEM_AREA_FORM);
        let guest = (system, super::time::vdso::build().unwrap_or_default());
        let all = (env!("CARGO_PKG_VERSION"), function, self.memory_bytes, &self.ready, shares, guest);
        // Into memory, of types that only hold what postcard knows: cannot fail.
        Digest::of(&postcard::to_stdvec(&all).unwrap_or_default())
    }

    /// What the program's files are made from.
    pub(super) fn files(&self) -> &FilesConfig {
        &self.files
    }

    /// Loads the program into an address space of its own: all but the stack, which the invocation's environment decides.
    pub(super) fn load(&self) -> Result<Program, Error> {
        let mut files = Files::new(&self.files).map_err(|error| refuse(error.to_string()))?;
        let memory = AddressSpace::new(self.memory_bytes, self.placement)
            .map_err(|error| Error::host("reserve addresses for a sandbox", error))?;
        self.live.add(memory.region()).set();
        let InMemory { memory, time, loaded } = load_from(&mut files, memory, &self.program)?;
        Ok(Program { memory, files, time, loaded })
    }

    /// The loaded program as a process that is ready to run with the invocation's additions to the environment.
    pub(super) fn begin(&self, program: Program, env: &[(String, String)]) -> Result<Process, Error> {
        let Program { mut memory, files, time, loaded } = program;
        let random = random().map_err(|error| Error::host("draw random numbers", error))?;
        let mut merged = self.env.clone();
        for (name, value) in env {
            merged.retain(|(other, _)| other != name);
            merged.push((name.clone(), value.clone()));
        }
        let env: Vec<Vec<u8>> =
            merged.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
        let started = loaded.begin(&mut memory, &self.args, &env, random).map_err(refuse_load)?;
        let mut process = Process::new(memory, files, time, started);
        process.set_foresight(self.foresight.clone());
        Ok(process)
    }
}

/// A program in its address space, without a stack.
pub(super) struct Program {
    memory: AddressSpace,
    files: Files,
    time: Time,
    loaded: Loaded,
}

impl Program {
    /// Its own first instruction, to which its interpreter goes.
    pub(super) fn entry(&self) -> u64 {
        self.loaded.program_entry()
    }
}

/// A program in its address space, without a stack and apart from its files.
pub(super) struct InMemory {
    pub(super) memory: AddressSpace,
    pub(super) time: Time,
    pub(super) loaded: Loaded,
}

/// Loads `program`, a path in `files`, into the empty `memory`.
pub(super) fn load_from(
    files: &mut Files,
    mut memory: AddressSpace,
    program: &[u8],
) -> Result<InMemory, Error> {
    let file = open(files, program)
        .map_err(|errno| refuse(format!("{} does not open: {errno}", String::from_utf8_lossy(program))))?;
    files.set_exe(file.name.as_bytes());
    let mut opener = |path: &str| open(files, path.as_bytes());
    let mut loaded = load::load(&mut memory, file, &mut opener).map_err(refuse_load)?;
    let mut time = Time::default();
    // Without the vDSO the program asks for the time by calls.
    if let Ok(vdso) = time.map(&mut memory) {
        loaded.add_aux((libc::AT_SYSINFO_EHDR, vdso));
    }
    Ok(InMemory { memory, time, loaded })
}

pub(super) fn refuse_load(error: LoadError) -> Error {
    match error {
        LoadError::Memory { limit_bytes, .. } => Error::MemoryLimit { limit_bytes },
        other => refuse(other.to_string()),
    }
}

fn refuse(reason: String) -> Error {
    Error::Artifact { engine: EngineKind::Process, reason }
}

fn open(files: &mut Files, path: &[u8]) -> Result<Arc<MappedFile>, Errno> {
    let (name, mapping) = files.open_program(path)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Arc::new(MappedFile::of(mapping, name)))
}

pub(super) fn random() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
