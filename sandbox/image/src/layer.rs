//! One layer after the other, laid over what is there.
//!
//! Source: OCI image-spec 1.1 layer.md (change sets, whiteouts). Names and links that are longer than a tar header come
//! in entries before their file, in GNU's form or in pax's; they are read here with a bound, because the `tar` crate
//! reads them whole.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::Error;
use crate::blobs::{GZIP, Source, ZSTD};
use crate::digest::{Digest, Hashing};
use crate::manifest::Layer;
use crate::meter::Meter;
use crate::tree::{Attributes, Refused, Tree};

/// Longest pax header or GNU name.
const EXTENSION_BYTES: u64 = 64 << 10;
/// Begins the name of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins the names of aufs's own files, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";

/// What was left out of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Device nodes, FIFOs and sockets, by path: the guest's own /dev has what is needed.
    pub skipped: Vec<PathBuf>,
    /// Files that lost their set-user-ID or set-group-ID bit.
    pub set_id: u64,
    /// Files, directories and links that were made.
    pub entries: u64,
}

/// Most paths that are kept in [`Notes`].
const NOTED_PATHS: usize = 1000;

/// Lays layers over each other.
pub(crate) struct Applier {
    tree: Tree,
    notes: Notes,
    layer: usize,
}

/// What the entries before a file said about it.
#[derive(Default)]
struct Extension {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
}

impl Applier {
    pub(crate) fn new(tree: Tree) -> Self {
        Self { tree, notes: Notes::default(), layer: 0 }
    }

    /// Makes the result durable.
    pub(crate) fn finish(self) -> Result<Notes, Error> {
        self.tree.sync()?;
        Ok(self.notes)
    }

    /// Lays `layer` over what is there; `diff_id` is the digest of its tar.
    pub(crate) fn apply(
        &mut self,
        source: &Source,
        layer: &Layer,
        diff_id: &Digest,
        meter: &mut Meter,
    ) -> Result<(), Error> {
        self.layer += 1;
        self.tree.begin_layer();
        let what = format!("layer {}", self.layer);
        // Without a digest of its own the file is hashed for nothing; its content is checked by the other.
        let digest = layer.digest.as_ref().unwrap_or(diff_id);
        let limit = layer.size.unwrap_or(u64::MAX);
        let mut packed = Hashing::new(source.read(&layer.file)?.take(limit), digest);
        let plain = decompressed(&mut packed, self.layer)?;
        let mut plain = Hashing::new(meter.reader(plain), diff_id);
        self.entries(&mut plain, meter)?;
        // What lies behind the end of the archive belongs to the digest too.
        let drained = io::copy(&mut plain, &mut io::sink());
        drained.map_err(|error| meter.explain(error, |source| Error::Layer { layer: self.layer, source }))?;
        plain.finish(&what, diff_id)?;
        io::copy(&mut packed, &mut io::sink())
            .map_err(|source| Error::Layer { layer: self.layer, source })?;
        match &layer.digest {
            Some(digest) => packed.finish(&format!("{what}, as it is stored,"), digest),
            None => Ok(()),
        }
    }

    fn entries(&mut self, tar: &mut impl Read, meter: &mut Meter) -> Result<(), Error> {
        let layer = self.layer;
        let limits = meter.clone();
        let broken = move |error: io::Error| limits.explain(error, |source| Error::Layer { layer, source });
        let mut archive = tar::Archive::new(tar);
        let mut extension = Extension::default();
        for entry in archive.entries().map_err(&broken)?.raw(true) {
            let mut entry = entry.map_err(&broken)?;
            meter.entry()?;
            if extension.read(&mut entry).map_err(&broken)? {
                continue;
            }
            let Extension { path, link } = std::mem::take(&mut extension);
            let path = path.unwrap_or_else(|| bytes_path(&entry.path_bytes()));
            let link = link.or_else(|| entry.link_name_bytes().map(|bytes| bytes_path(&bytes)));
            self.entry(&path, link.as_deref(), &mut entry).map_err(|refused| match refused {
                Refused::Because(reason) => Error::Entry { layer, path, reason },
                Refused::Read(error) => broken(error),
                Refused::Host(source) => Error::File { doing: "unpacking", path, source },
            })?;
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        path: &Path,
        link: Option<&Path>,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), Refused> {
        let path = crate::tree::plain(path)?;
        let header = entry.header();
        let mode = header.mode().unwrap_or(0o755);
        let attributes = Attributes { mode, seconds: header.mtime().unwrap_or(0) };
        let kind = header.entry_type();
        let Some(name) = path.file_name().map(OsStrExt::as_bytes) else {
            // "./", the root itself.
            return if kind == EntryType::Directory { Ok(()) } else { Err("has no name".into()) };
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&path, name, hidden);
        }
        match kind {
            EntryType::Directory => self.tree.directory(&path, attributes)?,
            EntryType::Regular | EntryType::Continuous => {
                self.notes.set_id += u64::from(mode & 0o6000 != 0);
                let length = entry.size();
                self.tree.file(&path, attributes, entry, length)?;
            }
            EntryType::Symlink => self.tree.symlink(&path, target(link)?, attributes)?,
            EntryType::Link => self.tree.hard_link(&path, &crate::tree::plain(target(link)?)?)?,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if self.notes.skipped.len() < NOTED_PATHS {
                    self.notes.skipped.push(path);
                }
                return Ok(());
            }
            EntryType::XGlobalHeader => return Ok(()),
            other => {
                return Err(
                    format!("is of the kind {other:?}; only files, directories and links are taken").into()
                );
            }
        }
        self.notes.entries += 1;
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, name: &[u8], hidden: &[u8]) -> Result<(), Refused> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            return self.tree.clear(folder);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("hides something that is not a name".into());
        }
        self.tree.hide(folder, hidden)
    }
}

fn target(link: Option<&Path>) -> Result<&Path, Refused> {
    link.filter(|link| !link.as_os_str().is_empty()).ok_or_else(|| "is a link without a target".into())
}

fn bytes_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

impl Extension {
    /// True where `entry` only speaks of the next one.
    fn read<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(bytes_path(trimmed(&bounded(entry)?))),
            EntryType::GNULongLink => self.link = Some(bytes_path(trimmed(&bounded(entry)?))),
            EntryType::XHeader => self.pax(&bounded(entry)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> io::Result<()> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.path = Some(bytes_path(record.value_bytes())),
                b"linkpath" => self.link = Some(bytes_path(record.value_bytes())),
                b"size" => return Err(io::Error::other("files of 8 GiB and more are not taken")),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(io::Error::other("sparse files are not taken"));
                }
                // Owners, exact times, extended attributes: not kept.
                _ => {}
            }
        }
        Ok(())
    }
}

fn bounded<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    if entry.size() > EXTENSION_BYTES {
        return Err(io::Error::other(format!("a name of more than {EXTENSION_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Without the NULs that end a GNU name.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// What the layer's file holds: a tar, or a compressed one. The file itself says which, not the manifest.
fn decompressed<'a>(file: &'a mut impl Read, layer: usize) -> Result<Box<dyn Read + 'a>, Error> {
    let mut magic = Vec::new();
    let read = file.by_ref().take(4).read_to_end(&mut magic);
    read.map_err(|source| Error::Layer { layer, source })?;
    let (gzip, zstd) = (magic.starts_with(&GZIP), magic == ZSTD);
    let whole = io::Cursor::new(magic).chain(file);
    if zstd {
        let advice = "convert the image: skopeo copy --dest-compress-format gzip";
        return Err(Error::Unsupported(format!(
            "layer {layer} is compressed with zstd, which is not read; {advice}"
        )));
    }
    Ok(if gzip {
        Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(64 << 10, whole)))
    } else {
        Box::new(whole)
    })
}
