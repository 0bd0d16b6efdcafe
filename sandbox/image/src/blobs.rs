//! Where an image's files come from: a directory, or a tar of one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use tar::EntryType;

use crate::Error;
use crate::meter::Meter;

/// Longest JSON document that is read.
const DOCUMENT_BYTES: u64 = 4 << 20;
/// Most files in an archive of an image: far more than any has layers.
const ARCHIVE_ENTRIES: usize = 100_000;
/// Links in an archive that lead to links.
const LINK_HOPS: usize = 8;
/// The first bytes of a gzip stream, and of a zstd one.
pub(crate) const GZIP: [u8; 2] = [0x1f, 0x8b];
pub(crate) const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An image's files by name.
pub(crate) enum Source {
    /// An unpacked one.
    Directory(PathBuf, OwnedFd),
    /// A tar, with the place of each of its files.
    Archive(PathBuf, File, HashMap<String, Place>),
}

/// Where a file is in the archive.
pub(crate) enum Place {
    Content { start: u64, length: u64 },
    Link(String),
}

impl Source {
    /// Opens a directory or a tar; one that is compressed as a whole is decompressed into a temporary file first.
    pub(crate) fn open(path: &Path, meter: &Meter) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::file("opening", path))?;
        let kind = file.metadata().map_err(Error::file("opening", path))?.file_type();
        if kind.is_dir() {
            return Ok(Self::Directory(path.to_owned(), file.into()));
        }
        let file = match kind {
            kind if kind.is_file() => file,
            kind if kind.is_fifo() => spooled(path, file, meter)?,
            _ => return Err(no_image(path, "; it is neither a file nor a directory")),
        };
        let file = plain_tar(path, file, meter)?;
        let places = index(path, &file)?;
        Ok(Self::Archive(path.to_owned(), file, places))
    }

    /// What the user gave.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Directory(path, _) | Self::Archive(path, ..) => path,
        }
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.read(name).is_ok()
    }

    /// Reads the file `name`, a relative path that may be the image's own invention.
    pub(crate) fn read(&self, name: &str) -> Result<Box<dyn Read + '_>, Error> {
        let failed = |source| Error::File { doing: "reading from the image", path: name.into(), source };
        match self {
            Self::Directory(_, root) => beneath(root, name).map(|file| Box::new(file) as _).map_err(failed),
            Self::Archive(_, file, places) => {
                let (start, length) =
                    find(places, name).ok_or(io::ErrorKind::NotFound.into()).map_err(failed)?;
                let mut file = file;
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                Ok(Box::new(BufReader::with_capacity(64 << 10, file.take(length))))
            }
        }
    }

    /// Reads a whole JSON document.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = self.read(name)?.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(Error::file("reading from the image", Path::new(name)))?;
        if bytes.len() as u64 > DOCUMENT_BYTES {
            return Err(Error::Image(format!("{name} is longer than {DOCUMENT_BYTES} bytes")));
        }
        Ok(bytes)
    }
}

/// An [`Error::NoImage`].
pub(crate) fn no_image(path: &Path, hint: &str) -> Error {
    Error::NoImage { path: path.to_owned(), hint: hint.to_owned() }
}

/// A regular file beneath `root`; links inside may be followed (older `docker save` archives have them), none leaves.
fn beneath(root: &OwnedFd, name: &str) -> io::Result<File> {
    // O_NONBLOCK: should it be a FIFO, the open does not wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let scope = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(root, name, flags, Mode::empty(), scope)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile => Ok(fd.into()),
        _ => Err(io::Error::other("not a regular file")),
    }
}

fn plain_tar(path: &Path, mut file: File, meter: &Meter) -> Result<File, Error> {
    let mut magic = [0; 4];
    let got = file.read(&mut magic).map_err(Error::file("reading", path))?;
    file.rewind().map_err(Error::file("reading", path))?;
    if got == 4 && magic == ZSTD {
        return Err(no_image(path, "; decompress it with `zstd -d` first"));
    }
    if got < 2 || magic[..2] != GZIP {
        return Ok(file);
    }
    spooled(path, MultiGzDecoder::new(BufReader::new(file)), meter)
}

/// What comes out of `from` in a temporary file, so that it can be read in any order.
fn spooled(path: &Path, from: impl Read, meter: &Meter) -> Result<File, Error> {
    let mut file = tempfile::tempfile().map_err(Error::file("making a temporary file for", path))?;
    // A meter of its own: the layers are counted when they are unpacked.
    let copied = io::copy(&mut meter.afresh().reader(from), &mut file);
    copied.map_err(|error| meter.explain(error, Error::file("reading", path)))?;
    file.rewind().map_err(Error::file("reading", path))?;
    Ok(file)
}

fn index(path: &Path, file: &File) -> Result<HashMap<String, Place>, Error> {
    let broken = |error: io::Error| no_image(path, &format!("; as a tar it cannot be read: {error}"));
    let mut file = file;
    file.rewind().map_err(Error::file("reading", path))?;
    let mut places = HashMap::new();
    let mut archive = tar::Archive::new(file);
    // Raw: names of any length are the layers' business, the archive's own are short.
    for entry in archive.entries_with_seek().map_err(broken)?.raw(true) {
        let entry = entry.map_err(broken)?;
        if places.len() >= ARCHIVE_ENTRIES {
            return Err(no_image(path, &format!("; it has more than {ARCHIVE_ENTRIES} files")));
        }
        let bytes = entry.path_bytes();
        let Ok(name) = std::str::from_utf8(&bytes) else { continue };
        let name = normal(Path::new(name));
        let place = match entry.header().entry_type() {
            EntryType::Regular => Place::Content { start: entry.raw_file_position(), length: entry.size() },
            EntryType::Symlink => {
                let Some(target) = entry.link_name().map_err(broken)? else { continue };
                let folder = Path::new(&name).parent().unwrap_or(Path::new(""));
                Place::Link(normal(&folder.join(target)))
            }
            EntryType::Link => {
                let Some(target) = entry.link_name().map_err(broken)? else { continue };
                Place::Link(normal(&target))
            }
            _ => continue,
        };
        places.insert(name, place);
    }
    Ok(places)
}

/// `a/./b/../c` as `a/c`: only a key of the index, never a path of the host.
fn normal(path: &Path) -> String {
    use std::path::Component;
    let mut names: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    names.join("/")
}

fn find(places: &HashMap<String, Place>, name: &str) -> Option<(u64, u64)> {
    let mut name = normal(Path::new(name));
    for _ in 0..LINK_HOPS {
        match places.get(&name)? {
            Place::Content { start, length } => return Some((*start, *length)),
            Place::Link(target) => name.clone_from(target),
        }
    }
    None
}
