//! Fids as a section of a snapshot. 9P gives the offset with each message, so a path, what is open and its locks are all.

use novum_snapshot::{Snapshot, State, Writer};
use serde::{Deserialize, Serialize};

use super::server::{Fid, MAX_FIDS, MAX_MESSAGE, MIN_MESSAGE, Opened, Server};
use super::wire::Decoder;
use crate::linux::devices::files::{Devices, Kept, Locks, is_plain, root};
use crate::linux::virtio::StateError;
use crate::linux::virtio::state::{put, take};
use crate::share::Identity;

/// A client's view of a share.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fids {
    root: Identity,
    message_size: u32,
    /// Number, path, and what is open.
    pub(super) fids: Vec<(u32, Vec<u8>, Option<Kept>)>,
}

impl State for Fids {
    const KIND: &'static str = "virtio-9p";
    const VERSION: u32 = 1;
}

/// Paths of all that the client of the device `owner` knows of the share.
pub(crate) fn known_paths(owner: &str, from: &Snapshot) -> Result<Vec<Vec<u8>>, StateError> {
    let state: Fids = take(from, owner)?;
    let mut paths: Vec<_> = state.fids.into_iter().map(|(_, path, _)| path).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

impl Server {
    pub(super) fn save(&self, owner: &str, to: &mut Writer) -> Result<(), StateError> {
        let root = root(&self.share)
            .map_err(|error| StateError::host(owner, "looking at the share")(error.into()))?;
        let fid = |(number, fid): (&u32, &Fid)| {
            (*number, fid.path.clone(), fid.opened.as_ref().map(|opened| opened.keep(&fid.locks)))
        };
        let mut fids: Vec<_> = self.fids.iter().map(fid).collect();
        fids.sort_unstable_by_key(|(number, ..)| *number);
        put(to, owner, &Fids { root, message_size: self.message_size as u32, fids })
    }

    pub(super) fn restore(&mut self, owner: &str, from: &Snapshot) -> Result<(), StateError> {
        let state: Fids = take(from, owner)?;
        let size = state.message_size as usize;
        if state.fids.len() > MAX_FIDS || !(MIN_MESSAGE..=MAX_MESSAGE).contains(&size) {
            return Err(StateError::refused(owner, "more fids or larger messages than a server has"));
        }
        let devices = Devices::new(&self.share, state.root)
            .map_err(|error| StateError::host(owner, "looking at the share")(error.into()))?;
        self.message_size = size;
        for (number, path, kept) in state.fids {
            if !is_plain(&path) {
                return Err(StateError::refused(owner, format!("the path of fid {number} is none")));
            }
            let locks = match &kept {
                Some(Kept::File { locks, .. }) => locks.clone(),
                _ => Locks::default(),
            };
            let opened = kept.map(|kept| kept.restore(&self.share, devices, Some(&path)));
            if self.fids.insert(number, Fid { path, opened, locks }).is_some() {
                return Err(StateError::refused(owner, format!("fid {number} is there twice")));
            }
        }
        Ok(())
    }

    /// Opens what a restored client uses for the first time. A message about something open begins with its fid.
    pub(super) fn wake(&mut self, message: &Decoder<'_>) {
        let Ok(number) = Decoder(message.0).u32() else { return };
        let Some(fid) = self.fids.get_mut(&number) else { return };
        if let Some(Opened::Asleep(_)) = fid.opened
            && let Some(Opened::Asleep(kept)) = fid.opened.take()
        {
            fid.opened = Some(kept.open(&self.share, Some(&fid.path)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::virtio::testing::golden;

    #[test]
    fn fids_are_written_as_they_always_were() {
        let fids = vec![
            (1, Vec::new(), None),
            (2, b"a/b".to_vec(), Some(Kept::example())),
            (3, b"c".to_vec(), Some(Kept::Lost)),
        ];
        golden(
            &Fids { root: Identity { dev: 7, ino: 8 }, message_size: 4096, fids },
            "virtio-9p 1 07088020030100000203612f6201000201020604010a0c010301630102",
        );
    }
}
