//! From the kernel's hand to a stream to the host: what every guest needs before it knows what it is to become.

use std::fs;
use std::io;

use novum_proto::guest::PORT;

use crate::link::Link;
use crate::sys;

/// The host's address (VIRTIO 1.2 §5.10.4).
const HOST_CID: u32 = 2;
/// Where the host puts the modules of a kernel that has everything in modules, named in the order of insertion.
const MODULES: &str = "/modules";

/// (type, place, options) of the kernel's own file systems.
const FILE_SYSTEMS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=755"),
    ("devpts", "/dev/pts", "ptmxmode=666,mode=620,gid=5"),
    ("tmpfs", "/dev/shm", "mode=1777"),
];

/// (link, text) of the names in `/dev` that programs expect and devtmpfs does not make.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts, inserts, connects.
pub(crate) fn boot() -> io::Result<Link> {
    for (kind, place, options) in FILE_SYSTEMS {
        fs::create_dir_all(place)?;
        match sys::mount(kind, place, kind, 0, options) {
            // A kernel with DEVTMPFS_MOUNT was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            other => other.map_err(|error| doing(format!("mounting {place}"), &error))?,
        }
    }
    for (link, text) in LINKS {
        // Without them most programs run.
        let _ = std::os::unix::fs::symlink(text, link);
    }
    insert_modules()?;
    // Programs talk to themselves over it; a guest without is still of use.
    let _ = sys::loopback_up();
    let stream =
        sys::connect(HOST_CID, PORT).map_err(|error| doing("connecting to the host".into(), &error))?;
    Ok(Link::new(stream))
}

fn insert_modules() -> io::Result<()> {
    let Ok(folder) = fs::read_dir(MODULES) else { return Ok(()) };
    let mut files: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let inserted = fs::File::open(&path).and_then(|file| sys::insert_module(&file));
        inserted.map_err(|error| doing(format!("inserting {}", path.display()), &error))?;
        // It is in the kernel now; its file would only take up memory.
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// `error` with what was being done.
pub(crate) fn doing(what: String, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
