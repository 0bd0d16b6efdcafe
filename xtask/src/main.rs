//! Chores of this repository: `cargo xtask test`.

mod test;

use std::process::ExitCode;

use clap::Parser;

/// Chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run every test of the workspace and say what was skipped.
    Test(test::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Task::parse() {
        Task::Test(args) => test::run(&args),
    }
}
