//! PID 1 of a novum Linux guest.
//!
//! ```text
//! kernel ── /init (main.rs) ── boot.rs   /proc /sys /dev, modules, the stream to the host
//!                            ├ setup.rs   the root from shared directories, clock, randomness, network card
//!                            ├ adopt.rs   after a restore: what makes it another than its siblings
//!                            └ session.rs one loop: messages of the host, commands (command.rs), children that end
//! ```
//! It speaks `novum.guest.v1` (proto/), is one static executable in the initramfs, and has one thread that sleeps in one
//! poll(2). When the host goes away, or anything fails that the guest cannot do without, it says why and powers off.

mod adopt;
mod boot;
mod command;
mod files;
mod link;
mod session;
mod setup;
mod sys;
mod waiting;

use std::io::Write;
use std::process::ExitCode;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        say(
            "novum-agent is PID 1 of a Linux guest and nothing else; `novum run` runs programs on this machine",
        );
        return ExitCode::from(USAGE);
    }
    if let Err(error) = boot::boot().and_then(session::serve) {
        say(&format!("novum-agent: {error}"));
    }
    sys::power_off()
}

/// To the kernel's console. It may be closed; there is nobody else to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
