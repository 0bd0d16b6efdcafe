//! Chores of this repository: `cargo xtask test`, `cargo xtask rig`.

mod rig;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run every test of the workspace and say what was skipped.
    Test(test::Args),
    /// Run a program, or tests, on hardware-style KVM emulated by QEMU.
    Rig(rig::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Task::parse() {
        Task::Test(args) => test::run(&args),
        Task::Rig(args) => rig::run(&args),
    }
}
