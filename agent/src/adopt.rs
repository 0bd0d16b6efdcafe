//! Becoming itself after a restore: randomness, time, name and ids, before anything else is done for the host.
//!
//! Ids that a kernel or an image keeps in a file are covered by a file of ours, whose text each restore replaces:
//!
//! ```text
//! /dev/.novum/boot_id ── bind mount ──> /proc/sys/kernel/random/boot_id
//! /dev/.novum/machine-id ─────────────> /etc/machine-id
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use novum_proto::guest::v1::Adopt;

use crate::boot::doing;
use crate::{setup, sys};

/// Where our files lie; on a file system of the kernel's own, which no share shows.
const FILES: &str = "/dev/.novum";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// Does all of it, randomness first: nothing is drawn before.
pub(crate) fn apply(adopt: &Adopt) -> io::Result<()> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is missing"));
    setup::reseed(adopt.entropy.as_ref().ok_or_else(|| missing("entropy"))?)?;
    setup::set_clock(adopt.clock.as_ref().ok_or_else(|| missing("the time"))?)?;
    setup::set_host_name(&adopt.hostname)?;
    cover(BOOT_ID, "boot_id", &adopt.boot_id)?;
    set_machine_id(&adopt.machine_id)?;
    adopt.network.as_ref().map_or(Ok(()), setup::set_network)
}

/// From now on this is the machine's id; as it is where `id` is empty.
pub(crate) fn set_machine_id(id: &str) -> io::Result<()> {
    if id.is_empty() {
        return Ok(());
    }
    if !Path::new(MACHINE_ID).exists() {
        fs::write(MACHINE_ID, "").map_err(|error| doing(format!("making {MACHINE_ID}"), &error))?;
    }
    cover(MACHINE_ID, "machine-id", id)
}

/// From now on `place` reads `text` and a line end.
fn cover(place: &str, name: &str, text: &str) -> io::Result<()> {
    let file = format!("{FILES}/{name}");
    let work = || {
        let covered = Path::new(&file).exists();
        if !covered {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(FILES)?;
        }
        fs::write(&file, format!("{text}\n"))?;
        if !covered {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
            sys::mount(&file, place, "", libc::MS_BIND, "")?;
        }
        Ok(())
    };
    work().map_err(|error: io::Error| doing(format!("covering {place}"), &error))
}
