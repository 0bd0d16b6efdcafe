//! Keeps a gateway's functions equal to the files below a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use novum_proto::gateway::v1;

use super::{discover, print};
use crate::cli::error::Error;
use crate::client::Client;
use crate::manifest::FunctionFile;

/// What is known of one file that defines a function.
struct Known {
    fingerprint: u64,
    /// The name and version that serve; `None` when it never could be deployed.
    serves: Option<(String, u64)>,
}

/// The functions below a directory, and what of them is deployed.
pub struct Session {
    root: PathBuf,
    client: Client,
    calls: print::Calls,
    known: BTreeMap<PathBuf, Known>,
}

impl Session {
    /// Of a directory, for a gateway.
    #[must_use]
    pub fn new(root: PathBuf, client: Client, calls: print::Calls) -> Self {
        Self { root, client, calls, known: BTreeMap::new() }
    }

    /// Deletes what a former session deployed and whose files are gone by now.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn forget_others(&self) -> Result<(), Error> {
        let found: BTreeSet<_> = discover::find(&self.root)
            .iter()
            .filter_map(|p| discover::read(p).ok())
            .map(|f| f.manifest.name.to_string())
            .collect();
        for function in crate::cli::all_functions(&self.client).await? {
            let name = function.manifest.map(|m| m.name).unwrap_or_default();
            if !found.contains(&name) {
                self.delete(&name).await?;
            }
        }
        Ok(())
    }

    /// Deploys what is new or changed and deletes what is gone. A function that cannot be deployed is reported and
    /// keeps its last good version. Returns the directories outside the root that hold artifacts.
    ///
    /// # Errors
    /// A gateway that does not answer.
    pub async fn sync(&mut self) -> Result<BTreeSet<PathBuf>, Error> {
        let paths = discover::find(&self.root);
        let gone: Vec<_> = self.known.keys().filter(|path| !paths.contains(path)).cloned().collect();
        for path in gone {
            self.remove(&path).await?;
        }
        let mut outside = BTreeSet::new();
        for path in &paths {
            let read = discover::read(path);
            if let Ok(function) = &read {
                outside.extend(self.directory_outside(function));
            }
            let fingerprint = discover::fingerprint(path, read.as_ref().ok());
            if self.known.get(path).is_some_and(|known| known.fingerprint == fingerprint) {
                continue;
            }
            let deployed = match read {
                Ok(function) => self.deploy(path, &function).await,
                Err(e) => Err(e.into()),
            };
            if let Err(e @ Error::Connect { .. }) = deployed {
                return Err(e);
            }
            let serves = self.report(path, deployed);
            self.known.insert(path.clone(), Known { fingerprint, serves });
        }
        Ok(outside)
    }

    /// How many functions serve.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.known.values().filter(|known| known.serves.is_some()).count()
    }

    fn directory_outside(&self, function: &FunctionFile) -> Option<PathBuf> {
        let directory = function.artifact.path().parent()?.canonicalize().ok()?;
        let root = self.root.canonicalize().ok()?;
        (!directory.starts_with(root)).then_some(directory)
    }

    async fn deploy(&mut self, path: &Path, function: &FunctionFile) -> Result<v1::DeployResponse, Error> {
        let name = function.manifest.name.as_str();
        let owner =
            self.known.iter().find(|(_, known)| known.serves.as_ref().is_some_and(|(n, _)| n == name));
        if let Some((owner, _)) = owner.filter(|(owner, _)| owner.as_path() != path) {
            return Err(Error::Usage {
                what: format!("{} is also named {name}", owner.display()),
                advice: "give one of them another `name`".into(),
            });
        }
        self.client.deploy(function, Arc::default()).await
    }

    /// Prints what happened; gives what serves now.
    fn report(&self, path: &Path, deployed: Result<v1::DeployResponse, Error>) -> Option<(String, u64)> {
        let before = self.known.get(path).and_then(|known| known.serves.clone());
        match deployed {
            Ok(response) => {
                let serves = response
                    .function
                    .as_ref()
                    .map(|f| (f.manifest.as_ref().map(|m| m.name.clone()).unwrap_or_default(), f.version));
                print::deployed(path, &response, &self.calls, before.is_none());
                serves
            }
            Err(e) => {
                print::refused(path, &e, before.as_ref());
                before
            }
        }
    }

    async fn remove(&mut self, path: &Path) -> Result<(), Error> {
        if let Some(Known { serves: Some((name, _)), .. }) = self.known.remove(path) {
            self.delete(&name).await?;
            print::removed(path, &name);
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        let request = v1::DeleteRequest { name: name.to_owned() };
        match self.client.functions().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(Error::status(format!("delete {name}"))(status)),
        }
    }
}
