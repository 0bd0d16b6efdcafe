//! What an image wants to run, and how.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::digest::Digest;
use crate::manifest::Image;

/// Kept beside the unpacked root, for those who start a command in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// By which name the source knew it.
    pub reference: Option<String>,
    /// The image's identity: the digest of its configuration, `sha256:<hex>`.
    pub id: String,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Begins the command line.
    pub entrypoint: Vec<String>,
    /// Ends it, unless the user gives something else.
    pub cmd: Vec<String>,
    /// Where the command starts.
    pub workdir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`, names as in the image's own /etc/passwd; empty means root.
    pub user: String,
}

impl ImageConfig {
    /// The command line: the entry point, then `arguments`, or the image's own where there are none.
    #[must_use]
    pub fn command(&self, arguments: &[String]) -> Vec<String> {
        let rest = if arguments.is_empty() { &self.cmd } else { arguments };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }
}

/// The part of the OCI configuration document that is used.
#[derive(Deserialize)]
struct Document {
    architecture: String,
    os: String,
    config: Option<Run>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

fn document(image: &Image) -> Result<Document, Error> {
    serde_json::from_slice(&image.config).map_err(|error| Error::Image(format!("the configuration: {error}")))
}

/// The digests of the uncompressed layers.
pub(crate) fn diff_ids(image: &Image) -> Result<Vec<Digest>, Error> {
    Ok(document(image)?.rootfs.diff_ids)
}

/// Reads and checks the configuration.
pub(crate) fn read(image: &Image) -> Result<ImageConfig, Error> {
    let document = document(image)?;
    if (document.os.as_str(), document.architecture.as_str()) != ("linux", "amd64") {
        let (os, architecture) = (document.os, document.architecture);
        return Err(Error::Unsupported(format!(
            "the image is for {os}/{architecture}, guests are linux/amd64"
        )));
    }
    let run = document.config.unwrap_or_default();
    let workdir = run.working_dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| "/".to_owned());
    let config = ImageConfig {
        reference: image.name.clone(),
        id: image.id.to_string(),
        env: run.env.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        workdir,
        user: run.user.unwrap_or_default(),
    };
    check(&config)?;
    Ok(config)
}

fn check(config: &ImageConfig) -> Result<(), Error> {
    let words = config.entrypoint.iter().chain(&config.cmd).chain(&config.env);
    let mut all = words.chain([&config.workdir, &config.user]);
    if all.any(|word| word.contains('\0')) {
        return Err(Error::Image("a word of its configuration has a NUL in it".into()));
    }
    if let Some(bad) = config.env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        return Err(Error::Image(format!("{bad:?} in its environment is not NAME=value")));
    }
    if !config.workdir.starts_with('/') {
        return Err(Error::Image(format!("its working directory {:?} is not absolute", config.workdir)));
    }
    Ok(())
}
