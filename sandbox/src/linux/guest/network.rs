//! A guest's network card: the host's side of it, and what the agent is told to make of the guest's.

use std::net::Ipv4Addr;

use novum_proto::guest::v1;

use crate::linux::net::Net;

/// A card, and who the guest is on it.
#[derive(Clone, Debug)]
pub struct Network {
    /// The card. A guest that is restored has no link until its agent has given the card's address to the guest's kernel.
    pub card: Net,
    /// The guest's address; none where `None`.
    pub address: Option<Address>,
}

/// An IPv4 address with its way into the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Bits that its network has in common; at most 32.
    pub prefix: u8,
    /// Who takes what goes elsewhere.
    pub gateway: Option<Ipv4Addr>,
}

impl Network {
    pub(super) fn message(&self) -> v1::Network {
        let bytes = |ip: Ipv4Addr| ip.octets().to_vec();
        v1::Network {
            mac: self.card.mac().octets().to_vec(),
            address: self.address.map(|address| bytes(address.ip)).unwrap_or_default(),
            prefix: self.address.map_or(0, |address| address.prefix.into()),
            gateway: self.address.and_then(|address| address.gateway).map(bytes).unwrap_or_default(),
        }
    }
}
