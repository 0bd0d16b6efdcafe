//! Container images at rest: a local OCI image layout or a docker-save archive becomes a directory.
//!
//! ```text
//! Source (blobs.rs) ── manifest.rs ── which layers ──┐
//!  directory or tar     OCI index or manifest.json    ├─ layer.rs: one tar after the other ── tree.rs: the root
//!                       config.rs ── what to run ─────┘   digests checked, sizes counted       no path leaves it
//! store.rs: images by name, published whole
//! ```
//! Nothing here trusts the image: every name in it is one of a hostile writer. No network is used.
//!
//! Sources: OCI image-spec 1.1 (image-layout.md, manifest.md, config.md, layer.md); Docker's `manifest.json` as
//! `docker save` writes it.

mod blobs;
mod config;
mod digest;
mod error;
mod layer;
mod manifest;
mod meter;
mod store;
mod tree;

use std::path::Path;

pub use config::ImageConfig;
pub use error::Error;
pub use layer::Notes;
pub use store::{Image, Store, import_to};

use blobs::Source;
use layer::Applier;
use meter::Meter;
use tree::Tree;

/// Most of what an image may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all layers, uncompressed.
    pub bytes: u64,
    /// Entries of all layers: files, directories, links, whiteouts.
    pub entries: u64,
}

impl Default for Limits {
    /// 16 GiB and two million entries.
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 2_000_000 }
    }
}

/// What an import was made of.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What the image wants to run, and how.
    pub config: ImageConfig,
    /// What was left out.
    pub notes: Notes,
}

/// Unpacks the image at `from` (a directory or a tar, see the crate's documentation) into the empty directory `root`.
/// `reference` chooses among several images.
///
/// # Errors
/// See [`Error`]; `root` is then half full.
pub fn unpack(from: &Path, reference: Option<&str>, root: &Path, limits: Limits) -> Result<Imported, Error> {
    let mut meter = Meter::new(limits);
    let source = Source::open(from, &meter)?;
    let image = manifest::read(&source, reference)?;
    let config = config::read(&image)?;
    let diff_ids = config::diff_ids(&image)?;
    if diff_ids.len() != image.layers.len() {
        let (layers, ids) = (image.layers.len(), diff_ids.len());
        return Err(Error::Image(format!("it has {layers} layers, but its configuration knows {ids}")));
    }
    let mut applier = Applier::new(Tree::open(root)?);
    for (layer, diff_id) in image.layers.iter().zip(&diff_ids) {
        applier.apply(&source, layer, diff_id, &mut meter)?;
    }
    let notes = applier.finish()?;
    Ok(Imported { config, notes })
}
