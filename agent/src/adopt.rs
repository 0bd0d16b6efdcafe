//! Becoming itself after a restore: randomness, time, name and ids, before anything else is done for the host.
//!
//! What it takes is opened and mounted when the guest is set up, and so is there when it is saved: becoming itself is a few
//! system calls on open files, as each page of memory that a restored guest touches first costs it more than the call does.
//!
//! Ids that a kernel or an image keeps in a file are covered by a file of ours, whose text each restore replaces:
//!
//! ```text
//! /dev/.novum/boot_id ── bind mount ──> /proc/sys/kernel/random/boot_id
//! /dev/.novum/machine-id ─────────────> /etc/machine-id      (from when one is first given)
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use novum_proto::guest::v1::Adopt;

use crate::boot::doing;
use crate::{setup, sys};

/// Where our files lie; on a file system of the kernel's own, which no share shows.
const FILES: &str = "/dev/.novum";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// What is ready for [`Adopter::apply`].
#[derive(Default)]
pub(crate) struct Adopter {
    generator: Option<sys::Generator>,
    boot_id: Option<File>,
    machine_id: Option<File>,
}

impl Adopter {
    /// Opens and covers what every restore needs. The guest keeps its boot id, and its machine's id where `machine_id` is empty.
    pub(crate) fn prepare(&mut self, machine_id: &str) -> io::Result<()> {
        let id = fs::read_to_string(BOOT_ID).map_err(|error| doing(format!("reading {BOOT_ID}"), &error))?;
        self.generator = Some(generator()?);
        self.boot_id = Some(cover(BOOT_ID, "boot_id", id.trim_end())?);
        self.set_machine_id(machine_id)
    }

    /// Does all of it, randomness first: nothing is drawn before.
    pub(crate) fn apply(&mut self, adopt: &Adopt) -> io::Result<()> {
        let missing = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is missing"));
        let entropy = adopt.entropy.as_ref().ok_or_else(|| missing("entropy"))?;
        let generator = match &self.generator {
            Some(generator) => generator,
            None => self.generator.insert(generator()?),
        };
        generator.reseed(&entropy.bytes).map_err(|error| doing("reseeding".into(), &error))?;
        setup::set_clock(adopt.clock.as_ref().ok_or_else(|| missing("the time"))?)?;
        setup::set_host_name(&adopt.hostname)?;
        show(&mut self.boot_id, BOOT_ID, "boot_id", &adopt.boot_id)?;
        self.set_machine_id(&adopt.machine_id)?;
        adopt.network.as_ref().map_or(Ok(()), setup::set_network)
    }

    /// From now on this is the machine's id; as it is where `id` is empty.
    fn set_machine_id(&mut self, id: &str) -> io::Result<()> {
        if id.is_empty() {
            return Ok(());
        }
        if self.machine_id.is_none() && !Path::new(MACHINE_ID).exists() {
            fs::write(MACHINE_ID, "").map_err(|error| doing(format!("making {MACHINE_ID}"), &error))?;
        }
        show(&mut self.machine_id, MACHINE_ID, "machine-id", id)
    }
}

fn generator() -> io::Result<sys::Generator> {
    sys::Generator::open().map_err(|error| doing("opening the generator".into(), &error))
}

/// From now on `place` reads `text` and a line end; `file` covers it, or does from now on.
fn show(file: &mut Option<File>, place: &str, name: &str, text: &str) -> io::Result<()> {
    match file {
        // An id is as long as the one before.
        Some(file) => write(file, text).map_err(|error| doing(format!("writing {place}"), &error)),
        None => {
            *file = Some(cover(place, name, text)?);
            Ok(())
        }
    }
}

/// Lays a file of ours over `place`.
fn cover(place: &str, name: &str, text: &str) -> io::Result<File> {
    let path = format!("{FILES}/{name}");
    let work = || {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(FILES)?;
        let file = File::options().write(true).create_new(true).mode(0o444).open(&path)?;
        write(&file, text)?;
        sys::mount(&path, place, "", libc::MS_BIND, "")?;
        Ok(file)
    };
    work().map_err(|error: io::Error| doing(format!("covering {place}"), &error))
}

fn write(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(format!("{text}\n").as_bytes(), 0)
}
