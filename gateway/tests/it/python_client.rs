//! The gateway serves a client that is not ours: `tests/python/test_gateway.py` runs against the real binary, with
//! grpcio from PyPI in a virtual environment below `target/`.
//!
//! Skipped where python3 or PyPI is missing, unless `NOVUM_REQUIRE_PYTHON=1`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::Gateway;
use crate::skip::skipped;

const PROTOS: [&str; 2] = ["novum/gateway/v1/functions.proto", "novum/gateway/v1/admin.proto"];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command; what it printed is the error where it fails.
fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text =
        || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{command:?}: {}\n{}", output.status, text()))
    }
}

/// A Python with everything in requirements.txt; made once for each content of that file.
fn python(scratch: &Path) -> Result<PathBuf, String> {
    let requirements = here().join("tests/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    let venv = scratch.join("venv");
    let (python, made) = (venv.join("bin/python"), venv.join("made-for.txt"));
    if fs::read_to_string(&made).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements))?;
    fs::write(made, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// The client's code, generated from the same `.proto` files by grpc_tools.
fn generate(python: &Path, code: &Path) -> Result<(), String> {
    fs::create_dir_all(code).map_err(|error| error.to_string())?;
    let mut protoc = Command::new(python);
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(here().join("../proto/proto"));
    protoc.arg("--python_out").arg(code).arg("--grpc_python_out").arg(code).args(PROTOS);
    run(&mut protoc).map(drop)
}

#[test]
fn grpcio_deploys_invokes_streams_and_reads_error_details() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-client");
    let code = scratch.join("code");
    let python = match python(&scratch).and_then(|python| generate(&python, &code).map(|()| python)) {
        Ok(python) => python,
        Err(why) if std::env::var_os("NOVUM_REQUIRE_PYTHON").is_some_and(|value| value == "1") => {
            panic!("{why}")
        }
        Err(why) => {
            let line = why.lines().next().unwrap_or_default();
            return skipped("python_client", &format!("no Python with grpcio: {line}"));
        }
    };
    let gateway = Gateway::start(&[]);
    let tests = run(Command::new(python)
        .args(["-m", "unittest", "--verbose", "test_gateway"])
        .current_dir(here().join("tests/python"))
        .env("PYTHONPATH", &code)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NOVUM_ADDRESS", gateway.address.to_string())
        .env("NOVUM_EXAMPLES", here().join("../examples")));
    match tests {
        Ok(output) => eprint!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(why) => panic!("{why}"),
    }
}
