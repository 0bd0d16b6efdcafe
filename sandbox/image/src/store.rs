//! Imported images by name.
//!
//! ```text
//! STORE/<hex of the image's id>/image.json     what to run, and how (ImageConfig)
//! STORE/<hex of the image's id>/root/          the unpacked root
//! STORE/names/<name, `/` as %2F>               a link to ../<hex>
//! ```
//! An image is unpacked into a temporary folder and renamed when it is whole, so that nobody sees half of one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::{Error, ImageConfig, Imported, Limits, Notes, unpack};

const CONFIG: &str = "image.json";
const ROOT: &str = "root";
const NAMES: &str = "names";
const MAX_NAME: usize = 200;

/// A folder of images.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// An imported image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its folder: [`Image::root`] and the configuration are in it.
    pub folder: PathBuf,
    /// What to run, and how.
    pub config: ImageConfig,
}

impl Image {
    /// Opens the image in `folder`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(CONFIG);
        let bytes = fs::read(&path).map_err(Error::file("reading", &path))?;
        let config =
            serde_json::from_slice(&bytes).map_err(|error| Error::Image(format!("{CONFIG}: {error}")))?;
        Ok(Self { folder: folder.to_owned(), config })
    }

    /// The unpacked root directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }
}

/// Imports `from` into the new folder `to`, which gets `root/` and `image.json`.
///
/// # Errors
/// See [`Error`]; nothing is left then.
pub fn import_to(
    from: &Path,
    reference: Option<&str>,
    to: &Path,
    limits: Limits,
) -> Result<(Image, Notes), Error> {
    if to.exists() {
        return Err(Error::Choice(format!("{} is there already; name a new folder", to.display())));
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (folder, imported) = import_below(from, reference, parent, limits)?;
    publish(folder, to)?;
    Ok((Image { folder: to.to_owned(), config: imported.config }, imported.notes))
}

fn import_below(
    from: &Path,
    reference: Option<&str>,
    parent: &Path,
    limits: Limits,
) -> Result<(tempfile::TempDir, Imported), Error> {
    fs::create_dir_all(parent).map_err(Error::file("making", parent))?;
    let folder = tempfile::Builder::new().prefix(".incoming-").tempdir_in(parent);
    let folder = folder.map_err(Error::file("making a folder in", parent))?;
    let root = folder.path().join(ROOT);
    fs::create_dir(&root).map_err(Error::file("making", &root))?;
    let imported = unpack(from, reference, &root, limits)?;
    let text =
        serde_json::to_vec_pretty(&imported.config).map_err(|error| Error::Image(error.to_string()))?;
    let path = folder.path().join(CONFIG);
    fs::write(&path, text).map_err(Error::file("writing", &path))?;
    Ok((folder, imported))
}

fn publish(folder: tempfile::TempDir, to: &Path) -> Result<(), Error> {
    // Made for its owner alone; an image's root is no secret.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).map_err(Error::file("opening", to))?;
    fs::rename(folder.path(), to).map_err(Error::file("publishing", to))?;
    // Nothing is left at its old path.
    let _ = folder.keep();
    Ok(())
}

impl Store {
    /// The store in `folder`, which need not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Imports an image under `name`, or under the source's own name for it; an image that had that name loses it.
    ///
    /// # Errors
    /// See [`Error`]; the store is then as before.
    pub fn import(
        &self,
        from: &Path,
        reference: Option<&str>,
        name: Option<&str>,
        limits: Limits,
    ) -> Result<(Image, Notes), Error> {
        name.map(check_name).transpose()?;
        let (folder, imported) = import_below(from, reference, &self.folder, limits)?;
        let Imported { config, notes } = imported;
        let id = Digest::try_from(config.id.clone()).map_err(Error::Image)?;
        let name = name.or(config.reference.as_deref()).unwrap_or(&id.hex()[..12]).to_owned();
        let link = self.link(&name)?;
        let target = self.folder.join(id.hex());
        if Image::open(&target).is_ok() {
            // The same image: what is there may be in use.
            drop(folder);
        } else {
            publish(folder, &target)?;
        }
        point(&link, &Path::new("..").join(id.hex()))?;
        Ok((Image { folder: target, config }, notes))
    }

    /// The image of this name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn get(&self, name: &str) -> Result<Image, Error> {
        let link = self.link(name)?;
        let folder = fs::canonicalize(&link).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::Choice(format!("there is no image {name:?}; see `novum image list`"))
            }
            _ => Error::File { doing: "opening", path: link, source: error },
        })?;
        Image::open(&folder)
    }

    /// Names and images, by name.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(String, Image)>, Error> {
        let folder = self.folder.join(NAMES);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::file("reading", &folder))?,
        };
        let mut images = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::file("reading", &folder))?.file_name();
            let Some(name) = name.to_str().map(|name| name.replace("%2F", "/")) else { continue };
            // A name whose image is being removed.
            if let Ok(image) = self.get(&name) {
                images.push((name, image));
            }
        }
        images.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(images)
    }

    /// Takes the name away, and the image where no other name has it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let image = self.get(name)?;
        let link = self.link(name)?;
        fs::remove_file(&link).map_err(Error::file("removing", &link))?;
        if self.list()?.iter().any(|(_, other)| other.folder == image.folder) {
            return Ok(());
        }
        fs::remove_dir_all(&image.folder).map_err(Error::file("removing", &image.folder))
    }

    fn link(&self, name: &str) -> Result<PathBuf, Error> {
        check_name(name)?;
        Ok(self.folder.join(NAMES).join(name.replace('/', "%2F")))
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.chars().all(plain) {
        Ok(())
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

/// Makes or replaces a link at once.
fn point(link: &Path, target: &Path) -> Result<(), Error> {
    let folder = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::file("making", folder))?;
    let fresh = tempfile::Builder::new()
        .prefix(".link-")
        .make_in(folder, |path| std::os::unix::fs::symlink(target, path));
    let fresh = fresh.map_err(Error::file("making", link))?.into_temp_path();
    fs::rename(&fresh, link).map_err(Error::file("making", link))?;
    // Nothing is left at its old path.
    let _ = fresh.keep();
    Ok(())
}
