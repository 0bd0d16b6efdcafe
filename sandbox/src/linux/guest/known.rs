//! What the kernel of a saved guest knows of the host's files: it may have their pages and attributes in its memory.

use std::sync::Arc;

use novum_snapshot::Snapshot;

use super::{BootError, Directory, GUEST_CID, Root, devices};
use crate::linux::Device;
use crate::linux::devices::p9;
use crate::linux::snapshot::{SnapshotError, device_owner};
use crate::linux::vsock::Vsock;
use crate::share::{Access, Share};

/// What is known of one shared directory.
#[derive(Debug)]
pub(crate) struct Known {
    /// The device's place among the machine's.
    pub(crate) device: u32,
    /// The directory.
    pub(crate) share: Arc<Share>,
    /// The guest cannot change it.
    pub(crate) read_only: bool,
    /// Paths in it, sorted.
    pub(crate) paths: Vec<Vec<u8>>,
}

/// Of the guest in `snapshot`, whose root and directories these are.
pub(crate) fn known(
    snapshot: &Snapshot,
    root: &Root,
    directories: &[Directory],
) -> Result<Vec<Known>, BootError> {
    let host = |source| BootError::Host { doing: "making a vsock device", source };
    let (devices, ..) = devices(root, directories, None, Vsock::new(GUEST_CID).map_err(host)?)?;
    let mut known = Vec::new();
    for (device, made) in (0u32..).zip(devices) {
        let Device::P9 { share, .. } = made else { continue };
        let paths = p9::known_paths(&device_owner(device as usize), snapshot).map_err(SnapshotError::from)?;
        let read_only = share.access() == Access::ReadOnly;
        known.push(Known { device, share, read_only, paths });
    }
    Ok(known)
}
