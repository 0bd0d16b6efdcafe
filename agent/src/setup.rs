//! What the host wants the guest to be: its root from shared directories, its name, its time, its randomness.
//!
//! ```text
//! /layer/0 … (9p, read-only) ─┐
//! /top (upper, work) ─────────┴─ overlay ─ /root ── becomes /
//!   a tmpfs, or a directory of the host over virtio-fs, which has attributes of users only
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use novum_proto::guest::v1::{Clock, Entropy, Mount, Network, Root, Setup};

use crate::boot::doing;
use crate::sys;

const NEW_ROOT: &str = "/root";
const TOP: &str = "/top";
/// What the kernel's file systems are moved to. On top of the layers they are empty directories that hide the layers'
/// own: where a layer is some machine's `/`, those are mount points, which a share does not show.
const MOVED: [&str; 3] = ["proc", "sys", "dev"];

/// Options of a 9p mount: the protocol, the largest message, one identity for all users (the guest's kernel checks
/// permissions by itself).
const OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,access=any";
/// A read-only layer does not change under the guest, so everything may be kept.
const CACHED: &str = "cache=loose";
/// What others may change is kept only while it is mapped.
const SHARED: &str = "cache=mmap";

/// Does all of it.
pub(crate) fn apply(setup: &Setup) -> io::Result<()> {
    if let Some(entropy) = &setup.entropy {
        reseed(entropy)?;
    }
    if let Some(clock) = &setup.clock {
        set_clock(clock)?;
    }
    set_host_name(&setup.hostname)?;
    make_root(setup.root.as_ref().unwrap_or(&Root::default()))?;
    setup.mounts.iter().try_for_each(add_mount)?;
    setup.network.as_ref().map_or(Ok(()), set_network)
}

/// Mixes the host's bytes into the kernel's generator, which begins anew with them.
pub(crate) fn reseed(entropy: &Entropy) -> io::Result<()> {
    sys::Generator::open()
        .and_then(|generator| generator.reseed(&entropy.bytes))
        .map_err(|error| doing("reseeding".into(), &error))
}

/// Sets the wall clock.
pub(crate) fn set_clock(clock: &Clock) -> io::Result<()> {
    sys::set_clock(clock.nanoseconds).map_err(|error| doing("setting the clock".into(), &error))
}

/// Sets the host's name, where there is one.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    sys::set_host_name(name).map_err(|error| doing("setting the host name".into(), &error))
}

/// Makes the network card what the host says.
pub(crate) fn set_network(network: &Network) -> io::Result<()> {
    sys::net::configure(network).map_err(|error| doing("setting up the network card".into(), &error))
}

fn make_root(root: &Root) -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    if root.layers.is_empty() {
        mount_9p(&root.writable, NEW_ROOT, false, SHARED)?;
    } else {
        lay_over(&root.layers, &root.upper)?;
    }
    for name in MOVED {
        let place = format!("{NEW_ROOT}/{name}");
        fs::create_dir_all(&place).map_err(|error| doing(format!("making /{name}"), &error))?;
        sys::mount(&format!("/{name}"), &place, "", libc::MS_MOVE, "")
            .map_err(|error| doing(format!("moving /{name}"), &error))?;
    }
    // The agent itself runs on; its file would only take up memory.
    let _ = fs::remove_file("/init");
    sys::switch_root(NEW_ROOT).map_err(|error| doing("changing the root".into(), &error))
}

/// The layers at [`NEW_ROOT`], with a tmpfs on top, or the directory that has the tag `kept`.
fn lay_over(layers: &[String], kept: &str) -> io::Result<()> {
    let mut lower = Vec::new();
    for (index, tag) in layers.iter().enumerate() {
        let place = format!("/layer/{index}");
        mount_9p(tag, &place, true, CACHED)?;
        lower.push(place);
    }
    fs::create_dir_all(TOP)?;
    let (names, more) = if kept.is_empty() {
        sys::mount("tmpfs", TOP, "tmpfs", 0, "mode=755")
            .map_err(|error| doing("mounting a tmpfs".into(), &error))?;
        ("trusted", "")
    } else {
        sys::mount(kept, TOP, "virtiofs", 0, "")
            .map_err(|error| doing("mounting the directory for what is written".into(), &error))?;
        ("user", ",userxattr")
    };
    let (upper, work) = (format!("{TOP}/upper"), format!("{TOP}/work"));
    let mut folder = fs::DirBuilder::new();
    folder.mode(0o755).recursive(true).create(&work)?;
    for name in MOVED {
        let place = format!("{upper}/{name}");
        folder.create(&place)?;
        sys::hide_lower(&place, names).map_err(|error| doing(format!("hiding /{name}"), &error))?;
    }
    let options = format!("lowerdir={},upperdir={upper},workdir={work}{more}", lower.join(":"));
    sys::mount("overlay", NEW_ROOT, "overlay", 0, &options)
        .map_err(|error| doing("laying the directories over each other".into(), &error))
}

fn add_mount(mount: &Mount) -> io::Result<()> {
    if !Path::new(&mount.target).is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{:?} is no absolute path", mount.target),
        ));
    }
    mount_9p(&mount.tag, &mount.target, mount.read_only, SHARED)
}

fn mount_9p(tag: &str, place: &str, read_only: bool, cache: &str) -> io::Result<()> {
    fs::create_dir_all(place).map_err(|error| doing(format!("making {place}"), &error))?;
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    sys::mount(tag, place, "9p", flags, &format!("{OPTIONS},{cache}"))
        .map_err(|error| doing(format!("mounting the shared directory {tag:?} at {place}"), &error))
}
