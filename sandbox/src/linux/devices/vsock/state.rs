//! The streams as a section of a snapshot: what each has in flight, and the credit of both sides. The host's ends are not
//! in it: whoever restores the guest takes over the streams that it knows ([`Vsock::take_over`]), and the rest are reset
//! when the device goes on.
//!
//! [`Vsock::take_over`]: super::Vsock::take_over

use std::collections::HashSet;

use novum_snapshot::{Snapshot, State, Writer};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::hub::{FIRST_OWN_PORT, Hub, Key, MOST_CONNECTIONS, MOST_REFUSALS};
use crate::linux::virtio::StateError;
use crate::linux::virtio::state::{put, take};

/// All streams of a guest.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Streams {
    /// The address that the guest's kernel uses.
    spoken_cid: u64,
    next_port: u32,
    refusals: Vec<Key>,
    connections: Vec<(Key, Connection)>,
}

impl State for Streams {
    const KIND: &'static str = "virtio-vsock";
    const VERSION: u32 = 1;
}

pub(super) fn save(hub: &Hub, owner: &str, to: &mut Writer) -> Result<(), StateError> {
    let mut connections: Vec<_> =
        hub.entries.iter().map(|(key, entry)| (*key, entry.connection.clone())).collect();
    connections.sort_unstable_by_key(|(key, _)| *key);
    let streams = Streams {
        spoken_cid: hub.spoken_cid,
        next_port: hub.next_port,
        refusals: hub.refusals.iter().copied().collect(),
        connections,
    };
    put(to, owner, &streams)
}

/// `hub` has its listeners and no streams yet.
pub(super) fn restore(hub: &mut Hub, owner: &str, from: &Snapshot) -> Result<(), StateError> {
    let streams: Streams = take(from, owner)?;
    check(&streams).map_err(|reason| StateError::refused(owner, reason))?;
    hub.spoken_cid = streams.spoken_cid;
    hub.next_port = streams.next_port;
    hub.refusals = streams.refusals.into();
    for (key, connection) in streams.connections {
        hub.insert(key, connection);
        if let Some(entry) = hub.entries.get_mut(&key) {
            // What the host had let go of ends by itself.
            entry.unclaimed = !entry.connection.orphan;
        }
    }
    Ok(())
}

/// Nothing that a guest could not have brought about.
fn check(streams: &Streams) -> Result<(), String> {
    let Streams { next_port, refusals, connections, .. } = streams;
    let mut keys = HashSet::new();
    if connections.len() > MOST_CONNECTIONS || refusals.len() > MOST_REFUSALS {
        return Err(format!("{} streams and {} refusals are too many", connections.len(), refusals.len()));
    }
    if *next_port < FIRST_OWN_PORT {
        return Err(format!("port {next_port} is none of the host's own"));
    }
    match connections.iter().find(|(key, connection)| !keys.insert(key) || !connection.is_bounded()) {
        Some((key, _)) => Err(format!("{key:?} is there twice, or with more bytes than a stream may have")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
