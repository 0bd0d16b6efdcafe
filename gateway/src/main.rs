//! The `novum` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    novum::cli::main()
}
