//! Builds the agent and packs it: a cargo of its own, because the agent is linked statically and made small whatever the profile of
//! this build is. It has a target directory of its own beside ours, so neither waits for the other's lock, and builds of
//! several profiles share it.

use std::path::{Path, PathBuf};
use std::process::Command;

use novum_kernel::cpio::Cpio;

/// What the outer cargo sets for this build and the inner one must decide by itself.
const NOT_INHERITED: &[&str] = &[
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    for watched in ["agent/src", "agent/Cargo.toml", "proto/src/guest", "proto/Cargo.toml", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", workspace.join(watched).display());
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let (target, folder) = (variable("TARGET"), target_folder(&out));
    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(&workspace).args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "novum-agent",
        "--profile",
        "agent",
    ]);
    // With --target these flags are the agent's alone; without it build scripts and macros would get them too.
    cargo.args(["--target", &target]).arg("--target-dir").arg(&folder);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().expect("cargo can be started again");
    assert!(status.success(), "the agent does not build");
    let built = folder.join(target).join("agent/novum-agent");
    let agent = std::fs::read(&built).expect("the agent was built");
    std::fs::write(out.join("initramfs"), initramfs(&agent)).expect("cargo made the folder");
}

/// The archive, in whole pages; the kernel skips zeros behind it.
fn initramfs(agent: &[u8]) -> Vec<u8> {
    let mut cpio = Cpio::new();
    for folder in ["dev", "proc", "sys"] {
        cpio.folder(folder, 0o755);
    }
    cpio.device("dev/console", 0o600, 5, 1).file("init", 0o755, agent);
    let mut archive = cpio.finish();
    archive.resize(archive.len().next_multiple_of(4096), 0);
    archive
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// `target/agent-image`, for an `OUT_DIR` of `target/PROFILE/build/NAME/out` (or with the target's name in between).
fn target_folder(out: &Path) -> PathBuf {
    let profile = out.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "build"));
    profile.and_then(|build| build.parent()?.parent()).unwrap_or(out).join("agent-image")
}
