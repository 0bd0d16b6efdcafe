//! Loading a program as Linux does: its parts mapped from the file, its interpreter, its stack.
//!
//! Source: Linux `fs/binfmt_elf.c`, `fs/binfmt_script.c`; System V ABI AMD64 §3.4.

pub(crate) mod elf;
pub(crate) mod stack;

use std::sync::Arc;

use rustix::io::Errno;

use super::memory::{AddressSpace, At, FilePart, MappedFile, Prot, Request};
use crate::kvm::features::HWCAP2_FSGSBASE;
use crate::kvm::layout::{LARGE_PAGE, PAGE, STACK_SIZE};
use crate::kvm::vcpu;

/// The program's user and group, as every identity call answers.
pub(crate) const USER: u64 = 0;

/// Where a program's first thread begins.
pub(crate) struct Start {
    /// First instruction.
    pub(crate) entry: u64,
    /// The stack as it was written.
    pub(crate) stack: stack::Stack,
}

/// Why a program cannot be loaded. The texts are for the person who deployed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file is not one that can run here.
    #[error("{name}: {source}")]
    Elf {
        /// Which file.
        name: String,
        /// What is wrong.
        source: elf::Refusal,
    },
    /// It is linked for addresses that no program gets.
    #[error("{name} is linked for an address below 64 KiB, which no program may use")]
    TooLow {
        /// Which file.
        name: String,
    },
    /// The file cannot be read.
    #[error("{name} cannot be read: {errno}")]
    Read {
        /// Which file.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// The program needs a file that its root does not hold.
    #[error(
        "{program} needs the interpreter {path}, which its root does not hold ({errno}); link it statically, deploy it \
         with its libraries as a tar, or share the host's /lib, /lib64 and /usr"
    )]
    Interpreter {
        /// The program.
        program: String,
        /// The path that was looked for.
        path: String,
        /// What opening it said.
        errno: Errno,
    },
    /// Scripts that name scripts that name scripts.
    #[error("{name}: too many interpreters in a row")]
    TooDeep {
        /// The script.
        name: String,
    },
    /// It does not fit into its memory.
    #[error("{name} does not fit into the memory limit of {limit_bytes} bytes ({errno})")]
    Memory {
        /// Which file.
        name: String,
        /// The limit.
        limit_bytes: u64,
        /// What mapping it said.
        errno: Errno,
    },
    /// Arguments and environment are too long.
    #[error("arguments and environment are larger than a quarter of the stack")]
    Arguments,
}

/// Opens a file of the program's root for reading and execution.
pub(crate) type Open<'a> = dyn FnMut(&str) -> Result<Arc<MappedFile>, Errno> + 'a;

/// A program that is mapped and has no stack yet.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    entry: u64,
    /// The program's own first instruction, to which its interpreter goes.
    program_entry: u64,
    aux: Vec<stack::Aux>,
    /// The path in `AT_EXECFN`.
    path: String,
    /// What `#!` lines put in place of `argv[0]`; empty for a program.
    script: Vec<Vec<u8>>,
}

/// Loads the program in `file` into an empty address space: everything but the stack.
pub(crate) fn load(
    memory: &mut AddressSpace,
    file: Arc<MappedFile>,
    open: &mut Open<'_>,
) -> Result<Loaded, LoadError> {
    let path = file.name.clone();
    let (file, script) = resolve_script(file, open)?;
    let image = read(&file)?;
    let bias = bias(memory, &image);
    map_image(memory, &file, &image, bias)?;
    let program_entry = bias.wrapping_add(image.entry);
    let (interpreter_bias, entry) = match &image.interpreter {
        Some(path) => load_interpreter(memory, &file, &String::from_utf8_lossy(path), open)?,
        None => (0, program_entry),
    };
    // Linux leaves a random gap in front; the placement has randomised what is there already.
    memory.start_heap(bias + image.span().1);
    map_stack(memory, &file, image.executable_stack)?;
    let headers = if image.headers_address == 0 { 0 } else { bias.wrapping_add(image.headers_address) };
    let mut aux = fixed_aux();
    aux.extend([
        (libc::AT_PHDR, headers),
        (libc::AT_PHENT, elf::HEADER_BYTES),
        (libc::AT_PHNUM, u64::from(image.headers)),
        (libc::AT_BASE, interpreter_bias),
        (libc::AT_ENTRY, program_entry),
    ]);
    Ok(Loaded { entry, program_entry, aux, path, script })
}

impl Loaded {
    /// The program's own first instruction, to which its interpreter goes.
    pub(crate) fn program_entry(&self) -> u64 {
        self.program_entry
    }

    /// Adds an entry to the auxiliary vector.
    pub(crate) fn add_aux(&mut self, entry: stack::Aux) {
        self.aux.push(entry);
    }

    /// Writes the stack: `args` begin with the program's name, `env` are `NAME=value`, `random` is fresh for every sandbox.
    pub(crate) fn begin(
        &self,
        memory: &mut AddressSpace,
        args: &[Vec<u8>],
        env: &[Vec<u8>],
        random: [u8; 16],
    ) -> Result<Start, LoadError> {
        let mut all = self.script.clone();
        let own_name = usize::from(!all.is_empty());
        all.extend(args.iter().skip(own_name).cloned());
        let contents =
            stack::Contents { args: &all, env, path: self.path.as_bytes(), random, aux: &self.aux };
        let top = memory.placement().stack_top - 8;
        let stack = stack::build(top, &contents, STACK_SIZE / 4).ok_or(LoadError::Arguments)?;
        // What every program's start touches, in one go.
        let _ = memory.populate((stack.pointer & !(PAGE - 1)) - 6 * PAGE, memory.placement().stack_top);
        memory.write(stack.pointer, &stack.bytes).map_err(|_| LoadError::Arguments)?;
        Ok(Start { entry: self.entry, stack })
    }
}

fn read(file: &MappedFile) -> Result<elf::Program, LoadError> {
    elf::Program::read(&file.fd).map_err(|source| LoadError::Elf { name: file.name.clone(), source })
}

/// The auxiliary vector's entries that do not depend on where things were loaded.
fn fixed_aux() -> Vec<stack::Aux> {
    const AT_MINSIGSTKSZ: u64 = 51;
    let (hwcap, mut hwcap2) = rustix::param::linux_hwcap();
    if !vcpu::offers_base_instructions() {
        hwcap2 &= !HWCAP2_FSGSBASE;
    }
    let mut aux = Vec::with_capacity(24);
    aux.extend([
        (AT_MINSIGSTKSZ, rustix::param::linux_minsigstksz() as u64),
        (libc::AT_HWCAP, hwcap as u64),
        (libc::AT_HWCAP2, hwcap2 as u64),
        (libc::AT_PAGESZ, PAGE),
        (libc::AT_CLKTCK, 100),
        (libc::AT_FLAGS, 0),
        (libc::AT_UID, USER),
        (libc::AT_EUID, USER),
        (libc::AT_GID, USER),
        (libc::AT_EGID, USER),
        (libc::AT_SECURE, 0),
    ]);
    aux
}

/// Follows `#!` lines: the interpreter becomes the program, the script its argument.
fn resolve_script(
    mut file: Arc<MappedFile>,
    open: &mut Open<'_>,
) -> Result<(Arc<MappedFile>, Vec<Vec<u8>>), LoadError> {
    const DEEPEST: usize = 5;
    let mut args: Vec<Vec<u8>> = Vec::new();
    for _ in 0..DEEPEST {
        let mut line = [0; 256];
        let name = file.name.clone();
        let got = rustix::io::pread(&file.fd, &mut line[..], 0)
            .map_err(|errno| LoadError::Read { name: name.clone(), errno })?;
        let Some(rest) = line[..got].strip_prefix(b"#!") else { return Ok((file, args)) };
        let line = rest.split(|&byte| byte == b'\n' || byte == 0).next().unwrap_or(rest).trim_ascii();
        let (path, argument) = match line.iter().position(u8::is_ascii_whitespace) {
            Some(at) => (&line[..at], line[at..].trim_ascii()),
            None => (line, &b""[..]),
        };
        let path = String::from_utf8_lossy(path).into_owned();
        let mut front = vec![path.clone().into_bytes()];
        if !argument.is_empty() {
            front.push(argument.to_vec());
        }
        front.push(name.clone().into_bytes());
        front.extend(args.drain(..).skip(1));
        args = front;
        file = open(&path).map_err(|errno| LoadError::Interpreter { program: name, path, errno })?;
    }
    Err(LoadError::TooDeep { name: file.name.clone() })
}

fn load_interpreter(
    memory: &mut AddressSpace,
    program: &MappedFile,
    path: &str,
    open: &mut Open<'_>,
) -> Result<(u64, u64), LoadError> {
    let file = open(path).map_err(|errno| LoadError::Interpreter {
        program: program.name.clone(),
        path: path.to_owned(),
        errno,
    })?;
    let image = read(&file)?;
    let (first, end) = image.span();
    let bias = match image.placement {
        elf::Placement::Fixed => 0,
        elf::Placement::Anywhere => {
            let reserve = Request::anonymous(At::Hint(0), end - first, Prot::NONE);
            memory.map(reserve).map_err(|errno| too_large(memory, &file, errno))?.wrapping_sub(first)
        }
    };
    map_image(memory, &file, &image, bias)?;
    Ok((bias, bias.wrapping_add(image.entry)))
}

fn too_large(memory: &AddressSpace, file: &MappedFile, errno: Errno) -> LoadError {
    match errno {
        Errno::PERM => LoadError::TooLow { name: file.name.clone() },
        errno => LoadError::Memory { name: file.name.clone(), limit_bytes: memory.limit_bytes(), errno },
    }
}

fn bias(memory: &AddressSpace, image: &elf::Program) -> u64 {
    match image.placement {
        elf::Placement::Fixed => 0,
        // Alignment beyond a large page would only cost addresses.
        elf::Placement::Anywhere => memory
            .placement()
            .pie
            .next_multiple_of(image.alignment.min(LARGE_PAGE))
            .wrapping_sub(image.span().0),
    }
}

fn map_image(
    memory: &mut AddressSpace,
    file: &Arc<MappedFile>,
    image: &elf::Program,
    bias: u64,
) -> Result<(), LoadError> {
    for mapping in image.mappings(bias) {
        map_part(memory, file, &mapping).map_err(|errno| too_large(memory, file, errno))?;
    }
    Ok(())
}

fn map_part(memory: &mut AddressSpace, file: &Arc<MappedFile>, part: &elf::Mapping) -> Result<(), Errno> {
    let elf::Access { read, write, execute: exec } = part.access;
    let mut request = Request::anonymous(At::Fixed(part.address), part.bytes, Prot { read, write, exec });
    request.file = part.file_offset.map(|offset| FilePart { file: file.clone(), offset, shared: false });
    memory.map(request)?;
    if let Some(from) = part.zero_from {
        let tail = from.next_multiple_of(PAGE) - from;
        memory.write(from, &vec![0; tail as usize])?;
    }
    Ok(())
}

fn map_stack(memory: &mut AddressSpace, program: &MappedFile, exec: bool) -> Result<(), LoadError> {
    let bottom = memory.placement().stack_top - STACK_SIZE;
    let prot = Prot { exec, ..Prot::READ_WRITE };
    let mut request = Request::anonymous(At::FixedFree(bottom), STACK_SIZE, prot);
    (request.label, request.stack, request.no_reserve) = ("[stack]", true, true);
    memory.map(request).map(drop).map_err(|errno| too_large(memory, program, errno))
}
