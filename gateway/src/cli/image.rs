//! `novum image`: container images as root directories of Linux guests.

use std::path::PathBuf;

use clap::Subcommand;
use novum_image::{Image, Limits, Notes, Store, import_to};
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::output;
use crate::units::parse_size;

/// Import, list and remove container images
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  skopeo copy docker://debian:12 oci:debian:12       any tool that writes an OCI image layout
  novum image import debian                          unpacks it into the store, under the image's own name
  docker save alpine | novum image import /dev/stdin --name alpine
  novum image import app.tar --to ./app              into a folder: app/root and app/image.json
  novum image list
  novum image show alpine")]
pub(super) struct Args {
    /// Where images are kept [default: $XDG_CACHE_HOME/novum/images or ~/.cache/novum/images]
    #[arg(long, global = true, value_name = "DIR", env = "NOVUM_IMAGE_DIR")]
    image_dir: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Unpack a local OCI image layout (directory or tar) or a docker-save archive
    Import(Import),
    /// List what is there
    List,
    /// Show an image's folder and what it wants to run
    Show {
        /// The image's name
        name: String,
    },
    /// Remove an image
    Remove {
        /// The image's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Import {
    /// A directory with an OCI image layout, or a tar of one, or what `docker save` wrote; it may be compressed with gzip
    from: PathBuf,
    /// Which of several images: its name there, or the digest of its manifest
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    /// Under which name to keep it [default: the image's own name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Unpack into this new folder instead of the store
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    to: Option<PathBuf>,
    /// Most bytes of all layers, uncompressed
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_size)]
    max_size: u64,
    /// Most files, directories and links of all layers
    #[arg(long, value_name = "N", default_value_t = Limits::default().entries)]
    max_entries: u64,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let folder = args.image_dir.clone();
    let folder = folder.map_or_else(|| super::run::default_cache_dir().map(|dir| dir.join("images")), Ok)?;
    let store = Store::new(folder);
    match &args.what {
        What::Import(wanted) => import(global, &store, wanted)?,
        What::List => list(global, &store)?,
        What::Show { name } => show(global, name, &store.get(name)?)?,
        What::Remove { name } => store.remove(name)?,
    }
    Ok(0)
}

fn import(global: &Global, store: &Store, wanted: &Import) -> Result<(), Error> {
    let limits = Limits { bytes: wanted.max_size, entries: wanted.max_entries };
    let (reference, name) = (wanted.reference.as_deref(), wanted.name.as_deref());
    let (image, notes) = match &wanted.to {
        Some(folder) => import_to(&wanted.from, reference, folder, limits)?,
        None => store.import(&wanted.from, reference, name, limits)?,
    };
    tell(&notes);
    match global.json {
        true => output::json_line(&json!({
            "action": "import", "root": image.root(), "config": config(&image), "entries": notes.entries,
            "skipped": notes.skipped, "set_id_dropped": notes.set_id,
        })),
        false => output::line(image.root().display()),
    }
}

/// What is not as it was in the image.
fn tell(notes: &Notes) {
    if let Some(first) = notes.skipped.first() {
        let count = notes.skipped.len();
        output::note(format_args!("{count} device nodes and pipes were left out, the first {first:?}"));
    }
    if notes.set_id > 0 {
        output::note(format_args!("{} files lost their set-user-ID or set-group-ID bit", notes.set_id));
    }
}

fn config(image: &Image) -> Value {
    serde_json::to_value(&image.config).unwrap_or_default()
}

fn list(global: &Global, store: &Store) -> Result<(), Error> {
    for (name, image) in store.list()? {
        match global.json {
            true => output::json_line(&json!({ "name": name, "root": image.root(), "id": image.config.id }))?,
            false => output::line(format_args!("{name:<40} {}", image.root().display()))?,
        }
    }
    Ok(())
}

fn show(global: &Global, name: &str, image: &Image) -> Result<(), Error> {
    if global.json {
        return output::json_line(&json!({ "name": name, "root": image.root(), "config": config(image) }));
    }
    let config = &image.config;
    // Quoted: an image's words are its maker's, a terminal's control characters among them.
    let lines = [
        ("id", config.id.clone()),
        ("root", image.root().display().to_string()),
        ("command", format!("{:?}", config.command(&[]))),
        ("workdir", format!("{:?}", config.workdir)),
        ("user", format!("{:?}", config.user)),
        ("env", format!("{:?}", config.env)),
    ];
    lines.iter().try_for_each(|(key, value)| output::line(format_args!("{key:<9} {value}")))
}
