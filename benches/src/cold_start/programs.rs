//! The programs that are started, built here: native by gcc and rustc, for Wasm by clang with wasi-libc. What cannot be
//! built is said with its reason and not measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The system's Python.
const PYTHON: &str = "/usr/bin/python3";
const PYTHON_SOURCE: &str = include_str!("programs/program.py");
/// Python finds its modules here, and everything finds its libraries.
const SYSTEM: [&str; 4] = ["/usr", "/lib", "/lib64", "/etc"];
const WORDCOUNT_SOURCE: &str = include_str!("../../../examples/wordcount/wordcount.rs");
const WORDCOUNT_WASM: &[u8] = include_bytes!("../../../examples/wordcount/wordcount.wasm");

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// Reads its request and answers `hello`, in C.
    Hello,
    /// Counts words, in Rust: examples/wordcount.
    Rust,
    /// Python with `json`, `os` and `sys` imported.
    Python,
    /// 256 MiB that were filled before the first request, in C.
    Large,
}

impl Program {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Hello, Self::Rust, Self::Python, Self::Large];

    /// For tables and charts.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Hello => "hello (C)",
            Self::Rust => "word count (Rust)",
            Self::Python => "Python with json",
            Self::Large => "256 MiB program (C)",
        }
    }

    /// For file names and `--only`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Large => "large",
        }
    }
}

/// A program that can be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Built {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    /// Host directories that it sees at the same paths.
    pub(super) shares: Vec<PathBuf>,
}

impl Built {
    fn alone(path: PathBuf) -> Self {
        Self { path, args: Vec::new(), shares: Vec::new() }
    }
}

/// For the host and the process engine.
pub(super) fn native(program: Program, scratch: &Path) -> Result<Built> {
    let c = |source| gcc(scratch, program.name(), source).map(Built::alone);
    match program {
        Program::Hello => c(include_str!("programs/hello.c")),
        Program::Large => c(include_str!("programs/large.c")),
        Program::Rust => rustc(scratch).map(Built::alone),
        Program::Python => {
            ensure!(Path::new(PYTHON).exists(), "{PYTHON} is not installed");
            let args = vec!["-c".to_owned(), PYTHON_SOURCE.to_owned()];
            Ok(Built { path: PYTHON.into(), args, shares: SYSTEM.map(PathBuf::from).to_vec() })
        }
    }
}

/// For the wasm engine.
pub(super) fn wasm(program: Program, scratch: &Path) -> Result<Built> {
    let c = |source| clang(scratch, program.name(), source).map(Built::alone);
    match program {
        Program::Hello => c(include_str!("programs/hello.c")),
        Program::Large => c(include_str!("programs/large.c")),
        Program::Rust => {
            let path = scratch.join("rust.wasm");
            fs::write(&path, WORDCOUNT_WASM)?;
            Ok(Built::alone(path))
        }
        Program::Python => anyhow::bail!("no WebAssembly build of CPython is made here"),
    }
}

fn gcc(scratch: &Path, name: &str, source: &str) -> Result<PathBuf> {
    fs::write(scratch.join("fork.h"), include_str!("programs/fork.h"))?;
    let (from, to) = (scratch.join(format!("{name}.c")), scratch.join(name));
    if to.exists() {
        return Ok(to);
    }
    fs::write(&from, source)?;
    build(Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&to).arg(&from))?;
    Ok(to)
}

fn clang(scratch: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (from, to) = (scratch.join(format!("{name}-wasm.c")), scratch.join(format!("{name}.wasm")));
    if to.exists() {
        return Ok(to);
    }
    fs::write(&from, source)?;
    build(Command::new("clang").args(["--target=wasm32-wasi", "-O2", "-o"]).arg(&to).arg(&from))?;
    Ok(to)
}

fn rustc(scratch: &Path) -> Result<PathBuf> {
    let (from, to) = (scratch.join("rust.rs"), scratch.join("rust"));
    if to.exists() {
        return Ok(to);
    }
    let program = WORDCOUNT_SOURCE.replace("fn main()", "pub fn main()");
    fs::write(&from, format!("mod program {{\n{program}\n}}\n{}", include_str!("programs/fork.rs")))?;
    let flags = ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-o"];
    build(Command::new("rustc").args(flags).arg(&to).arg(&from))?;
    Ok(to)
}

fn build(command: &mut Command) -> Result<()> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{tool} does not start; install it"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    let first = words.lines().find(|line| line.contains("error")).unwrap_or_default();
    ensure!(output.status.success(), "{tool} cannot build it here: {}", first.trim());
    Ok(())
}
