//! Which configuration and which layers an image is made of.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::blobs::{Source, no_image};
use crate::digest::Digest;

/// Most layers of one image; overlay file systems end far below.
const MAX_LAYERS: usize = 1000;
/// Indexes that name indexes.
const MAX_DEPTH: usize = 4;
/// Annotations that hold an image's name in an index.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image that was found.
pub(crate) struct Image {
    /// By which name the source knows it.
    pub(crate) name: Option<String>,
    /// The configuration document.
    pub(crate) config: Vec<u8>,
    /// Its digest, which is the image's identity.
    pub(crate) id: Digest,
    /// From the lowest up.
    pub(crate) layers: Vec<Layer>,
}

/// A layer's file.
pub(crate) struct Layer {
    /// Path in the source.
    pub(crate) file: String,
    /// Of the file as it is, where the manifest has it.
    pub(crate) digest: Option<Digest>,
    /// Its length, where the manifest has it.
    pub(crate) size: Option<u64>,
}

/// What an OCI document says of another.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One image in Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image `reference`, or the only one.
pub(crate) fn read(source: &Source, reference: Option<&str>) -> Result<Image, Error> {
    let image = if source.has("oci-layout") {
        oci(source, reference)
    } else if source.has("manifest.json") {
        docker(source, reference)
    } else {
        Err(no_image(source.path(), ""))
    }?;
    match image.layers.len() {
        0 => Err(Error::Image("it has no layers".into())),
        1..=MAX_LAYERS => Ok(image),
        count => Err(Error::Image(format!("it has {count} layers, and {MAX_LAYERS} are possible"))),
    }
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Image(format!("{what}: {error}")))
}

fn oci(source: &Source, reference: Option<&str>) -> Result<Image, Error> {
    let layout: Layout = parse("oci-layout", &source.document("oci-layout")?)?;
    if layout.version.split('.').next() != Some("1") {
        return Err(Error::Unsupported(format!(
            "OCI image layouts of version {} are not read",
            layout.version
        )));
    }
    let index: Index = parse("index.json", &source.document("index.json")?)?;
    let descriptor = choose(&index.manifests, reference)?;
    let name = names(descriptor).next().map(ToOwned::to_owned);
    let manifest = manifest_of(source, descriptor.clone())?;
    let config = blob(source, "the configuration", &manifest.config)?;
    let layers = manifest.layers.into_iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Image { name, config, id: manifest.config.digest, layers })
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    NAME_ANNOTATIONS.iter().filter_map(|key| descriptor.annotations.get(*key)).map(String::as_str)
}

fn choose<'a>(manifests: &'a [Descriptor], reference: Option<&str>) -> Result<&'a Descriptor, Error> {
    let known = || {
        let list: Vec<&str> =
            manifests.iter().map(|descriptor| names(descriptor).next().unwrap_or("(no name)")).collect();
        // Quoted: the names are the image's maker's.
        format!("{list:?}")
    };
    match reference {
        Some(wanted) => manifests
            .iter()
            .find(|descriptor| {
                names(descriptor).any(|name| name == wanted) || descriptor.digest.to_string() == wanted
            })
            .ok_or_else(|| Error::Choice(format!("there is no image {wanted:?}; there are: {}", known()))),
        None => match runnable(manifests).as_slice() {
            [one] => Ok(one),
            [] => Err(Error::Choice("there is no image for linux/amd64".into())),
            _ => Err(Error::Choice(format!("there are several images; choose one with --ref: {}", known()))),
        },
    }
}

/// Those for our platform, or of an unknown one; not attestations and the like (they have the platform "unknown").
fn runnable(manifests: &[Descriptor]) -> Vec<&Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == "amd64")
    };
    manifests.iter().filter(fits).collect()
}

/// Down from an index to a manifest.
fn manifest_of(source: &Source, mut descriptor: Descriptor) -> Result<Manifest, Error> {
    for _ in 0..MAX_DEPTH {
        let bytes = blob(source, "the manifest", &descriptor)?;
        let kind = descriptor.media_type.as_str();
        if !kind.contains("image.index") && !kind.contains("manifest.list") {
            return parse("the manifest", &bytes);
        }
        let index: Index = parse("the index", &bytes)?;
        descriptor = choose(&index.manifests, None)?.clone();
    }
    Err(Error::Image("its indexes are nested too deeply".into()))
}

fn blob(source: &Source, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let bytes = source.document(&descriptor.digest.blob_path())?;
    if bytes.len() as u64 != descriptor.size {
        let (found, size) = (bytes.len(), descriptor.size);
        return Err(Error::Image(format!("{what} has {found} bytes where {size} were announced")));
    }
    descriptor.digest.check(what, &bytes)?;
    Ok(bytes)
}

fn layer(descriptor: Descriptor) -> Result<Layer, Error> {
    let kind = descriptor.media_type;
    if kind.contains("foreign") || kind.contains("nondistributable") {
        return Err(Error::Unsupported(format!("a layer of the kind {kind} is not in the image itself")));
    }
    let file = descriptor.digest.blob_path();
    Ok(Layer { file, digest: Some(descriptor.digest), size: Some(descriptor.size) })
}

fn docker(source: &Source, reference: Option<&str>) -> Result<Image, Error> {
    let images: Vec<DockerImage> = parse("manifest.json", &source.document("manifest.json")?)?;
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let known = || format!("{:?}", images.iter().flat_map(tags).collect::<Vec<_>>());
    let image = match reference {
        Some(wanted) => images.iter().find(|image| tags(image).iter().any(|tag| tag == wanted)),
        None if images.len() > 1 => {
            let text = format!("there are several images; choose one with --ref: {}", known());
            return Err(Error::Choice(text));
        }
        None => images.first(),
    };
    let image =
        image.ok_or_else(|| Error::Choice(format!("there is no such image; there are: {}", known())))?;
    let config = source.document(&image.config)?;
    let id = Digest::of(&config);
    // Docker names the configuration by its digest.
    let named = image.config.trim_start_matches("blobs/sha256/").trim_end_matches(".json");
    if let Ok(named) = Digest::try_from(format!("sha256:{named}")) {
        named.check("the configuration", &config)?;
    }
    let layers = image.layers.iter().map(|file| Layer { file: file.clone(), digest: None, size: None });
    Ok(Image { name: tags(image).into_iter().next(), config, id, layers: layers.collect() })
}
