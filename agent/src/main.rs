//! PID 1 of a novum Linux guest.
//!
//! The linux engine boots kernels but does not run functions yet, so the agent has no host to speak to: it says so and
//! powers the guest off, which the VMM tells apart from a crash. Anywhere else than as PID 1 it refuses to run.

use std::io::Write;
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        say(
            "novum-agent is PID 1 of a Linux guest and nothing else; `novum run` runs programs on this machine",
        );
        return ExitCode::from(USAGE);
    }
    say("novum-agent: this version has nothing to do in a guest; powering off");
    rustix::fs::sync();
    // Returning from PID 1 is a kernel panic, which the VMM reports as what it is.
    match reboot(RebootCommand::PowerOff) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Standard error may be closed this early; there is nobody else to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
