//! Chores of this repository: `cargo xtask test`, `cargo xtask rig`, `cargo xtask kernel`.

mod kernel;
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
    /// Build and import the kernels that the rig's tests boot.
    Kernel(kernel::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Task::parse() {
        Task::Test(args) => test::run(&args),
        Task::Rig(args) => rig::run(&args),
        Task::Kernel(args) => kernel::run(&args),
    }
}
