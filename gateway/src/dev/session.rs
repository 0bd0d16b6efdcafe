//! Keeps a gateway's functions equal to the files below a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use novum_proto::gateway::v1;

use super::{discover, print};
use crate::cli::Progress;
use crate::cli::error::Error;
use crate::client::Client;
use crate::manifest::FunctionFile;

/// What is known of one file that defines a function.
#[derive(Default)]
struct Known {
    /// Of the files when they were last looked at; `None` makes the next look deploy them in any case.
    fingerprint: Option<u64>,
    /// The name and version that serve; `None` when it never could be deployed.
    serves: Option<(String, u64)>,
    /// What was last said to be wrong.
    error: Option<String>,
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
            outside.extend(self.look_at(path).await?);
        }
        // A name that one file gave up in this round may be what another waits for.
        for path in &paths {
            self.look_at(path).await?;
        }
        Ok(outside)
    }

    /// Deploys the function if its files have changed. Returns its artifact's directory if that is outside the root.
    async fn look_at(&mut self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let (fingerprint, read) = discover::read_with_fingerprint(path);
        let outside = read.as_ref().ok().and_then(|function| self.directory_outside(function));
        if self.known.get(path).is_some_and(|known| known.fingerprint == Some(fingerprint)) {
            return Ok(outside);
        }
        let before = self.known.get(path).and_then(|known| known.serves.clone());
        let conflict = read.as_ref().ok().and_then(|function| self.namesake(path, function));
        let has_conflict = conflict.is_some();
        let deployed = match (read, conflict) {
            (_, Some(conflict)) => Err(conflict),
            (Ok(function), None) => self.deploy(&function).await,
            (Err(e), None) => Err(e.into()),
        };
        if let Err(e @ Error::Connect { .. }) = deployed {
            return Err(e);
        }
        let renamed = before
            .filter(|(old, _)| deployed.as_ref().ok().and_then(serves).is_some_and(|(new, _)| new != *old));
        if let Some((old, _)) = renamed {
            self.delete(&old).await?;
            print::removed(path, &old);
        }
        let (serves, error) = self.report(path, deployed);
        let fingerprint = (!has_conflict).then_some(fingerprint);
        self.known.insert(path.to_owned(), Known { fingerprint, serves, error });
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

    async fn deploy(&self, function: &FunctionFile) -> Result<v1::DeployResponse, Error> {
        let sent = Arc::new(AtomicU64::new(0));
        let name = function.manifest.name.as_str();
        let _progress = Progress::upload(name, sent.clone(), function.artifact.size_bytes());
        self.client.deploy(function, sent).await
    }

    /// The error where another file's function already serves under this name.
    fn namesake(&self, path: &Path, function: &FunctionFile) -> Option<Error> {
        let name = function.manifest.name.as_str();
        let serves = |known: &Known| known.serves.as_ref().is_some_and(|(served, _)| served == name);
        let (owner, _) = self.known.iter().find(|(other, known)| other.as_path() != path && serves(known))?;
        Some(Error::Usage {
            what: format!("{} is also named {name}", owner.display()),
            advice: "give one of them another `name`".into(),
        })
    }

    /// Prints what happened, unless it was said before; gives what serves now and what is wrong.
    fn report(
        &self,
        path: &Path,
        deployed: Result<v1::DeployResponse, Error>,
    ) -> (Option<(String, u64)>, Option<String>) {
        let known = self.known.get(path);
        let before = known.and_then(|known| known.serves.clone());
        let response = match deployed {
            Ok(response) => response,
            Err(e) => {
                let text = e.to_string();
                if known.and_then(|known| known.error.as_ref()) != Some(&text) {
                    print::refused(path, &e, before.as_ref());
                }
                return (before, Some(text));
            }
        };
        let serves = serves(&response);
        let same_name = before.zip(serves.as_ref()).is_some_and(|((old, _), (new, _))| old == *new);
        print::deployed(path, &response, &self.calls, !same_name);
        (serves, None)
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

/// The name and version that a deploy made current.
fn serves(response: &v1::DeployResponse) -> Option<(String, u64)> {
    let function = response.function.as_ref()?;
    Some((function.manifest.as_ref()?.name.clone(), function.version))
}
