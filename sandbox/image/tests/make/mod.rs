//! Images made by hand, down to the bytes of their headers.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

/// An entry of a layer, as hostile as one likes.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: EntryType,
    pub(crate) link: String,
    pub(crate) body: Vec<u8>,
    pub(crate) mode: u32,
}

pub(crate) fn special(name: &str, kind: EntryType) -> Entry {
    Entry { name: name.into(), kind, link: String::new(), body: Vec::new(), mode: 0o755 }
}

pub(crate) fn file(name: &str, body: &str) -> Entry {
    Entry { body: body.into(), ..special(name, EntryType::Regular) }
}

pub(crate) fn dir(name: &str) -> Entry {
    special(name, EntryType::Directory)
}

pub(crate) fn symlink(name: &str, to: &str) -> Entry {
    Entry { link: to.into(), ..special(name, EntryType::Symlink) }
}

pub(crate) fn link(name: &str, to: &str) -> Entry {
    Entry { link: to.into(), ..special(name, EntryType::Link) }
}

/// Writes the header's fields themselves, which the builder would refuse for hostile names.
fn append(tar: &mut tar::Builder<Vec<u8>>, entry: &Entry) {
    let mut header = tar::Header::new_gnu();
    let raw = header.as_gnu_mut().unwrap();
    raw.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
    raw.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
    header.set_entry_type(entry.kind);
    header.set_size(entry.body.len() as u64);
    header.set_mode(entry.mode);
    header.set_mtime(1_000_000);
    header.set_cksum();
    tar.append(&header, &entry.body[..]).unwrap();
}

pub(crate) fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    entries.iter().for_each(|entry| append(&mut tar, entry));
    tar.into_inner().unwrap()
}

/// A file whose name comes in an entry of its own, as GNU tar writes it.
pub(crate) fn gnu_long_name(name: &str, body: &str) -> Vec<u8> {
    let mut long = special("././@LongLink", EntryType::GNULongName);
    long.body = [name.as_bytes(), b"\0"].concat();
    tar_of(&[long, file("cut", body)])
}

/// The same as POSIX writes it.
pub(crate) fn pax_long_name(name: &str, body: &str) -> Vec<u8> {
    let mut header = special("pax", EntryType::XHeader);
    let rest = format!(" path={name}\n");
    let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length).unwrap();
    header.body = format!("{length}{rest}").into_bytes();
    tar_of(&[header, file("cut", body)])
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
}

/// A layer as stored, and the digest of its tar.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) stored: Vec<u8>,
    diff_id: String,
}

pub(crate) fn layer(entries: &[Entry], packing: Packing) -> Layer {
    layer_of(tar_of(entries), packing)
}

pub(crate) fn layer_of(tar: Vec<u8>, packing: Packing) -> Layer {
    let diff_id = digest(&tar);
    let stored = match packing {
        Packing::Plain => tar,
        Packing::Gzip => gzip(&tar),
    };
    Layer { stored, diff_id }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// What an image says of itself.
pub(crate) struct Made {
    pub(crate) architecture: &'static str,
}

impl Default for Made {
    fn default() -> Self {
        Self { architecture: "amd64" }
    }
}

fn config(layers: &[Layer], made: &Made) -> Vec<u8> {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| &*layer.diff_id).collect();
    let value = json!({
        "architecture": made.architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/bin", "EMPTY="], "Entrypoint": ["/bin/tool"], "Cmd": ["--serve"],
            "WorkingDir": "/srv", "User": "1000:1000", "Labels": { "a": "b" },
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [],
    });
    value.to_string().into_bytes()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

/// The files of an OCI layout.
fn oci_files(layers: &[Layer], made: &Made) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut blob = |bytes: &[u8]| {
        files.push((format!("blobs/sha256/{}", &digest(bytes)[7..]), bytes.to_vec()));
    };
    let config = config(layers, made);
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let described: Vec<Value> = layers.iter().map(|layer| descriptor(kind, &layer.stored)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": described,
    });
    let manifest = manifest.to_string().into_bytes();
    layers.iter().for_each(|layer| blob(&layer.stored));
    blob(&config);
    blob(&manifest);
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "test:latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    files
}

pub(crate) fn oci_layout(folder: &Path, layers: &[Layer]) {
    oci_layout_of(folder, layers, &Made::default());
}

pub(crate) fn oci_layout_of(folder: &Path, layers: &[Layer], made: &Made) {
    for (name, bytes) in oci_files(layers, made) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn archive(files: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let entries: Vec<Entry> =
        files.into_iter().map(|(name, body)| Entry { body, ..special(&name, EntryType::Regular) }).collect();
    tar_of(&entries)
}

pub(crate) fn oci_tar(layers: &[Layer]) -> Vec<u8> {
    archive(oci_files(layers, &Made::default()))
}

/// As Docker up to version 24 writes it: a folder for each layer, a configuration named by its digest.
pub(crate) fn docker_save(layers: &[Layer]) -> Vec<u8> {
    let config = config(layers, &Made::default());
    let config_name = format!("{}.json", &digest(&config)[7..]);
    let name = |number: usize| format!("layer{number}/layer.tar");
    let names: Vec<String> = (0..layers.len()).map(name).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": ["test:latest"], "Layers": names }]);
    let mut files: Vec<(String, Vec<u8>)> =
        layers.iter().enumerate().map(|(number, layer)| (name(number), layer.stored.clone())).collect();
    files.push((config_name, config));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    archive(files)
}
